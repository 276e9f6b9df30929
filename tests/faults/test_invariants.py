"""The checker itself: it sees each way in which a home can break a promise, and nothing else."""

import hashlib
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.invariants import KINDS, Destination, Ledger
from tests.integration.test_receiver import data_of
from tests.peers import SCORE
from triage.identity import Instance
from triage.spool import Spool
from triage.worklist import Arrival, Worklist
from triage.worklist.deliveries import ResultKind, Route
from triage.worklist.schema import migrate, open_engine

UIDS = ("1.2.3.1", "1.2.3.2")


def _content(uid: str) -> bytes:
    """A file with the shortest meta information, and a data set that says only who it is."""
    return bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0" + bytes(4) + uid.encode() * 20


@dataclass
class Home:
    """A home in which all promises are kept, and what was told and taken outside."""

    folder: Path
    ledger: Ledger = field(default_factory=Ledger)
    taken: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))

    @property
    def file(self) -> Path:
        """Of the first image."""
        return Spool(self.folder / "spool").path(self.ledger.acknowledged[UIDS[0]])

    def sql(self, statement: str) -> None:
        """Change something behind the program's back."""
        with closing(sqlite3.connect(self.folder / "worklist.sqlite")) as connection:
            connection.execute(statement)
            connection.commit()

    def broken(self) -> list[str]:
        """What the checker says."""
        url = f"sqlite:///{self.folder / 'worklist.sqlite'}"
        there = Destination("pacs", KINDS["dicom"], self.taken)
        return self.ledger.check(url, self.folder / "spool", destinations=[there]).broken


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that received, scored and delivered."""
    folder = tmp_path_factory.mktemp("kept") / "home"
    folder.mkdir()
    url = f"sqlite:///{folder / 'worklist.sqlite'}"
    engine = open_engine(url, create=True)
    migrate(engine)
    engine.dispose()
    spool = Spool(folder / "spool")
    spool.prepare()
    worklist = Worklist(url, [Route("pacs", tuple(ResultKind))])
    for uid in UIDS:
        data = data_of(_content(uid))
        digest = hashlib.sha256(data).hexdigest()
        spool.put(digest, _content(uid))
        instance = Instance(**dict.fromkeys(Instance.__slots__, "1.2") | {"sop_instance_uid": uid})
        worklist.receive(Arrival(instance, "1.2", "AE", "127.0.0.1", digest, len(data)))
        claim = worklist.claim("worker")
        assert claim is not None
        worklist.scored(claim, SCORE, ())
    while (delivery := worklist.deliveries.claim("deliverer", "pacs", 9)) is not None:
        uid = f"{delivery.subject.sop_instance_uid}.{delivery.kind}"
        worklist.deliveries.built(delivery, uid, "0" * 64)
        worklist.deliveries.delivered(delivery)
    worklist.close()
    return folder


@pytest.fixture
def home(kept: Path, tmp_path: Path) -> Home:
    """A copy of it, and what consoles and the PACS know."""
    shutil.copytree(kept, tmp_path / "home")
    home = Home(tmp_path / "home")
    for uid in UIDS:
        home.ledger.offers(uid, data_of(_content(uid)))
        home.ledger.success(uid, data_of(_content(uid)))
        for kind in KINDS["dicom"]:
            home.taken[f"{uid}.{ResultKind[kind]}"].append(b"a result")
    return home


def _stranger(home: Home) -> None:
    Spool(home.folder / "spool").put("ab" * 32, _content("1.2.3.9"))


ONE = f"(SELECT id FROM items WHERE sop_instance_uid = '{UIDS[0]}')"
BROKEN: dict[str, tuple[str, Callable[[Home], object]]] = {
    "a lost file": ("lost", lambda home: home.file.unlink()),
    "a truncated file": ("lost", lambda home: home.file.write_bytes(_content(UIDS[0])[:150])),
    "another byte": ("lost", lambda home: home.file.write_bytes(_content(UIDS[0])[:-1] + b"x")),
    "a lost row": ("lost", lambda home: home.sql(f"DELETE FROM items WHERE id = {ONE}")),
    "another's row": (
        "lost", lambda home: home.sql(f"UPDATE items SET digest = 'ff' WHERE id = {ONE}"),
    ),
    "a row of what was never sent whole": (
        "traces", lambda home: home.ledger.offered.pop(UIDS[0]),
    ),
    "a file that nobody sent": ("traces", _stranger),
    "something half received": (
        "traces", lambda home: (home.folder / "spool" / "incoming" / "half").write_bytes(b"x"),
    ),
    "an image without an end": (
        "unsettled", lambda home: home.sql(f"UPDATE items SET state = 'RECEIVED' WHERE id = {ONE}"),
    ),
    "an image without a score": (
        "unsettled", lambda home: home.sql(f"UPDATE items SET score = NULL WHERE id = {ONE}"),
    ),
    "a failure without a reason": (
        "unsettled", lambda home: home.sql(f"UPDATE items SET state = 'FAILED' WHERE id = {ONE}"),
    ),
    "a second end": (
        "duplicated",
        lambda home: home.sql(
            "INSERT INTO events (item_id, at, actor, action, detail) SELECT item_id, at, actor, "
            f"action, detail FROM events WHERE action = 'SCORED' AND item_id = {ONE}"
        ),
    ),
    "a lost score": (
        "duplicated", lambda home: home.sql(f"DELETE FROM scores WHERE item_id = {ONE}"),
    ),
    "a lost delivery": (
        "undelivered", lambda home: home.sql(f"DELETE FROM deliveries WHERE item_id = {ONE}"),
    ),
    "a delivery that waits for ever": (
        "undelivered",
        lambda home: home.sql(f"UPDATE deliveries SET state = 'PENDING' WHERE item_id = {ONE}"),
    ),
    "a delivery that never came": ("undelivered", lambda home: home.taken.popitem()),
    "a result of no row": ("duplicated", lambda home: home.taken["2.25.1"].append(b"a result")),
    "two results under one identifier": (
        "duplicated", lambda home: next(iter(home.taken.values())).append(b"another result"),
    ),
}  # fmt: skip


def test_a_home_that_keeps_its_promises_passes(home: Home) -> None:
    """And a result that came twice with the same bytes is one to its destination."""
    next(iter(home.taken.values())).append(b"a result")
    assert home.broken() == []


@pytest.mark.parametrize("how", BROKEN)
def test_the_checker_sees_a_broken_promise(home: Home, how: str) -> None:
    """Each in a home in which nothing else is wrong."""
    kind, act = BROKEN[how]
    act(home)
    assert [told for told in home.broken() if told.startswith(f"{kind}: ")] != []
