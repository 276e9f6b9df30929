"""Model versions on the way to another site: one signed file, and what it takes to believe it.

A bundle is, in this order: the line ``cxr-triage bundle 1``; the signer's Ed25519 public key
(32 bytes, RFC 8032); the signature (64 bytes); the manifest's length (4 bytes, big-endian); the
manifest, JSON with the name, size and SHA-256 of each file; the files' contents, one after the
other. The signature covers the first line, the length and the manifest, which covers the rest,
so that no bit is without a guard. There are no paths, no links and no compression to be abused,
and nothing is unpacked before the signature of a trusted key was verified.
"""

import contextlib
import datetime as dt
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from triage.admission import Population
from triage.durable import make_folder, sync
from triage.errors import BundleError, ModelError
from triage.pixels import fingerprint
from triage.registry import CHALLENGER, CHAMPION, DESCRIPTION, ModelVersion, Registry

FORMAT = 1
"""The version of the container and its manifest that this program writes and reads."""

MAX_MANIFEST = 1_000_000
MAX_FILES = 32
MAX_BYTES = 1_000_000_000
"""Of all files together; the bundled version has 3 million."""

_LINE = b"cxr-triage bundle "
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\.(json|xml|bin|h5|npz)")
_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """Whose bundles are believed.

    Attributes
    ----------
    name : str
        As the administrator calls it.
    identifier : str
        The first 16 hexadecimal digits of the public key's SHA-256.
    """

    name: str
    identifier: str
    public: Ed25519PublicKey


class Keys:
    """An installation's signing key, and the public keys that it trusts.

    Parameters
    ----------
    folder : Path
        ``signing.pem`` (PKCS #8) and ``trusted/NAME.pub`` (SubjectPublicKeyInfo), both PEM.
    """

    def __init__(self, folder: Path) -> None:
        self._private, self._trusted = folder / "signing.pem", folder / "trusted"

    def create(self) -> str:
        """Make the signing key; its public key as PEM.

        Raises
        ------
        BundleError
            There is one, which bundles at other sites rely on.
        """
        make_folder(self._private.parent)
        key = Ed25519PrivateKey.generate()
        content = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            descriptor = os.open(self._private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise BundleError(
                f"{self._private} is there: other sites trust it; move it away to make another"
            ) from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        sync(self._private)
        return as_pem(key.public_key())

    def signing(self) -> Ed25519PrivateKey:
        """The key that bundles are signed with.

        Raises
        ------
        BundleError
            There is none, or it is not one.
        """
        try:
            key = serialization.load_pem_private_key(self._private.read_bytes(), None)
        except FileNotFoundError:
            raise BundleError(
                f"there is no key {self._private} to sign with: `triage models keys new`"
            ) from None
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise BundleError(f"{self._private} is no key ({type(error).__name__})") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise BundleError(f"{self._private} is no Ed25519 key: `triage models keys new`")
        return key

    def trust(self, name: str, pem: bytes) -> TrustedKey:
        """Believe bundles that are signed with a key from now on.

        Raises
        ------
        BundleError
            The name is taken or no name, or the key is no public Ed25519 key.
        """
        if not _KEY_NAME.fullmatch(name):
            raise BundleError(f"{name!r} is no name for a key: use letters, digits, . _ and -")
        public = _public(pem, "the file")
        path = self._trusted / f"{name}.pub"
        make_folder(self._trusted)
        try:
            with path.open("x", encoding="ascii") as file:
                file.write(as_pem(public))
        except FileExistsError:
            raise BundleError(
                f"a key is trusted as {name} already: `triage models keys distrust {name}` first"
            ) from None
        sync(path)
        return TrustedKey(name, identifier(public), public)

    def distrust(self, name: str) -> None:
        """Believe a key no longer; versions that it brought stay.

        Raises
        ------
        BundleError
            No key is trusted under that name.
        """
        if name not in {key.name for key in self.trusted()}:
            raise BundleError(f"no key is trusted as {name}: `triage models keys list`")
        (self._trusted / f"{name}.pub").unlink()

    def trusted(self) -> list[TrustedKey]:
        """All trusted keys, by name."""
        found = []
        for path in sorted(self._trusted.glob("*.pub")):
            public = _public(path.read_bytes(), str(path))
            found.append(TrustedKey(path.stem, identifier(public), public))
        return found


def identifier(key: Ed25519PublicKey) -> str:
    """A short name of a public key, to be compared by people on the telephone."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def export(registry: Registry, version: str, to: Path, keys: Keys, by: str) -> str:
    """Write a version as a bundle; its manifest's SHA-256.

    Parameters
    ----------
    registry : Registry
    version : str
    to : Path
        Replaced if it is there.
    keys : Keys
    by : str
        Who exports, as told to those who import: an organization's name, or nothing.

    Raises
    ------
    BundleError
        There is no key to sign with, or the file cannot be written.
    ModelError
        The version is not there, or damaged.
    """
    key = keys.signing()
    model = registry.version(version)
    names = (DESCRIPTION, *model.description["files"])
    contents = {name: (model.folder / name).read_bytes() for name in names}
    manifest = json.dumps(
        {
            "exported_at": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            "exported_by": by,
            "version": version,
            "files": [
                {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for name, data in contents.items()
            ],
        },
        sort_keys=True,
    ).encode("utf-8")
    line, length = _LINE + f"{FORMAT}\n".encode("ascii"), len(manifest).to_bytes(4, "big")
    signature = key.sign(line + length + manifest)
    parts = [line, key.public_key().public_bytes_raw(), signature, length, manifest]
    try:
        with tempfile.NamedTemporaryFile(dir=to.parent, prefix=".bundle-", delete=False) as file:
            file.writelines([*parts, *contents.values()])
        Path(file.name).chmod(0o644)
        Path(file.name).replace(to)
    except OSError as error:
        raise BundleError(f"{to} cannot be written: {error.strerror}") from error
    return hashlib.sha256(manifest).hexdigest()


def enter(
    registry: Registry, bundle: Path, keys: Keys, who: str, *, other_population: bool = False
) -> ModelVersion:
    """Verify a bundle and enter its version as the challenger. The gate decides the rest.

    Parameters
    ----------
    registry : Registry
    bundle : Path
    keys : Keys
    who : str
        For the history.
    other_population : bool
        Take it though it was made for others than the champion.

    Raises
    ------
    BundleError
        It is no bundle, of another format, signed by nobody we trust, changed, older than one
        that was imported, or made for other arrays or people. Nothing is entered then.
    ModelError
        The registry cannot be read or written.
    """
    try:
        with bundle.open("rb") as file:
            manifest, key = _opened(file, keys, bundle)
            _not_older(registry, manifest, key, bundle)
            make_folder(registry.folder)
            with tempfile.TemporaryDirectory(
                dir=registry.folder, prefix=".bundle-", ignore_cleanup_errors=True
            ) as temporary:
                _unpack(file, manifest, Path(temporary), bundle)
                model = _fitting(Path(temporary), registry, bundle, other=other_population)
                registry.add(model.folder)
    except OSError as error:
        raise BundleError(f"{bundle} cannot be read: {error.strerror}") from error
    registry.note(
        who,
        "IMPORTED",
        {
            "version": model.version,
            "key": key.identifier,
            "key_name": key.name,
            "exported_at": manifest["exported_at"],
            "exported_by": manifest["exported_by"],
        },
    )
    registry.name(CHALLENGER, model.version, who=who, why=f"imported, signed by {key.name}")
    return registry.version(model.version)


def _opened(file: IO[bytes], keys: Keys, bundle: Path) -> tuple[dict[str, Any], TrustedKey]:
    """The manifest, and who is sure to have signed it."""
    line = file.readline(len(_LINE) + 8)
    if not line.startswith(_LINE) or not line.endswith(b"\n"):
        raise BundleError(f"{bundle} is no bundle of model versions")
    told = line[len(_LINE) : -1].decode("ascii", "replace")
    if told != str(FORMAT):
        raise BundleError(
            f"{bundle} has format {told!r}, this program reads {FORMAT}: have it exported anew by "
            "a program of this version"
        )
    raw, signature, length = file.read(32), file.read(64), file.read(4)
    size = int.from_bytes(length, "big")
    if len(length) < 4 or size > MAX_MANIFEST:
        raise BundleError(f"{bundle} is cut off or changed: its manifest cannot be that long")
    signed_by = hashlib.sha256(raw).hexdigest()[:16]
    known = [key for key in keys.trusted() if key.public.public_bytes_raw() == raw]
    if not known:
        raise BundleError(
            f"{bundle} is signed with the key {signed_by}, which is not trusted here: if you know "
            "whose it is, `triage models keys trust NAME FILE`"
        )
    content = file.read(size)
    try:
        known[0].public.verify(signature, line + length + content)
    except InvalidSignature:
        raise BundleError(
            f"{bundle} was changed after it was signed: its signature does not fit; get it again"
        ) from None
    try:
        manifest = json.loads(content)
        dt.datetime.fromisoformat(manifest["exported_at"])
        files = manifest["files"]
        names = [_name(entry["name"]) for entry in files]
        sizes = [int(entry["bytes"]) for entry in files]
        str(manifest["version"]), str(manifest["exported_by"])
        if len(set(names)) != len(names) or DESCRIPTION not in names:
            raise ValueError("its files are named wrong")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{bundle} has a bad manifest ({error}), though {known[0].name} signed it"
        ) from error
    if len(files) > MAX_FILES or min(sizes) < 0 or sum(sizes) > MAX_BYTES:
        raise BundleError(
            f"{bundle} holds {len(files)} files of {sum(sizes)} bytes: at most {MAX_FILES} of "
            f"{MAX_BYTES} are taken"
        )
    return manifest, known[0]


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a model's file")
    return name


def _not_older(
    registry: Registry, manifest: Mapping[str, Any], key: TrustedKey, bundle: Path
) -> None:
    """Refuse to be led back to what this signer has replaced since."""
    exported = dt.datetime.fromisoformat(manifest["exported_at"])
    for entry in registry.history():
        if entry.action == "IMPORTED" and entry.detail["key"] == key.identifier:
            newer = str(entry.detail["exported_at"])
            if exported < dt.datetime.fromisoformat(newer):
                raise BundleError(
                    f"{bundle} is an old one: exported {manifest['exported_at']}, and a bundle of "
                    f"{newer} by the same signer is here; to go back on purpose, have the version "
                    "exported anew"
                )


def _unpack(file: IO[bytes], manifest: Mapping[str, Any], to: Path, bundle: Path) -> None:
    for entry in manifest["files"]:
        left, digest = int(entry["bytes"]), hashlib.sha256()
        with (to / entry["name"]).open("xb") as out:
            while left:
                block = file.read(min(left, _BLOCK))
                if not block:
                    raise BundleError(f"{bundle} is cut off in {entry['name']}: get it again")
                left -= len(block)
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != entry["sha256"]:
            raise BundleError(
                f"{bundle} was changed after it was signed: {entry['name']} has another SHA-256; "
                "get it again"
            )
    if file.read(1):
        raise BundleError(f"{bundle} was changed after it was signed: it goes on after its end")


def _fitting(folder: Path, registry: Registry, bundle: Path, *, other: bool) -> ModelVersion:
    """The version in a folder, if it can be a challenger here."""
    try:
        model = ModelVersion.load(folder)
    except ModelError as error:
        raise BundleError(f"{bundle} holds a version that is no good: {error}") from error
    if model.pixel_fingerprint != fingerprint():
        raise BundleError(
            f"{bundle} is for another pixel fingerprint: {model.version} scores arrays of "
            f"{model.pixel_fingerprint}, this program makes {fingerprint()}"
        )
    champion = registry.aliases().get(CHAMPION)
    if champion == model.version:
        raise BundleError(f"{model.version} is the champion already")
    here = None if champion is None else registry.version(champion).population
    differs = _differs(model.population, here)
    if differs and not other:
        raise BundleError(
            f"{bundle} is for another population: {differs}; if that is meant, --other-population"
        )
    return model


def _differs(there: Population, here: Population | None) -> str:
    """Empty, or why a version is for others than the champion."""
    if there.age_years is None or not there.views:
        return "its ages or views are not stated"
    if here is None:
        return ""
    if here.age_years is not None:
        (a, b), (c, d) = there.age_years, here.age_years
        if b < c or d < a:
            return f"ages {a} to {b}, the champion's are {c} to {d}"
    if here.views and not set(there.views) & set(here.views):
        return f"views {', '.join(there.views)}, the champion's are {', '.join(here.views)}"
    return ""


def as_pem(key: Ed25519PublicKey) -> str:
    """A public key as it is handed to other sites."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode("ascii")


def _public(pem: bytes, where: str) -> Ed25519PublicKey:
    key: object = None
    with contextlib.suppress(ValueError, UnsupportedAlgorithm):
        key = serialization.load_pem_public_key(pem)
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"{where} is no public Ed25519 key in PEM")
    return key
