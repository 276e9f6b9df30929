"""The model card of a version: what it is for, whom it knows, how good it is.

The sections are those of Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
Everything that is not the same for every version comes from its ``model.json``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from triage.registry import ModelVersion

_MEASURED_ON = {
    "out_of_fold": "out of fold",
    "held_out": "held-out patients",
    "copies": "changed copies",
    "validation": "the site's validation part",
}


_RELIABILITY = {
    "reliability": "out of fold",
    "reliability_copies": "changed copies",
    "reliability_validation": "the site's validation part",
}


def card(model: ModelVersion) -> str:
    """The card as Markdown.

    Parameters
    ----------
    model : ModelVersion
    """
    told = model.description
    lines = [
        f"# Model card: {model.version}",
        "",
        f"{told['architecture']}, {told['parameters']:,} parameters, made {told['created_at']}.",
        f"Output: {told['output']}.",
        f"Flagged at and above {model.threshold:.4f} ({told['threshold_rule']}).",
        "",
        "## Intended use",
        "",
        "A triage aid: it orders a reading worklist so that radiographs that look like pneumonia",
        "are read sooner. A radiologist reads every radiograph, flagged or not.",
        "",
        "It must not be used to diagnose, to rule out disease, to leave a radiograph unread, or on",
        "patients and views outside its population. It is not a medical device and no authority",
        "has cleared it.",
        "",
        "## Population",
        "",
        f"{model.population.description}. {_ages(model)}",
        f"Views: {', '.join(model.population.views)}.",
        "Whoever is outside is not scored unless the site says so.",
        "",
        "## Figures",
        "",
        *_figures(told["metrics"]),
        *_subgroups(told["metrics"].get("subgroups", {})),
        *_calibration(told.get("calibration")),
        *_failures(told.get("failures")),
        "## What is known to be wrong with it",
        "",
        "- The figures are of one hospital, its consoles and its export; expect less elsewhere.",
        "  In such data the classes can differ by more than disease, see *Shortcuts*.",
        "- It never saw other diseases, tubes, drains, implants or other ages as such.",
        "- The prevalence of its training data is not a site's: a probability is right among",
        "  radiographs like those, not among all that a site makes.",
        "- It was not tested prospectively.",
        "",
        "## Shortcuts",
        "",
        "In the Kermany data normals were exported at a higher resolution and quality and carry",
        "other borders and markers than pneumonias. What was done against learning that, and what",
        "a network finds where no lung is, is in the robustness table of the version, made by",
        "`python -m training stress`.",
        "",
        "## Data and licences",
        "",
        f"- Trained on {told['data']['name']}:",
        f"  {told['data']['attribution']}. {told['data']['licence']}.",
        *(
            f"- {part.replace('_', ' ')}: "
            + ", ".join(f"{count:,} {name}" for name, count in counts.items())
            for part, counts in told["data"]["parts"].items()
        ),
        f"- Snapshot `{told['data']['snapshot']}`.",
    ]
    if "pretrained" in told:
        start = told["pretrained"]
        lines.append(f"- Started from {start['name']}: {start['attribution']}. {start['licence']}.")
    return "\n".join(lines) + "\n"


def _ages(model: ModelVersion) -> str:
    age = model.population.age_years
    return "Ages not stated." if age is None else f"Ages {age[0]} to {age[1]} years."


def _figures(metrics: Mapping[str, Any]) -> Iterator[str]:
    yield f"{metrics['measured_on']}; {metrics['interval']}.".capitalize()
    yield ""
    yield "| measured on | figure | value | interval |"
    yield "|---|---|---|---|"
    for part, name in _MEASURED_ON.items():
        for figure, value in metrics.get(part, {}).items():
            yield (
                f"| {name} | {figure} | {value['value']:.3f} | "
                f"{value['low']:.3f} to {value['high']:.3f} |"
            )
    yield ""
    if "copies_are" in metrics:
        yield f"Changed copies: {metrics['copies_are']}, as another console might have made them."
        yield ""


def _subgroups(groups: Mapping[str, Any]) -> Iterator[str]:
    if not groups:
        return
    yield "The data name no sex and no age; the file names tell these groups apart:"
    yield ""
    yield "| group | pictures | figure | value | interval |"
    yield "|---|---|---|---|---|"
    for group, row in groups.items():
        yield (
            f"| {group} | {row['pictures']:,} | {row['measure']} | {row['value']:.3f} | "
            f"{row['low']:.3f} to {row['high']:.3f} |"
        )
    yield ""


def _calibration(told: Mapping[str, Any] | None) -> Iterator[str]:
    if told is None:
        yield "The probability is not calibrated."
        yield ""
        return
    yield f"Calibration: {told['method']}. Reliability, in bins of a tenth:"
    yield ""
    yield "| on | cases | mean probability | share with pneumonia |"
    yield "|---|---|---|---|"
    for key, name in _RELIABILITY.items():
        for row in told.get(key, ()):
            yield (
                f"| {name} | {row['cases']:,} | {row['probability']:.3f} | {row['diseased']:.3f} |"
            )
    yield ""


def _failures(told: Mapping[str, Any] | None) -> Iterator[str]:
    if told is None:
        return
    yield "## Failures"
    yield ""
    yield (
        f"Out of fold {told['missed']} pneumonias were not flagged and {told['false_alarms']} "
        "normals were."
    )
    yield ""
    if told["worst"]:
        yield "The worst of them, by file name:"
        yield ""
        yield "| picture | probability |"
        yield "|---|---|"
        for row in told["worst"]:
            yield f"| `{row['name']}` | {row['probability']:.3f} |"
        yield ""
