"""Base data that a challenger sees again, so that learning a site does not unlearn the rest.

They are drawn from the labelled folder that the champion was trained on, where the site has it,
or come in one file that whoever has the folder drew for it: a stored subsample.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from training.dataset import CLASSES, Snapshot, read_folder
from triage.arrays import HalfArray
from triage.durable import make_folder, write_whole
from triage.errors import DataError
from triage.pixels import SIDE, fingerprint
from triage.registry import ModelVersion

FORMAT = 1

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """Chosen pictures of the base data; all of patients that the champion was trained on.

    Attributes
    ----------
    digest : str
        Of what was chosen.
    of : str
        Hash of the whole base data.
    labels : ndarray of int64, shape (cases,), 0 or 1
    patients : ndarray of str, shape (cases,)
    arrays : callable
        Reads the pictures: float16, shape (cases, 256, 256), 0 to 1.
    """

    digest: str
    of: str
    labels: npt.NDArray[np.int64]
    patients: npt.NDArray[np.str_]
    arrays: Callable[[], HalfArray]


def rehearsal(data: Path, trained: ModelVersion, number: int, seed: int) -> Rehearsal:
    """A subsample of the base data, from a folder or from a stored subsample.

    Parameters
    ----------
    data : Path
        A labelled folder in the published layout, or a file that :func:`store` wrote.
    trained : ModelVersion
        The version that was trained on the base data: the champion or, if that is a retrained
        one, the one that it descends from.
    number : int
        Of pictures; all if there are no more. Both classes have their share.
    seed : int
        The same number and seed give the same pictures.

    Raises
    ------
    DataError
        The version was trained on other data, or what it held out is not known; or the file is
        damaged, or of another pixel pipeline.
    """
    if data.is_file():
        return _of_file(data, trained, number, seed)
    snapshot = read_folder(data)
    # What any fold that it may be has held out is spared.
    held = snapshot.held_out(trained.description)
    seen = np.setdiff1d(np.arange(len(snapshot.cases)), np.concatenate([[], *held]))
    chosen = seen[_drawn(snapshot.labels[seen], number, seed)]
    part = Snapshot(tuple(snapshot.cases[row] for row in chosen))
    return Rehearsal(
        part.digest,
        snapshot.digest,
        part.labels,
        part.patients,
        lambda: part.arrays(lambda _: None)[..., 0],
    )


def store(chosen: Rehearsal, trained: ModelVersion, path: Path) -> None:
    """Write a subsample as one file, for sites that do not have the base data.

    Its pictures have 8 bits, as training varies them, and no header. It names the patients as
    the folder does, so that the gate can find one of them in a reference set.

    Raises
    ------
    DataError
        It cannot be written, or a picture cannot be read.
    """
    pictures = np.rint(chosen.arrays().astype(np.float32) * 255).astype(np.uint8)
    told = {
        "format": FORMAT,
        "of": chosen.of,
        "seen": _seen(trained),
        "pixel_fingerprint": fingerprint(),
    }

    def write(file: IO[bytes]) -> None:
        np.savez_compressed(
            file,
            pictures=pictures,
            labels=chosen.labels,
            patients=chosen.patients,
            told=np.array(json.dumps(told, sort_keys=True)),
        )

    try:
        make_folder(path.parent)
        write_whole(path, write)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def _of_file(path: Path, trained: ModelVersion, number: int, seed: int) -> Rehearsal:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            pictures, labels, patients = (
                stored[name] for name in ("pictures", "labels", "patients")
            )
            told = json.loads(str(stored["told"]))
        fits = (
            told["format"] == FORMAT
            and pictures.shape == (len(labels), SIDE, SIDE)
            and (pictures.dtype, labels.dtype, patients.dtype.kind) == (np.uint8, np.int64, "U")
            and len(patients) == len(labels)
            and set(labels.tolist()) == set(range(len(CLASSES)))
        )
        of, seen, made_for = str(told["of"]), told["seen"], told["pixel_fingerprint"]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    # A boundary: NumPy and zip raise what they like on a damaged file.
    except Exception as error:
        raise DataError(
            f"{path} is no stored subsample, or damaged ({type(error).__name__}): get it again"
        ) from error
    if not fits:
        raise DataError(f"{path} is no stored subsample of format {FORMAT}: get it again")
    if made_for != fingerprint():
        raise DataError(
            f"{path} has arrays of another pixel pipeline: have it drawn by a program of this "
            "version"
        )
    if (of, seen) != (trained.description["data"]["snapshot"], _seen(trained)):
        raise DataError(
            f"{path} was drawn for a version that was trained on other patients than "
            f"{trained.version}: have it drawn for this one"
        )
    rows = _drawn(labels, number, seed)
    chosen, whose, said = pictures[rows], patients[rows], labels[rows]
    digest = hashlib.sha256(chosen.tobytes() + said.tobytes())
    digest.update("\n".join(whose.tolist()).encode("utf-8", "surrogatepass"))
    return Rehearsal(
        f"sha256:{digest.hexdigest()}",
        of,
        said,
        whose,
        lambda: (chosen / np.float16(255)).astype(np.float16),
    )


def _drawn(labels: npt.NDArray[np.int64], number: int, seed: int) -> Rows:
    """So many rows, sorted, both classes in their shares."""
    random = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in range(len(CLASSES)):
        rows = np.flatnonzero(labels == label)
        share = min(len(rows), round(number * len(rows) / len(labels)))
        chosen += random.permutation(rows)[:share].tolist()
    return np.sort(np.array(chosen, np.int64))


def _seen(trained: ModelVersion) -> dict[str, Any]:
    """What says which patients a version was trained on; alike if they are the same."""
    told = trained.description
    return {
        "parts": {name: told["data"]["parts"][name] for name in sorted(told["data"]["parts"])},
        **{name: told["training"].get(name) for name in ("seed", "folds", "fold")},
    }
