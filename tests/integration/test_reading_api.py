"""Readings through the API: no lost update, nothing twice, and rows that come live."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.exams import FLAGGED, UNFLAGGED, enter
from tests.web import Visitor, account, served, site_of
from triage.web.live import MOST_MISSED
from triage.worklist import State, Worklist
from triage.worklist.accounts import Role
from triage.worklist.readings import Said

CONFIRMED = {"verdict": "confirmed"}
PROBLEM = "application/problem+json"


@pytest.fixture
def url(worklist: Worklist, tmp_path: Path) -> Iterator[str]:
    """A site with a scored exam, 1.1, an unscored one, 1.2, and two readers."""
    enter(worklist, "1.1", FLAGGED, accession_number="A1")
    enter(worklist, "1.2", None)
    for name in ("one", "two"):
        account(worklist, name, Role.READER)
    with served(site_of(worklist, tmp_path)) as address:
        yield address


class Desk(Visitor):
    """A reader who has signed in and reads through the API."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url)
        self._name = name

    def __enter__(self) -> Self:
        """Sign in."""
        super().__enter__()
        assert self.sign_in(self._name).status_code == 303
        self.headers.update(self.with_csrf())
        return self

    def seen(self, uid: str = "1.1") -> str:
        """The ETag of an exam as it now stands."""
        return self.get(f"/api/v1/items/{uid}").headers["etag"]

    def read(
        self, said: object, uid: str = "1.1", tag: str | None = None, key: str | None = None
    ) -> httpx.Response:
        """Give a verdict."""
        named = {"If-Match": tag, "Idempotency-Key": key}
        headers = {name: value for name, value in named.items() if value is not None}
        return self.post(f"/api/v1/items/{uid}/readings", json=said, headers=headers)


@pytest.fixture
def one(url: str) -> Iterator[Desk]:
    """The first reader."""
    with Desk(url, "one") as desk:
        yield desk


def refused(answer: httpx.Response, status: int, kind: str) -> str:
    """What a problem says in words; it is of a status and a kind."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == PROBLEM
    told: dict[str, Any] = answer.json()
    assert told["type"] == f"urn:cxr-triage:problem:{kind}"
    assert told["status"] == status
    assert isinstance(told["title"], str)
    return str(told["detail"])


def test_nobody_overwrites_what_they_have_not_seen(url: str, one: Desk, worklist: Worklist) -> None:
    """428 without the exam's ETag, 412 with a stale one; with the present one both stand."""
    with Desk(url, "two") as two:
        tag = two.seen()
        assert "If-Match" in refused(two.read(CONFIRMED), 428, "NoRevision")
        first = one.read(CONFIRMED, tag=one.seen())
        assert first.status_code == 201
        assert first.headers["etag"] == one.seen() != tag
        assert "look again" in refused(two.read({"verdict": "rejected"}, tag=tag), 412, "Changed")
        for strange in ('"1.1-999"', '"1.2-1"', "nonsense", '"1.1--1"', '"1.1-' + "9" * 40 + '"'):
            refused(two.read(CONFIRMED, tag=strange), 412, "Changed")
        assert len(worklist.readings.of("1.1")) == 1
        assert two.read({"verdict": "rejected"}, tag=two.seen()).status_code == 201
    assert [each.reader for each in worklist.readings.of("1.1")] == ["one", "two"]
    assert worklist.item("1.1").disagreement


def test_of_many_verdicts_on_one_revision_one_is_taken(
    url: str, one: Desk, worklist: Worklist
) -> None:
    """However close together they come."""
    tag = one.seen()
    together = threading.Barrier(6)

    def once(number: int) -> int:
        with Desk(url, "two" if number % 2 else "one") as desk:
            together.wait()
            return desk.read(CONFIRMED, tag=tag).status_code

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(once, range(6))) == [201] + [412] * 5
    assert len(worklist.readings.of("1.1")) == 1


def test_a_request_that_is_sent_again_reads_once(url: str, one: Desk, worklist: Worklist) -> None:
    """The same key and content: the same answer. Another content: 422. Another's key is another."""
    tag = one.seen()
    first = one.read(CONFIRMED, tag=tag, key="k")
    again = one.read(CONFIRMED, tag=tag, key="k")
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["reading"] == again.json()["reading"]
    refused(one.read({"verdict": "rejected"}, tag=tag, key="k"), 422, "KeyReused")
    assert len(worklist.readings.of("1.1")) == 1
    with Desk(url, "two") as two:
        assert two.read({"verdict": "rejected"}, tag=two.seen(), key="k").status_code == 201
    assert len(worklist.readings.of("1.1")) == 2


def test_what_cannot_be_read_says_why_and_nothing_is_recorded(
    one: Desk, worklist: Worklist
) -> None:
    """Unknown and unscored exams, no UIDs, no verdicts, places outside the picture, long texts."""
    assert "no worklist item" in refused(one.read(CONFIRMED, "9.9", "*"), 404, "UnknownItem")
    assert "RECEIVED" in refused(one.read(CONFIRMED, "1.2", one.seen("1.2")), 409, "NotReadable")
    refused(one.read(CONFIRMED, "1.02", "*"), 404, "UnknownItem")
    for wrong in (
        {"verdict": "normal"},
        {},
        [],
        {**CONFIRMED, "score": 0.1},
        {**CONFIRMED, "comment": "x" * 2_001},
        {**CONFIRMED, "comment": "a\0b"},
        {**CONFIRMED, "location": {"x": 1.5, "y": 0}},
        {**CONFIRMED, "location": {"x": "NaN", "y": 0}},
    ):
        told = refused(one.read(wrong, tag="*"), 422, "NotValid")
        assert "xxx" not in told
    assert "not disagree" in refused(
        one.read({**CONFIRMED, "adjudicates": True}, tag="*"), 409, "NoDisagreement"
    )
    oversized = one.read({**CONFIRMED, "comment": "x" * 70_000}, tag="*")
    assert "65536" in refused(oversized, 413, "TooLarge")
    headers = {"If-Match": "*", "Content-Type": "application/json"}
    broken = one.post("/api/v1/items/1.1/readings", content=b'{"verdict": ', headers=headers)
    refused(broken, 422, "NotValid")
    assert worklist.item("1.1").state is State.SCORED
    assert worklist.readings.of("1.1") == worklist.readings.of("1.2") == []


def test_every_refusal_of_the_api_is_a_problem(one: Desk) -> None:
    """Also of what is no route, of a method that it has not, and of a cursor that is none."""
    for method, path, status in (
        ("GET", "/api/v1/nothing", 404),
        ("PUT", "/api/v1/items", 405),
        ("GET", "/api/v1/items?cursor=x", 422),
        ("GET", "/api/v1/items?colour=red", 422),
        ("GET", "/api/v1/items?limit=0", 422),
        ("GET", "/api/v1/models/none", 404),
        ("GET", "/api/v1/operations", 403),
        ("DELETE", "/api/v1/items/1.1/readings/1", 404),
    ):
        answer = one.request(method, path)
        assert answer.status_code == status, path
        assert answer.headers["content-type"] == PROBLEM
        assert answer.json()["status"] == status


def test_only_ones_own_reading_is_taken_back_and_only_once(
    url: str, one: Desk, worklist: Worklist
) -> None:
    """The exam waits again; a second time changes nothing more."""
    number = one.read(CONFIRMED, tag="*").json()["reading"]["id"]
    path = f"/api/v1/items/1.1/readings/{number}"
    with Desk(url, "two") as two:
        assert "somebody else's" in refused(two.delete(path), 409, "TooLate")
    back = one.delete(path)
    assert (back.status_code, back.json()["state"]) == (200, "SCORED")
    assert back.headers["etag"] == one.seen()
    assert one.delete(path).status_code == 200
    (reading,) = worklist.readings.of("1.1")
    assert reading.withdrawn_at is not None


def test_whatever_shows_exams_is_in_the_audit_trail(one: Desk, worklist: Worklist) -> None:
    """The list, an exam, others of its patient, disagreements, live rows; what was typed is not."""
    began = len(list(worklist.audit.records()))
    for path in ("items?q=Miller", "items/1.1", "items/1.1/priors", "adjudication", "statistics"):
        assert one.get(f"/api/v1/{path}").status_code == 200
    with one.stream("GET", "/api/v1/live") as stream:
        next(events(stream))
    said = list(worklist.audit.records())[began:]
    assert {each.actor for each in said} == {"one"}
    assert [(each.action, each.subject) for each in said] == [
        ("SAW_LIST", ""), ("SAW_EXAM", "1.1"), ("SAW_LIST", "1.1"), ("SAW_LIST", ""),
        ("SAW_STATISTICS", ""), ("SAW_LIST", ""),
    ]  # fmt: skip
    assert "Miller" not in str([each.as_json() for each in said])


# Live rows


def events(stream: httpx.Response) -> Iterator[tuple[str, dict[str, Any], int | None]]:
    """Name, content and number of each event of a stream."""
    name, number = "", None
    for line in stream.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "id":
            number = int(value)
        elif field == "data":
            yield name, json.loads(value), number
            name, number = "", None


def test_rows_come_as_they_move_and_what_was_missed_is_told(one: Desk, worklist: Worklist) -> None:
    """A new exam, its score, a verdict; then, from the last one that was heard, the rest."""
    with one.stream("GET", "/api/v1/live") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        heard = events(stream)
        assert next(heard)[0] == "heartbeat"
        worklist.readings.add("1.1", Said("confirmed", "two"))
        name, row, number = next(heard)
    assert (name, row["sop_instance_uid"], row["state"]) == ("item", "1.1", "CONFIRMED")
    assert number is not None
    claim = worklist.claim("worker")
    assert claim is not None
    assert worklist.scored(claim, UNFLAGGED, ())
    with one.stream("GET", "/api/v1/live", headers={"Last-Event-ID": str(number)}) as stream:
        heard = events(stream)
        assert next(heard)[0] == "heartbeat"
        name, row, _ = next(heard)
        assert (name, row["sop_instance_uid"], row["state"]) == ("item", "1.2", "SCORED")


def test_who_missed_too_much_is_told_to_load_the_list_anew(one: Desk, worklist: Worklist) -> None:
    """Also who heard of what never was: the database was put back to an earlier state."""
    for last in (0, MOST_MISSED * 1_000):
        if last == 0:
            for _ in range(MOST_MISSED // 2 + 1):
                reading, _ = worklist.readings.add("1.1", Said("confirmed", "two"))
                worklist.readings.withdraw("1.1", reading.id, "two")
        with one.stream("GET", "/api/v1/live", headers={"Last-Event-ID": str(last)}) as stream:
            heard = events(stream)
            assert [next(heard)[0], next(heard)[0]] == ["heartbeat", "reset"]
