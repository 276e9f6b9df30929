"""Cross-validation: every radiograph judged by a network that never saw its patient.

The folds are grouped by patient and stratified by class. Each fold's network is trained
like the one that is shipped, so what holds for them out of fold is what is to be expected
of it on new patients from the same consoles. Copies that are changed as by other consoles
are judged, too (:func:`training.stress.any_change`).
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from training.calibrate import Logits
from training.dataset import Snapshot
from training.elsewhere import Job, spread
from training.exported import export
from training.finetune import HISTORY, sound, train
from training.networks import FINE_TUNED, build
from training.stress import any_change
from training.versions import replace
from triage.errors import DataError
from triage.network import openvino
from triage.pixels import Array, fingerprint

COPIES = 2
"""Changed copies of each radiograph that are judged."""

FOLD, OUT_OF_FOLD = "network.xml", "out_of_fold.npz"

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """What identifies a cross-validation and the training of the shipped network.

    Attributes
    ----------
    architecture : str
    seed : int
    folds : int
    epochs : int
    precision : {'float32', 'mixed_bfloat16'}
        Of the arithmetic while training.
    snapshot : str
        Hash of the training set.
    pixel_fingerprint : str
    """

    architecture: str
    seed: int
    folds: int
    epochs: int
    precision: str
    snapshot: str
    pixel_fingerprint: str

    def rows(self, snapshot: Snapshot) -> list[tuple[Rows, Rows]]:
        """Rows to train on and rows to judge, for each fold.

        Raises
        ------
        DataError
            A class has fewer patients than there are folds.
        """
        return snapshot.folds(self.folds, self.seed)


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """What the fold networks say of the radiographs that they did not see.

    Attributes
    ----------
    logits : ndarray of float64, shape (cases,)
    copies : ndarray of float64, shape (cases, 2)
        Of copies that are changed as by other consoles.
    """

    logits: Logits
    copies: Logits


class FoldNetwork:
    """An exported fold network on the CPU.

    Parameters
    ----------
    path : Path
        Of the exported network, which has a class-activation map.
    precision : {'f32', 'bf16'}
    """

    def __init__(self, path: Path, precision: str = "f32") -> None:
        core = openvino().Core()
        # A second thread makes one picture no faster.
        hints = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": 1,
            "ENABLE_CPU_PINNING": False,  # as in triage.network
        }
        compiled = core.compile_model(path, "CPU", hints)
        self._request = compiled.create_infer_request()
        self._map = next(out for out in compiled.outputs if len(out.partial_shape) == 4)

    def logits(self, arrays: list[Array]) -> Logits:
        """float64, shape (arrays,); the mean of the map is the logit."""
        found = [
            self._request.infer([array[np.newaxis, :, :, np.newaxis]])[self._map].mean()
            for array in arrays
        ]
        return np.asarray(found, np.float64)


def crossvalidate(
    snapshot: Snapshot,
    arrays: npt.NDArray[np.float16],
    plan: Plan,
    out: Path,
    verbose: int,
    tell: Callable[[str], None],
    ray: str | None = None,
) -> OutOfFold:
    """Train each fold's network and judge the held-out radiographs; resumes.

    Parameters
    ----------
    snapshot : Snapshot
    arrays : ndarray of float16, shape (cases, 256, 256), 0 to 1
    plan : Plan
    out : Path
        Folder of the cross-validation.
    verbose : int
        As in ``keras.Model.fit``.
    tell : callable
        Is told in a line what is done.
    ray : str, optional
        A cluster as :func:`triage.cluster.connect` takes it: the folds train there at once.

    Raises
    ------
    DataError
        Too few patients, or a checkpoint that is damaged or of another plan.
    ServiceError
        The cluster cannot be used.
    """
    shared = _Shared(arrays, snapshot.labels, plan, plan.rows(snapshot))
    missing = [number for number in range(plan.folds) if not _whole(out / f"fold{number}")]
    if ray is None:
        for number in missing:
            _one_fold(shared, number, out / f"fold{number}", verbose, tell)
    elif missing:
        jobs = [
            Job(
                f"fold {number + 1} of {plan.folds}",
                out / f"fold{number}",
                partial(_there, number),
                (HISTORY, FOLD, OUT_OF_FOLD),
            )
            for number in missing
        ]
        tell(f"{len(jobs)} of {plan.folds} folds train on the cluster at {ray}")
        spread(ray, shared, jobs, None, tell)
    return finished(out, plan, snapshot)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all folds read: arrays as in :func:`crossvalidate`, and each fold's rows."""

    arrays: npt.NDArray[np.float16]
    labels: npt.NDArray[np.int64]
    plan: Plan
    rows: list[tuple[Rows, Rows]]


def _one_fold(
    shared: _Shared, number: int, folder: Path, verbose: int, tell: Callable[[str], None]
) -> None:
    """Train one fold's network and let it judge, as far as that is not done."""
    plan, (rest, held) = shared.plan, shared.rows[number]
    name = f"fold {number + 1} of {plan.folds}"
    if not (folder / FOLD).exists():
        tell(f"{name}: {len(rest)} pictures train")
        network, _ = train(
            bytes_of(shared.arrays[rest]),
            shared.labels[rest],
            folder,
            plan.seed,
            plan.epochs,
            plan.precision,
            verbose,
            lambda done: tell(f"{name}: epoch {done} of {plan.epochs} is done"),
        )
        write_fold(whole(plan.architecture, network), folder)
    if not (folder / OUT_OF_FOLD).exists():
        tell(f"{name}: {len(held)} pictures and copies are judged")
        judge_fold(shared.arrays, held, plan.seed, folder)


def _whole(folder: Path) -> bool:
    return (folder / FOLD).exists() and (folder / OUT_OF_FOLD).exists()


def _there(number: int, shared: _Shared, folder: Path, tell: Callable[[str], None]) -> None:
    """Train and judge one fold in a worker."""
    _one_fold(shared, number, folder, 0, tell)


def write_fold(network: keras.Model, folder: Path) -> None:
    """Export a fold's network; the sign that it is whole comes last."""
    export(network, folder / "new.xml")
    (folder / "new.bin").replace(folder / Path(FOLD).with_suffix(".bin"))
    (folder / "new.xml").replace(folder / FOLD)


def judge_fold(arrays: npt.NDArray[np.float16], held: Rows, seed: int, folder: Path) -> None:
    """Judge the pictures that a fold held out, and changed copies of them.

    Parameters
    ----------
    arrays : ndarray of float16, shape (cases, 256, 256), 0 to 1
    held : ndarray of int64, shape (pictures,)
    seed : int
        Of the copies.
    folder : Path
        Of the fold; gets the logits.
    """
    network = FoldNetwork(folder / FOLD)
    logits = np.empty((len(held), 1 + COPIES))
    for place, row in enumerate(held):
        random = np.random.default_rng((seed, int(row)))
        picture = arrays[row].astype(np.float32)
        copies = [any_change(picture, random) for _ in range(COPIES)]
        logits[place] = network.logits([picture, *copies])

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, rows=held, logits=logits)

    replace(folder / OUT_OF_FOLD, save)


def ready(snapshot: Snapshot, plan: Plan, out: Path) -> None:
    """See that a cross-validation can start or go on, before any picture is read.

    Raises
    ------
    DataError
        Too few patients, an architecture that is not fine-tuned, a folder of another plan, or a
        checkpoint of any fold that cannot be gone on from.
    """
    build(plan.architecture)
    if plan.architecture not in FINE_TUNED:
        known = ", ".join(sorted(FINE_TUNED))
        raise DataError(f"{plan.architecture} is not fine-tuned; known: {known}. Use fit alone")
    plan.rows(snapshot)
    claim(out, plan)
    for number in range(plan.folds):
        folder = out / f"fold{number}"
        if not (folder / FOLD).exists():
            sound(folder)


def plan_of(folder: Path, architecture: str, seed: int, snapshot: Snapshot) -> Plan:
    """The plan of a finished cross-validation, if it is of this architecture, seed and data.

    Raises
    ------
    DataError
        There is none, it is damaged, or it is of another run.
    """
    try:
        known = Plan(**json.loads((folder / "plan.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{folder} holds no cross-validation that can be read: run crossvalidate first"
        ) from error
    wanted = dataclasses.replace(
        known,
        architecture=architecture,
        seed=seed,
        snapshot=snapshot.digest,
        pixel_fingerprint=fingerprint(),
    )
    claim(folder, wanted)
    return known


def finished(folder: Path, plan: Plan, snapshot: Snapshot) -> OutOfFold:
    """The scores of a finished cross-validation.

    Raises
    ------
    DataError
        It is not finished, damaged, or of another plan.
    """
    claim(folder, plan)
    logits = np.empty((len(snapshot.cases), 1 + COPIES))
    for number, (_, held) in enumerate(plan.rows(snapshot)):
        path = folder / f"fold{number}" / OUT_OF_FOLD
        if not path.is_file():
            raise DataError(f"{folder} is not finished: run crossvalidate first")
        try:
            with np.load(path) as stored:
                logits[stored["rows"]] = stored["logits"]
                whole_fold = np.array_equal(stored["rows"], held)
        # A boundary: NumPy and zip raise what they like on a damaged file.
        except Exception as error:
            raise DataError(
                f"{path} is damaged ({type(error).__name__}): remove it and run crossvalidate again"
            ) from error
        if not whole_fold:
            raise DataError(f"{path} is of another split: remove it and run crossvalidate again")
    return OutOfFold(logits[:, 0], logits[:, 1:])


def claim(folder: Path, plan: Plan) -> None:
    """Write a plan into its folder, or see that it is the folder's plan.

    Raises
    ------
    DataError
        The folder is of another plan, or what it says cannot be read.
    """
    identity = folder / "plan.json"
    if not identity.exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace(identity, lambda path: path.write_text(json.dumps(asdict(plan), indent=1)))
        return
    advice = f"choose another folder, or remove {folder} to start again"
    try:
        known = dict(json.loads(identity.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"checkpoint in {folder} is damaged ({error}): {advice}") from error
    changed = [key for key, value in asdict(plan).items() if known.get(key) != value]
    if changed:
        raise DataError(
            f"checkpoint in {folder} is of another run (differs in {', '.join(changed)}): {advice}"
        )


def bytes_of(arrays: npt.NDArray[np.float16]) -> npt.NDArray[np.uint8]:
    """Pictures of 8 bits, as Pillow varies them."""
    out = np.empty(arrays.shape, np.uint8)
    for row, array in enumerate(arrays):
        out[row] = np.rint(array.astype(np.float32) * 255)
    return out


def whole(architecture: str, trained: keras.Model) -> keras.Model:
    """A float32 network for arrays with the weights of a trained one.

    Raises
    ------
    DataError
        The weights are of another architecture.
    """
    network = build(architecture)
    try:
        network.set_weights(trained.get_weights())
    except ValueError as error:
        raise DataError(
            f"the weights are not of {architecture} ({str(error).splitlines()[0]}): name the "
            "architecture that they were trained as"
        ) from error
    return network
