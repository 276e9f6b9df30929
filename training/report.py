"""One HTML file that shows a study: its data, its models side by side, and each model.

The file needs no network, not even for its pictures. It shows radiographs and the names of
their files, so it stays where the data may stay.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix, roc_auc_score

from training.dataset import CLASSES, Case, Part, Snapshot

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

FIRST = 20
"""Radiographs shown of the data."""

SHOWN = 12
"""Misclassified radiographs of a model that are shown at once; the others are folded away."""

THRESHOLD = 0.5
"""The notebook's: a probability above it is called pneumonia."""

PARTS: Mapping[Part, str] = {
    "train": "train",
    "validation": "validation",
    "held_out": "held out",
}
JUDGED: tuple[Part, Part] = ("train", "held_out")

TRAINED, VALIDATED = "#0b5c8a", "#c2410c"
STYLE: dict["RcKeyType", Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#94a3b8",
    "axes.grid": True,
    "axes.labelcolor": "#334155",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
    "svg.hashsalt": "cxr-triage",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
}

Rows = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trained model of the study.

    Attributes
    ----------
    name : str
    about : str
        What sets it apart, in a sentence.
    parameters : int
    penalty : float
        What L2 adds to the loss; 0 without it.
    history : list of dict
        ``loss``, ``accuracy``, ``val_loss`` and ``val_accuracy`` of each epoch.
    best_epoch : int
        Whose weights are judged; the first is 1.
    probabilities : ndarray of float64, shape (cases,), 0 to 1
        Of every case of the snapshot.
    """

    name: str
    about: str
    parameters: int
    penalty: float
    history: list[dict[str, float]]
    best_epoch: int
    probabilities: Probabilities


def render(
    snapshot: Snapshot,
    arrays: npt.NDArray[np.float16],
    parts: Mapping[Part, Rows],
    first: Rows,
    outcomes: Sequence[Outcome],
    facts: Mapping[str, str],
) -> str:
    """The report.

    Parameters
    ----------
    snapshot : Snapshot
    arrays : ndarray of float16, shape (cases, 256, 256, 1), 0 to 1
    parts : mapping
        Rows of each part.
    first : ndarray of int64
        Rows in the order in which the first epoch shows them.
    outcomes : sequence of Outcome
    facts : mapping
        What the reader must know of the run, by what it is.

    Returns
    -------
    str
        HTML.
    """
    labels = snapshot.labels
    judged = [_judged(outcome, labels, parts) for outcome in outcomes]
    missed = sorted({row for model in judged for row in model["missed_rows"]})
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"grouped": "{:,}".format, "places": _places}
    source = files("training").joinpath("templates/study.html").read_text("utf-8")
    return environment.from_string(source).render(
        classes=CLASSES,
        parts=PARTS,
        judged=JUDGED,
        facts=facts,
        counts=_counts(snapshot.cases, parts),
        distribution=_distribution(labels, parts),
        first=[_picture(arrays[row], snapshot.cases[row]) for row in first[:FIRST]],
        models=judged,
        best=_best(judged),
        missed={row: _picture(arrays[row], snapshot.cases[row]) for row in missed},
        shown=SHOWN,
        threshold=THRESHOLD,
    )


def _counts(cases: Sequence[Case], parts: Mapping[Part, Rows]) -> dict[Part, dict[str, int]]:
    counts = {}
    for part, rows in parts.items():
        chosen = [cases[row] for row in rows]
        counts[part] = {
            "patients": len({case.patient for case in chosen}),
            **{name: sum(c.label == label for c in chosen) for label, name in enumerate(CLASSES)},
        }
    return counts


def _judged(outcome: Outcome, labels: Rows, parts: Mapping[Part, Rows]) -> dict[str, Any]:
    """What the template shows of one model."""
    figures = {part: _figures(outcome, labels, parts[part]) for part in JUDGED}
    held_out = parts["held_out"]
    said = outcome.probabilities[held_out]
    wrong = (said > THRESHOLD) != (labels[held_out] == 1)
    # The most confident mistakes first.
    order = np.argsort(-np.abs(said[wrong] - THRESHOLD), kind="stable")
    rows = [int(row) for row in held_out[wrong][order]]
    train, held = figures["train"], figures["held_out"]
    return {
        "name": outcome.name,
        "about": outcome.about,
        "parameters": outcome.parameters,
        "epochs": len(outcome.history),
        "best_epoch": outcome.best_epoch,
        "figures": figures,
        "differences": {key: held[key] - train[key] for key in ("loss", "accuracy")},
        "missed_rows": rows,
        "probabilities": {row: float(outcome.probabilities[row]) for row in rows},
        **_curves(outcome),
    }


def _figures(outcome: Outcome, labels: Rows, rows: Rows) -> dict[str, Any]:
    truth, said = labels[rows], outcome.probabilities[rows]
    called = (said > THRESHOLD).astype(np.int64)
    matrix = confusion_matrix(truth, called, labels=range(len(CLASSES)))
    report = classification_report(
        truth,
        called,
        labels=range(len(CLASSES)),
        target_names=CLASSES,
        output_dict=True,
        zero_division=0.0,
    )
    # As Keras clips it, so that a probability of 0 or 1 costs much and not everything.
    clipped = np.clip(said, 1e-7, 1.0 - 1e-7)
    cross_entropy = -np.mean(np.where(truth == 1, np.log(clipped), np.log1p(-clipped)))
    return {
        "matrix": matrix.tolist(),
        "report": report,
        "loss": float(cross_entropy) + outcome.penalty,
        "accuracy": float(np.mean(called == truth)),
        "recall": float(report[CLASSES[1]]["recall"]),
        "auc": float(roc_auc_score(truth, said)),
        "misclassified": int(np.sum(called != truth)),
        "cases": len(rows),
    }


def _best(judged: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The best held-out value of each column that has a better and a worse."""
    held_out = [model["figures"]["held_out"] for model in judged]
    best = {key: max(f[key] for f in held_out) for key in ("accuracy", "recall", "auc")}
    return best | {key: min(f[key] for f in held_out) for key in ("loss", "misclassified")}


def _distribution(labels: Rows, parts: Mapping[Part, Rows]) -> str:
    with rc_context(STYLE):
        figure = Figure((10.6, 3.0), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(PARTS))
        for label, (name, colour) in enumerate(zip(CLASSES, (TRAINED, VALIDATED), strict=True)):
            counts = [int(np.sum(labels[parts[part]] == label)) for part in PARTS]
            bars = axes.barh(
                places + (label - 0.5) * 0.38, counts, 0.36, color=colour, label=name.lower()
            )
            axes.bar_label(bars, [f"{count:,}" for count in counts], padding=4, color="#334155")
        axes.set_yticks(places, list(PARTS.values()))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.1)
        axes.set_xlabel("radiographs")
        axes.legend(loc="lower right")
        return _svg(figure)


def _curves(outcome: Outcome) -> dict[str, str]:
    history = outcome.history
    epochs = np.arange(1, len(history) + 1)
    marker = "o" if len(history) < 30 else ""
    with rc_context(STYLE):
        figure = Figure((10.6, 3.3), layout="constrained")
        for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for prefix, colour, line, label in (
                ("", TRAINED, "-", "train"),
                ("val_", VALIDATED, "--", "validation"),
            ):
                values = [row[prefix + key] for row in history]
                axes.plot(
                    epochs, values, line, color=colour, marker=marker, markersize=3.5, label=label
                )
            axes.axvline(outcome.best_epoch, color="#64748b", linewidth=1, linestyle=":")
            axes.set_title(key)
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend()
        curves = _svg(figure)
    first, last = history[0], history[-1]
    told = [
        f"{key} went from {first[name]:.3f} to {last[name]:.3f}"
        for name, key in (
            ("loss", "training loss"),
            ("val_loss", "validation loss"),
            ("accuracy", "training accuracy"),
            ("val_accuracy", "validation accuracy"),
        )
    ]
    alternative = f"Loss and accuracy of {outcome.name} over {len(history)} epochs: "
    return {"curves": curves, "curves_told": alternative + ", ".join(told) + "."}


def _picture(array: npt.NDArray[np.float16], case: Case) -> dict[str, Any]:
    grey = np.rint(array[..., 0].astype(np.float32) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=80, optimize=True)
    return {
        "uri": _uri("image/jpeg", file.getvalue()),
        "name": case.path.stem,
        "pieces": re.split(r"(?<=[_-])", case.path.stem),
        "truth": CLASSES[case.label],
    }


def _svg(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _uri("image/svg+xml", file.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _places(value: float, places: int, *, signed: bool = False) -> str:
    """A number with so many places, a true minus sign and no negative zero."""
    text = f"{abs(value):.{places}f}"
    if float(text) == 0:
        return text
    return ("\N{MINUS SIGN}" if value < 0 else "+" if signed else "") + text
