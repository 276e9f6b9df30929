"""The gate: may a challenger take the champion's place? Figures first, then a pure decision.

:func:`figures` measures both versions on the same cases; :func:`decide` holds the figures
against a written :class:`Policy` and does nothing else. What is not shown is not assumed:
too few cases are NOT_PROVEN, never PASSED. See ``docs/gate.md``.
"""

import datetime as dt
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.paired import (
    Difference,
    Estimate,
    Flags,
    Labels,
    Names,
    Numbers,
    difference_of_aucs,
    difference_of_calibration_errors,
    difference_of_shares,
    recalibration,
)
from triage.errors import DataError

FORMAT = 1
"""The version of a decision's JSON."""

REST = "(rest)"
"""The levels of an attribute that are each too rare to be judged alone."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExamPolicy(_Table):
    """What is asked on one set of cases.

    Attributes
    ----------
    least_diseased, least_healthy : int
        Patients of each class; with fewer, nothing on this set is proven.
    sensitivity_margin, specificity_margin : float
        The loss that is still taken; a larger one must be ruled out.
    auc_above : float
        What the difference of AUCs must be shown to exceed; 0 asks for a better challenger.
    calibration_margin : float
        The rise of the expected calibration error that is still taken.
    """

    least_diseased: Count = 50
    least_healthy: Count = 50
    sensitivity_margin: Share = 0.05
    specificity_margin: Share = 0.10
    auc_above: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] = 0.0
    calibration_margin: Share = 0.05


class ReferencePolicy(ExamPolicy):
    """The same for the reference set: nothing need be better, little may be unlearned.

    Attributes
    ----------
    required : bool
        Whether there is no proof without a reference set.
    """

    required: bool = False
    auc_above: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] = -0.02


class SubgroupPolicy(_Table):
    """What is asked of each subgroup of the site exam.

    Attributes
    ----------
    least_share : float
        Levels with a smaller share of the patients are judged together; if they are too few even
        so, harm to them is still looked for, but no proof is asked.
    least_diseased, least_healthy : int
        Patients of each class; a level with fewer is not proven.
    sensitivity_margin, specificity_margin : float
        As on the whole exam, but wider: there are fewer cases.
    """

    least_share: Share = 0.10
    least_diseased: Count = 15
    least_healthy: Count = 15
    sensitivity_margin: Share = 0.20
    specificity_margin: Share = 0.30


class LockedPolicy(_Table):
    """What is asked of the locked cases.

    Attributes
    ----------
    may_lose : int
        So many of the locked cases that the champion flags may be missed by the challenger.
    """

    may_lose: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class Policy(_Table):
    """The written rules of a site.

    Attributes
    ----------
    confidence : float
        Of every one-sided limit; 0.95 lets a challenger pass that is worse by a whole margin
        in at most 5% of exams.
    site : ExamPolicy
    reference : ReferencePolicy
    subgroups : SubgroupPolicy
    locked : LockedPolicy
    """

    confidence: Annotated[float, Field(ge=0.8, le=0.999, allow_inf_nan=False)] = 0.95
    site: ExamPolicy = ExamPolicy()
    reference: ReferencePolicy = ReferencePolicy()
    subgroups: SubgroupPolicy = SubgroupPolicy()
    locked: LockedPolicy = LockedPolicy()

    @classmethod
    def read(cls, path: Path) -> "Policy":
        """A policy from a TOML file; what it does not say is as by default.

        Raises
        ------
        DataError
            It cannot be read, or a key or a value is wrong.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text("utf-8")))
        except OSError as error:
            raise DataError(f"policy {path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"policy {path}: {where}: {first['msg']}: see docs/gate.md") from error
        except ValueError as error:
            raise DataError(f"policy {path} is not TOML: {error}") from error


@dataclass(frozen=True, slots=True)
class Exam:
    """What both versions said of the same cases.

    Attributes
    ----------
    cases : ndarray of str, shape (cases,)
        A name for each, such as a SOP Instance UID; only the locked list refers to it.
    patients : ndarray of str, shape (cases,)
        The same names as in the snapshot that trained the challenger.
    labels : ndarray of int64, shape (cases,), 0 or 1
        1 is diseased, by readers, never by a model.
    champion, challenger : ndarray of float64, shape (cases,), 0 to 1
        Probabilities.
    weights : ndarray of float64, shape (cases,), above 0
        The inverse of each case's probability to be in the exam. Where flagged exams are read
        more often than others, equal weights favour the champion (verification bias, Begg and
        Greenes 1983, Biometrics 39:207).
    groups : mapping of str to ndarray of str, shape (cases,)
        The level of each case, by attribute: ``age``, ``sex``, ``view``, ``console``. An empty
        text is unknown, and a level of its own.
    """

    cases: Names
    patients: Names
    labels: Labels
    champion: Numbers
    challenger: Numbers
    weights: Numbers
    groups: Mapping[str, Names] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number = len(self.cases)
        columns = [self.patients, self.labels, self.champion, self.challenger, self.weights]
        if any(column.shape != (number,) for column in [*columns, *self.groups.values()]):
            raise DataError("an exam's columns differ in length: give one value for each case")
        if len(np.unique(self.cases)) != number:
            raise DataError("a case is in an exam twice: give each once")
        for scores in (self.champion, self.challenger):
            if not np.all((scores >= 0.0) & (scores <= 1.0)):
                raise DataError("a score of an exam is not 0 to 1: score the case again")
        if not np.all(np.isin(self.labels, (0, 1))):
            raise DataError("a label of an exam is not 0 or 1: leave out what is undecided")
        if not np.all((self.weights > 0) & np.isfinite(self.weights)):
            raise DataError("a weight of an exam is not above 0")

    def part(self, rows: Flags) -> "Exam":
        """The exam of some of the cases, without groups."""
        return Exam(
            self.cases[rows],
            self.patients[rows],
            self.labels[rows],
            self.champion[rows],
            self.challenger[rows],
            self.weights[rows],
        )


@dataclass(frozen=True, slots=True)
class Contender:
    """What the gate must know of a version besides its scores.

    Attributes
    ----------
    version : str
    threshold : float
        The one it would flag with, chosen without the exam.
    trained_on : frozenset of str, or None
        The patients of its snapshot, training and validation. None is elsewhere: it came from
        another site, whose patients cannot be compared with ours by name.
    """

    version: str
    threshold: float
    trained_on: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one set of cases.

    Attributes
    ----------
    cases, diseased_patients, healthy_patients : int
        A patient with pictures of both kinds counts in both.
    sensitivity, specificity, auc, calibration : Difference, or None
        None where a class is missing. Calibration is the expected calibration error.
    intercept, slope : Estimate, or None
        The challenger's; None where none can be estimated.
    """

    cases: int
    diseased_patients: int
    healthy_patients: int
    sensitivity: Difference | None
    specificity: Difference | None
    auc: Difference | None
    calibration: Difference | None
    intercept: Estimate | None
    slope: Estimate | None


@dataclass(frozen=True, slots=True)
class Subgroup:
    """One level of one attribute, and its figures.

    Attributes
    ----------
    attribute, level : str
    share : float
        Of the exam's patients.
    measured : Measured
    """

    attribute: str
    level: str
    share: float
    measured: Measured


@dataclass(frozen=True, slots=True)
class Locked:
    """The cases that must not be lost.

    Attributes
    ----------
    listed : int
    unscored : int
        Not among the exams' cases.
    found : int
        Flagged by the champion.
    lost : int
        Flagged by the champion and not by the challenger.
    """

    listed: int
    unscored: int
    found: int
    lost: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that a decision is made of. No patient data.

    Attributes
    ----------
    champion, challenger : str
        Versions.
    thresholds : tuple of float
        The champion's and the challenger's.
    confidence : float
        Of the one-sided limits.
    leaked_patients : int, or None
        Of the exams, that the challenger was trained on; None if it was trained elsewhere.
    site : Measured
    reference : Measured, or None
    subgroups : tuple of Subgroup
    locked : Locked
    """

    champion: str
    challenger: str
    thresholds: tuple[float, float]
    confidence: float
    leaked_patients: int | None
    site: Measured
    reference: Measured | None
    subgroups: tuple[Subgroup, ...]
    locked: Locked


class Verdict(StrEnum):
    """What a rule says."""

    PASSED = "PASSED"
    NOT_PROVEN = "NOT_PROVEN"
    FAILED = "FAILED"
    NOT_ASKED = "NOT_ASKED"


class Outcome(StrEnum):
    """What the gate says."""

    PROVEN = "PROVEN"
    NOT_PROVEN = "NOT_PROVEN"
    WORSE = "WORSE"
    REFUSED = "REFUSED"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule's verdict, and why in one line."""

    name: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's answer with all that it was made of.

    Attributes
    ----------
    outcome : Outcome
    rules : tuple of Rule
    figures : Figures
    policy : Policy
    """

    outcome: Outcome
    rules: tuple[Rule, ...]
    figures: Figures
    policy: Policy

    def as_json(self, decided_at: dt.datetime) -> str:
        """What is stored with the challenger: one JSON object, sorted, numbers in full."""
        content = {
            "format": FORMAT,
            "decided_at": decided_at.isoformat(timespec="seconds"),
            "champion": self.figures.champion,
            "challenger": self.figures.challenger,
            "outcome": self.outcome.value,
            "rules": [asdict(rule) for rule in self.rules],
            "figures": asdict(self.figures),
            "policy": self.policy.model_dump(),
        }
        return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def figures(
    champion: Contender,
    challenger: Contender,
    site: Exam,
    reference: Exam | None,
    locked: frozenset[str],
    policy: Policy,
    seed: int = 0,
) -> Figures:
    """Measure both versions on the same cases.

    Parameters
    ----------
    champion, challenger : Contender
    site : Exam
        The frozen site exam: newest cases of the site that no training has seen.
    reference : Exam, or None
        Cases of the base data that were held out; None where the site has none.
    locked : frozenset of str
        Names of cases that must not be lost.
    policy : Policy
        Its confidence, and how rare a subgroup may be.
    seed : int
        Of the calibration error's bootstrap.
    """
    exams = [site] if reference is None else [site, reference]
    leaked = None
    if challenger.trained_on is not None:
        seen = set(challenger.trained_on)
        leaked = sum(len(seen & set(exam.patients.tolist())) for exam in exams)
    thresholds = (champion.threshold, challenger.threshold)

    def measure(exam: Exam) -> Measured:
        return _measure(exam, thresholds, policy.confidence, seed)

    return Figures(
        champion.version,
        challenger.version,
        thresholds,
        policy.confidence,
        leaked,
        measure(site),
        None if reference is None else measure(reference),
        tuple(
            Subgroup(
                attribute, level, _patients(site, rows) / _patients(site), measure(site.part(rows))
            )
            for attribute, level, rows in _subgroups(site, policy.subgroups.least_share)
        ),
        _locked(exams, thresholds, locked),
    )


def _measure(exam: Exam, thresholds: tuple[float, float], confidence: float, seed: int) -> Measured:
    diseased, healthy = exam.labels == 1, exam.labels == 0
    flagged = (exam.champion >= thresholds[0], exam.challenger >= thresholds[1])

    def shares(rows: Flags, champion: Flags, challenger: Flags) -> Difference | None:
        if not rows.any():
            return None
        return difference_of_shares(
            champion[rows], challenger[rows], exam.patients[rows], exam.weights[rows], confidence
        )

    counts = [len(np.unique(exam.patients[rows])) for rows in (diseased, healthy)]
    auc = calibration = intercept = slope = None
    # One patient has no variance.
    if min(counts) > 1:
        both = (exam.labels, exam.champion, exam.challenger, exam.patients, exam.weights)
        auc = difference_of_aucs(*both, confidence)
        calibration = difference_of_calibration_errors(*both, confidence, seed)
        refit = recalibration(exam.labels, exam.challenger, exam.patients, exam.weights)
        if refit is not None:
            intercept, slope = refit
    return Measured(
        cases=len(exam.cases),
        diseased_patients=counts[0],
        healthy_patients=counts[1],
        sensitivity=shares(diseased, flagged[0], flagged[1]),
        specificity=shares(healthy, ~flagged[0], ~flagged[1]),
        auc=auc,
        calibration=calibration,
        intercept=intercept,
        slope=slope,
    )


def _patients(exam: Exam, rows: Flags | None = None) -> int:
    return len(np.unique(exam.patients if rows is None else exam.patients[rows]))


def _subgroups(exam: Exam, least_share: float) -> Iterator[tuple[str, str, Flags]]:
    """Each attribute's levels; the rare ones as one."""
    for attribute, levels in sorted(exam.groups.items()):
        found = sorted(set(levels.tolist()))
        if len(found) < 2:
            continue
        rows = {level: levels == level for level in found}
        least = least_share * _patients(exam)
        rare = [level for level in found if _patients(exam, rows[level]) < least]
        for level in found:
            if level not in rare:
                yield attribute, level, rows[level]
        if rare:
            yield attribute, rare[0] if len(rare) == 1 else REST, np.isin(levels, rare)


def _locked(exams: list[Exam], thresholds: tuple[float, float], locked: frozenset[str]) -> Locked:
    scored = {
        name: (old >= thresholds[0], new >= thresholds[1])
        for exam in exams
        for name, old, new in zip(exam.cases.tolist(), exam.champion, exam.challenger, strict=True)
        if name in locked
    }
    found = [new for old, new in scored.values() if old]
    return Locked(len(locked), len(locked) - len(scored), len(found), sum(not new for new in found))


def decide(figures: Figures, policy: Policy) -> Decision:
    """Hold figures against a policy. Pure: the same figures give the same answer.

    REFUSED if the evidence is worth nothing, WORSE if one rule shows harm, NOT_PROVEN if one
    rule that is asked is not shown, else PROVEN. Every rule must pass, so that no correction
    for their number is due (intersection-union test, Berger 1982, Technometrics 24:295).

    Parameters
    ----------
    figures : Figures
    policy : Policy
    """
    leak = _leak(figures)
    rules = [
        leak,
        *_exam_rules("site", figures.site, policy.site),
        *_reference_rules(figures, policy.reference),
        *_subgroup_rules(figures, policy.subgroups),
        _locked_rule(figures.locked, policy.locked),
    ]
    verdicts = {rule.verdict for rule in rules}
    if leak.verdict is Verdict.FAILED:
        outcome = Outcome.REFUSED
    elif Verdict.FAILED in verdicts:
        outcome = Outcome.WORSE
    elif Verdict.NOT_PROVEN in verdicts:
        outcome = Outcome.NOT_PROVEN
    else:
        outcome = Outcome.PROVEN
    return Decision(outcome, tuple(rules), figures, policy)


def _leak(figures: Figures) -> Rule:
    leaked = figures.leaked_patients
    if leaked is None:
        return Rule(
            "leak", Verdict.NOT_ASKED, "trained elsewhere: its patients are not known by name here"
        )
    if leaked:
        reason = (
            f"{leaked} patients of the exams are in the challenger's snapshot: train it without "
            "them, or take them out of the exam"
        )
        return Rule("leak", Verdict.FAILED, reason)
    return Rule("leak", Verdict.PASSED, "no patient of the exams is in the challenger's snapshot")


def _exam_rules(name: str, measured: Measured, policy: ExamPolicy) -> Iterator[Rule]:
    diseased = _short("diseased", measured.diseased_patients, policy.least_diseased)
    healthy = _short("healthy", measured.healthy_patients, policy.least_healthy)
    few = "; ".join(filter(None, (diseased, healthy)))
    for figure, difference, bound, sign, short in (
        ("sensitivity", measured.sensitivity, -policy.sensitivity_margin, 1, diseased),
        ("specificity", measured.specificity, -policy.specificity_margin, 1, healthy),
        ("auc", measured.auc, policy.auc_above, 1, few),
        ("calibration", measured.calibration, policy.calibration_margin, -1, few),
    ):
        yield _rule(f"{name}.{figure}", difference, bound, sign, short)


def _reference_rules(figures: Figures, policy: ReferencePolicy) -> Iterator[Rule]:
    if figures.reference is not None:
        yield from _exam_rules("reference", figures.reference, policy)
    elif policy.required:
        yield Rule("reference", Verdict.NOT_PROVEN, "the policy requires a reference set")
    else:
        yield Rule("reference", Verdict.NOT_ASKED, "there is no reference set")


def _subgroup_rules(figures: Figures, policy: SubgroupPolicy) -> Iterator[Rule]:
    for group in figures.subgroups:
        of = group.measured
        name = f"subgroup.{group.attribute}.{group.level or '(unknown)'}"
        diseased = _short("diseased", of.diseased_patients, policy.least_diseased)
        healthy = _short("healthy", of.healthy_patients, policy.least_healthy)
        for figure, difference, margin, short in (
            ("sensitivity", of.sensitivity, policy.sensitivity_margin, diseased),
            ("specificity", of.specificity, policy.specificity_margin, healthy),
        ):
            rule = _rule(f"{name}.{figure}", difference, -margin, 1, short)
            if short and group.share < policy.least_share and rule.verdict is Verdict.NOT_PROVEN:
                rule = Rule(rule.name, Verdict.NOT_ASKED, f"rare here, and {rule.reason}")
            yield rule
    if not figures.subgroups:
        yield Rule("subgroups", Verdict.NOT_ASKED, "the exam tells no two levels apart")


def _locked_rule(locked: Locked, policy: LockedPolicy) -> Rule:
    told = f"{locked.lost} of {locked.found} locked cases that the champion finds are lost"
    if not locked.listed:
        return Rule("locked", Verdict.NOT_ASKED, "no case is locked")
    if locked.lost > policy.may_lose:
        return Rule("locked", Verdict.FAILED, f"{told}, at most {policy.may_lose} may be")
    if locked.unscored:
        return Rule("locked", Verdict.NOT_PROVEN, f"{locked.unscored} locked cases are in no exam")
    return Rule("locked", Verdict.PASSED, told)


def _short(kind: str, there: int, wanted: int) -> str:
    """Empty, or what there is too little of."""
    return f"{there} {kind} patients, {wanted} are needed" if there < wanted else ""


def _rule(name: str, difference: Difference | None, bound: float, sign: int, few: str) -> Rule:
    """Whether a difference is shown to be on the right side of a bound.

    With ``sign`` 1 more is better, with -1 less is. FAILED takes two: the difference is shown
    to be one for the worse, and what is still taken is not shown to be kept.
    """
    if difference is None:
        return Rule(name, Verdict.NOT_PROVEN, f"too few cases: {few or 'a class is missing'}")
    worst, best = (difference.low, difference.high) if sign > 0 else (
        -difference.high,
        -difference.low,
    )  # fmt: skip
    told = (
        f"{difference.champion:.3f} to {difference.challenger:.3f}, difference "
        f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
    )
    shown = worst > sign * bound
    side = "above" if sign > 0 else "below"
    if few:
        verdict = Verdict.FAILED if best < 0 and not shown else Verdict.NOT_PROVEN
        return Rule(name, verdict, f"too few cases: {few}; {told}")
    if shown:
        return Rule(name, Verdict.PASSED, f"{told}, {side} {bound:+.3f}")
    if best < 0:
        return Rule(name, Verdict.FAILED, f"{told}: worse, and not shown {side} {bound:+.3f}")
    return Rule(name, Verdict.NOT_PROVEN, f"{told}, not shown {side} {bound:+.3f}")
