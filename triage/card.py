"""The model card of a version: what it is for, whom it knows, how good it is.

The sections are those of Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
Everything that is not the same for every version comes from its ``model.json``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from triage.registry import ModelVersion

UNSTATED = "not stated"

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
    data = told.get("data", {})
    lines = [
        f"# Model card: {model.version}",
        "",
        f"{told.get('architecture', 'Network')}, {told.get('parameters', 0):,} parameters,",
        f"made {told['created_at']}.",
        f"Output: {told.get('output', UNSTATED)}.",
        f"Flagged at and above {model.threshold:.4f} ({told.get('threshold_rule', UNSTATED)}).",
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
        *_figures(told.get("metrics", {})),
        *_subgroups(told.get("metrics", {}).get("subgroups", {})),
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
        *_robustness(told.get("robustness")),
        "## Data and licences",
        "",
        f"- Trained on {data.get('name', UNSTATED)}:",
        f"  {data.get('attribution', UNSTATED)}. {data.get('licence', UNSTATED)}.",
        *(
            f"- {part.replace('_', ' ')}: "
            + ", ".join(f"{count:,} {name}" for name, count in counts.items())
            for part, counts in data.get("parts", {}).items()
        ),
        f"- Snapshot `{data.get('snapshot', UNSTATED)}`.",
    ]
    if "pretrained" in told:
        start = told["pretrained"]
        lines.append(f"- Started from {start['name']}: {start['attribution']}. {start['licence']}.")
    return "\n".join(lines) + "\n"


def _ages(model: ModelVersion) -> str:
    age = model.population.age_years
    return "Ages not stated." if age is None else f"Ages {age[0]} to {age[1]} years."


def _figures(metrics: Mapping[str, Any]) -> Iterator[str]:
    measured_on, interval = (metrics.get(key, UNSTATED) for key in ("measured_on", "interval"))
    yield f"{measured_on}; {interval}.".capitalize()
    yield ""
    yield "| measured on | figure | value | interval |"
    yield "|---|---|---|---|"
    for part, name in _MEASURED_ON.items():
        for figure, value in metrics.get(part, {}).items():
            yield f"| {name} | {figure} | {value['value']:.3f} | {_interval(value)} |"
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
            f"{_interval(row)} |"
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
        yield "The worst of them, by file name, and what an engineer, not a radiologist, saw there:"
        yield ""
        yield "| picture | probability | seen |"
        yield "|---|---|---|"
        for row in told["worst"]:
            seen = row.get("seen", "not looked at")
            yield f"| `{row['name']}` | {row['probability']:.3f} | {seen} |"
        yield ""


_BY = {
    "another's surroundings": "its lungs, in what surrounds another patient's",
    "another's lungs": "what surrounds its lungs, with another patient's lungs in it",
    "lungs covered": "all but its lungs, which are covered",
    "only borders": "its borders alone",
}


def _robustness(told: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Other consoles"
    yield ""
    if told is None:
        yield "Not measured; `python -m training stress` does."
    else:
        unchanged, falls = told["unchanged_auc"], told["largest_fall_of_auc"]
        yield (
            f"{told['pictures']:,} radiographs of patients that it never saw, each changed in "
            f"{told['changes']} ways, mildly and strongly: AUC {_figure(unchanged)} unchanged."
        )
        for strength, row in falls.items():
            yield (
                f"Under {strength} changes it falls by {row['value']:.3f} at most "
                f"({_interval(row)}; {row['change']})."
            )
        for key, words in (
            ("most_flags_changed", "Most flags change"),
            ("least_sensitivity", "Sensitivity is lowest"),
            ("least_specificity", "Specificity is lowest"),
        ):
            row = told[key]
            yield f"{words} under {row['change']}, {row['strength']}: {row['value']:.1%}."
    yield ""
    yield "## Shortcuts"
    yield ""
    yield "In the Kermany data normals were exported at a higher resolution and quality and carry"
    yield "other borders and markers than pneumonias. A network that judges lungs tells the classes"
    yield "apart by them, and is at chance (0.5) where none is."
    yield ""
    if told is not None:
        yield "| judged by | AUC | interval |"
        yield "|---|---|---|"
        for name, area in told["auc_by"].items():
            yield f"| {_BY.get(name, name)} | {area['value']:.3f} | {_interval(area)} |"
        yield ""
        readers = (f"{area:.3f} ({name})" for name, area in told["auc_of_a_plain_reader"].items())
        yield "What a plain reader finds there that is trained to, on patients that it never saw: "
        yield f"AUC {', '.join(readers)}."
        yield ""


def _figure(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.3f} ({_interval(figure)})"


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['low']:.3f} to {figure['high']:.3f}"
