"""Taking a reading back: within a minute of the service's own clock, whatever that clock does."""

import datetime as dt

import pytest

import triage.worklist.readings as module
from tests.exams import enter
from triage.errors import TooLate, UnknownReading
from triage.worklist import State, Worklist
from triage.worklist.deliveries import ResultKind, Route
from triage.worklist.readings import UNDO, Said

SECOND = dt.timedelta(seconds=1)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = dt.datetime.now(dt.UTC)

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


def test_an_exam_whose_only_reading_is_withdrawn_waits_again(worklist: Worklist) -> None:
    """As it was before; the reading stays in the record, withdrawn."""
    before = enter(worklist, "1.1")
    reading, _ = worklist.readings.add("1.1", Said("confirmed", "one"))
    worklist.readings.withdraw("1.1", reading.id, "one")
    after = worklist.item("1.1")
    assert (after.state, after.unread) == (State.SCORED, True)
    assert abs(after.priority - before.priority) <= 1
    assert [each.withdrawn_at is not None for each in worklist.readings.of("1.1")] == [True]


def test_another_readers_verdict_returns_when_the_later_one_is_withdrawn(
    worklist: Worklist,
) -> None:
    """And with it the disagreement ends."""
    enter(worklist, "1.1")
    worklist.readings.add("1.1", Said("confirmed", "one"))
    second, item = worklist.readings.add("1.1", Said("rejected", "two"))
    assert item.disagreement
    item = worklist.readings.withdraw("1.1", second.id, "two")
    assert (item.state, item.disagreement) == (State.CONFIRMED, False)


def test_only_its_reader_withdraws_a_reading(worklist: Worklist) -> None:
    """And only of the exam that it is of."""
    enter(worklist, "1.1")
    enter(worklist, "1.2")
    reading, _ = worklist.readings.add("1.1", Said("confirmed", "one"))
    with pytest.raises(TooLate, match="somebody else"):
        worklist.readings.withdraw("1.1", reading.id, "two")
    with pytest.raises(UnknownReading):
        worklist.readings.withdraw("1.2", reading.id, "one")


def test_after_a_minute_a_reading_stays(worklist: Worklist, clock: Clock) -> None:
    """To the second."""
    enter(worklist, "1.1")
    reading, _ = worklist.readings.add("1.1", Said("confirmed", "one"))
    clock.at += UNDO + SECOND
    with pytest.raises(TooLate):
        worklist.readings.withdraw("1.1", reading.id, "one")
    clock.at -= 2 * SECOND
    worklist.readings.withdraw("1.1", reading.id, "one")


def test_a_clock_that_is_set_back_opens_no_minute_that_was_over(
    worklist: Worklist, clock: Clock
) -> None:
    """Whatever was recorded since tells how late it is at least."""
    enter(worklist, "1.1")
    enter(worklist, "1.2")
    reading, _ = worklist.readings.add("1.1", Said("confirmed", "one"))
    clock.at += 5 * UNDO
    worklist.readings.add("1.2", Said("confirmed", "one"))
    clock.at -= 5 * UNDO - SECOND
    with pytest.raises(TooLate):
        worklist.readings.withdraw("1.1", reading.id, "one")


def test_readings_stay_in_order_when_the_clock_is_set_back(
    worklist: Worklist, clock: Clock
) -> None:
    """A later verdict is never older than an earlier one."""
    enter(worklist, "1.1")
    first, _ = worklist.readings.add("1.1", Said("confirmed", "one"))
    clock.at -= dt.timedelta(hours=1)
    second, item = worklist.readings.add("1.1", Said("rejected", "two"))
    assert second.read_at >= first.read_at
    assert item.state is State.REJECTED


def test_a_reading_is_told_only_when_it_cannot_be_withdrawn(
    worklist: Worklist, database_url: str
) -> None:
    """Nothing has to be called back from a PACS."""
    routed = Worklist(database_url, [Route("PACS", (ResultKind.READING,))])
    enter(routed, "1.1")
    reading, _ = routed.readings.add("1.1", Said("confirmed", "one"), undo=UNDO)
    assert routed.deliveries.claim("deliverer", "PACS", 3) is None
    routed.readings.withdraw("1.1", reading.id, "one")
    assert routed.deliveries.records() == []
    routed.close()
