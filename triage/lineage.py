"""From a report in the PACS back to what a score rests on: version, parents, snapshot, readings.

A report names its model version by its Device UID (TID 1004, ``docs/conformance.md``). The
version's ``model.json`` names its files' hashes, its parent, and the snapshot that it was trained
on; the snapshot's manifest, which stays at the site that took it, names each reading and reader.
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triage.errors import ModelError
from triage.registry import DESCRIPTION, ModelVersion, Registry

MANIFEST = "snapshot.json"
"""Of a snapshot, in a folder that is named after its digest."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A version on the way back.

    Attributes
    ----------
    version, device_uid : str
    described : str
        SHA-256 of its ``model.json``, which holds the hashes of all its other files.
    made : str
        ISO 8601.
    snapshot : str
        The digest of what it was trained on.
    readings : tuple of int
        Their numbers in the worklist; empty if it was not trained on readings, or the manifest is
        not here.
    readers : tuple of str
    parts : dict of str to int
        Cases by part of the snapshot.
    note : str
        Why there are no readings, if there are none.
    """

    version: str
    device_uid: str
    described: str
    made: str
    snapshot: str
    readings: tuple[int, ...]
    readers: tuple[str, ...]
    parts: dict[str, int]
    note: str

    def as_json(self) -> dict[str, Any]:
        """A mapping of JSON values."""
        return asdict(self)


def of_device(models: Registry, uid: str) -> ModelVersion | None:
    """The version with a Device UID; None if there is none here."""
    return next(
        (model for model in models.versions() if model.description.get("device_uid") == uid), None
    )


def lineage(models: Registry, snapshots: Path, version: str) -> list[Ancestor]:
    """A version and those that it descends from, the youngest first.

    Parameters
    ----------
    models : Registry
    snapshots : Path
        Folder of the manifests.
    version : str

    Raises
    ------
    ModelError
        The version is not here or damaged, or a manifest was changed.
    """
    found: list[Ancestor] = []
    name: str | None = version
    while name is not None and name not in {each.version for each in found}:
        if found and not models.has(name):
            # Its line goes on at the site that it came from.
            found.append(Ancestor(name, "", "", "", "", (), (), {}, "not in this registry"))
            break
        model = models.version(name)
        found.append(_ancestor(model, snapshots))
        parent = model.description.get("parent")
        name = None if parent is None else str(parent)
    return found


def _ancestor(model: ModelVersion, snapshots: Path) -> Ancestor:
    told = model.description
    data = told.get("data", {})
    snapshot = str(data.get("snapshot", ""))
    readings: tuple[int, ...] = ()
    readers: tuple[str, ...] = ()
    parts: dict[str, int] = {}
    if "readings" not in data:
        note = f"trained on {data.get('name', 'data that are not stated')}"
    else:
        manifest = snapshots / snapshot.removeprefix("sha256:") / MANIFEST
        cases = _cases(manifest, snapshot)
        note = f"{manifest} is not here: it stays where it was taken" if cases is None else ""
        if cases is not None:
            readings = tuple(sorted(number for case in cases for number in case["readings"]))
            readers = tuple(sorted({reader for case in cases for reader in case["readers"]}))
            parts = dict(Counter(str(case["part"]) for case in cases))
    return Ancestor(
        model.version,
        str(told.get("device_uid", "")),
        hashlib.sha256((model.folder / DESCRIPTION).read_bytes()).hexdigest(),
        str(told["created_at"]),
        snapshot,
        readings,
        readers,
        parts,
        note,
    )


def _cases(manifest: Path, digest: str) -> list[dict[str, Any]] | None:
    try:
        content = json.loads(manifest.read_text("utf-8"))
        cases = [dict(case) for case in content["cases"]]
        if content["digest"] != digest:
            raise ValueError("another snapshot's")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ModelError(
            f"{manifest} is not the snapshot {digest[:19]} ({type(error).__name__}): restore it "
            "from a backup"
        ) from error
    return cases
