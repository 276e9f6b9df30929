"""Labels from a real worklist: what was known at a cutoff, and who has left since."""

import datetime as dt
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import triage.worklist.readings as module
from tests.exams import FLAGGED, UNFLAGGED, enter
from training.labels import gather, labels
from triage.errors import NoDisagreement, TooLate, UnknownPatient
from triage.worklist import State, Worklist
from triage.worklist.audit import Action
from triage.worklist.readings import Said
from triage.worklist.schema import migrate, open_engine

SECOND = dt.timedelta(seconds=1)
READERS = ("one", "two", "three")


class Clock:
    """A clock that a test moves; never behind the real one."""

    def __init__(self) -> None:
        self.at = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)

    def __call__(self) -> dt.datetime:
        """The time that this clock shows."""
        return self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the readings and of the journal."""
    made = Clock()
    monkeypatch.setattr(module, "now", made)
    monkeypatch.setattr("triage.worklist.journal.now", made)
    return made


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worklist]:
    """One worklist for many examples; each has exams of its own."""
    url = f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'worklist.sqlite'}"
    engine = open_engine(url, create=True)
    migrate(engine)
    engine.dispose()
    opened = Worklist(url)
    yield opened
    opened.close()


def test_a_label_tells_who_said_it_when_and_of_what(worklist: Worklist) -> None:
    """All that a snapshot's manifest must answer for."""
    enter(worklist, "1.1", FLAGGED, patient_id="P1", patient_age="003Y", patient_sex="F")
    first, _ = worklist.readings.add("1.1", Said("confirmed", "one"))
    second, item = worklist.readings.add("1.1", Said("confirmed", "two"))
    (label,) = labels(worklist, dt.datetime.now(dt.UTC))
    assert (label.label, label.resolution, label.sampling) == (1, "agreed", "flagged")
    assert (label.readers, label.readings) == (("one", "two"), (first.id, second.id))
    assert (label.read_at, label.received_at) == (second.read_at, item.received_at)
    assert (label.age, label.sex, label.view, label.console) == ("003Y", "F", "PA", "CR1")
    assert (label.model_version, label.score, label.threshold) == ("v1", 0.9, 0.5)
    assert "P1" not in repr(label)
    assert len(label.patient) == 64


def test_a_cutoff_in_the_past_gives_what_was_known_then(worklist: Worklist, clock: Clock) -> None:
    """A verdict that was changed, one that was withdrawn, one that was settled."""
    for uid in ("1.1", "1.2", "1.3"):
        enter(worklist, uid, patient_id=uid)
        worklist.readings.add(uid, Said("confirmed", "one"))
    early = clock.at
    clock.at += 10 * SECOND
    worklist.readings.add("1.1", Said("rejected", "one"))
    reading = worklist.readings.of("1.2")[0]
    worklist.readings.withdraw("1.2", reading.id, "one")
    worklist.readings.add("1.3", Said("rejected", "two"))
    middle = clock.at
    clock.at += 10 * SECOND
    worklist.readings.add("1.3", Said("rejected", "head", adjudicates=True))

    def known(until: dt.datetime) -> dict[str, tuple[int, str]]:
        return {
            label.sop_instance_uid: (label.label, label.resolution)
            for label in labels(worklist, until)
        }

    assert known(early) == dict.fromkeys(("1.1", "1.2", "1.3"), (1, "single"))
    assert known(middle) == {"1.1": (0, "single")}
    assert gather(worklist, middle).counts["unresolved"] == 1
    assert known(clock.at) == {"1.1": (0, "single"), "1.3": (0, "adjudicated")}
    assert known(early - SECOND) == {}


moves = st.lists(
    st.one_of(
        st.tuples(
            st.just("read"),
            st.integers(0, 1),
            st.sampled_from(READERS),
            st.sampled_from(["confirmed", "rejected"]),
        ),
        st.tuples(
            st.just("settle"), st.integers(0, 1), st.just("head"),
            st.sampled_from(["confirmed", "rejected"]),
        ),
        st.tuples(st.just("undo"), st.integers(0, 1), st.sampled_from([*READERS, "head"]),
                  st.just("")),
        st.tuples(st.just("wait"), st.sampled_from([1, 20, 70]), st.just(""), st.just("")),
    ),
    max_size=9,
)  # fmt: skip


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves)
def test_labels_are_what_the_worklist_said_at_the_time(
    ledger: Worklist, clock: Clock, done: list[tuple[str, int, str, str]]
) -> None:
    """Any readings, adjudications and withdrawals: what an item was at a time, its label is."""
    first = len(ledger.items())
    uids = [f"9.{first + number}" for number in (0, 1)]
    for uid in uids:
        enter(ledger, uid, patient_id=uid)
    seen: list[tuple[dt.datetime, dict[str, int | None]]] = []
    for kind, number, reader, verdict in done:
        if kind == "wait":
            clock.at += number * SECOND
        else:
            move(ledger, uids[number], kind, reader, verdict)
        clock.at += SECOND
        # Nothing happens in this second: it is a cutoff.
        seen.append((clock.at - SECOND / 2, {uid: verdict_of(ledger, uid) for uid in uids}))
    for cutoff, expected in seen:
        found = {
            label.sop_instance_uid: label.label
            for label in labels(ledger, cutoff)
            if label.sop_instance_uid in uids
        }
        assert found == {uid: value for uid, value in expected.items() if value is not None}


def move(worklist: Worklist, uid: str, kind: str, reader: str, verdict: str) -> None:
    """Do what a reader asks for, if the worklist lets them."""
    try:
        if kind == "undo":
            for reading in reversed(worklist.readings.of(uid)):
                if reading.reader == reader and reading.withdrawn_at is None:
                    worklist.readings.withdraw(uid, reading.id, reader)
                    return
            return
        said = Said(verdict, reader, adjudicates=kind == "settle")  # type: ignore[arg-type]
        worklist.readings.add(uid, said)
    except (NoDisagreement, TooLate):
        return


def verdict_of(worklist: Worklist, uid: str) -> int | None:
    """What the live item says now; None if nothing, or if readers disagree."""
    item = worklist.item(uid)
    if item.disagreement or item.state is State.SCORED:
        return None
    return int(item.state is State.CONFIRMED)


def test_a_withdrawn_patient_is_in_no_label_of_any_cutoff_until_restored(
    worklist: Worklist,
) -> None:
    """Also one that was known before, and also what comes later."""
    for uid, patient in (("1.1", "P1"), ("1.2", "P1 "), ("1.3", "P2")):
        enter(worklist, uid, patient_id=patient)
        worklist.readings.add(uid, Said("confirmed", "one"))
    cutoff = dt.datetime.now(dt.UTC)
    before = labels(worklist, cutoff)
    assert worklist.learning.withdraw("P1", "asked by letter", "clerk", in_advance=False)
    enter(worklist, "1.4", patient_id="P1")
    worklist.readings.add("1.4", Said("confirmed", "one"))
    for until in (cutoff, dt.datetime.now(dt.UTC)):
        assert [label.sop_instance_uid for label in labels(worklist, until)] == ["1.3"]
    assert worklist.learning.restore("P1", "changed their mind", "clerk")
    assert labels(worklist, cutoff) == before


def test_withdrawing_is_audited_once_and_names_nobody(worklist: Worklist) -> None:
    """Twice is once; the chain holds; neither Patient ID nor name is in the trail."""
    enter(worklist, "1.1", patient_id="SECRET-7", patient_name="Muster^Anna")
    learning = worklist.learning
    assert not learning.restore("SECRET-7", "was never out", "clerk")
    assert learning.withdraw("SECRET-7", "asked by letter", "clerk", in_advance=False)
    assert not learning.withdraw("SECRET-7", "asked again", "clerk", in_advance=False)
    rows = [row for row in worklist.audit.records() if row.action == Action.PATIENT_WITHDRAWN]
    assert [(row.actor, row.detail) for row in rows] == [
        ("clerk", {"because": "asked by letter", "exams": 1})
    ]
    trail = io.StringIO()
    for row in worklist.audit.records():
        trail.write(str(row.as_json()))
    assert "SECRET-7" not in trail.getvalue()
    worklist.audit.verify()


def test_a_reason_that_names_the_patient_is_refused(worklist: Worklist) -> None:
    """The trail is kept for ever; nothing is withdrawn then."""
    enter(worklist, "1.1", patient_id="SECRET-7", patient_name="Muster^Anna")
    for because in ("", "x" * 501, "Anna asked", "letter of SECRET-7", "a\nb"):
        with pytest.raises(ValueError, match="reason"):
            worklist.learning.withdraw("SECRET-7", because, "clerk", in_advance=False)
    assert worklist.learning.withdrawn() == frozenset()


def test_a_patient_id_that_nobody_has_needs_to_be_meant(worklist: Worklist) -> None:
    """A slip of the pen must not look like a withdrawal."""
    with pytest.raises(UnknownPatient, match="in-advance"):
        worklist.learning.withdraw("P1", "asked by letter", "clerk", in_advance=False)
    assert worklist.learning.withdraw("P1", "asked by letter", "clerk", in_advance=True)
    enter(worklist, "1.1", patient_id="P1")
    worklist.readings.add("1.1", Said("confirmed", "one"))
    assert labels(worklist, dt.datetime.now(dt.UTC)) == []


def test_two_nodes_draw_the_same_patients_and_a_changed_share_moves_nobody(
    worklist: Worklist, database_url: str
) -> None:
    """The key is the site's, and what was drawn stands."""
    other = Worklist(database_url)
    names = [f"{number:064x}" for number in range(40)]
    groups = [frozenset({name}) for name in names]
    early = worklist.learning.draw(groups[:20], 0.5)
    assert {True, False} == set(early.values())
    assert other.learning.draw(groups[:20], 0.0) == early
    late = other.learning.draw(groups, 0.5)
    assert {name: late[name] for name in early} == early
    # Whether the other node's rows are there or not, the draw is the same.
    assert worklist.learning.draw(groups, 1.0) == late
    other.close()


def test_a_patient_who_turns_out_to_be_one_in_the_exam_follows(worklist: Worklist) -> None:
    """Nobody in the exam is ever trained on under another number."""
    learning = worklist.learning
    assert learning.draw([frozenset({"a"})], 1.0) == {"a": True}
    assert learning.draw([frozenset({"a", "b"})], 0.0) == {"a": True, "b": True}
    assert learning.draw([frozenset({"c"})], 0.0)["c"] is False
    assert learning.draw([frozenset({"c", "d"})], 1.0)["d"] is False


def test_blind_and_unread_exams_are_what_labels_stand_for(
    worklist: Worklist, database_url: str, tmp_path: Path
) -> None:
    """Counted from the worklist: two flagged, of which one was read; four unflagged, all drawn."""
    del tmp_path
    sampled = Worklist(database_url, blind_share=1.0)
    for number, score in enumerate([FLAGGED, FLAGGED, *[UNFLAGGED] * 4]):
        enter(sampled, f"1.{number}", score, patient_id=str(number))
    for uid in ("1.0", "1.2"):
        sampled.readings.add(uid, Said("rejected", "one"))
    found = labels(worklist, dt.datetime.now(dt.UTC))
    assert [(label.sampling, label.weight) for label in found] == [("random", 2.0), ("random", 4.0)]
    assert all(label.measures for label in found)
    sampled.close()
