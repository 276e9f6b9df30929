"""The fleet over a real HTTP server: releases arrive ring by ring, and attacks do not."""

import datetime as dt
import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_bundles import Site, public
from training.fleet import Fleet
from triage.app import pull as pull_in
from triage.bundles import as_pem
from triage.config import Config
from triage.errors import BundleError, ConfigError, FleetError
from triage.registry import CHAMPION, Registry
from triage.updates import pull

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class Published:
    """A fleet, its web server, and a site that follows it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.web = folder, url, folder / "web"
        self.fleet = Fleet(self.web, folder / "keys")
        self.root = shutil.copy(self.fleet.create(NOW), folder / "root.json")
        self.maker = Site(folder / "maker")
        self.maker.keys.create()

    def release(self, name: str, ring: int, now: dt.datetime = NOW) -> Path:
        """A bundle that a ring is to have."""
        if name not in {model.version for model in self.maker.registry.versions()}:
            self.maker.made(name)
        bundle = self.maker.export(name)
        self.fleet.publish(bundle, ring, now)
        return bundle

    def pull(self, ring: int = 0, site: str = "site") -> Path | None:
        """What a site gets."""
        return pull(self.url, Path(self.root), ring, self.folder / site)

    def refused(self, ring: int = 0) -> str:
        """The one line of a refusal."""
        with pytest.raises(FleetError) as caught:
            self.pull(ring)
        assert "\n" not in str(caught.value)
        assert self.url in str(caught.value)
        return str(caught.value)


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    """A served repository."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(_Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Published(tmp_path, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_a_release_arrives_once(published: Published) -> None:
    """Bit for bit; then there is nothing new until the next."""
    assert published.pull() is None
    bundle = published.release("net-1", 0)
    got = published.pull()
    assert got is not None
    assert got.read_bytes() == bundle.read_bytes()
    assert published.pull() is None
    second = published.release("net-2", 0)
    got = published.pull()
    assert got is not None
    assert got.read_bytes() == second.read_bytes()


def test_rings_get_it_one_after_the_other(published: Published) -> None:
    """Ring 1 keeps what it has until it is released there as well."""
    published.release("net-1", 1)
    assert published.pull(1, "second") is not None
    bundle = published.release("net-2", 0)
    assert published.pull(0, "first") is not None
    assert published.pull(1, "second") is None
    published.fleet.publish(bundle, 1, NOW)
    got = published.pull(1, "second")
    assert got is not None
    assert got.read_bytes() == bundle.read_bytes()


def test_a_state_that_is_not_renewed_is_refused(published: Published) -> None:
    """The freeze attack: everything is signed, and kept from going on. A refresh mends it."""
    published.release("net-1", 0, NOW - dt.timedelta(days=30))
    line = published.refused()
    assert "is not renewed any more" in line
    assert "timestamp.json is expired" in line
    assert published.fleet.refresh(NOW) == NOW + dt.timedelta(days=7)
    assert published.pull() is not None


def test_an_older_state_is_refused(published: Published, tmp_path: Path) -> None:
    """The rollback attack: what was signed before is served again."""
    published.release("net-1", 0)
    shutil.copytree(published.web, tmp_path / "earlier")
    published.release("net-2", 0)
    assert published.pull() is not None
    shutil.copytree(tmp_path / "earlier", published.web, dirs_exist_ok=True)
    assert "goes back to an older state" in published.refused()


def test_a_foreign_fleet_is_refused(published: Published, tmp_path: Path) -> None:
    """Another's keys, at the same address."""
    published.release("net-1", 0)
    other = Fleet(tmp_path / "other", tmp_path / "other-keys")
    other.create(NOW)
    shutil.copytree(tmp_path / "other", published.web, dirs_exist_ok=True)
    assert "is not signed with the fleet's keys" in published.refused()


def test_a_changed_bundle_is_refused(published: Published) -> None:
    """One bit on the web server."""
    published.release("net-1", 0)
    (served,) = (published.web / "targets").iterdir()
    data = served.read_bytes()
    served.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "not the one that was signed" in published.refused()


def test_changed_metadata_is_refused(published: Published) -> None:
    """A number more, without the key."""
    published.release("net-1", 0)
    path = published.web / "metadata" / "timestamp.json"
    told = json.loads(path.read_text())
    told["signed"]["version"] += 1
    path.write_text(json.dumps(told))
    assert "is not signed with the fleet's keys" in published.refused()
    path.write_text("{")
    assert "is not to be believed" in published.refused()


def test_a_repository_that_is_away_is_one_line(published: Published) -> None:
    """And changes nothing."""
    (published.web / "metadata" / "timestamp.json").unlink()
    assert "cannot be reached" in published.refused()


def test_a_fleet_is_made_once(published: Published, tmp_path: Path) -> None:
    """Keys are for their owner only, and never where the web server is."""
    with pytest.raises(FleetError, match="sites rely on them"):
        published.fleet.create(NOW)
    for key in (tmp_path / "keys").iterdir():
        assert key.stat().st_mode & 0o777 == 0o600
    assert not list(published.web.rglob("*.pem"))


def test_publishing_needs_its_keys(published: Published, tmp_path: Path) -> None:
    """But not the root's, which is in a safe; a refresh needs fewer still."""
    (tmp_path / "keys" / "root.pem").unlink()
    published.release("net-1", 0)
    (tmp_path / "keys" / "targets.pem").unlink()
    published.fleet.refresh(NOW)
    with pytest.raises(FleetError, match=r"targets.pem cannot be read"):
        published.release("net-2", 0)
    assert published.pull() is not None


def test_what_a_site_pulls_becomes_its_challenger(published: Published, tmp_path: Path) -> None:
    """If it trusts who made it; until then it is asked for again."""
    site = Site(tmp_path / "home")
    home = tmp_path / "installation"
    shutil.copytree(site.registry.folder, home / "models")
    config = Config(
        home=home, fleet_url=published.url, fleet_root=Path(published.root), fleet_ring=0
    )
    published.release("net-1", 0)
    with pytest.raises(BundleError, match="not trusted here"):
        pull_in(config, "timer", other_population=False)
    from triage.app import keys

    keys(config).trust("maker", public(published.maker))
    model = pull_in(config, "timer", other_population=False)
    assert model is not None
    assert model.version == "net-1"
    assert Registry(config.models_folder).aliases() == {
        CHAMPION: "champion-1",
        "challenger": "net-1",
    }
    assert pull_in(config, "timer", other_population=False) is None
    with pytest.raises(ConfigError, match="TRIAGE_FLEET_URL"):
        pull_in(Config(home=home), "timer", other_population=False)
    assert as_pem(keys(config).trusted()[0].public).encode() == public(published.maker)
