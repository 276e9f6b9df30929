"""How labels are divided: by patient and by time, whatever they are."""

import datetime as dt
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_labels import exam
from training.labels import from_exams
from training.snapshots import LEAST_OF_A_CLASS, divide

labelled = st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.integers(0, 30)), max_size=60)
drawn = st.dictionaries(
    st.integers(0, 20), st.frozensets(st.booleans(), min_size=1), min_size=0, max_size=21
)


@settings(max_examples=200, deadline=None)
@given(labelled, drawn, st.floats(0, 0.5))
def test_parts_share_no_patient_and_what_validates_came_last(
    said: list[tuple[int, bool, int]], sides: dict[int, frozenset[bool]], share: float
) -> None:
    """Nothing is lost: each label is in one part or counted as left out."""
    exams = [
        exam(minute, ["confirmed" if ill else "rejected"], patient=f"p{patient}")
        for patient, ill, minute in said
    ]
    # Several exams of a minute need names of their own.
    named = [
        type(each)(**{
            name: f"9.{number}" if name == "sop_instance_uid" else
            f"{number:064x}" if name == "digest" else
            f"s{number}" if name == "study" else getattr(each, name)
            for name in each.__slots__
        })
        for number, each in enumerate(exams)
    ]  # fmt: skip
    found = from_exams(named, frozenset()).labels
    on = {f"p{patient}": sides.get(patient, frozenset({False})) for patient in range(21)}
    left_out: Counter[str] = Counter()
    cases = divide(found, on, share, left_out)
    assert len(cases) + sum(left_out.values()) == len(found) == len(said)
    of = {
        part: [case.label for case in cases if case.part == part]
        for part in ("train", "validation", "exam")
    }
    patients = {part: {label.patient for label in labels} for part, labels in of.items()}
    assert not patients["train"] & patients["validation"]
    assert all(on[patient] == {True} for patient in patients["exam"])
    assert all(on[patient] == {False} for patient in patients["train"] | patients["validation"])
    if of["train"] and of["validation"]:
        newest = max(label.received_at for label in of["train"])
        assert newest < min(label.received_at for label in of["validation"])


def test_validation_reaches_back_until_it_has_both_classes() -> None:
    """But no further than half of the labels."""
    exams = [exam(n, ["confirmed" if n < 80 else "rejected"]) for n in range(100)]
    found = from_exams(exams, frozenset()).labels
    on = {label.patient: frozenset({False}) for label in found}
    cases = divide(found, on, 0.1, Counter())
    held = Counter(case.label.label for case in cases if case.part == "validation")
    assert held == {0: 20, 1: LEAST_OF_A_CLASS}
    healthy = [label for label in found if label.label == 0]
    cases = divide(healthy, on, 0.1, Counter())
    assert sum(case.part == "validation" for case in cases) == 10
    assert max(case.label.received_at for case in cases) - dt.timedelta(minutes=10) < min(
        case.label.received_at for case in cases if case.part == "validation"
    )
