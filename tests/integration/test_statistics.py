"""The dashboard's figures, counted from exams and readings that a test can count by hand."""

import datetime as dt

import pytest

from tests.exams import FLAGGED, UNFLAGGED, arrival, enter
from triage.worklist import Worklist
from triage.worklist.readings import Said


@pytest.fixture
def read(worklist: Worklist) -> Worklist:
    """Four scored exams, of which three were read, and one without a score."""
    enter(worklist, "1.1", FLAGGED)
    enter(worklist, "1.2", FLAGGED)
    enter(worklist, "1.3", UNFLAGGED)
    assert worklist.receive(arrival("1.4", "CR2"))
    claim = worklist.claim("worker")
    assert claim is not None
    assert worklist.scored(claim, UNFLAGGED, ())
    assert worklist.receive(arrival("1.5", "CR2"))
    claim = worklist.claim("worker")
    assert claim is not None
    worklist.not_scored(claim, "VIEW_UNKNOWN", "", ())
    worklist.readings.add("1.1", Said("confirmed", "one"))
    worklist.readings.add("1.2", Said("rejected", "one"))
    worklist.readings.add("1.3", Said("confirmed", "one"))
    reading, _ = worklist.readings.add("1.3", Said("rejected", "two"))
    worklist.readings.withdraw("1.3", reading.id, "two")
    return worklist


def test_the_figures_are_those_of_the_exams(read: Worklist) -> None:
    """Volume, flags, agreement and reasons; a withdrawn reading counts nowhere."""
    figures = read.statistics.figures(30)
    (day,) = figures.days
    assert day.day == dt.datetime.now(dt.UTC).date().isoformat()
    assert (day.received, day.scored, day.flagged, day.not_scored, day.failed) == (5, 4, 2, 1, 0)
    assert day.score_mean == pytest.approx((0.9 + 0.9 + 0.1 + 0.1) / 4)
    (agreement,) = figures.agreement
    assert (agreement.flagged_confirmed, agreement.flagged_rejected) == (1, 1)
    assert (agreement.unflagged_confirmed, agreement.unflagged_rejected) == (1, 0)
    assert sum(figures.scores) == 4
    assert (figures.scores[1], figures.scores[9]) == (2, 2)
    assert figures.reasons == {"VIEW_UNKNOWN": 1}


def test_waiting_is_told_of_read_and_of_unread_exams(read: Worklist) -> None:
    """An exam that nobody reads is not left out of how long exams wait."""
    waits = {each.urgency: each for each in read.statistics.figures(30).waits}
    assert (waits["HIGH"].read, waits["HIGH"].unread) == (2, 0)
    assert waits["HIGH"].waiting_minutes is None
    assert (waits["ROUTINE"].read, waits["ROUTINE"].unread) == (1, 2)
    for wait in waits.values():
        assert wait.median_minutes is not None
        assert 0 <= wait.median_minutes <= (wait.p90_minutes or 0) <= (wait.longest_minutes or 0)
    assert (waits["ROUTINE"].waiting_minutes or 0) > 0


def test_each_console_is_told_apart(read: Worklist) -> None:
    """Its exams, and how its readings agree with the flag; also as the only one asked for."""
    one, two = read.statistics.figures(30).consoles
    assert (one.console, one.received, one.flagged, one.read, one.agreed) == ("CR1", 3, 2, 3, 1)
    assert (two.console, two.received, two.not_scored, two.read) == ("CR2", 2, 1, 0)
    alone = read.statistics.figures(30, "CR2")
    assert [each.console for each in alone.consoles] == ["CR2"]
    assert (alone.days[0].received, alone.agreement) == (2, ())
    (wait,) = alone.waits
    assert (wait.read, wait.unread, wait.median_minutes) == (0, 2, None)
