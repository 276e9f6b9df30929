"""The gate: what is proven passes, and nothing else, however it looks."""

import base64
import datetime as dt
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from tests.conftest import ROOT
from training.gate import (
    Contender,
    Decision,
    Exam,
    Outcome,
    Policy,
    Rule,
    Verdict,
    decide,
    figures,
)
from training.gate_report import report
from triage.errors import DataError

POLICY = Policy()
WHEN = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)


def probability(logits: np.ndarray) -> np.ndarray:
    """The inverse of the logit."""
    return 1.0 / (1.0 + np.exp(-logits))


def exam(
    number: int = 600, seed: int = 1, old: float = 1.2, new: float = 2.5, **changes: Any
) -> Exam:
    """Cases of which the champion knows so much, and the challenger so much.

    Labels are drawn from the challenger's probabilities, so that it is calibrated.
    """
    random = np.random.default_rng(seed)
    truth = new * random.standard_normal(number)
    columns = {
        "cases": np.array([f"case-{index}" for index in range(number)]),
        "patients": np.array([f"patient-{index // 2}" for index in range(number)]),
        "labels": (random.random(number) < probability(truth)).astype(np.int64),
        "champion": probability(truth * old / new + random.standard_normal(number) * 1.2),
        "challenger": probability(truth),
        "weights": np.ones(number),
        "groups": {
            "sex": np.where(np.arange(number) % 4 < 2, "F", "M"),
            "console": np.where(np.arange(number) % 60 < 2, "CR2", "CR1"),
        },
    }
    return Exam(**{**columns, **changes})


def decision(
    site: Exam,
    policy: Policy = POLICY,
    reference: Exam | None = None,
    locked: frozenset[str] = frozenset(),
    trained_on: frozenset[str] | None = frozenset({"somebody"}),
    threshold: float = 0.3,
) -> Decision:
    """The gate's answer."""
    champion = Contender("old-1", 0.3, None)
    challenger = Contender("new-1", threshold, trained_on)
    return decide(figures(champion, challenger, site, reference, locked, policy), policy)


def rule(decision: Decision, name: str) -> Rule:
    """A rule by its name."""
    (found,) = [rule for rule in decision.rules if rule.name == name]
    return found


def test_a_better_challenger_is_proven() -> None:
    """Every rule that is asked passes."""
    answer = decision(exam())
    assert answer.outcome is Outcome.PROVEN, answer.rules
    assert {rule.verdict for rule in answer.rules} == {Verdict.PASSED, Verdict.NOT_ASKED}
    slope = answer.figures.site.slope
    assert slope is not None
    assert slope.low < 1 < slope.high


def test_the_champion_itself_is_not_proven_better() -> None:
    """No worse, but no better; a policy may ask for no more than that."""
    same = exam()
    same = replace(same, champion=same.challenger)
    answer = decision(same)
    assert answer.outcome is Outcome.NOT_PROVEN
    not_shown = [rule.name for rule in answer.rules if rule.verdict is Verdict.NOT_PROVEN]
    assert not_shown == ["site.auc"]
    modest = Policy.model_validate({"site": {"auc_above": -0.01}})
    assert decision(same, modest).outcome is Outcome.PROVEN


def test_a_lucky_challenger_is_not_proven() -> None:
    """Without an error, on too few cases; the reason says how many are needed."""
    few = exam(40)
    few = replace(few, challenger=np.where(few.labels == 1, 0.99, 0.01))
    answer = decision(few)
    assert answer.outcome is Outcome.NOT_PROVEN
    of_site = {r.verdict for r in answer.rules if r.name.startswith("site.")}
    assert of_site == {Verdict.NOT_PROVEN}
    assert "diseased patients, 50 are needed" in rule(answer, "site.sensitivity").reason


def test_a_leaking_challenger_is_refused() -> None:
    """One patient on both sides is enough; the figures are still told."""
    answer = decision(exam(), trained_on=frozenset({"patient-7", "somebody"}))
    assert answer.outcome is Outcome.REFUSED
    assert answer.figures.leaked_patients == 1
    assert "1 patients of the exams are in the challenger's snapshot" in rule(answer, "leak").reason
    assert "patient-7" not in answer.as_json(WHEN)


def test_a_leak_into_the_reference_set_is_refused_as_well() -> None:
    """Its patients are asked about, too."""
    reference = exam(seed=2)
    reference = replace(reference, patients=np.char.add("base-", reference.patients))
    answer = decision(exam(), reference=reference, trained_on=frozenset({"base-patient-7"}))
    assert answer.outcome is Outcome.REFUSED


def test_a_challenger_from_elsewhere_has_no_patients_to_ask_about() -> None:
    """Said so, not passed."""
    answer = decision(exam(), trained_on=None)
    assert answer.outcome is Outcome.PROVEN
    assert rule(answer, "leak").verdict is Verdict.NOT_ASKED


def test_a_challenger_that_harms_a_subgroup_is_worse() -> None:
    """Labels flipped for one console in its training: right elsewhere, wrong there."""
    good = exam(1200)
    there = np.arange(1200) % 8 < 1
    harmed = replace(
        good,
        challenger=np.where(there, 1 - good.challenger, good.challenger),
        groups={"console": np.where(there, "CR2", "CR1")},
    )
    answer = decision(harmed)
    assert answer.outcome is Outcome.WORSE
    failed = {r.name for r in answer.rules if r.verdict is Verdict.FAILED}
    assert "subgroup.console.CR2.sensitivity" in failed
    assert rule(answer, "subgroup.console.CR1.sensitivity").verdict is Verdict.PASSED


def test_harm_to_a_subgroup_does_not_hide_behind_a_better_rest() -> None:
    """The whole exam passes, the subgroup does not."""
    good = exam(2000, old=0.6)
    there = np.arange(2000) % 10 < 1
    harmed = replace(
        good,
        challenger=np.where(there & (good.labels == 1), 0.05, good.challenger),
        groups={"view": np.where(there, "AP", "PA")},
    )
    policy = Policy.model_validate({"site": {"sensitivity_margin": 0.2}})
    answer = decision(harmed, policy)
    assert rule(answer, "site.auc").verdict is Verdict.PASSED
    assert rule(answer, "site.sensitivity").verdict is Verdict.PASSED
    assert rule(answer, "subgroup.view.AP.sensitivity").verdict is Verdict.FAILED
    assert answer.outcome is Outcome.WORSE


def test_a_subgroup_with_too_few_cases_is_not_proven() -> None:
    """If it is a notable share of the patients; rare levels are judged together."""
    small = exam(400)
    level = np.array(["A", "B", "C", "D", "E", "F", "G", "H"])[np.arange(400) // 2 % 8]
    level[:300] = "A"
    policy = Policy.model_validate({"subgroups": {"least_diseased": 100}})
    answer = decision(replace(small, groups={"age": level}), policy)
    assert answer.outcome is Outcome.NOT_PROVEN
    shown = [r.name for r in answer.rules if r.name.startswith("subgroup")]
    assert shown == [
        "subgroup.age.A.sensitivity", "subgroup.age.A.specificity",
        "subgroup.age.(rest).sensitivity", "subgroup.age.(rest).specificity",
    ]  # fmt: skip
    assert "too few cases" in rule(answer, "subgroup.age.(rest).sensitivity").reason


def test_harm_to_a_rare_subgroup_is_still_seen() -> None:
    """No proof is asked of it, but every one of its cases is lost."""
    site = exam(1200)
    there = np.char.equal(site.groups["console"], "CR2")
    harmed = replace(site, challenger=np.where(there, 0.01, site.challenger))
    name = "subgroup.console.CR2.sensitivity"
    policy = Policy.model_validate({"subgroups": {"least_diseased": 40}})
    assert rule(decision(site, policy), name).verdict is Verdict.NOT_ASKED
    assert decision(site, policy).outcome is Outcome.PROVEN
    assert rule(decision(harmed, policy), name).verdict is Verdict.FAILED


def test_a_threshold_that_misses_more_is_worse() -> None:
    """Though the AUC is better."""
    answer = decision(exam(), threshold=0.9)
    assert answer.outcome is Outcome.WORSE
    assert rule(answer, "site.sensitivity").verdict is Verdict.FAILED
    assert rule(answer, "site.auc").verdict is Verdict.PASSED


def test_a_threshold_that_flags_everything_is_worse() -> None:
    """Sensitivity is bought with specificity."""
    answer = decision(exam(), threshold=0.0)
    assert rule(answer, "site.sensitivity").verdict is Verdict.PASSED
    assert rule(answer, "site.specificity").verdict is Verdict.FAILED
    assert answer.outcome is Outcome.WORSE


def test_what_was_known_must_not_be_unlearned() -> None:
    """Better at the site, worse on the reference set."""
    reference = exam(seed=2)
    forgot = replace(
        reference, champion=reference.challenger, challenger=reference.champion, groups={}
    )
    answer = decision(exam(), reference=forgot)
    assert rule(answer, "reference.auc").verdict is Verdict.FAILED
    assert answer.outcome is Outcome.WORSE


def test_a_policy_can_require_a_reference_set() -> None:
    """Then there is no proof without."""
    policy = Policy.model_validate({"reference": {"required": True}})
    assert decision(exam(), policy).outcome is Outcome.NOT_PROVEN


def test_worse_calibration_is_seen() -> None:
    """The ranks are the same, the probabilities are not."""
    bent = exam(2000)
    bent = replace(bent, challenger=bent.challenger**4)
    assert rule(decision(bent), "site.calibration").verdict is Verdict.FAILED


def test_a_locked_case_must_not_be_lost() -> None:
    """One is enough; one that is in no exam proves nothing; one that neither finds is not lost."""
    site = exam()
    found = np.flatnonzero((site.champion >= 0.3) & (site.labels == 1))[:5]
    locked = frozenset(site.cases[found].tolist())
    missed = site.challenger.copy()
    missed[found[0]] = 0.1
    kept = site.challenger.copy()
    kept[found] = 0.9
    worse = decision(replace(site, challenger=missed), locked=locked)
    assert worse.outcome is Outcome.WORSE
    assert "at most 0" in rule(worse, "locked").reason
    lenient = Policy.model_validate({"locked": {"may_lose": 5}})
    assert rule(
        decision(replace(site, challenger=missed), lenient, locked=locked), "locked"
    ).verdict is Verdict.PASSED  # fmt: skip
    held = replace(site, challenger=kept)
    assert decision(held, locked=locked).outcome is Outcome.PROVEN
    absent = decision(held, locked=locked | {"gone"})
    assert absent.outcome is Outcome.NOT_PROVEN
    assert rule(absent, "locked").reason == "1 locked cases are in no exam"
    neither = np.flatnonzero((site.champion < 0.3) & (site.challenger < 0.3))[0]
    assert decision(held, locked=frozenset({str(site.cases[neither])})).figures.locked.lost == 0


def test_an_exam_with_one_class_proves_nothing() -> None:
    """No AUC, no specificity, no error."""
    site = exam()
    answer = decision(site.part(site.labels == 1))
    assert answer.outcome is Outcome.NOT_PROVEN
    assert answer.figures.site.specificity is None
    assert rule(answer, "site.auc").verdict is Verdict.NOT_PROVEN
    nobody = decision(site.part(site.labels == 2))
    assert nobody.outcome is Outcome.NOT_PROVEN


def test_deciding_is_a_pure_function() -> None:
    """The same figures give the same answer and the same text."""
    first, second = decision(exam()), decision(exam())
    assert first == second
    assert first.as_json(WHEN) == second.as_json(WHEN)
    assert decide(first.figures, POLICY) == first


def test_a_decision_is_stored_whole() -> None:
    """Outcome, every rule, every figure, the policy."""
    answer = decision(exam(), reference=exam(seed=2), locked=frozenset({"case-1"}))
    told = json.loads(answer.as_json(WHEN))
    assert told["outcome"] == answer.outcome
    assert (told["champion"], told["challenger"]) == ("old-1", "new-1")
    assert told["decided_at"] == "2026-11-23T12:00:00+00:00"
    assert [rule["name"] for rule in told["rules"]] == [rule.name for rule in answer.rules]
    assert told["figures"]["site"]["auc"]["value"] == answer.figures.site.auc.value
    assert Policy.model_validate(told["policy"]) == POLICY


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"patients": np.array(["a"])}, "differ in length"),
    ({"cases": np.array(["same"] * 600)}, "twice"),
    ({"challenger": np.full(600, np.nan)}, "not 0 to 1"),
    ({"labels": np.full(600, 2)}, "not 0 or 1"),
    ({"weights": np.zeros(600)}, "not above 0"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_malformed_exam_is_refused(change: dict[str, Any], said: str) -> None:
    """Before anything is computed of it."""
    with pytest.raises(DataError, match=said):
        exam(**change)


def test_a_policy_is_read_from_toml(tmp_path: Path) -> None:
    """What it does not say is as by default."""
    file = tmp_path / "gate.toml"
    file.write_text("confidence = 0.99\n[site]\nsensitivity_margin = 0.02\n")
    policy = Policy.read(file)
    assert (policy.confidence, policy.site.sensitivity_margin) == (0.99, 0.02)
    assert policy.reference == POLICY.reference


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[site]\nsensitivity = 0.02", "site.sensitivity: Extra"),
        ("[site]\nsensitivity_margin = -1", "site.sensitivity_margin"),
        ("confidence = nan", "confidence"),
        ("confidence", "not TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_policy_is_one_line(tmp_path: Path, content: str | None, said: str) -> None:
    """That names the key."""
    file = tmp_path / "gate.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        Policy.read(file)
    assert "\n" not in str(caught.value)


def test_every_key_of_the_policy_is_documented_with_its_default() -> None:
    """In docs/gate.md, in its table; and no others are."""
    text = (ROOT / "docs" / "gate.md").read_text()
    documented = dict(re.findall(r"^\| `([a-z_.]+)` \| `([^`]+)` \|", text, re.MULTILINE))
    assert documented == dict(_keys(POLICY, ""))


def _keys(table: BaseModel, prefix: str) -> list[tuple[str, str]]:
    found = []
    for key in type(table).model_fields:
        value = getattr(table, key)
        if isinstance(value, BaseModel):
            found += _keys(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", json.dumps(value)))
    return found


def test_a_report_is_one_file_with_everything_in_it() -> None:
    """Rules and plots; no script, no link, no patient."""
    site, reference = exam(), exam(seed=2)
    answer = decision(site, reference=reference)
    html = report(answer, site, reference, WHEN)
    for each in answer.rules:
        assert each.name in html
    plots = [
        base64.b64decode(found)
        for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)
    ]
    assert len(plots) == 3
    assert all(b"<svg" in plot for plot in plots)
    assert "<script" not in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert "patient-1" not in html
    assert "case-1" not in html


def test_a_report_escapes_what_it_is_told() -> None:
    """A console's name comes from the wire."""
    site = exam()
    level = np.where(np.arange(600) % 4 < 2, "<script>alert(1)</script>", "B")
    site = replace(site, groups={"console": level})
    assert "<script" not in report(decision(site), site, None, WHEN)


@pytest.mark.parametrize("number", [4, 40])
def test_a_report_of_few_cases_is_drawn(number: int) -> None:
    """What cannot be estimated is said."""
    site = exam(number).part(exam(number).labels == 1)
    html = report(decision(site), site, None, WHEN)
    assert "not estimable" in html
    assert "NOT_PROVEN" in html
