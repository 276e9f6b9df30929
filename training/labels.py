"""Readings as of a cutoff become labels with provenance and weights. See ``docs/learning.md``.

A label's weight is the inverse of the share of such exams that were read (Horvitz and
Thompson 1952, JASA 47:663), by strata of the test result as Begg and Greenes (1983,
Biometrics 39:207) correct for verification bias. Unflagged exams that somebody chose to read
represent only themselves; the blind sample, which chance drew, represents the others.
"""

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from triage.quality import same_picture
from triage.worklist import Worklist
from triage.worklist.learning import ScoredExam
from triage.worklist.readings import resolve

Sampling = Literal["random", "flagged", "unflagged"]
Stratum = Literal["flagged", "random", "chosen"]

MOST_WEIGHT = 100.0
"""No label stands for more exams than so many: one label that is wrong must not be all that is
heard. A blind sample of less than 1% meets the cap; see ``Gathered.counts["capped"]``."""

CENSUS = 0.9
"""If so many of the unflagged exams outside of the blind sample were read, nobody chose them:
all unflagged labels then represent all unflagged exams."""


@dataclass(frozen=True, slots=True)
class Label:
    """What the readers of an exam have come to, and how.

    Attributes
    ----------
    sop_instance_uid : str
    digest : str
        SHA-256 of the kept object.
    patient : str
        A keyed hash; exams that are linked by Patient ID, study or picture have the same.
    label : int
        1 if the finding is there, else 0.
    weight : float
        So many exams of the site it stands for; 1 to :data:`MOST_WEIGHT`.
    measures : bool
        Whether it may stand in an exam: chance or its flag made it be read, and no choice of a
        reader, so that its weight is right.
    sampling : {'random', 'flagged', 'unflagged'}
        How the exam came to be read first.
    flagged : bool
        By the version that its first reader was shown or spared.
    readers : tuple of str
        All whose readings stand, in the order of their first.
    readings : tuple of int
        Their numbers in the worklist, oldest first.
    read_at : datetime
        Of the newest of them; aware, UTC.
    resolution : {'single', 'agreed', 'adjudicated'}
    blinded : bool
        The score was hidden from the first reader.
    console, view, age, sex : str
        As sent: calling AE title, View Position, Patient's Age (VR AS), Patient's Sex.
    received_at : datetime
        Aware, UTC.
    model_version : str
        That it was scored with when it was first read.
    score, threshold : float
        0 to 1; of that version.
    """

    sop_instance_uid: str
    digest: str
    patient: str
    label: int
    weight: float
    measures: bool
    sampling: Sampling
    flagged: bool
    readers: tuple[str, ...]
    readings: tuple[int, ...]
    read_at: dt.datetime
    resolution: str
    blinded: bool
    console: str
    view: str
    age: str
    sex: str
    received_at: dt.datetime
    model_version: str
    score: float
    threshold: float

    @property
    def missed(self) -> bool:
        """The finding is there, and the model did not flag it."""
        return self.label == 1 and not self.flagged


@dataclass(frozen=True, slots=True)
class Gathered:
    """The labels as of a cutoff, and what became none.

    Attributes
    ----------
    labels : tuple of Label
        In the order in which the exams came.
    counts : mapping of str to int
        ``unresolved``: exams whose readers disagree, not adjudicated. ``contradicted``: exams
        that show one exposure and were read differently. ``duplicate``: further exams of an
        exposure that has a label. ``withdrawn``: labelled exams of withdrawn patients.
        ``capped``: labels whose weight met :data:`MOST_WEIGHT`. ``unrepresented``: unflagged
        exams that no label stands for, because none of the blind sample has been read.
    members : mapping of str to frozenset of str
        Of each patient of the labels, the hashes that are that patient: several Patient IDs
        may turn out to be one person's.
    """

    labels: tuple[Label, ...]
    counts: Mapping[str, int]
    members: Mapping[str, frozenset[str]]


def labels(worklist: Worklist, until: dt.datetime) -> list[Label]:
    """The labels as of a cutoff: exactly what was known then, less who has withdrawn since."""
    return list(gather(worklist, until).labels)


def gather(worklist: Worklist, until: dt.datetime) -> Gathered:
    """The labels as of a cutoff, and what became none.

    Parameters
    ----------
    worklist : Worklist
    until : datetime
        Aware. Readings until then count, and withdrawals of readings until then. A patient's
        withdrawal counts whenever it was.
    """
    learning = worklist.learning
    return from_exams(learning.exams(until), learning.withdrawn())


def from_exams(exams: Iterable[ScoredExam], withdrawn: frozenset[str]) -> Gathered:
    """The labels of exams. Pure.

    Parameters
    ----------
    exams : iterable of ScoredExam
        All scored ones, read or not, oldest first: the unread are what labels stand for.
    withdrawn : frozenset of str
        Hashes of patients.
    """
    links = _Links()
    read: list[ScoredExam] = []
    population: Counter[tuple[str, bool, bool]] = Counter()
    for exam in exams:
        links.join(exam)
        population[exam.patient, exam.flagged, exam.blind] += 1
        if exam.readings:
            read.append(exam)
    members = links.members()
    gone = {name for name, hashes in members.items() if hashes & withdrawn}
    scored: Counter[tuple[bool, bool]] = Counter()
    for (patient, flagged, blind), number in population.items():
        if links.name(patient) not in gone:
            scored[flagged, blind] += number
    counts: Counter[str] = Counter()
    settled: dict[str, list[ScoredExam]] = defaultdict(list)
    for exam in read:
        name = links.name(exam.patient)
        if name in gone:
            counts["withdrawn"] += 1
        elif resolve(exam.readings).verdict is None:
            counts["unresolved"] += 1
        else:
            settled[name].append(exam)
    kept = [
        (name, exam)
        for name, theirs in settled.items()
        for exam in _one_of_each_exposure(theirs, counts)
    ]
    found = _weighed(kept, scored, counts)
    return Gathered(
        tuple(sorted(found, key=lambda each: (each.received_at, each.sop_instance_uid))),
        {reason: number for reason, number in counts.items() if number},
        {name: members[name] for name in {label.patient for label in found}},
    )


class _Links:
    """Which hashes are one patient: linked by a study, or by the same picture.

    A Patient ID is mended after the exam, a picture is sent again under another: if the two
    were two patients, one could be trained on and the other examined.
    """

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._by: dict[str, str] = {}

    def join(self, exam: ScoredExam) -> None:
        mine = self._root(exam.patient)
        for shared in (exam.study, exam.picture_hash):
            if shared is not None:
                other = self._root(self._by.setdefault(shared, mine))
                # The name of a group is its least hash, whatever the order of arrival.
                first, second = sorted((mine, other))
                self._parent[second] = mine = first

    def name(self, patient: str) -> str:
        return self._root(patient)

    def members(self) -> dict[str, frozenset[str]]:
        groups = defaultdict(set)
        for patient in list(self._parent):
            groups[self._root(patient)].add(patient)
        return {name: frozenset(hashes) for name, hashes in groups.items()}

    def _root(self, patient: str) -> str:
        self._parent.setdefault(patient, patient)
        while (above := self._parent[patient]) != patient:
            self._parent[patient] = self._parent[above]
            patient = above
        return patient


def _one_of_each_exposure(exams: Sequence[ScoredExam], counts: Counter[str]) -> list[ScoredExam]:
    """Of exams of one patient that show one exposure the first; none if they contradict."""
    exposures: list[list[ScoredExam]] = []
    for exam in exams:
        for known in exposures:
            if _same_exposure(known[0], exam):
                known.append(exam)
                break
        else:
            exposures.append([exam])
    kept = []
    for exposure in exposures:
        if len({resolve(exam.readings).verdict for exam in exposure}) > 1:
            counts["contradicted"] += len(exposure)
        else:
            counts["duplicate"] += len(exposure) - 1
            kept.append(exposure[0])
    return kept


def _same_exposure(one: ScoredExam, other: ScoredExam) -> bool:
    if one.digest == other.digest:
        return True
    hashes = one.picture_hash, other.picture_hash
    return hashes[0] is not None and hashes[1] is not None and same_picture(hashes[0], hashes[1])


def _stratum(exam: ScoredExam) -> Stratum:
    first = exam.readings[0]
    if first.shown_score >= first.shown_threshold:
        return "flagged"
    return "random" if first.sampling == "random" else "chosen"


def _weighed(
    kept: Sequence[tuple[str, ScoredExam]],
    scored: Mapping[tuple[bool, bool], int],
    counts: Counter[str],
) -> list[Label]:
    labelled = Counter(_stratum(exam) for _, exam in kept)
    flagged = scored.get((True, False), 0) + scored.get((True, True), 0)
    outside, sampled = scored.get((False, False), 0), scored.get((False, True), 0)
    unflagged = outside + sampled
    census = labelled["chosen"] > 0 and labelled["chosen"] >= CENSUS * outside
    stands_for: dict[Stratum, tuple[int, int]] = {
        "flagged": (flagged, labelled["flagged"]),
        "random": (unflagged, labelled["random"]),
        "chosen": (1, 1),
    }
    if census:
        everyone = labelled["random"] + labelled["chosen"]
        stands_for |= {"random": (unflagged, everyone), "chosen": (unflagged, everyone)}
    elif not labelled["random"]:
        counts["unrepresented"] = unflagged
    weights = {}
    for stratum, (there, have) in stands_for.items():
        weight = max(1.0, there / have) if have else 1.0
        if weight > MOST_WEIGHT:
            counts["capped"] += have
        weights[stratum] = min(weight, MOST_WEIGHT)
    return [
        _label(name, exam, weights[_stratum(exam)], _stratum(exam) != "chosen" or census)
        for name, exam in kept
    ]


def _label(patient: str, exam: ScoredExam, weight: float, measures: bool) -> Label:
    standing = exam.readings
    resolution, first = resolve(standing), standing[0]
    return Label(
        sop_instance_uid=exam.sop_instance_uid,
        digest=exam.digest,
        patient=patient,
        label=int(resolution.verdict == "confirmed"),
        weight=weight,
        measures=measures,
        sampling=first.sampling,  # type: ignore[arg-type]
        flagged=first.shown_score >= first.shown_threshold,
        readers=tuple(dict.fromkeys(reading.reader for reading in standing)),
        readings=tuple(reading.id for reading in standing),
        read_at=max(reading.read_at for reading in standing),
        resolution=resolution.kind,
        blinded=first.blinded,
        console=exam.console,
        view=exam.view,
        age=exam.age,
        sex=exam.sex,
        received_at=exam.received_at,
        model_version=first.shown_model_version,
        score=first.shown_score,
        threshold=first.shown_threshold,
    )
