"""Three challengers that the gate must not let pass: ``python -m tests.acceptance.refused``.

On real radiographs of patients that the champion never saw, half from the console of
:mod:`tests.acceptance.story` (CR1) and half as published (CR2), and with a real training, whose
labels are flipped for CR2. It prints each refusal with its reasons, and fails if one passes.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from sample_dicom.draw import Exam as Person
from sample_dicom.draw import as_dx
from tests.acceptance.story import DATA, as_at_the_site, patients_of
from training.dataset import Case
from training.gate import (
    Contender,
    Decision,
    Exam,
    Outcome,
    Policy,
    Verdict,
    decide,
    figures,
)
from triage.app import BUNDLED
from triage.network import Network
from triage.pixels import normalize
from triage.registry import ModelVersion

PATIENTS, VALIDATION, LUCKY = 400, 50, 20
"""Half of the patients train, and the newest of those validate; a lucky exam has at most so many
cases."""

POLICY = Policy()


def pictures(cases: Sequence[Case], consoles: npt.NDArray[np.str_]) -> npt.NDArray[np.float16]:
    """Each radiograph as its console sends it, float16, shape (cases, 256, 256)."""
    made = []
    for number, (case, console) in enumerate(zip(cases, consoles, strict=True), 1):
        with Image.open(case.path) as image:
            grey = np.asarray(image.convert("L"), np.float64) / 255.0
        shown = as_at_the_site(grey, number) if console == "CR1" else grey
        dataset = as_dx(shown, Person(number, age=3, sex="F", seed=1), view="AP", bits=12)
        made.append(normalize(dataset).array.astype(np.float16))
    return np.stack(made)


def told(name: str, decision: Decision, outcome: Outcome) -> None:
    """Print a refusal's reasons; fail if it is none, or for another reason than it must."""
    assert decision.outcome is outcome, (name, decision.outcome, decision.rules)
    for rule in decision.rules:
        if rule.verdict not in {Verdict.PASSED, Verdict.NOT_ASKED}:
            click.echo(f"| {name} | {outcome} | `{rule.name}` | {rule.verdict} | {rule.reason} |")


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=DATA)
def main(data: Path) -> None:
    """Make the three and ask the gate."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from training import challenger

    champion = ModelVersion.load(max(BUNDLED.glob("*/model.json")).parent)
    found = patients_of(data, champion)
    cases = [found[number % 2].pop() for number in range(PATIENTS)]
    labels = np.array([case.label for case in cases], np.int64)
    patients = np.array([case.patient for case in cases])
    consoles = np.array(["CR1", "CR2"])[np.arange(PATIENTS) // 2 % 2]
    arrays = pictures(cases, consoles)
    seen, exam = np.arange(PATIENTS // 2), np.arange(PATIENTS // 2, PATIENTS)
    said = np.where(consoles == "CR2", 1 - labels, labels)

    def part(rows: npt.NDArray[np.int64]) -> challenger.Pictures:
        return challenger.Pictures(arrays[rows], said[rows], np.ones(len(rows)), patients[rows])

    lesson = challenger.Lesson(
        "sha256:none", part(seen[:-VALIDATION]), part(seen[-VALIDATION:]), None, {}
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = challenger.Settings()
        harmful = challenger.train(champion, lesson, Path(folder) / "harmful", settings)
        old, new = (
            np.array([network.score(array.astype(np.float32)).probability for array in arrays])
            for network in (Network(champion), Network(harmful))
        )
    whole = Exam(
        np.array([case.name for case in cases]),
        patients,
        labels,
        old,
        new,
        np.ones(PATIENTS),
        {"console": consoles},
    )

    def asked(site: Exam, trained_on: npt.NDArray[np.str_]) -> Decision:
        contenders = (
            Contender(champion.version, champion.threshold, None),
            Contender(harmful.version, harmful.threshold, frozenset(trained_on.tolist())),
        )
        return decide(figures(*contenders, site, None, frozenset(), POLICY), POLICY)

    def of(rows: npt.NDArray[np.int64]) -> Exam:
        return replace(whole.part(np.isin(np.arange(PATIENTS), rows)), groups={})

    site = replace(of(exam), groups={"console": consoles[exam]})
    click.echo("| challenger | outcome | rule | verdict | why |\n|---|---|---|---|---|")
    decision = asked(site, patients[seen])
    told("harmful: labels flipped for CR2", decision, Outcome.WORSE)
    failed = {rule.name for rule in decision.rules if rule.verdict is Verdict.FAILED}
    assert any(name.startswith("subgroup.console.CR2") for name in failed), failed
    assert not any(name.startswith("subgroup.console.CR1") for name in failed), failed

    # Of its own console only cases that it happens to get right, as a short exam may.
    right = (new >= harmful.threshold) == (labels == 1)
    own = exam[(consoles[exam] == "CR1") & right[exam]]
    halves = [own[labels[own] == label][: LUCKY // 2] for label in (0, 1)]
    few = np.concatenate(halves)
    told(f"lucky: {len(few)} cases, all right", asked(of(few), patients[seen]), Outcome.NOT_PROVEN)

    told("leaking: one patient on both sides", asked(of(np.append(exam, seen[0])), patients[seen]),
         Outcome.REFUSED)  # fmt: skip


if __name__ == "__main__":
    main()
