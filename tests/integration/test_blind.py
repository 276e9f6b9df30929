"""The random sample: nobody who has not read an exam is told its score, by any way."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exams import FLAGGED, UNFLAGGED, enter
from tests.web import Visitor, account, served, site_of
from triage.worklist import Worklist
from triage.worklist.accounts import Role
from triage.worklist.readings import Said
from triage.worklist.schema import migrate, open_engine

SAMPLED = {"1.1": FLAGGED, "1.2": UNFLAGGED}
"""Both kinds are in the sample."""


@pytest.fixture
def sampled(tmp_path: Path) -> Iterator[Worklist]:
    """A worklist in which every exam is drawn into the sample."""
    url = f"sqlite:///{tmp_path / 'worklist.sqlite'}"
    engine = open_engine(url, create=True)
    migrate(engine)
    engine.dispose()
    worklist = Worklist(url, blind_share=1.0)
    for uid, score in SAMPLED.items():
        enter(worklist, uid, score, patient_id="P1", accession_number=uid)
    for name in ("one", "two"):
        account(worklist, name, Role.READER)
    yield worklist
    worklist.close()


@pytest.fixture
def url(sampled: Worklist, tmp_path: Path) -> Iterator[str]:
    """Where it is served."""
    with served(site_of(sampled, tmp_path)) as address:
        yield address


def test_no_answer_tells_the_score_of_an_unread_sampled_exam(url: str) -> None:
    """The list, the exam, its priors: none of the two scores is in any of them."""
    with Visitor(url) as reader:
        reader.sign_in("one")
        for path in ("items", "items/1.1", "items/1.2", "items/1.1/priors"):
            text = reader.get(f"/api/v1/{path}").text
            assert "0.9" not in text
            assert "v1" not in text.replace("/v1/", "")
            for item in _items(json.loads(text)):
                assert item["blind"] is True
                assert item["flagged"] is item["score"] is item["threshold"] is None
                assert item["urgency"] == "HIGH"


@pytest.mark.parametrize(
    ("question", "picked"),
    [("flagged=true", {"1.1", "1.2"}), ("flagged=false", {"1.1", "1.2"}),
     ("state=CONFIRMED", set()), ("state=REJECTED", set())],
)  # fmt: skip
def test_no_filter_picks_sampled_exams_by_what_is_hidden(
    url: str, sampled: Worklist, question: str, picked: set[str]
) -> None:
    """Flagged ones are found by who asks for them, and so are the others of the sample."""
    sampled.readings.add("1.1", Said("confirmed", "two"))
    with Visitor(url) as reader, Visitor(url) as knows:
        reader.sign_in("one")
        answer = reader.get(f"/api/v1/items?{question}").json()
        assert {each["sop_instance_uid"] for each in answer["items"]} == picked
        knows.sign_in("two")
        flagged = knows.get("/api/v1/items?flagged=true").json()["items"]
        assert {each["sop_instance_uid"] for each in flagged if not each["blind"]} == {"1.1"}


def test_the_order_and_the_minutes_of_the_list_do_not_tell(url: str) -> None:
    """A flag's head start would stand in them."""
    with Visitor(url) as reader:
        reader.sign_in("one")
        first, second = reader.get("/api/v1/items").json()["items"]
        assert abs(first["priority"] - second["priority"]) <= 1


def test_no_heat_map_of_an_unread_sampled_exam_is_drawn(url: str) -> None:
    """It shows where the score comes from."""
    with Visitor(url) as reader:
        reader.sign_in("one")
        assert reader.get("/exams/1.1/heat-map").status_code in {403, 404, 409}


def test_the_verdict_uncovers_the_score_for_its_reader_alone(url: str) -> None:
    """And the reading keeps that it was made without."""
    with Visitor(url) as one, Visitor(url) as two:
        one.sign_in("one")
        two.sign_in("two")
        tag = one.get("/api/v1/items/1.1").headers["ETag"]
        headers = {"If-Match": tag, **one.with_csrf()}
        body = {"verdict": "confirmed"}
        answer = one.post("/api/v1/items/1.1/readings", json=body, headers=headers)
        assert answer.status_code == 201
        assert answer.json()["reading"]["blinded"] is True
        assert answer.json()["reading"]["sampling"] == "random"
        assert answer.json()["item"]["score"] == 0.9
        assert two.get("/api/v1/items/1.1").json()["item"]["score"] is None


def test_a_second_reading_of_the_same_reader_was_not_blind(sampled: Worklist) -> None:
    """The first verdict had uncovered the score."""
    first, _ = sampled.readings.add("1.1", Said("confirmed", "one", source="page"))
    second, _ = sampled.readings.add("1.1", Said("rejected", "one", source="page"))
    assert (first.blinded, second.blinded) == (True, False)


def _items(answer: dict) -> list[dict]:  # type: ignore[type-arg]
    return answer["items"] if "items" in answer else [answer["item"]]
