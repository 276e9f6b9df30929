"""A challenger in shadow: it scores what the champion scored, and changes nothing."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Service, wait_for
from tests.exams import arrival
from tests.site import VERSION, Site
from tests.versions import another
from triage.admission import Population
from triage.assessment import Assessor
from triage.config import Config
from triage.errors import ModelError, WorklistError
from triage.pixels import Array
from triage.registry import CHAMPION, Registry
from triage.scoring import Evidence, Score
from triage.send import send
from triage.shadow import Pair, Shadow
from triage.worklist import State, Worklist
from triage.worklist.drifts import Measure
from triage.worklist.shadows import UNFINISHED

ANYBODY = Population("anybody", None, ())
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


class Opinions:
    """A challenger that answers from a list, and breaks where that holds an error."""

    model_version = "challenger"

    def __init__(self, *answers: float | Exception) -> None:
        self.answers = list(answers)

    def explained(self, array: Array) -> tuple[Score, Evidence | None]:
        return self.score(array), None

    def score(self, array: Array) -> Score:
        assert array.shape == (256, 256)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Score(answer, 0.4, self.model_version)


@pytest.fixture
def site(worklist: Worklist, tmp_path: Path) -> Site:
    """A site with a worklist on either database."""
    return Site(worklist, tmp_path)


def shadow_of(
    site: Site, *answers: float | Exception, since: dt.datetime = LONG_AGO
) -> tuple[Shadow, Opinions]:
    """A shadow of the site's champion."""
    opinions = Opinions(*answers)
    pair = Pair(Assessor(opinions, ANYBODY), VERSION, since)
    return Shadow(site.worklist.shadows, site.spool, lambda: pair), opinions


def test_both_are_compared_on_the_same_exams(site: Site) -> None:
    """Flags kept, gained and lost, and who agrees with the readers."""
    uids = [site.exam(n, score=score) for n, score in enumerate((0.9, 0.9, 0.1, 0.1))]
    shadow, _ = shadow_of(site, 0.95, 0.2, 0.6, 0.0)
    assert shadow.step()
    assert not shadow.step()
    site.read(uids[1], "rejected")  # the champion was wrong
    site.read(uids[2], "confirmed")  # again
    site.read(uids[3], "confirmed", "one")
    site.read(uids[3], "rejected", "two")  # counts for nobody
    seen = site.worklist.shadows.compared("challenger", VERSION)
    assert (seen.exams, seen.failed) == (4, 0)
    assert (seen.both, seen.neither, seen.gained, seen.lost) == (1, 1, 1, 1)
    assert seen.agreement == 0.5
    assert seen.mean_difference == pytest.approx((0.05 - 0.7 + 0.5 - 0.1) / 4)
    assert sum(seen.scores) == sum(seen.champion_scores) == 4
    assert (seen.read, seen.right, seen.champion_right) == (2, 2, 0)
    assert json.loads(json.dumps(seen.as_json()))["champion"] == VERSION


def test_the_worklist_does_not_know_of_it(site: Site) -> None:
    """Neither score, flag, place nor journal of an exam changes."""
    uid = site.exam(1, score=0.1)

    def known() -> tuple[object, ...]:
        item = site.worklist.item(uid)
        shown = item.score, item.flagged, item.model_version, item.urgency, item.revision
        return (*shown, site.worklist.journal(uid))

    before = known()
    shadow, _ = shadow_of(site, 0.99)
    assert shadow.step()
    assert known() == before
    assert site.worklist.shadows.compared("challenger", VERSION).gained == 1


def test_a_picture_is_asked_about_once_whatever_it_does(site: Site) -> None:
    """One that breaks the challenger, and one whose process died with it, are passed over."""
    for number in range(4):
        site.exam(number)
    killer = site.worklist.shadows.waiting("challenger", VERSION, LONG_AGO)[0]
    assert site.worklist.shadows.begin(killer, "challenger")  # and then its process died
    assert not site.worklist.shadows.begin(killer, "challenger")
    shadow, opinions = shadow_of(site, MemoryError(), RuntimeError("no"), 0.7)
    assert shadow.step()
    assert opinions.answers == []
    assert not shadow.step()
    seen = site.worklist.shadows.compared("challenger", VERSION)
    assert (seen.exams, seen.failed) == (1, 3)
    assert UNFINISHED == "the process ended while it was scored"


def test_what_was_scored_before_it_began_is_not_asked_about(site: Site) -> None:
    """Nor what another version scored."""
    site.exam(1)
    now = dt.datetime.now(dt.UTC)
    shadow, _ = shadow_of(site, since=now)
    assert not shadow.step()
    pair = Pair(Assessor(Opinions(), ANYBODY), "another champion", LONG_AGO)
    assert not Shadow(site.worklist.shadows, site.spool, lambda: pair).step()
    assert not Shadow(site.worklist.shadows, site.spool, lambda: None).step()


def proven(registry: Registry, version: str) -> None:
    """Store a proof; the gate itself has its own tests."""
    champion = registry.aliases()[CHAMPION]
    told = {"challenger": version, "champion": champion, "outcome": "PROVEN"}
    registry.decided(json.dumps(told).encode(), b"<html></html>", "test")


def test_a_proven_challenger_scores_silently_in_a_running_service(
    new_service: Callable[..., Service], tmp_path: Path
) -> None:
    """From the gate's proof to the approval, by the real commands; a broken one hurts nobody."""
    service = new_service(TRIAGE_SHADOW_EXAMS="3")
    service.start()
    registry = Registry(service.home / "models")
    made = registry.add(another(tmp_path / "another").folder)
    unproven = service.triage("models", "shadow", "--start", made.version)
    assert unproven.returncode == 1
    assert "the gate has not proven" in unproven.stderr
    assert "No challenger" in service.triage("models", "shadow").stdout
    proven(registry, made.version)
    assert service.triage("models", "shadow", "--start", made.version).returncode == 0
    refused = service.triage("models", "approve", made.version)
    assert refused.returncode == 1
    assert "0 exams in shadow" in refused.stderr
    assert "TRIAGE_SHADOW_EXAMS" in refused.stderr

    files = sorted((ROOT / "sample_dicom").glob("0[1356]-*.dcm"))
    list(send(files, service.destination))
    worklist = service.worklist()
    wait_for(lambda: not worklist.counts()[State.RECEIVED], seconds=60)
    scored = worklist.counts()[State.SCORED]
    assert scored >= 3

    def seen() -> dict[str, object]:
        return dict(json.loads(service.triage("models", "shadow", "--json").stdout))

    wait_for(lambda: seen()["exams"] == scored, seconds=60)
    # The same network with another threshold: no probability differs.
    assert seen()["mean_difference"] == 0
    assert {item.model_version for item in worklist.items() if item.state is State.SCORED} == {
        registry.aliases()[CHAMPION]
    }
    assert "in shadow" in service.triage("models", "shadow").stdout
    assert service.triage("models", "approve", made.version).returncode == 0
    approval = registry.history()[-1].detail
    assert approval["shadow"]["exams"] == scored
    assert service.triage("models", "shadow", "--end").returncode == 0
    assert "shadow" not in registry.aliases()
    assert service.triage("models", "shadow", "--end").returncode == 1


def test_a_run_time_of_zero_exams_needs_no_shadow(tmp_path: Path) -> None:
    """Who sets TRIAGE_SHADOW_EXAMS to 0 has decided so."""
    from triage import app

    config = Config.model_validate({"home": tmp_path / "home", "shadow_exams": 0})
    app.prepare(config)
    registry = app.registry(config)
    made = registry.add(another(tmp_path / "another").folder)
    with pytest.raises(ModelError, match="has not compared"):
        app.approve(config, made.version, "dr", "", force=False)
    proven(registry, made.version)
    app.approve(config, made.version, "dr", "", force=False)
    assert registry.approved(made.version)


# Drift


def test_a_console_that_changes_raises_one_alarm_of_its_own(site: Site) -> None:
    """And one of all consoles; acknowledged, audited, and quiet afterwards."""
    drifts = site.worklist.drifts
    for number in range(420):
        title = "CR1" if number % 2 else "CR2"
        changed = number >= 250 and title == "CR1"
        arrive(site, number, title, 0.95 if changed else (number % 97) / 200)
    assert set(drifts.consoles(LONG_AGO)) == {"CR1", "CR2"}
    raised = drifts.check(VERSION, LONG_AGO, patience=1_000)
    assert {(alarm.measure, alarm.console) for alarm in raised} >= {(Measure.SCORE, "")}
    assert all(alarm.console != "CR2" for alarm in raised)
    assert all(alarm.measure is Measure.SCORE for alarm in raised)
    assert drifts.check(VERSION, LONG_AGO, patience=1_000) == []
    assert drifts.alarms() == raised[::-1]
    first = raised[0]
    assert drifts.acknowledge(first.id, "op")
    assert not drifts.acknowledge(first.id, "op")
    assert first.id not in {alarm.id for alarm in drifts.alarms()}
    assert first.id in {alarm.id for alarm in drifts.alarms(all_of_them=True)}
    with pytest.raises(WorklistError, match="no drift alarm 99"):
        drifts.acknowledge(99, "op")
    told = [row for row in site.worklist.audit.records() if row.action == "DRIFT_ACKNOWLEDGED"]
    assert [(row.actor, row.subject) for row in told] == [("op", str(first.id))]


def arrive(site: Site, number: int, title: str, score: float) -> None:
    """An exam of a console, scored; its object is not looked at."""
    came = arrival(f"1.2.{number}", title, patient_id=f"P{number}")
    assert site.worklist.receive(came)
    claim = site.worklist.claim("worker")
    assert claim is not None
    assert site.worklist.scored(claim, Score(score, 0.5, VERSION), ())


def test_readings_against_the_flag_are_a_measure(site: Site) -> None:
    """In the order in which they were made; withdrawn ones do not count."""
    uids = [site.exam(number, score=0.9) for number in range(4)]
    for uid, verdict in zip(uids, ("confirmed", "rejected", "confirmed", "rejected"), strict=True):
        site.read(uid, "confirmed" if verdict == "confirmed" else "rejected")
    number = site.read(uids[0], "rejected", "two")
    site.worklist.readings.withdraw(uids[0], number, "two")
    series = site.worklist.drifts.series(VERSION, LONG_AGO, Measure.READERS)
    assert series.values == (0, 1, 0, 1)
    assert len(site.worklist.drifts.series(VERSION, LONG_AGO, Measure.SCORE).values) == 4
    assert site.worklist.drifts.series("other", LONG_AGO, Measure.SCORE).values == ()
    assert set(series.by_day().values()) == {0.0}
