"""The worklist on both databases: once per UID, reading order, claims, readings, events."""

import datetime as dt
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from tests.conftest import ROOT
from triage.errors import NotReadable, UnknownItem, WorklistError
from triage.identity import Instance
from triage.scoring import Priority, Score
from triage.worklist import (
    LEASE,
    MAX_ATTEMPTS,
    RETRY_PAUSE,
    Arrival,
    State,
    Worklist,
    WorklistItem,
)
from triage.worklist.readings import Said
from triage.worklist.schema import open_engine
from triage.worklist.tables import Event, Item, ScoreRecord

HIGH_SCORE = Score(0.9, 0.5, "cnn-1")
LOW_SCORE = Score(0.1, 0.5, "cnn-1")
SECRETS = ("SECRET-PATIENT", "SECRET-ACCESSION")


@pytest.fixture
def engine(worklist: Worklist, database_url: str) -> Iterator[Engine]:
    """The worklist's database for what no method of the worklist does."""
    opened = open_engine(database_url, create=False)
    yield opened
    opened.dispose()


def arrival(uid: str, *, ordered: str = "", digest: str = "ab" * 32) -> Arrival:
    """An instance that is safe in the spool."""
    instance = Instance(
        sop_instance_uid=uid,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.1",
        series_instance_uid=f"{uid}.2",
        study_instance_uid=f"{uid}.1",
        patient_id=SECRETS[0],
        accession_number=SECRETS[1],
        modality="CR",
        body_part="CHEST",
        view_position="PA",
        patient_age="003Y",
        patient_sex="F",
        ordered_priority=ordered,
    )
    return Arrival(instance, "1.2.840.10008.1.2.1", "CONSOLE", "127.0.0.1", digest, 1000)


def enter(worklist: Worklist, uid: str, score: Score | None = None, *, ordered: str = "") -> None:
    """Receive an item, and score it if there is a score."""
    assert worklist.receive(arrival(uid, ordered=ordered))
    if score is not None:
        claim = worklist.claim("w")
        assert claim is not None
        assert claim.sop_instance_uid == uid
        assert worklist.scored(claim, score, ())


def let_wait(engine: Engine, uid: str, time: dt.timedelta) -> None:
    """Let an item have come so much earlier."""
    with engine.begin() as connection:
        row = connection.execute(
            select(Item.received_at, Item.rank_at).where(Item.sop_instance_uid == uid)
        ).one()
        connection.execute(
            update(Item)
            .where(Item.sop_instance_uid == uid)
            .values(received_at=row.received_at - time, rank_at=row.rank_at - time)
        )


def let_lease_end(engine: Engine) -> None:
    """Let every lease and every pause before a retry have ended."""
    with engine.begin() as connection:
        past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
        connection.execute(
            update(Item).where(Item.claimed_until.is_not(None)).values(claimed_until=past)
        )


def order(worklist: Worklist) -> list[str]:
    """The UIDs in reading order."""
    return [item.sop_instance_uid for item in worklist.items()]


def actions(worklist: Worklist, uid: str) -> list[str]:
    """What the events of an item say happened."""
    return [entry.action for entry in worklist.journal(uid)]


# Receiving


def test_an_instance_enters_once(worklist: Worklist) -> None:
    """The second arrival under a UID changes nothing, whatever its bytes."""
    assert worklist.receive(arrival("1.2.3", digest="aa"))
    assert not worklist.receive(arrival("1.2.3", digest="aa"))
    assert not worklist.receive(arrival("1.2.3", digest="bb"))
    assert worklist.digest("1.2.3") == "aa"
    assert worklist.digest("1.2.4") is None
    assert order(worklist) == ["1.2.3"]
    assert actions(worklist, "1.2.3") == ["RECEIVED"]


def test_of_many_receivers_at_once_one_is_first(worklist: Worklist) -> None:
    """Eight threads with one UID: one row, one True, no error."""
    barrier = Barrier(8)

    def receive(number: int) -> bool:
        barrier.wait()
        return worklist.receive(arrival("1.2.3", digest=str(number)))

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(receive, range(8)))
    assert Counter(results) == {True: 1, False: 7}
    assert worklist.digest("1.2.3") == str(results.index(True))


def test_a_quarantined_data_set_leaves_an_event(worklist: Worklist) -> None:
    """It names the digest and the console, and an unknown UID is refused."""
    enter(worklist, "1.2.3")
    worklist.quarantined("1.2.3", "cd", "OTHER")
    event = worklist.journal("1.2.3")[-1]
    assert (event.action, event.actor, event.detail) == ("QUARANTINED", "OTHER", {"digest": "cd"})
    with pytest.raises(UnknownItem):
        worklist.quarantined("1.2.4", "cd", "OTHER")


def test_times_are_aware_utc(worklist: Worklist) -> None:
    """Received, scored, read and every event: close to now, in UTC."""
    enter(worklist, "1.2.3", HIGH_SCORE)
    worklist.readings.add("1.2.3", Said("confirmed", "dr"))
    item = worklist.item("1.2.3")
    assert item.scored_at is not None
    times = [item.received_at, item.scored_at, worklist.readings.of("1.2.3")[0].read_at]
    times += [entry.at for entry in worklist.journal("1.2.3")]
    assert {time.utcoffset() for time in times} == {dt.timedelta(0)}
    assert all(abs(dt.datetime.now(dt.UTC) - time) < dt.timedelta(minutes=1) for time in times)
    assert times[:3] == sorted(times[:3])


# Reading order


def test_flagged_stands_before_unflagged_and_equals_by_waiting_time(worklist: Worklist) -> None:
    """STAT, then flagged, then the rest with the unscored; among equals the first received."""
    enter(worklist, "1.1", LOW_SCORE)
    enter(worklist, "1.2", HIGH_SCORE)
    enter(worklist, "1.3", HIGH_SCORE)
    enter(worklist, "1.5", LOW_SCORE, ordered="STAT")
    enter(worklist, "1.6", LOW_SCORE, ordered="HIGH")
    enter(worklist, "1.4")
    assert order(worklist) == ["1.5", "1.2", "1.3", "1.6", "1.1", "1.4"]
    assert [item.urgency.name for item in worklist.items()] == [
        "STAT", "HIGH", "HIGH", "HIGH", "ROUTINE", "ROUTINE",
    ]  # fmt: skip
    priorities = [item.priority for item in worklist.items()]
    assert priorities == [24 * 60, 8 * 60, 8 * 60, 8 * 60, 0, 0]
    assert [item.sop_instance_uid for item in worklist.items(limit=2)] == ["1.5", "1.2"]
    assert [item.sop_instance_uid for item in worklist.items(State.RECEIVED)] == ["1.4"]


def test_waiting_lifts_a_routine_exam_over_a_newly_flagged_one(
    worklist: Worklist, engine: Engine
) -> None:
    """After the flagged exam's head start, not before."""
    enter(worklist, "1.1", LOW_SCORE)
    enter(worklist, "1.2", HIGH_SCORE)
    let_wait(engine, "1.1", Priority.HIGH.head_start - dt.timedelta(minutes=5))
    assert order(worklist) == ["1.2", "1.1"]
    let_wait(engine, "1.1", dt.timedelta(minutes=10))
    assert order(worklist) == ["1.1", "1.2"]
    first, second = worklist.items()
    assert first.priority == 8 * 60 + 5 > second.priority == 8 * 60
    assert first.waiting > dt.timedelta(hours=8)


def test_nothing_starves(worklist: Worklist, engine: Engine) -> None:
    """A routine exam that waited longer than any head start stands before a new STAT."""
    enter(worklist, "1.1", LOW_SCORE)
    let_wait(engine, "1.1", Priority.STAT.head_start + dt.timedelta(minutes=1))
    enter(worklist, "1.2", HIGH_SCORE, ordered="STAT")
    assert order(worklist) == ["1.1", "1.2"]


@pytest.mark.parametrize("score", [LOW_SCORE, HIGH_SCORE])
def test_a_score_never_lowers_what_was_ordered(worklist: Worklist, score: Score) -> None:
    """STAT stays STAT, flagged or not."""
    enter(worklist, "1.1", ordered="STAT")
    before = worklist.item("1.1")
    claim = worklist.claim("w")
    assert claim is not None
    worklist.scored(claim, score, ())
    after = worklist.item("1.1")
    assert before.urgency is after.urgency is Priority.STAT
    assert after.priority >= before.priority


def test_what_was_read_comes_last(worklist: Worklist) -> None:
    """With priority 0, though it was flagged."""
    enter(worklist, "1.1", HIGH_SCORE)
    enter(worklist, "1.2", LOW_SCORE)
    worklist.readings.add("1.1", Said("confirmed", "dr"))
    assert order(worklist) == ["1.2", "1.1"]
    assert worklist.item("1.1").priority == 0


def test_scoring_goes_in_order_of_urgency(worklist: Worklist) -> None:
    """The worker takes STAT first."""
    enter(worklist, "1.1")
    enter(worklist, "1.2", ordered="STAT")
    claims = [worklist.claim("w"), worklist.claim("w")]
    assert [claim and claim.sop_instance_uid for claim in claims] == ["1.2", "1.1"]


def test_the_longest_wait_is_that_of_any_item(worklist: Worklist, engine: Engine) -> None:
    """A STAT item that came later does not hide it."""
    assert worklist.oldest_received() is None
    enter(worklist, "1.1")
    let_wait(engine, "1.1", dt.timedelta(minutes=10))
    enter(worklist, "1.2", ordered="STAT")
    assert worklist.oldest_received() == worklist.item("1.1").received_at


# Claims


def test_each_item_is_claimed_by_exactly_one_thread(worklist: Worklist) -> None:
    """Eight threads, forty items, no item twice and none left over."""
    for number in range(40):
        enter(worklist, f"1.{number}")
    barrier = Barrier(8)

    def work(number: int) -> list[str]:
        barrier.wait()
        claimed = []
        # PostgreSQL skips what others are locking, so that None may come too early.
        while len(claimed) < 40 and worklist.oldest_received() is not None:
            claim = worklist.claim(f"w{number}")
            if claim is not None:
                assert worklist.scored(claim, LOW_SCORE, ())
                claimed.append(claim.sop_instance_uid)
        return claimed

    with ThreadPoolExecutor(8) as pool:
        claimed = [uid for part in pool.map(work, range(8)) for uid in part]
    assert Counter(claimed) == Counter({f"1.{number}": 1 for number in range(40)})
    assert all(actions(worklist, uid) == ["RECEIVED", "SCORED"] for uid in order(worklist))


def test_each_item_is_claimed_by_exactly_one_process(worklist: Worklist, database_url: str) -> None:
    """The same with processes, which share nothing but the database."""
    for number in range(30):
        enter(worklist, f"1.{number}")
    program = (
        "import sys\n"
        "from triage.worklist import Worklist\n"
        "worklist = Worklist(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "while True:\n"
        "    claim = worklist.claim(sys.argv[2])\n"
        "    if claim is None: break\n"
        "    print(claim.sop_instance_uid)\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, database_url, f"w{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(3)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    claimed: list[str] = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        output, _ = worker.communicate(timeout=60)
        assert worker.returncode == 0
        claimed += output.split()
    assert Counter(claimed) == Counter({f"1.{number}": 1 for number in range(30)})


def test_a_claim_holds_until_its_lease_ends(worklist: Worklist, engine: Engine) -> None:
    """Then the next worker gets the item, and the first one's result is not recorded."""
    enter(worklist, "1.1")
    first = worklist.claim("slow")
    assert first is not None
    assert worklist.claim("other") is None
    with engine.connect() as connection:
        until = connection.scalar(select(Item.claimed_until))
    assert until is not None
    assert abs(until - (dt.datetime.now(dt.UTC) + LEASE)) < dt.timedelta(seconds=10)
    let_lease_end(engine)
    second = worklist.claim("other")
    assert second is not None
    assert (second.item_id, second.attempt) == (first.item_id, 2)
    assert not worklist.scored(first, HIGH_SCORE, ())
    assert not worklist.not_scored(first, "NOT_CHEST", "a hand")
    assert not worklist.failed(first, "SCORING_ERROR", "broke")
    assert actions(worklist, "1.1") == ["RECEIVED"]
    assert worklist.item("1.1").state is State.RECEIVED
    assert worklist.scored(second, LOW_SCORE, ("AGE_UNKNOWN",))
    assert worklist.item("1.1").score == LOW_SCORE.probability
    assert worklist.item("1.1").notes == ("AGE_UNKNOWN",)


def test_a_lost_claim_of_the_same_worker_records_nothing(
    worklist: Worklist, engine: Engine
) -> None:
    """A worker that claims the same item again holds one claim, not two."""
    enter(worklist, "1.1")
    first = worklist.claim("w")
    let_lease_end(engine)
    second = worklist.claim("w")
    assert first is not None
    assert second is not None
    assert not worklist.scored(first, HIGH_SCORE, ())
    assert worklist.scored(second, LOW_SCORE, ())
    assert not worklist.scored(second, HIGH_SCORE, ())
    assert worklist.item("1.1").score == LOW_SCORE.probability
    assert actions(worklist, "1.1") == ["RECEIVED", "SCORED"]


def test_a_dead_workers_claims_return_to_its_successor(worklist: Worklist) -> None:
    """Only that worker's, and at once."""
    enter(worklist, "1.1")
    enter(worklist, "1.2")
    assert worklist.claim("dead") is not None
    other = worklist.claim("alive")
    assert worklist.abandon("dead") == 1
    assert worklist.abandon("dead") == 0
    again = worklist.claim("dead")
    assert again is not None
    assert (again.sop_instance_uid, again.attempt) == ("1.1", 2)
    assert other is not None
    assert worklist.scored(other, LOW_SCORE, ())


def test_what_kills_its_worker_each_time_is_failed(worklist: Worklist) -> None:
    """After three deaths, with an event; the next item is scored."""
    enter(worklist, "1.1")
    enter(worklist, "1.2")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claim = worklist.claim("w")
        assert claim is not None
        assert (claim.sop_instance_uid, claim.attempt) == ("1.1", attempt)
        worklist.abandon("w")
    claim = worklist.claim("w")
    assert claim is not None
    assert claim.sop_instance_uid == "1.2"
    item = worklist.item("1.1")
    assert (item.state, item.reason) == (State.FAILED, "WORKER_DIED")
    assert item.explanation
    assert actions(worklist, "1.1") == ["RECEIVED", "FAILED"]


def test_what_breaks_scoring_is_tried_again_after_a_growing_pause_and_then_failed(
    worklist: Worklist, engine: Engine
) -> None:
    """Never hidden: it stays unread, and each try leaves an event."""
    enter(worklist, "1.1")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claim = worklist.claim("w")
        assert claim is not None
        assert claim.attempt == attempt
        assert worklist.failed(claim, "SCORING_ERROR", "KeyError while scoring")
        assert worklist.claim("w") is None
        if attempt < MAX_ATTEMPTS:
            assert worklist.item("1.1").state is State.RECEIVED
            with engine.connect() as connection:
                until = connection.scalar(select(Item.claimed_until))
            assert until is not None
            pause = until - dt.datetime.now(dt.UTC)
            assert RETRY_PAUSE * (attempt - 1) < pause <= RETRY_PAUSE * attempt
            let_lease_end(engine)
    item = worklist.item("1.1")
    assert (item.state, item.reason) == (State.FAILED, "SCORING_ERROR")
    assert item.explanation == "KeyError while scoring"
    assert actions(worklist, "1.1") == ["RECEIVED", "RETRIED", "RETRIED", "FAILED"]
    assert worklist.counts()[State.FAILED] == 1


def test_an_item_that_is_not_scored_says_why(worklist: Worklist) -> None:
    """State, reason, explanation, notes and event; its urgency stays what was ordered."""
    enter(worklist, "1.1", ordered="STAT")
    claim = worklist.claim("w")
    assert claim is not None
    assert worklist.not_scored(claim, "NOT_CHEST", "a hand", ("BODY_PART_CONFLICT",))
    item = worklist.item("1.1")
    assert (item.state, item.reason, item.explanation) == (State.NOT_SCORED, "NOT_CHEST", "a hand")
    assert item.notes == ("BODY_PART_CONFLICT",)
    assert (item.score, item.flagged, item.scored_at) == (None, None, None)
    assert item.urgency is Priority.STAT
    event = worklist.journal("1.1")[-1]
    assert (event.action, event.actor, event.detail) == (
        "NOT_SCORED", "w", {"reason": "NOT_CHEST"},
    )  # fmt: skip
    assert worklist.claim("w") is None


def test_a_version_scores_an_item_once(worklist: Worklist, engine: Engine) -> None:
    """The database itself refuses a second score of one item by one version."""
    enter(worklist, "1.1", HIGH_SCORE)
    row: dict[str, Any] = {
        "item_id": 1,
        "model_version": "cnn-1",
        "probability": 0.5,
        "threshold": 0.5,
        "scored_at": dt.datetime.now(dt.UTC),
    }
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(insert(ScoreRecord).values(**row))
    with engine.begin() as connection:
        connection.execute(insert(ScoreRecord).values(**row | {"model_version": "cnn-2"}))
        assert connection.scalar(select(func.count()).select_from(ScoreRecord)) == 2


# Readings


def test_readings_are_appended_and_the_state_follows_the_latest(worklist: Worklist) -> None:
    """Each keeps who, when, verdict, sampling and what was shown."""
    enter(worklist, "1.1", HIGH_SCORE)
    assert worklist.readings.add("1.1", Said("confirmed", "Dr. A"))[1].state is State.CONFIRMED
    assert worklist.readings.add("1.1", Said("rejected", "Dr. B"))[1].state is State.REJECTED
    assert worklist.item("1.1").state is State.REJECTED
    readings = worklist.readings.of("1.1")
    assert [(r.reader, r.verdict) for r in readings] == [
        ("Dr. A", "confirmed"),
        ("Dr. B", "rejected"),
    ]
    for reading in readings:
        assert reading.sampling == "flagged"
        assert reading.shown_score == HIGH_SCORE.probability
        assert reading.shown_threshold == HIGH_SCORE.threshold
        assert reading.shown_model_version == HIGH_SCORE.model_version
    assert actions(worklist, "1.1") == ["RECEIVED", "SCORED", "CONFIRMED", "REJECTED"]
    assert [entry.actor for entry in worklist.journal("1.1")] == ["CONSOLE", "w", "Dr. A", "Dr. B"]


def test_a_reading_keeps_what_its_reader_was_shown(worklist: Worklist, engine: Engine) -> None:
    """A later score of a newer version changes no earlier reading."""
    enter(worklist, "1.1", LOW_SCORE)
    worklist.readings.add("1.1", Said("confirmed", "Dr. A"))
    with engine.begin() as connection:
        connection.execute(
            update(Item).values(score=0.7, threshold=0.6, flagged=True, model_version="cnn-2")
        )
    worklist.readings.add("1.1", Said("confirmed", "Dr. A"))
    shown = [
        (r.shown_score, r.shown_threshold, r.shown_model_version, r.sampling)
        for r in worklist.readings.of("1.1")
    ]
    assert shown == [(0.1, 0.5, "cnn-1", "unflagged"), (0.7, 0.6, "cnn-2", "flagged")]


def test_what_has_no_score_cannot_be_read(worklist: Worklist) -> None:
    """RECEIVED, NOT_SCORED: refused with the state and the reason, and nothing is recorded."""
    enter(worklist, "1.1")
    with pytest.raises(NotReadable, match="RECEIVED"):
        worklist.readings.add("1.1", Said("confirmed", "dr"))
    claim = worklist.claim("w")
    assert claim is not None
    worklist.not_scored(claim, "NOT_CHEST", "a hand")
    with pytest.raises(NotReadable, match=r"NOT_SCORED.*NOT_CHEST"):
        worklist.readings.add("1.1", Said("rejected", "dr"))
    assert worklist.readings.of("1.1") == []
    assert actions(worklist, "1.1") == ["RECEIVED", "NOT_SCORED"]


def test_an_unknown_uid_is_said_to_be_unknown(worklist: Worklist) -> None:
    """By each method that takes one, in one line without control characters."""
    for ask in (
        worklist.item,
        worklist.journal,
        worklist.readings.of,
        lambda uid: worklist.readings.add(uid, Said("confirmed", "dr")),
    ):
        with pytest.raises(UnknownItem, match=r"1\.2\.3") as caught:
            ask("1.2.3\x1b[31m\n")
        assert str(caught.value).isprintable()


# The view, the events, the outage


def documented_columns() -> list[str]:
    """The columns of worklist_v1 in docs/worklist.md, in order."""
    table = (ROOT / "docs" / "worklist.md").read_text().split("| column |")[1]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_the_view_has_the_documented_columns_and_agrees_with_the_worklist(
    worklist: Worklist, engine: Engine
) -> None:
    """Value by value, in reading order, on items in every state but FAILED."""
    enter(worklist, "1.1", LOW_SCORE)
    enter(worklist, "1.2", HIGH_SCORE)
    enter(worklist, "1.3", LOW_SCORE, ordered="STAT")
    enter(worklist, "1.4", HIGH_SCORE)
    worklist.readings.add("1.4", Said("rejected", "dr"))
    enter(worklist, "1.5")
    claim = worklist.claim("w")
    assert claim is not None
    worklist.not_scored(claim, "NOT_CHEST", "a hand")
    enter(worklist, "1.6", HIGH_SCORE)
    let_wait(engine, "1.1", dt.timedelta(hours=9))
    let_wait(engine, "1.2", dt.timedelta(seconds=100))
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT * FROM worklist_v1 ORDER BY unread DESC, rank_at")
        ).mappings()
        viewed = [dict(row) for row in rows]
    items = worklist.items()
    assert [row["sop_instance_uid"] for row in viewed] == [i.sop_instance_uid for i in items]
    assert order(worklist) == ["1.3", "1.1", "1.2", "1.6", "1.5", "1.4"]
    for row, item in zip(viewed, items, strict=True):
        assert sorted(row) == sorted(documented_columns())
        shown = item.as_json()
        for name in set(row) - {"received_at", "scored_at", "rank_at", "unread", "priority"}:
            assert row[name] == shown[name], name
        assert bool(row["unread"]) is (item.state not in {State.CONFIRMED, State.REJECTED})
        assert abs(row["priority"] - item.priority) <= 1
        for name, time in (("received_at", item.received_at), ("scored_at", item.scored_at)):
            assert (time and time.replace(tzinfo=None)) == _time(row[name])
        rank_at = _time(row["rank_at"])
        assert rank_at is not None
        assert rank_at == item.received_at.replace(tzinfo=None) - item.urgency.head_start


def _time(value: dt.datetime | str | None) -> dt.datetime | None:
    """A time of the view: SQLite has no type for it and gives text."""
    return dt.datetime.fromisoformat(value) if isinstance(value, str) else value


def test_events_hold_no_patient_data(worklist: Worklist, engine: Engine) -> None:
    """Neither patient ID nor accession number, after every kind of move."""
    enter(worklist, "1.1", HIGH_SCORE)
    worklist.quarantined("1.1", "cd", "CONSOLE")
    worklist.readings.add("1.1", Said("confirmed", "dr"))
    enter(worklist, "1.2")
    for _ in range(MAX_ATTEMPTS):
        claim = worklist.claim("w")
        assert claim is not None
        worklist.failed(claim, "SCORING_ERROR", "KeyError while scoring")
        let_lease_end(engine)
    enter(worklist, "1.3")
    claim = worklist.claim("w")
    assert claim is not None
    worklist.not_scored(claim, "NOT_CHEST", "a hand")
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(select(Event.__table__)).mappings()]
    assert {row["action"] for row in rows} == {
        "RECEIVED", "SCORED", "NOT_SCORED", "RETRIED", "FAILED", "CONFIRMED", "QUARANTINED",
    }  # fmt: skip
    assert not any(secret in json.dumps(rows, default=str) for secret in SECRETS)


def test_a_database_that_fails_is_told_in_one_line_without_data(
    worklist: Worklist, engine: Engine
) -> None:
    """Each side of the worklist raises WorklistError; when the database is back, all goes on."""
    enter(worklist, "1.1", HIGH_SCORE)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE items RENAME TO hidden"))
    for ask in (
        lambda: worklist.receive(arrival("1.2")),
        lambda: worklist.claim("w"),
        worklist.items,
        lambda: worklist.readings.add("1.1", Said("confirmed", "dr")),
    ):
        with pytest.raises(WorklistError) as caught:
            ask()
        message = str(caught.value)
        assert "\n" not in message
        assert not any(secret in message for secret in SECRETS)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE hidden RENAME TO items"))
    enter(worklist, "1.2")
    assert order(worklist) == ["1.1", "1.2"]


# Duplicate exposures

HASH = "0123456789abcdef" * 4
NEARLY = "0123456789abcdee" * 4
OTHER = "fedcba9876543210" * 4


def show(worklist: Worklist, picture_hash: str | None, *, score: bool = True) -> WorklistItem:
    """Score the next item, or refuse it, and look at it."""
    claim = worklist.claim("w")
    assert claim is not None
    if score:
        assert worklist.scored(claim, LOW_SCORE, ("AGE_UNKNOWN",), picture_hash)
    else:
        assert worklist.not_scored(claim, "NOT_LIKE_TRAINING", "novel", (), picture_hash)
    return worklist.item(claim.sop_instance_uid)


def of(uid: str, study: str, patient: str) -> Arrival:
    """An instance of a study and a patient."""
    made = arrival(uid)
    return replace(
        made, instance=replace(made.instance, study_instance_uid=study, patient_id=patient)
    )


def test_a_second_instance_of_one_exposure_names_the_first(worklist: Worklist) -> None:
    """As a note, in the explanation and in the event; the first says nothing."""
    for uid in ("1.1", "1.2"):
        worklist.receive(of(uid, "1.9", "P"))
    first, second = show(worklist, HASH), show(worklist, NEARLY)
    assert (first.notes, first.explanation) == (("AGE_UNKNOWN",), "")
    assert second.state is State.SCORED
    assert second.notes == ("AGE_UNKNOWN", "DUPLICATE_EXPOSURE")
    assert second.explanation == "the same exposure came as 1.1"
    details = [[entry.detail.get("duplicate_of") for entry in worklist.journal(uid)]
               for uid in ("1.1", "1.2")]  # fmt: skip
    assert details == [[None, None], [None, "1.1"]]


def test_what_is_not_scored_is_compared_too(worklist: Worklist) -> None:
    """Its reason stays, the note and the name are added."""
    for uid in ("1.1", "1.2"):
        worklist.receive(of(uid, "1.9", "P"))
    show(worklist, HASH, score=False)
    second = show(worklist, HASH, score=False)
    assert (second.reason, second.notes) == ("NOT_LIKE_TRAINING", ("DUPLICATE_EXPOSURE",))
    assert second.explanation == "novel; the same exposure came as 1.1"


@pytest.mark.parametrize(
    ("study", "patient", "same"),
    [("1.9", "P", True), ("1.8", "P", True), ("1.9", "Q", True), ("1.8", "Q", False)],
)
def test_only_one_patient_s_or_one_study_s_exposures_are_compared(
    worklist: Worklist, study: str, patient: str, same: bool
) -> None:
    """Two children who look alike are two."""
    worklist.receive(of("1.1", "1.9", "P"))
    worklist.receive(of("1.2", study, patient))
    show(worklist, HASH)
    assert ("DUPLICATE_EXPOSURE" in show(worklist, HASH).notes) is same


def test_an_absent_patient_id_joins_nobody(worklist: Worklist) -> None:
    """Two studies without one are of two patients."""
    worklist.receive(of("1.1", "1.9", ""))
    worklist.receive(of("1.2", "1.8", ""))
    show(worklist, HASH)
    assert "DUPLICATE_EXPOSURE" not in show(worklist, HASH).notes


@pytest.mark.parametrize(("hash_", "days"), [(OTHER, 0), (None, 0), (HASH, 2)])
def test_another_picture_none_and_one_of_long_ago_are_no_duplicates(
    worklist: Worklist, engine: Engine, hash_: str | None, days: int
) -> None:
    """A day after, the same picture is a copy for another purpose."""
    worklist.receive(of("1.1", "1.9", "P"))
    show(worklist, HASH)
    let_wait(engine, "1.1", dt.timedelta(days=days))
    worklist.receive(of("1.2", "1.9", "P"))
    assert "DUPLICATE_EXPOSURE" not in show(worklist, hash_).notes


def test_scoring_again_says_it_once(worklist: Worklist, engine: Engine) -> None:
    """The item is not its own duplicate, and neither note nor sentence is doubled."""
    for uid in ("1.1", "1.2"):
        worklist.receive(of(uid, "1.9", "P"))
    show(worklist, HASH)
    before = show(worklist, HASH)
    with engine.begin() as connection:
        connection.execute(delete(ScoreRecord).where(ScoreRecord.item_id == 2))
        connection.execute(update(Item).where(Item.id == 2).values(state=State.RECEIVED))
    after = show(worklist, HASH)
    assert (after.notes, after.explanation) == (before.notes, before.explanation)


def test_of_many_copies_scored_at_once_one_is_the_first(worklist: Worklist) -> None:
    """Eight workers, one exposure: whoever is last to write sees the others."""
    count = 8
    for number in range(count):
        worklist.receive(of(f"1.{number}", f"1.9.{number}", "P"))
    claims = [worklist.claim(f"w{number}") for number in range(count)]
    barrier = Barrier(count)

    def score(number: int) -> None:
        claim = claims[number]
        assert claim is not None
        barrier.wait()
        assert worklist.scored(claim, LOW_SCORE, (), HASH)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(score, range(count)))
    notes = Counter(note for item in worklist.items() for note in item.notes)
    assert notes == {"DUPLICATE_EXPOSURE": count - 1}


def test_duplicates_are_found_by_indexes(worklist: Worklist, engine: Engine) -> None:
    """In a table of three thousand exams none but the patient's and the study's are read."""
    enter(worklist, "1.1")
    with engine.begin() as connection:
        row = connection.execute(select(Item.__table__)).mappings().one()
        others = [
            {**row, "id": n, "sop_instance_uid": f"2.{n}", "study_instance_uid": f"2.{n}.1",
             "patient_id": f"P{n}"}
            for n in range(2, 3000)
        ]  # fmt: skip
        connection.execute(insert(Item), others)
    if engine.dialect.name == "postgresql":
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("ANALYZE items"))
    heard: list[tuple[str, Any]] = []

    def hear(_connection: Any, _cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        heard.append((sql, parameters))

    event.listen(Engine, "before_cursor_execute", hear)
    try:
        show(worklist, HASH)
    finally:
        event.remove(Engine, "before_cursor_execute", hear)
    ((lookup, parameters),) = [one for one in heard if "BETWEEN" in one[0]]
    explain = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}[engine.dialect.name]
    with engine.connect() as connection:
        plan = str(connection.exec_driver_sql(explain + lookup, parameters).all())
    assert "ix_items_patient" in plan
    assert "ix_items_study_instance_uid" in plan
    assert "SCAN items" not in plan
    assert "Seq Scan" not in plan
