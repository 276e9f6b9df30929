"""How a model version's folder is finished: whole or not at all."""

import datetime as dt
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.dataset import Snapshot
from training.novelty import Arrays
from training.quality import fit_and_measure, fit_quality, material
from triage.errors import DataError
from triage.novelty import NOVELTY
from triage.pixels import fingerprint
from triage.quality import QUALITY
from triage.registry import DESCRIPTION, ModelVersion, file_hash


def seal(folder: Path, names: Sequence[str], description: Mapping[str, Any]) -> dict[str, Any]:
    """Name a version after its files and description, and write ``model.json``.

    Parameters
    ----------
    folder : Path
        Holds the files.
    names : sequence of str
        Of the files.
    description : mapping
        Everything in ``model.json`` that does not depend on the files.

    Returns
    -------
    dict
        The whole of ``model.json``.
    """
    files = {name: file_hash(folder / name) for name in names}
    whole = hashlib.sha256(json.dumps([files, description], sort_keys=True).encode()).hexdigest()
    complete = {
        "version": f"{description['architecture']}-{whole[:12]}",
        "files": files,
        # A UID per version (PS3.5 B.2): reports name the observer that spoke.
        "device_uid": f"2.25.{int(whole[:32], 16)}",
        **description,
    }
    replace(
        folder / DESCRIPTION,
        lambda path: path.write_text(json.dumps(complete, indent=2) + "\n", "utf-8"),
    )
    return complete


def write_pictures(snapshot: Snapshot, arrays: Arrays, out: Path, seed: int) -> None:
    """Fit novelty and quality on all pictures and write both files.

    Parameters
    ----------
    snapshot : Snapshot
    arrays : ndarray of float16, shape (cases, 256, 256), 0 to 1
    out : Path
        Made if it is not there.
    seed : int
        Of the varied and degraded copies.
    """
    quality = fit_quality(material(arrays, snapshot.patients, seed))
    out.mkdir(parents=True, exist_ok=True)
    quality.novelty.save(out / NOVELTY)
    quality.save(out / QUALITY)


def with_pictures(snapshot: Snapshot, arrays: Arrays, model: Path, out: Path) -> dict[str, Any]:
    """Make a version with a known network and newly fitted novelty and quality.

    The version that it was made of is its parent. The fit sees the patients that the
    network was trained and validated on.

    Raises
    ------
    ModelError
        The version is damaged.
    DataError
        It was trained on other data or another pixel pipeline, or ``out`` is in use.
    """
    known = ModelVersion.load(model)
    if known.pixel_fingerprint != fingerprint():
        raise DataError(f"{known.version} was trained on another pixel pipeline: train it anew")
    if known.description["data"]["snapshot"] != snapshot.digest:
        raise DataError(f"{known.version} was trained on other data: name those with --data")
    _free(out)
    seed = int(known.description["training"]["seed"])
    held_out = snapshot.split(seed)["held_out"]
    quality, told = fit_and_measure(arrays, snapshot.patients, held_out, seed)
    names = [name for name in known.description["files"] if name not in {NOVELTY, QUALITY}]
    description = _begin(known, out, names)
    quality.novelty.save(out / NOVELTY)
    quality.save(out / QUALITY)
    return seal(out, [*names, NOVELTY, QUALITY], {**description, "pictures": told})


def with_findings(
    model: Path, robustness: Mapping[str, Any], seen: Mapping[str, str], out: Path
) -> dict[str, Any]:
    """Make a version with a known network and what was found out about it since.

    The version that it was made of is its parent. All its files are the same.

    Parameters
    ----------
    model : Path
        Folder of the version.
    robustness : mapping
        As :meth:`training.stress.Findings.summary` has it.
    seen : mapping of str to str
        What a person saw on its worst failures, by name.
    out : Path
        Becomes the new version.

    Raises
    ------
    ModelError
        The version is damaged.
    DataError
        ``out`` is in use, or what was seen is of another picture.
    """
    known = ModelVersion.load(model)
    check_findings(known, seen, out)
    names = list(known.description["files"])
    description = _begin(known, out, names) | {"robustness": robustness}
    if seen:
        failures = known.description["failures"]
        worst = [dict(row) for row in failures["worst"]]
        told = [row | ({"seen": seen[row["name"]]} if row["name"] in seen else {}) for row in worst]
        description["failures"] = {**failures, "worst": told}
    return seal(out, names, description)


def check_findings(known: ModelVersion, seen: Mapping[str, str], out: Path) -> None:
    """See that :func:`with_findings` can make a version, before minutes of judging.

    Raises
    ------
    DataError
        ``out`` is in use, or what was seen is of another picture.
    """
    worst = known.description.get("failures", {}).get("worst", ())
    strange = set(seen) - {row["name"] for row in worst}
    if strange:
        raise DataError(
            f"{min(strange)} is not among the worst failures of {known.version}: describe those "
            "that its card names"
        )
    _free(out)


def _free(out: Path) -> None:
    """See that a folder holds no version.

    Raises
    ------
    DataError
        It does.
    """
    if (out / DESCRIPTION).exists():
        raise DataError(f"{out} already holds a finished model version: choose another --out")


def _begin(known: ModelVersion, out: Path, names: Sequence[str]) -> dict[str, Any]:
    """Copy some of a version's files, and what its child says as it does."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(known.folder / name, out / name)
    own = {"version", "files", "device_uid"}
    return {
        **{key: value for key, value in known.description.items() if key not in own},
        "created_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "parent": known.version,
    }


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and move it there: whole or not at all."""
    temporary = path.with_name(f"new-{path.name}")
    write(temporary)
    temporary.replace(path)
