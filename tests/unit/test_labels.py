"""Labels: what readings come to, whom they stand for, and that no patient is two."""

import datetime as dt
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.labels import CENSUS, MOST_WEIGHT, Gathered, Label, from_exams
from triage.worklist.learning import ScoredExam, StandingReading

START = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
NOBODY: frozenset[str] = frozenset()


def reading(
    number: int, verdict: str, reader: str = "one", *, adjudicates: bool = False, score: float = 0.9
) -> StandingReading:
    """A reading of an exam that is flagged unless its score is low; by chance if it is random."""
    return StandingReading(
        number,
        reader,
        verdict,
        START + dt.timedelta(minutes=number),
        "flagged" if score >= 0.5 else "unflagged",
        adjudicates,
        False,
        "page",
        score,
        0.5,
        "v1",
    )


def exam(
    number: int,
    verdicts: Sequence[str] = (),
    *,
    patient: str | None = None,
    study: str | None = None,
    picture: str | None = None,
    score: float = 0.9,
    blind: bool = False,
) -> ScoredExam:
    """A scored exam; of each verdict a reader of its own."""
    said = tuple(
        StandingReading(
            1_000 * number + place,
            f"reader{place}",
            verdict,
            START + dt.timedelta(minutes=number),
            "random" if blind else "flagged" if score >= 0.5 else "unflagged",
            False,
            blind,
            "page",
            score,
            0.5,
            "v1",
        )
        for place, verdict in enumerate(verdicts)
    )
    return ScoredExam(
        f"1.2.{number}",
        f"{number:064x}",
        f"patient {number}" if patient is None else patient,
        f"study {number}" if study is None else study,
        picture,
        START + dt.timedelta(minutes=number),
        "CR1",
        "PA",
        "003Y",
        "F",
        score >= 0.5,
        blind,
        said,
    )


def gathered(*exams: ScoredExam, withdrawn: frozenset[str] = NOBODY) -> Gathered:
    """The labels of some exams."""
    return from_exams(exams, withdrawn)


def test_readers_of_one_opinion_agree_and_others_give_no_label() -> None:
    """Single, agreed, and left out but counted."""
    found = gathered(
        exam(1, ["confirmed"]),
        exam(2, ["rejected", "rejected"]),
        exam(3, ["confirmed", "rejected"]),
        exam(4),
    )
    assert [(label.label, label.resolution) for label in found.labels] == [
        (1, "single"),
        (0, "agreed"),
    ]
    assert found.labels[1].readers == ("reader0", "reader1")
    assert found.labels[1].readings == (2000, 2001)
    assert found.counts["unresolved"] == 1


def test_an_adjudication_settles_whatever_was_said_before_and_after() -> None:
    """As the worklist itself decides."""
    said = (
        reading(1, "confirmed", "one"),
        reading(2, "rejected", "two"),
        reading(3, "rejected", "head", adjudicates=True),
        reading(4, "confirmed", "one"),
    )
    plain = exam(1)
    settled = ScoredExam(
        **{name: getattr(plain, name) for name in ScoredExam.__slots__ if name != "readings"},
        readings=said,
    )
    (label,) = gathered(settled).labels
    assert (label.label, label.resolution) == (0, "adjudicated")
    assert label.readers == ("one", "two", "head")


@pytest.mark.parametrize(
    "second",
    [
        {"patient": "patient 1"},
        {"study": "study 1"},
        {"picture": "ff" * 32},
    ],
)
def test_a_shared_id_study_or_picture_is_one_patient(second: dict[str, str]) -> None:
    """Two studies of one patient, a Patient ID that was mended, a picture sent again."""
    found = gathered(
        exam(1, ["confirmed"], picture="ff" * 32),
        exam(2, ["confirmed"], **second),  # type: ignore[arg-type]
        exam(3, ["confirmed"], picture="00" * 32),
    )
    patients = [label.patient for label in found.labels]
    assert len(set(patients)) == 2
    linked = found.members[found.labels[0].patient]
    assert linked == ({"patient 1"} if "patient" in second else {"patient 1", "patient 2"})


def test_an_unread_exam_links_two_patients_too() -> None:
    """Who is whom does not depend on who was read."""
    found = gathered(
        exam(1, ["confirmed"], patient="a", study="s"),
        exam(2, patient="b", study="s", picture="ff" * 32),
        exam(3, ["rejected"], patient="c", picture="ff" * 32),
    )
    assert {label.patient for label in found.labels} == {"a"}
    assert found.members["a"] == {"a", "b", "c"}


def test_one_exposure_gives_one_label_and_none_if_it_was_read_two_ways() -> None:
    """A copy of a few other bits is the same exposure."""
    again = "fe" + "ff" * 31
    found = gathered(
        exam(1, ["confirmed"], picture="ff" * 32), exam(2, ["confirmed"], patient="patient 1",
                                                        picture=again),
        exam(3, ["confirmed"], picture="0f" * 32), exam(4, ["rejected"], picture="0f" * 32),
    )  # fmt: skip
    assert [label.sop_instance_uid for label in found.labels] == ["1.2.1"]
    assert (found.counts["duplicate"], found.counts["contradicted"]) == (1, 2)


def test_a_withdrawn_patient_has_no_label_under_any_of_their_ids() -> None:
    """Nor do they count among those that labels stand for."""
    exams = [exam(1, ["confirmed"], study="s"), exam(2, ["confirmed"], study="s")]
    exams += [exam(number, ["confirmed"]) for number in (3, 4)]
    found = gathered(*exams, withdrawn=frozenset({"patient 2"}))
    assert [label.sop_instance_uid for label in found.labels] == ["1.2.3", "1.2.4"]
    assert found.counts["withdrawn"] == 2
    assert [label.weight for label in found.labels] == [1.0, 1.0]


def test_weights_are_the_inverse_of_the_share_that_was_read() -> None:
    """Of the flagged; of all unflagged by the blind sample. Chosen ones are alone."""
    exams = [exam(n, ["confirmed"] if n % 2 else []) for n in range(20)]
    exams += [exam(n, ["rejected"] if n < 105 else [], score=0.1, blind=n < 110)
              for n in range(100, 200)]  # fmt: skip
    exams += [exam(200, ["confirmed"], score=0.1)]
    found = gathered(*exams)
    weights = {(label.sampling, label.flagged): (label.weight, label.measures)
               for label in found.labels}  # fmt: skip
    assert weights == {
        ("flagged", True): (2.0, True),
        ("random", False): (101 / 5, True),
        ("unflagged", False): (1.0, False),
    }
    assert found.labels[-1].missed


def test_no_weight_is_above_the_cap_and_those_at_it_are_counted() -> None:
    """One blind exam of a thousand would drown all others."""
    exams = [exam(n, ["rejected"] if n == 0 else [], score=0.1, blind=n == 0) for n in range(1000)]
    found = gathered(*exams)
    assert [label.weight for label in found.labels] == [MOST_WEIGHT]
    assert found.counts["capped"] == 1


def test_unflagged_exams_that_nobody_drew_are_told_and_measure_nothing() -> None:
    """Without a blind sample nothing says how often the model misses."""
    exams = [exam(n, ["confirmed"] if n < 10 else [], score=0.1) for n in range(100)]
    found = gathered(*exams)
    assert not any(label.measures for label in found.labels)
    assert found.counts["unrepresented"] == 100


def test_where_nearly_all_unflagged_exams_are_read_all_of_them_measure() -> None:
    """Nobody has chosen then."""
    read = round(100 * CENSUS)
    exams = [exam(n, ["confirmed"] if n < read else [], score=0.1) for n in range(100)]
    found = gathered(*exams)
    assert {(label.weight, label.measures) for label in found.labels} == {(100 / read, True)}
    fewer = [exam(n, ["confirmed"] if n < read - 1 else [], score=0.1) for n in range(100)]
    assert not any(label.measures for label in gathered(*fewer).labels)


def estimate(labels: Sequence[Label], hits: npt.NDArray[np.float64]) -> tuple[float, float]:
    """A weighted share and its standard error (linearized ratio)."""
    weights = np.array([label.weight for label in labels])
    share = float((weights * hits).sum() / weights.sum())
    error = float(np.sqrt((weights**2 * (hits - share) ** 2).sum()) / weights.sum())
    return share, error


def test_a_biased_verification_sample_gives_back_the_truth() -> None:
    """Begg and Greenes: readers look up those whom they suspect, and weights put it right.

    Prevalence 15 %, sensitivity 70 %. Unflagged exams are read if drawn (20 %), or if the reader
    suspects something: one in seven of the diseased, one in a hundred of the healthy. Without
    weights the sensitivity seems to be 88 %.
    """
    random = np.random.default_rng(5)
    rounds, covered, fooled, told = 40, np.zeros(2), np.zeros(2), np.zeros((40, 2))
    for number in range(rounds):
        diseased = random.random(2_000) < 0.15
        flagged = random.random(2_000) < np.where(diseased, 0.7, 0.1)
        blind = random.random(2_000) < 0.2
        chosen = random.random(2_000) < np.where(diseased, 0.15, 0.01)
        read = np.where(flagged, random.random(2_000) < 0.9, np.where(blind, True, chosen))
        found = from_exams(
            (
                exam(
                    n,
                    (["confirmed"] if diseased[n] else ["rejected"]) if read[n] else [],
                    score=0.9 if flagged[n] else 0.1,
                    blind=bool(blind[n]),
                )
                for n in range(2_000)
            ),
            NOBODY,
        ).labels
        measuring = [label for label in found if label.measures]
        for index, (subset, truth) in enumerate(
            [
                (measuring, float(diseased.mean())),
                ([label for label in measuring if label.label], float(flagged[diseased].mean())),
            ]
        ):
            hits = np.array([label.flagged if index else label.label for label in subset], float)
            share, error = estimate(subset, hits)
            told[number, index] = share - truth
            covered[index] += abs(share - truth) < 1.96 * error
            everybody = [label for label in found if label.label or not index]
            raw = np.mean([label.flagged if index else label.label for label in everybody])
            fooled[index] += abs(float(raw) - truth) < 1.96 * error
    assert (covered >= 0.9 * rounds).all(), covered
    assert (np.abs(told.mean(axis=0)) < 0.012).all(), told.mean(axis=0)
    assert (fooled < 0.35 * rounds).all(), fooled


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.integers(0, 5),
            st.one_of(st.none(), st.sampled_from(["ff" * 32, "00" * 32, "0f" * 32])),
            st.lists(st.sampled_from(["confirmed", "rejected"]), max_size=3),
        ),
        max_size=12,
    ),
    st.frozensets(st.integers(0, 5)),
)
def test_linked_exams_are_of_one_patient_in_any_order_and_nothing_is_lost(
    drawn: list[tuple[int, int, str | None, list[str]]], gone: frozenset[int]
) -> None:
    """Whatever is shared: every read exam is a label or counted, links are an equivalence."""
    exams = [
        exam(n, verdicts, patient=f"p{patient}", study=f"s{study}", picture=picture)
        for n, (patient, study, picture, verdicts) in enumerate(drawn)
    ]
    withdrawn = frozenset(f"p{number}" for number in gone)
    found = gathered(*exams, withdrawn=withdrawn)
    out = ("unresolved", "contradicted", "duplicate", "withdrawn")
    assert len(found.labels) + sum(found.counts.get(key, 0) for key in out) == sum(
        bool(each.readings) for each in exams
    )
    # A naive reference: who is linked, by going round until nothing changes.
    groups = [{each.patient} for each in exams]
    for _ in exams:
        for one, first in enumerate(exams):
            for other, second in enumerate(exams):
                shared = (
                    first.patient == second.patient
                    or first.study == second.study
                    or (first.picture_hash and first.picture_hash == second.picture_hash)
                )
                if shared:
                    groups[one] |= groups[other]
    of = {
        each.sop_instance_uid: frozenset(group) for each, group in zip(exams, groups, strict=True)
    }
    for label in found.labels:
        assert found.members[label.patient] == of[label.sop_instance_uid]
        assert not of[label.sop_instance_uid] & withdrawn
    assert {(label.sop_instance_uid, label.patient) for label in found.labels} == {
        (label.sop_instance_uid, label.patient)
        for label in from_exams(sorted(exams, key=lambda each: each.patient), withdrawn).labels
    } or found.counts.get("duplicate")
