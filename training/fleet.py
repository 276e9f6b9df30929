"""Publish model versions to a fleet: a TUF repository, as files for any web server.

Four keys sign it (The Update Framework 1.0, roles): *root* names the other keys and belongs in
a safe; *targets* says which bundle a ring is to have, and is needed to publish; *snapshot* and
*timestamp* say that this is the newest state, and are needed every few days. Sites refuse a
state that is not renewed in time, so that nobody can keep them on an old version unnoticed.
"""

import datetime as dt
import shutil
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from triage.durable import make_folder
from triage.errors import FleetError
from triage.updates import METADATA, TARGETS, target

LIVES: Mapping[str, dt.timedelta] = {
    Root.type: dt.timedelta(days=3 * 365),
    Targets.type: dt.timedelta(days=365),
    Snapshot.type: dt.timedelta(days=7),
    Timestamp.type: dt.timedelta(days=7),
}
"""So long sites believe each role's word; ``refresh`` renews the last two."""


class Fleet:
    """A repository and the keys that sign it.

    Parameters
    ----------
    folder : Path
        What the web server serves: ``metadata`` and ``targets``.
    keys : Path
        ``root.pem``, ``targets.pem``, ``snapshot.pem``, ``timestamp.pem`` (PKCS #8). Only those
        that a command needs must be there. Never on the web server.
    """

    def __init__(self, folder: Path, keys: Path) -> None:
        self._metadata, self._targets, self._keys = folder / METADATA, folder / TARGETS, keys

    def create(self, now: dt.datetime) -> Path:
        """Make keys and an empty repository; the ``root.json`` that sites are handed.

        Raises
        ------
        FleetError
            There is one already.
        """
        if self._metadata.exists() or any(self._keys.glob("*.pem")):
            raise FleetError(
                f"there is a fleet in {self._metadata.parent} or keys are in {self._keys}: sites "
                "rely on them; choose other folders"
            )
        for folder in (self._keys, self._metadata, self._targets):
            make_folder(folder)
        # The web server runs as another user.
        for folder in (self._metadata.parent, self._metadata, self._targets):
            folder.chmod(0o755)
        root = Root(expires=now + LIVES[Root.type], consistent_snapshot=True)
        for role in LIVES:
            path = self._keys / f"{role}.pem"
            path.touch(0o600, exist_ok=False)
            path.write_bytes(
                Ed25519PrivateKey.generate().private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
            root.add_key(self._signer(role).public_key, role)
        self._write(Root.type, Metadata(root))
        self._write(Targets.type, Metadata(Targets(expires=now + LIVES[Targets.type])))
        meta = {"targets.json": MetaFile(1)}
        self._write(
            Snapshot.type, Metadata(Snapshot(expires=now + LIVES[Snapshot.type], meta=meta))
        )
        self._write(
            Timestamp.type,
            Metadata(Timestamp(expires=now + LIVES[Timestamp.type], snapshot_meta=MetaFile(1))),
        )
        return self._metadata / "1.root.json"

    def publish(self, bundle: Path, ring: int, now: dt.datetime) -> None:
        """Release a bundle to a ring. Other rings keep what they have.

        Parameters
        ----------
        bundle : Path
            As ``triage models export`` wrote it.
        ring : int
            0 to 9; 0 first.
        now : datetime
            Aware, UTC.

        Raises
        ------
        FleetError
            The repository, a key or the bundle cannot be read.
        """
        targets: Metadata[Targets] = self._read(Targets.type)
        try:
            info = TargetFile.from_file(target(ring), str(bundle))
            name = f"{info.hashes['sha256']}.{info.path}"
            shutil.copyfile(bundle, self._targets / f".{name}")
            (self._targets / f".{name}").chmod(0o644)
            (self._targets / f".{name}").replace(self._targets / name)
        except OSError as error:
            raise FleetError(f"{bundle} cannot be published: {error.strerror}") from error
        targets.signed.targets[info.path] = info
        targets.signed.version += 1
        targets.signed.expires = now + LIVES[Targets.type]
        self._write(Targets.type, targets)
        self._renew(now, targets.signed.version)

    def refresh(self, now: dt.datetime) -> dt.datetime:
        """Say that this is still the newest state; until when that is believed.

        Raises
        ------
        FleetError
            The repository or a key cannot be read.
        """
        targets: Metadata[Targets] = self._read(Targets.type)
        self._renew(now, targets.signed.version)
        return now + min(LIVES.values())

    def _renew(self, now: dt.datetime, targets_version: int) -> None:
        snapshot: Metadata[Snapshot] = self._read(Snapshot.type)
        snapshot.signed.meta["targets.json"] = MetaFile(targets_version)
        snapshot.signed.version += 1
        snapshot.signed.expires = now + LIVES[Snapshot.type]
        self._write(Snapshot.type, snapshot)
        timestamp: Metadata[Timestamp] = self._read(Timestamp.type)
        timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
        timestamp.signed.version += 1
        timestamp.signed.expires = now + LIVES[Timestamp.type]
        self._write(Timestamp.type, timestamp)

    def _signer(self, role: str) -> CryptoSigner:
        path = self._keys / f"{role}.pem"
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise FleetError(
                f"the key {path} cannot be read ({type(error).__name__}): name its folder with "
                "--keys"
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise FleetError(f"{path} is no Ed25519 key")
        return CryptoSigner(key)

    def _read(self, role: str) -> "Metadata":  # type: ignore[type-arg]
        pattern = "timestamp.json" if role == Timestamp.type else f"*.{role}.json"
        found = sorted(self._metadata.glob(pattern), key=lambda path: _number(path.name))
        try:
            return Metadata.from_file(str(found[-1]))
        except (IndexError, OSError, RepositoryError) as error:
            raise FleetError(
                f"{self._metadata} holds no readable {role}.json: make a fleet with `python -m "
                "training fleet init`"
            ) from error

    def _write(self, role: str, metadata: "Metadata") -> None:  # type: ignore[type-arg]
        metadata.sign(self._signer(role))
        version = metadata.signed.version
        name = f"{role}.json" if role == Timestamp.type else f"{version}.{role}.json"
        # Written aside and moved: a site may be asking for it now.
        aside = self._metadata / f".{name}"
        metadata.to_file(str(aside))
        aside.chmod(0o644)
        aside.replace(self._metadata / name)


def _number(name: str) -> int:
    head = name.split(".", maxsplit=1)[0]
    return int(head) if head.isdigit() else 0
