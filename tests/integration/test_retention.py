"""Retention: by default nothing goes, and never what somebody still needs."""

import datetime as dt
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.site import Site
from training.snapshots import take
from triage.config import Config
from triage.errors import ConfigError
from triage.retention import Housekeeping, Policy, Removed
from triage.worklist import Worklist
from triage.worklist.audit import Action
from triage.worklist.deliveries import ResultKind, Route
from triage.worklist.retention import REMOVED

CR = "1.2.840.10008.5.1.4.1.1.1"


@pytest.fixture
def site(worklist: Worklist, database_url: str, tmp_path: Path) -> Site:
    """Two read exams, the first a hundred days old, on each database."""
    made = Site(worklist, tmp_path)
    for number in range(2):
        made.read(made.exam(number))
    age(database_url, "1.2.0")
    return made


def age(database_url: str, uid: str) -> None:
    """Let an exam and its readings have been a hundred days ago."""
    past = dt.datetime.now(dt.UTC).replace(tzinfo=None) - dt.timedelta(days=100)
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        of_item = "item_id = (SELECT id FROM items WHERE sop_instance_uid = :uid)"
        for change in (
            "items SET received_at = :past WHERE sop_instance_uid = :uid",
            f"scores SET scored_at = :past WHERE {of_item}",
            f"readings SET read_at = :past WHERE {of_item}",
        ):
            connection.execute(text(f"UPDATE {change}"), {"past": past, "uid": uid})
    engine.dispose()


def kept(site: Site, uid: str) -> bool:
    """Whether an exam's object is in the spool."""
    return site.spool.intact(site.worklist.digest(uid) or "")


def run(site: Site, objects: int = 30, arrays: int = 0, *, dry_run: bool = False) -> Removed:
    """Apply a policy."""
    keeper = Housekeeping(
        site.worklist, site.spool, site.pictures, Policy(objects, arrays), "keeper"
    )
    return keeper.run(dry_run=dry_run)


def test_by_default_nothing_is_removed(site: Site) -> None:
    """However old it is."""
    assert run(site, 0) == Removed(0, 0, 0, 0)
    assert kept(site, "1.2.0")


def test_a_read_exam_past_its_time_goes_and_still_trains(site: Site) -> None:
    """Its array was made before; journal and audit trail tell of it; again, nothing more goes."""
    assert run(site, dry_run=True).objects == 1
    assert kept(site, "1.2.0")
    removed = run(site)
    assert (removed.objects, removed.arrays, removed.kept) == (1, 0, 0)
    assert removed.object_bytes > 1_000
    assert not kept(site, "1.2.0")
    assert kept(site, "1.2.1")
    assert [entry.actor for entry in site.worklist.journal("1.2.0") if entry.action == REMOVED] == [
        "keeper"
    ]
    rows = [row for row in site.worklist.audit.records() if row.action == Action.RETENTION]
    assert [row.detail for row in rows] == [{"objects": 1, "arrays": 0}]
    assert run(site).objects == 0
    assert len(take(site.worklist, site.pictures, dt.datetime.now(dt.UTC)).cases) == 2


def test_an_exam_that_is_disputed_or_unread_stays(site: Site, database_url: str) -> None:
    """Somebody will look at it."""
    site.read("1.2.0", "rejected", "two")
    site.exam(5)
    for uid in ("1.2.0", "1.2.5"):
        age(database_url, uid)
    assert run(site).objects == 0
    site.read("1.2.0", "rejected", "head", adjudicates=True)
    assert run(site).objects == 0  # it was read today
    age(database_url, "1.2.0")
    assert run(site).objects == 1


def test_an_exam_whose_results_are_not_delivered_stays(site: Site, database_url: str) -> None:
    """A report may still need the picture."""
    routed = Worklist(database_url, [Route("PACS", (ResultKind.READING,))])
    told = Site(routed, site.folder)
    told.read("1.2.0")
    age(database_url, "1.2.0")
    assert run(site).objects == 0
    routed.close()


def test_an_exam_that_a_console_committed_to_us_stays(site: Site) -> None:
    """It may have deleted its own (PS3.4 J)."""
    site.worklist.commitments.request("9.9", "CONSOLE", [(CR, "1.2.0")])
    assert run(site).objects == 0
    assert kept(site, "1.2.0")


def test_an_object_without_a_picture_stays(site: Site) -> None:
    """Without an array training could never use it again."""
    path = site.spool.path(site.worklist.digest("1.2.0") or "")
    path.write_bytes(path.read_bytes()[:-100])
    assert run(site) == Removed(0, 0, 0, 1)
    assert path.exists()


def test_an_array_past_its_own_time_goes_too(site: Site) -> None:
    """The exam has no picture left then, and is in no later snapshot."""
    run(site)
    assert run(site, 30, 60).arrays == 1
    taken = take(site.worklist, site.pictures, dt.datetime.now(dt.UTC))
    assert [case.label.sop_instance_uid for case in taken.cases] == ["1.2.1"]


def test_arrays_of_withdrawn_patients_go_whatever_the_policy(site: Site) -> None:
    """Their objects are the worklist's, and follow the policy as all others."""
    take(site.worklist, site.pictures, dt.datetime.now(dt.UTC))
    site.worklist.learning.withdraw("P1", "asked by letter", "clerk", in_advance=False)
    assert run(site, 0).arrays == 1
    assert not site.pictures.has(site.worklist.digest("1.2.1") or "")
    assert kept(site, "1.2.1")


def test_arrays_that_go_before_their_objects_are_no_policy() -> None:
    """They would only be made again."""
    for days in ("0", "31"):
        with pytest.raises(ConfigError, match="keep_array_days"):
            Config.read({"TRIAGE_KEEP_ARRAY_DAYS": "30", "TRIAGE_KEEP_DAYS": days}, Path())
    Config.read({"TRIAGE_KEEP_ARRAY_DAYS": "30", "TRIAGE_KEEP_DAYS": "30"}, Path())
