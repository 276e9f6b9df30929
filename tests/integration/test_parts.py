"""Which parts run, as the operator's view tells it."""

import datetime as dt
from collections.abc import Callable

import pytest

from tests.conftest import Service, wait_for
from tests.web import Visitor, account
from triage.worklist import Worklist
from triage.worklist import parts as module
from triage.worklist.accounts import Role
from triage.worklist.parts import KEPT, SILENT


def test_a_part_is_heard_of_until_it_ends(
    worklist: Worklist, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent after a while, gone at its end; its node's next one removes who was killed."""
    parts, at = worklist.parts, dt.datetime.now(dt.UTC)
    monkeypatch.setattr(module, "now", lambda: at)
    parts.begin("a", "score", 1, "0", lambda _: True)
    parts.begin("a", "web", 2, "0", lambda _: True)
    parts.begin("b", "score", 1, "0", lambda _: False)
    assert [(part.role, part.node, part.runs) for part in parts.records()] == [
        ("score", "a", True), ("score", "b", True), ("web", "a", True),
    ]  # fmt: skip
    at += SILENT
    assert parts.beat("a", "web", 2)
    assert [part.runs for part in parts.records()] == [False, False, True]
    at -= 2 * SILENT  # the clock is set back
    assert all(part.runs for part in parts.records())
    at += 2 * SILENT
    parts.begin("a", "score", 3, "0", lambda process: process != 1)
    assert [(part.node, part.process) for part in parts.records()] == [("a", 3), ("b", 1), ("a", 2)]
    parts.end("a", "web", 2)
    assert not parts.beat("a", "web", 2)
    at += 2 * KEPT
    parts.begin("c", "score", 1, "0", lambda _: True)
    assert [part.node for part in parts.records()] == ["c"]


def test_the_operators_view_tells_of_real_processes(new_service: Callable[..., Service]) -> None:
    """All needed run; a killed one's successor takes its place; after the end none is left."""
    service = new_service()
    service.start()
    wait_for(service.shows_page)
    worklist = service.worklist()
    account(worklist, "olga", Role.OPERATOR)
    with Visitor(service.page) as visitor:
        visitor.sign_in("olga")

        def told() -> dict[str, set[str]]:
            found = visitor.get("/api/v1/operations").json()
            return {
                "missing": set(found["missing"]),
                "running": {part["role"] for part in found["parts"] if part["runs"]},
            }

        wait_for(lambda: {"receive", "score", "web"} <= told()["running"])
        assert told()["missing"] == set()
        service.kill("score")

        def replaced() -> bool:
            rows = visitor.get("/api/v1/operations").json()["parts"]
            found = [row["process"] for row in rows if row["role"] == "score"]
            return found == [service.part("score")]

        wait_for(replaced)
    service.stop()
    assert worklist.parts.records() == []
    worklist.close()
