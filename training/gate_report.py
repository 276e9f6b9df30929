"""A decision of the gate as one HTML file that needs nothing else: rules, figures, plots."""

import base64
import datetime as dt
import io
from importlib.resources import files

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from training.gate import Decision, Exam, Measured, Outcome
from training.paired import BINS, Difference, Labels, Numbers, roc

COLOURS = {"champion": "#777777", "challenger": "#0072b2"}

MEANINGS = {
    Outcome.PROVEN: "Every rule that the policy asks is shown to be kept. A person may approve it.",
    Outcome.NOT_PROVEN: "No harm is shown, but neither is all that the policy asks. More cases may "
    "show it.",
    Outcome.WORSE: "Harm is shown. The champion stays.",
    Outcome.REFUSED: "The evidence is worth nothing: the challenger has seen its exam.",
}


def report(decision: Decision, site: Exam, reference: Exam | None, decided_at: dt.datetime) -> str:
    """Draw a decision.

    Parameters
    ----------
    decision : Decision
    site, reference : Exam
        Those that its figures were computed from.
    decided_at : datetime
        Aware.

    Returns
    -------
    str
        HTML without scripts or links; plots are inside. No patient data.
    """
    figures = decision.figures
    sets: list[tuple[str, Measured]] = [("site exam", figures.site)]
    exams = [("site exam", site)]
    if figures.reference is not None and reference is not None:
        sets.append(("reference set", figures.reference))
        exams.append(("reference set", reference))
    sets += [(f"{g.attribute}: {g.level or '(unknown)'}", g.measured) for g in figures.subgroups]
    pictures = [("Differences, challenger minus champion", _svg(_differences(decision, sets)))]
    for name, exam in exams:
        if len(np.unique(exam.labels)) == 2:
            pictures.append((f"ROC curves and reliability: {name}", _svg(_curves(decision, exam))))
    source = files("training").joinpath("templates/gate.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(
        decision=decision,
        figures=figures,
        meaning=MEANINGS[decision.outcome],
        decided_at=decided_at.isoformat(timespec="seconds"),
        sets=sets,
        pictures=pictures,
    )


def _differences(decision: Decision, sets: list[tuple[str, Measured]]) -> Canvas:
    """Each difference with its limits, beside the bound that it must keep."""
    policy = decision.policy
    rows: list[tuple[str, Difference, float]] = []
    for name, measured in sets:
        asked = {"site exam": policy.site, "reference set": policy.reference}.get(name)
        of = asked or policy.subgroups
        bounds = [
            ("sensitivity", measured.sensitivity, -of.sensitivity_margin),
            ("specificity", measured.specificity, -of.specificity_margin),
        ]
        if asked is not None:
            bounds += [
                ("AUC", measured.auc, asked.auc_above),
                ("calibration error", measured.calibration, asked.calibration_margin),
            ]
        rows += [(f"{name}, {what}", found, bound) for what, found, bound in bounds if found]
    canvas = Canvas(figsize=(9, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = canvas.subplots()
    axes.axvline(0.0, color="black", linewidth=0.8)
    for height, (_, found, bound) in enumerate(reversed(rows)):
        axes.plot([found.low, found.high], [height, height], color=COLOURS["challenger"])
        axes.plot(found.value, height, "o", color=COLOURS["challenger"])
        axes.plot(bound, height, "|", color="#b03a00", markersize=12, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.set_xlabel("difference with one-sided limits; the bar is the policy's bound")
    return canvas


def _curves(decision: Decision, exam: Exam) -> Canvas:
    canvas = Canvas(figsize=(9, 4.4), layout="constrained")
    left, right = canvas.subplots(1, 2)
    diseased = exam.labels == 1
    for (name, colour), scores, threshold in zip(
        COLOURS.items(),
        (exam.champion, exam.challenger),
        decision.figures.thresholds,
        strict=True,
    ):
        left.plot(*roc(exam.labels, scores, exam.weights), color=colour, label=name)
        flagged = exam.weights * (scores >= threshold)
        left.plot(
            flagged[~diseased].sum() / exam.weights[~diseased].sum(),
            flagged[diseased].sum() / exam.weights[diseased].sum(),
            "o",
            color=colour,
        )
        _reliability(right, exam.labels, scores, exam.weights, colour)
    left.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC; points: thresholds")
    left.legend(loc="lower right")
    right.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    right.set(xlabel="probability", ylabel="share with disease", title="Reliability")
    return canvas


def _reliability(
    axes: Axes, labels: Labels, scores: Numbers, weights: Numbers, colour: str
) -> None:
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    total = np.bincount(bins, weights, minlength=BINS)
    some = total > 0
    told = np.bincount(bins, weights * scores, minlength=BINS)[some] / total[some]
    true = np.bincount(bins, weights * labels, minlength=BINS)[some] / total[some]
    axes.plot(told, true, "o-", color=colour)


def _svg(canvas: Canvas) -> str:
    """SVG, the same bytes for the same plot, in base64."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "gate"}):
        canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return base64.b64encode(buffer.getvalue()).decode("ascii")
