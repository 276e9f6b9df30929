"""The rows of deliveries on both databases: made with the score, claimed once, tried, parked."""

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from triage.errors import UnknownDelivery
from triage.identity import Instance
from triage.scoring import Score
from triage.worklist import Arrival, Worklist
from triage.worklist.deliveries import DeliveryState, ResultKind, Route
from triage.worklist.readings import Said
from triage.worklist.schema import open_engine

ALL = tuple(ResultKind)
ROUTES = (Route("pacs", ALL), Route("ris", (ResultKind.FINDING, ResultKind.READING)))
FLAGGED, UNFLAGGED = Score(0.9, 0.5, "m-1"), Score(0.1, 0.5, "m-1")
MOST = 3


@pytest.fixture
def worklist(database_url: str, migrated: Callable[[str], None]) -> Iterator[Worklist]:
    """An empty worklist with two destinations, once in SQLite and once in PostgreSQL."""
    migrated(database_url)
    opened = Worklist(database_url, ROUTES)
    yield opened
    opened.close()


@pytest.fixture
def engine(worklist: Worklist, database_url: str) -> Iterator[Engine]:
    """The database for what no method does, such as moving the clock."""
    opened = open_engine(database_url, create=False)
    yield opened
    opened.dispose()


def enter(worklist: Worklist, uid: str, score: Score = FLAGGED) -> None:
    """Receive and score an item."""
    instance = Instance(
        uid, "1.2.840.10008.5.1.4.1.1.1", f"{uid}.2", f"{uid}.1", "PATIENT", "ACCESSION",
        "CR", "CHEST", "PA", "003Y", "F", "",
    )  # fmt: skip
    arrival = Arrival(instance, "1.2.840.10008.1.2.1", "CONSOLE", "127.0.0.1", "ab" * 32, 1)
    assert worklist.receive(arrival)
    claim = worklist.claim("w")
    assert claim is not None
    assert worklist.scored(claim, score, ("AGE_UNKNOWN",))


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def let_pass(engine: Engine, time: dt.timedelta) -> None:
    """Let so much time have gone by for every delivery."""
    deliveries = {}
    with engine.begin() as connection:
        rows = connection.execute(text("SELECT id, next_attempt_at FROM deliveries"))
        for key, due in rows:
            if due is not None:
                moment = dt.datetime.fromisoformat(due) if isinstance(due, str) else due
                deliveries[key] = moment - time
        for key, due in deliveries.items():
            connection.execute(
                text("UPDATE deliveries SET next_attempt_at = :due WHERE id = :key").bindparams(
                    due=due, key=key
                )
            )


def test_a_score_makes_the_deliveries_that_destinations_take(worklist: Worklist) -> None:
    """Report and picture for the PACS, a message for the RIS; nothing without a score."""
    enter(worklist, "1.1")
    made = {(r.destination, r.kind) for r in worklist.deliveries.records()}
    assert made == {
        ("pacs", ResultKind.FINDING), ("pacs", ResultKind.HEAT_MAP), ("ris", ResultKind.FINDING)
    }  # fmt: skip
    assert {r.state for r in worklist.deliveries.records()} == {DeliveryState.PENDING}


def test_deliveries_and_score_are_one_transaction(worklist: Worklist, engine: Engine) -> None:
    """Where a delivery cannot be written, there is no score either; later there are both."""
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE deliveries RENAME TO away"))
    with pytest.raises(Exception, match="deliveries"):
        enter(worklist, "1.1")
    assert worklist.item("1.1").score is None
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO deliveries"))
        connection.execute(text("UPDATE items SET claimed_by = NULL, claimed_until = NULL"))
    claim = worklist.claim("w")
    assert claim is not None
    assert worklist.scored(claim, FLAGGED, ())
    assert len(worklist.deliveries.records()) == 3


def test_a_result_cannot_be_entered_twice_for_a_destination(
    worklist: Worklist, engine: Engine
) -> None:
    """The database itself keeps it from happening."""
    enter(worklist, "1.1")
    worklist.readings.add("1.1", Said("confirmed", "R"))
    copy = text(
        "INSERT INTO deliveries (item_id, score_id, reading_id, kind, destination, state, "
        "attempts, created_at, error) SELECT item_id, score_id, reading_id, kind, destination, "
        "state, attempts, created_at, error FROM deliveries WHERE kind = :kind"
    )
    for kind in ("FINDING", "READING"):
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(copy.bindparams(kind=kind))


def test_the_claim_tells_all_that_a_result_is_built_from(worklist: Worklist) -> None:
    """And nothing that changes later."""
    enter(worklist, "1.1")
    claim = worklist.deliveries.claim("d", "ris", MOST)
    assert claim is not None
    assert (claim.kind, claim.attempt, claim.destination) == (ResultKind.FINDING, 1, "ris")
    subject = claim.subject
    assert (subject.sop_instance_uid, subject.study_instance_uid) == ("1.1", "1.1.1")
    assert (subject.patient_id, subject.accession_number) == ("PATIENT", "ACCESSION")
    assert (subject.score, subject.notes, subject.readings) == (FLAGGED, ("AGE_UNKNOWN",), ())


def test_flagged_results_leave_first(worklist: Worklist) -> None:
    """As the exams are read."""
    enter(worklist, "1.1", UNFLAGGED)
    enter(worklist, "1.2", FLAGGED)
    claims = [worklist.deliveries.claim("d", "ris", MOST) for _ in range(2)]
    assert [c and c.subject.sop_instance_uid for c in claims] == ["1.2", "1.1"]


def test_reports_leave_before_pictures(worklist: Worklist) -> None:
    """A picture is dear and can wait."""
    for uid in ("1.1", "1.2"):
        enter(worklist, uid)
    claims = [worklist.deliveries.claim("d", "pacs", MOST) for _ in range(4)]
    assert [c and c.kind.value for c in claims] == ["FINDING", "FINDING", "HEAT_MAP", "HEAT_MAP"]


def test_many_deliverers_claim_each_delivery_once(worklist: Worklist) -> None:
    """Twelve threads, twenty deliveries, twenty claims."""
    for number in range(20):
        enter(worklist, f"1.{number}")
    found: list[int] = []
    barrier = threading.Barrier(12)

    def take(name: int) -> None:
        barrier.wait()
        while (claim := worklist.deliveries.claim(f"d{name}", "ris", MOST)) is not None:
            found.append(claim.delivery_id)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(take, range(12)))
    assert len(found) == len(set(found)) == 20


def test_a_failed_attempt_waits_and_a_settled_one_rests(worklist: Worklist, engine: Engine) -> None:
    """The row remembers when; delivered is delivered."""
    enter(worklist, "1.1")
    deliveries = worklist.deliveries
    claim = deliveries.claim("d", "ris", MOST)
    assert claim is not None
    assert deliveries.not_delivered(claim, "no answer", now() + dt.timedelta(minutes=10))
    assert deliveries.claim("d", "ris", MOST) is None
    let_pass(engine, dt.timedelta(minutes=9))
    assert deliveries.claim("d", "ris", MOST) is None
    let_pass(engine, dt.timedelta(minutes=1))
    again = deliveries.claim("d", "ris", MOST)
    assert again is not None
    assert again.attempt == 2
    assert deliveries.built(again, "2.25.7", "cd" * 32)
    assert deliveries.delivered(again)
    let_pass(engine, dt.timedelta(days=9))
    assert deliveries.claim("d", "ris", MOST) is None
    (record,) = [r for r in deliveries.records() if r.destination == "ris"]
    assert (record.state, record.error, record.result_uid) == ("DELIVERED", "", "2.25.7")
    assert [e.action for e in worklist.journal("1.1")] == ["RECEIVED", "SCORED", "DELIVERED"]


def test_a_lost_claim_settles_nothing(worklist: Worklist, engine: Engine) -> None:
    """After the lease another deliverer has it, and only what that one says counts."""
    enter(worklist, "1.1")
    deliveries = worklist.deliveries
    slow = deliveries.claim("slow", "ris", MOST)
    assert slow is not None
    assert deliveries.claim("other", "ris", MOST) is None
    let_pass(engine, dt.timedelta(minutes=5))
    other = deliveries.claim("other", "ris", MOST)
    assert other is not None
    assert not deliveries.delivered(slow)
    assert not deliveries.not_delivered(slow, "x", None)
    assert not deliveries.built(slow, "2.25.1", "ab" * 32)
    assert deliveries.delivered(other)


def test_a_dead_deliverers_claims_return_until_they_have_killed_too_often(
    worklist: Worklist, engine: Engine
) -> None:
    """One result that kills the process cannot hold up the rest."""
    enter(worklist, "1.1")
    deliveries = worklist.deliveries
    for attempt in range(1, MOST + 1):
        claim = deliveries.claim("d", "ris", MOST)
        assert claim is not None
        assert claim.attempt == attempt
        assert deliveries.abandon("d") == 1
        assert deliveries.claim("d", "ris", MOST) is None, "it rests a little"
        let_pass(engine, dt.timedelta(minutes=1))
    assert deliveries.claim("d", "ris", MOST) is None
    (parked,) = deliveries.records(DeliveryState.PARKED)
    assert "died" in parked.error


def test_what_was_built_is_remembered_for_the_next_attempt(worklist: Worklist) -> None:
    """By another process, too."""
    enter(worklist, "1.1")
    claim = worklist.deliveries.claim("d", "ris", MOST)
    assert claim is not None
    assert claim.result_digest is None
    assert worklist.deliveries.built(claim, "2.25.9", "ef" * 32)
    assert worklist.deliveries.not_delivered(claim, "x", now())
    again = worklist.deliveries.claim("e", "ris", MOST)
    assert again is not None
    assert (again.result_uid, again.result_digest) == ("2.25.9", "ef" * 32)


def test_a_reading_waits_for_the_finding_and_not_for_the_picture(worklist: Worklist) -> None:
    """A destination that keeps the latest must end with the latest."""
    enter(worklist, "1.1")
    worklist.readings.add("1.1", Said("confirmed", "R"))
    worklist.readings.add("1.1", Said("rejected", "S"))
    deliveries = worklist.deliveries
    finding = deliveries.claim("d", "pacs", MOST)
    picture = deliveries.claim("d", "pacs", MOST)
    assert finding is not None
    assert picture is not None
    assert (finding.kind, picture.kind) == (ResultKind.FINDING, ResultKind.HEAT_MAP)
    assert deliveries.claim("d", "pacs", MOST) is None
    assert deliveries.not_delivered(picture, "takes no pictures", None)
    assert deliveries.not_delivered(finding, "x", None)
    assert deliveries.claim("d", "pacs", MOST) is None, "nor while it is parked"
    deliveries.retry(finding.delivery_id, "operator")
    finding = deliveries.claim("d", "pacs", MOST)
    assert finding is not None
    assert deliveries.delivered(finding)
    first = deliveries.claim("d", "pacs", MOST)
    assert first is not None
    assert [r.verdict for r in first.subject.readings] == ["confirmed"]
    assert deliveries.claim("d", "pacs", MOST) is None, "nor the second before the first"
    assert deliveries.delivered(first)
    second = deliveries.claim("d", "pacs", MOST)
    assert second is not None
    assert [r.verdict for r in second.subject.readings] == ["confirmed", "rejected"]
    assert [r.reader for r in second.subject.readings] == ["R", "S"]


def test_parked_deliveries_are_seen_and_come_back_when_told(worklist: Worklist) -> None:
    """One by its number, or all of them."""
    for uid in ("1.1", "1.2"):
        enter(worklist, uid)
    deliveries = worklist.deliveries
    for _ in range(2):
        claim = deliveries.claim("d", "ris", MOST)
        assert claim is not None
        assert deliveries.not_delivered(claim, "answered AE", None)
    pacs, ris = deliveries.backlogs()
    assert (ris.destination, ris.pending, ris.parked, ris.error) == ("ris", 0, 2, "answered AE")
    assert (pacs.destination, pacs.pending, pacs.parked) == ("pacs", 4, 0)
    assert pacs.oldest is not None
    one, _ = deliveries.records(DeliveryState.PARKED)
    assert deliveries.retry(one.id, "operator").state is DeliveryState.PENDING
    assert deliveries.retry_parked("operator") == 1
    assert deliveries.records(DeliveryState.PARKED) == []
    claims = [deliveries.claim("d", "ris", MOST) for _ in range(2)]
    assert [claim and claim.attempt for claim in claims] == [1, 1]
    assert [e.action for e in worklist.journal("1.1")][2:] == ["PARKED", "DELIVERY_RETRIED"]


def test_a_delivery_that_is_not_there_cannot_be_retried(worklist: Worklist) -> None:
    """And the message says where to look."""
    with pytest.raises(UnknownDelivery, match="deliveries list"):
        worklist.deliveries.retry(77, "operator")


def test_the_list_is_newest_first_and_limited(worklist: Worklist) -> None:
    """An operator looks at what happens now."""
    enter(worklist, "1.1")
    ids = [record.id for record in worklist.deliveries.records()]
    assert ids == sorted(ids, reverse=True)
    assert [record.id for record in worklist.deliveries.records(limit=2)] == ids[:2]


def test_without_destinations_nothing_is_made(
    database_url: str, migrated: Callable[[str], None]
) -> None:
    """The default."""
    migrated(database_url)
    worklist = Worklist(database_url)
    enter(worklist, "1.1")
    worklist.readings.add("1.1", Said("confirmed", "R"))
    assert worklist.deliveries.records() == []
    worklist.close()
