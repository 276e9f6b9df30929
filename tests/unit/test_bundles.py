"""Bundles: what a trusted signer made arrives whole, and nothing else arrives at all."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.unit.test_registry import version
from triage.bundles import Keys, as_pem, enter, export
from triage.errors import BundleError
from triage.pixels import fingerprint
from triage.registry import CHAMPION, DESCRIPTION, Registry

CHILDREN = {"description": "children", "age_years": [1, 5], "views": ["AP", "PA"]}
ADULTS = {"description": "adults", "age_years": [18, 90], "views": ["PA"]}


class Site:
    """A registry with a champion, and keys."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.registry, self.keys = folder, Registry(folder / "m"), Keys(folder / "k")
        self.made("champion-1", **changes)
        self.registry.name(CHAMPION, "champion-1")

    def made(self, name: str, **changes: Any) -> str:
        """A version that was trained here."""
        description = {"pixel_fingerprint": fingerprint(), "population": CHILDREN} | changes
        self.registry.add(version(self.folder / "made" / name, **description))
        return name

    def export(self, name: str) -> Path:
        """A version as a bundle."""
        file = self.folder / f"{name}.bundle"
        export(self.registry, name, file, self.keys, "North Hospital")
        return file


@pytest.fixture
def north(tmp_path: Path) -> Site:
    """A site that exports."""
    site = Site(tmp_path / "north")
    site.keys.create()
    return site


@pytest.fixture
def south(tmp_path: Path, north: Site) -> Site:
    """A site that trusts it."""
    site = Site(tmp_path / "south")
    site.keys.trust("north", public(north))
    return site


def public(site: Site) -> bytes:
    """A site's public key."""
    return as_pem(site.keys.signing().public_key()).encode()


def refused(site: Site, bundle: Path, **options: bool) -> str:
    """The one line of a refusal that changed nothing."""
    before = sorted(site.registry.folder.rglob("*")), site.registry.aliases()
    with pytest.raises(BundleError) as caught:
        enter(site.registry, bundle, site.keys, "operator", **options)
    assert (sorted(site.registry.folder.rglob("*")), site.registry.aliases()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_version_arrives_as_the_challenger(north: Site, south: Site) -> None:
    """Bit for bit; the champion stays; the history says who signed."""
    bundle = north.export(north.made("net-1", threshold=0.25))
    model = enter(south.registry, bundle, south.keys, "operator")
    assert model.description == north.registry.version("net-1").description
    assert south.registry.aliases() == {CHAMPION: "champion-1", "challenger": "net-1"}
    imported = [e for e in south.registry.history() if e.action == "IMPORTED"]
    assert [(e.who, e.detail["key_name"]) for e in imported] == [("operator", "north")]
    assert imported[0].detail["exported_by"] == "North Hospital"


def test_the_same_bundle_may_come_twice(north: Site, south: Site) -> None:
    """It changes nothing."""
    bundle = north.export(north.made("net-1"))
    enter(south.registry, bundle, south.keys, "operator")
    enter(south.registry, bundle, south.keys, "operator")
    assert len(south.registry.versions()) == 2


def test_any_flipped_bit_is_refused(north: Site, south: Site) -> None:
    """Whichever byte it is in."""
    bundle = north.export(north.made("net-1"))
    whole = bundle.read_bytes()
    flipped = bundle.with_name("flipped.bundle")
    for place in range(len(whole)):
        flipped.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        with pytest.raises(BundleError):
            enter(south.registry, flipped, south.keys, "operator")
    assert [model.version for model in south.registry.versions()] == ["champion-1"]
    flipped.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "was changed after it was signed: model" in refused(south, flipped)
    assert not [p for p in south.registry.folder.iterdir() if p.name.startswith(".bundle")]


def test_a_bundle_that_is_cut_off_or_goes_on_is_refused(north: Site, south: Site) -> None:
    """At any length."""
    bundle = north.export(north.made("net-1"))
    whole = bundle.read_bytes()
    for length in range(0, len(whole), 7):
        bundle.write_bytes(whole[:length])
        refused(south, bundle)
    bundle.write_bytes(whole[:-1])
    assert "cut off" in refused(south, bundle)
    bundle.write_bytes(whole + b"\0")
    assert "goes on after its end" in refused(south, bundle)


def test_a_foreign_key_is_refused(north: Site, south: Site, tmp_path: Path) -> None:
    """And one that is trusted no longer; the line says which key."""
    east = Site(tmp_path / "east")
    east.keys.create()
    assert "is not trusted here" in refused(south, east.export(east.made("net-1")))
    bundle = north.export(north.made("net-1"))
    south.keys.distrust("north")
    raw = north.keys.signing().public_key().public_bytes_raw()
    assert hashlib.sha256(raw).hexdigest()[:16] in refused(south, bundle)


def test_an_old_bundle_is_refused(north: Site, south: Site) -> None:
    """One that this signer has replaced; exported anew, it is a decision."""
    old = north.export(north.made("net-1"))
    enter(south.registry, north.export(north.made("net-2")), south.keys, "operator")
    assert "is an old one" in refused(south, old)
    enter(south.registry, north.export("net-1"), south.keys, "operator")
    assert south.registry.aliases()["challenger"] == "net-1"


def test_another_pixel_fingerprint_is_refused(north: Site, south: Site) -> None:
    """The line names both."""
    other = "sha256:" + "0" * 64
    line = refused(south, north.export(north.made("net-1", pixel_fingerprint=other)))
    assert "another pixel fingerprint" in line
    assert other in line
    assert fingerprint() in line


@pytest.mark.parametrize(
    ("population", "said"),
    [
        (ADULTS, "ages 18 to 90, the champion's are 1 to 5"),
        ({**CHILDREN, "views": ["LL"]}, "views LL"),
        ({**CHILDREN, "age_years": None}, "not stated"),
        ({**CHILDREN, "views": []}, "not stated"),
    ],
)
def test_another_population_is_refused_unless_meant(
    north: Site, south: Site, population: dict[str, Any], said: str
) -> None:
    """Children's models score no adults by mistake."""
    bundle = north.export(north.made("net-1", population=population))
    line = refused(south, bundle)
    assert "another population" in line
    assert said in line
    enter(south.registry, bundle, south.keys, "operator", other_population=True)
    assert south.registry.aliases()["challenger"] == "net-1"


def test_the_champion_is_not_its_own_challenger(north: Site, south: Site, tmp_path: Path) -> None:
    """Two sites may have the same one."""
    south.registry.add(
        version(tmp_path / "x" / "net-1", pixel_fingerprint=fingerprint(), population=CHILDREN)
    )
    south.registry.name(CHAMPION, "net-1")
    assert "the champion already" in refused(south, north.export(north.made("net-1")))


def forged(
    site: Site, to: Path, manifest: dict[str, Any], content: bytes = b"", line: bytes = b""
) -> Path:
    """What only a trusted signer could do to us."""
    key: Ed25519PrivateKey = site.keys.signing()
    data = json.dumps(manifest).encode()
    head, length = line or b"cxr-triage bundle 1\n", len(data).to_bytes(4, "big")
    to.write_bytes(
        head + key.public_key().public_bytes_raw() + key.sign(head + length + data)
        + length + data + content
    )  # fmt: skip
    return to


def manifest(**changes: Any) -> dict[str, Any]:
    """A good one, but for the changes."""
    files = [{"name": DESCRIPTION, "bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}]
    told = {"exported_at": "2026-11-23T12:00:00+00:00", "exported_by": "", "version": "x"}
    return {**told, "files": files, **changes}


def file(name: str, size: int = 0) -> dict[str, Any]:
    """A file in a manifest."""
    return {"name": name, "bytes": size, "sha256": hashlib.sha256(b"").hexdigest()}


def many() -> list[dict[str, Any]]:
    """A hundred files."""
    return [file(DESCRIPTION), *(file(f"{number}.bin") for number in range(99))]


MALICE: list[tuple[str, Callable[[], dict[str, Any]], str]] = [
    ("a path upwards", lambda: manifest(files=[file("../evil.json"), file(DESCRIPTION)]), "evil"),
    ("an absolute path", lambda: manifest(files=[file("/tmp/evil.json")]), "name of a model"),
    ("a script", lambda: manifest(files=[file("evil.py"), file(DESCRIPTION)]), "name of a model"),
    ("a hidden file", lambda: manifest(files=[file(".json")]), "name of a model"),
    ("a name twice", lambda: manifest(files=[file(DESCRIPTION)] * 2), "named wrong"),
    ("no description", lambda: manifest(files=[file("model.xml")]), "named wrong"),
    ("a terabyte", lambda: manifest(files=[file(DESCRIPTION, 10**12)]), "at most"),
    ("less than nothing", lambda: manifest(files=[file(DESCRIPTION, -1)]), "at most"),
    ("many files", lambda: manifest(files=many()), "at most"),
    ("no date", lambda: manifest(exported_at="yesterday"), "bad manifest"),
    ("no files", lambda: manifest(files=None), "bad manifest"),
    ("an empty description", manifest, "no good"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "said"), [pytest.param(make, said, id=name) for name, make, said in MALICE]
)
def test_even_a_trusted_signer_cannot_do_harm(
    north: Site, south: Site, tmp_path: Path, make: Callable[[], dict[str, Any]], said: str
) -> None:
    """No path, no size, no kind of file but a model's."""
    assert said in refused(south, forged(north, tmp_path / "forged", make(), b"{}"))


def test_another_format_is_refused(north: Site, south: Site, tmp_path: Path) -> None:
    """An older and a newer one; and what is no bundle at all."""
    for number in (b"0", b"2"):
        line = b"cxr-triage bundle " + number + b"\n"
        told = refused(south, forged(north, tmp_path / "forged", manifest(), b"{}", line))
        assert f"format '{number.decode()}', this program reads 1" in told
    other = tmp_path / "other"
    other.write_bytes(b"PK\3\4")
    assert "is no bundle" in refused(south, other)
    assert "cannot be read" in refused(south, tmp_path / "nowhere")


def test_an_export_needs_a_key(south: Site) -> None:
    """The line names the command that makes one."""
    with pytest.raises(BundleError, match="triage models keys new"):
        south.export("champion-1")


def test_a_signing_key_is_made_once_and_for_its_owner_only(north: Site) -> None:
    """Sites trust it."""
    with pytest.raises(BundleError, match="other sites trust it"):
        north.keys.create()
    assert (north.folder / "k" / "signing.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "pem", "said"),
    [
        ("../x", None, "no name for a key"),
        ("north", None, "already"),
        ("x", b"-----BEGIN PUBLIC KEY-----", "no public Ed25519 key"),
        ("x", b"", "no public Ed25519 key"),
    ],
)
def test_what_is_no_key_is_not_trusted(
    north: Site, south: Site, name: str, pem: bytes | None, said: str
) -> None:
    """Nor a private one, nor another under a name that is taken."""
    with pytest.raises(BundleError, match=said):
        south.keys.trust(name, public(north) if pem is None else pem)
    private = (north.folder / "k" / "signing.pem").read_bytes()
    with pytest.raises(BundleError, match="no public"):
        south.keys.trust("private", private)
    assert [key.name for key in south.keys.trusted()] == ["north"]
