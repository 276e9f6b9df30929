"""Backup and restore, rehearsed: saved while it receives, restored where nothing is."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.builders import picture, radiograph, save
from tests.conftest import ROOT, wait_for
from tests.faults.invariants import Ledger
from tests.integration.test_receiver import data_of
from triage import app
from triage.config import Config
from triage.scp import Receiver
from triage.send import Destination, send
from triage.spool import Spool
from triage.worklist.audit import Action

SCRIPT = ROOT / "deploy" / "backup" / "backup.py"


def config_of(home: Path, url: str) -> Config:
    return Config(home=home, database_url=url)


def backup(what: str, folder: Path, config: Config) -> subprocess.CompletedProcess[str]:
    """Run the script as an operator does."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRIAGE_")}
    environment |= {"TRIAGE_HOME": str(config.home), "TRIAGE_DATABASE_URL": config.worklist_url}
    return subprocess.run(
        [sys.executable, str(SCRIPT), what, str(folder)],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
        cwd=folder.parent,
    )  # fmt: skip


def elsewhere(url: str) -> str:
    """Another, empty database of the same kind; empty for SQLite in the home."""
    if url.startswith("sqlite"):
        return ""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS restored WITH (FORCE)")
        connection.execute("CREATE DATABASE restored")
    return make_url(url).set(database="restored").render_as_string(hide_password=False)


class Console:
    """Sends one image after the other, and remembers what was acknowledged."""

    def __init__(self, port: int, folder: Path) -> None:
        self.ledger, self.sent = Ledger(), 0
        self._to, self._folder = Destination("127.0.0.1", port, "TRIAGE"), folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        folder.mkdir()

    def _run(self) -> None:
        while not self._stop.is_set():
            uid = f"2.25.7.{self.sent + 1}"
            made = radiograph(picture(self.sent), SOPInstanceUID=uid)
            file = save(made, self._folder / f"{self.sent}.dcm")
            data = data_of(file.read_bytes())
            self.ledger.offers(uid, data)
            if all(each.accepted for each in send([file], self._to)):
                self.ledger.success(uid, data)
            self.sent += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def lived_in(database_url: str, tmp_path: Path) -> Config:
    """A home that is set up, with something in its audit trail."""
    own = "" if database_url.startswith("sqlite") else database_url
    config = config_of(tmp_path / "home", own)
    app.prepare(config)
    worklist = app.worklist(config)
    worklist.audit.record("anna", Action.SAW_LIST, "items", {})
    worklist.close()
    return config


def test_what_was_acknowledged_before_a_backup_is_in_it(
    lived_in: Config, database_url: str, tmp_path: Path
) -> None:
    """Saved twice while consoles send; what is restored keeps every promise up to then."""
    worklist = app.worklist(lived_in)
    spool = Spool(lived_in.spool_folder)
    receiver = Receiver("TRIAGE", ("127.0.0.1", 0), 8, 20.0, spool, worklist)
    port = receiver.start()
    saved = tmp_path / "backup"
    try:
        with Console(port, tmp_path / "console") as console:
            for _ in range(2):
                so_far = console.sent
                wait_for(lambda so_far=so_far: console.sent >= so_far + 10)
                before = dict(console.ledger.acknowledged)
                done = backup("save", saved, lived_in)
                assert done.returncode == 0, done.stderr
            so_far = console.sent
            wait_for(lambda: console.sent >= so_far + 5)
    finally:
        receiver.stop()
        worklist.close()
    assert len(before) >= 20
    shutil.rmtree(lived_in.home)  # the disaster

    restored = config_of(tmp_path / "new" / "home", elsewhere(database_url))
    done = backup("restore", saved, restored)
    assert done.returncode == 0, done.stderr
    ledger = Ledger()
    ledger.acknowledged, ledger.offered = before, console.ledger.offered
    findings = ledger.check(restored.worklist_url, restored.spool_folder, settled=False)
    assert findings.lost == []
    assert findings.duplicated == []
    assert findings.traces == []
    again = app.worklist(restored)
    assert again.audit.verify().id >= 1
    claim = again.claim("worker")  # and it goes on
    assert claim is not None
    assert app.spool(restored).intact(claim.digest)
    again.close()


@pytest.mark.parametrize("what", ["file", "database", "whole", "full"])
def test_a_backup_that_is_not_whole_or_a_place_that_is_not_empty_is_refused(
    tmp_path: Path, what: str
) -> None:
    """In one line that says why; with exit status 1."""
    config = config_of(tmp_path / "home", "")
    app.prepare(config)
    worklist = app.worklist(config)
    receiver = Receiver("TRIAGE", ("127.0.0.1", 0), 8, 20.0, app.spool(config), worklist)
    with Console(receiver.start(), tmp_path / "console") as console:
        wait_for(lambda: console.sent >= 1)
    receiver.stop()
    worklist.close()
    saved = tmp_path / "backup"
    assert backup("save", saved, config).returncode == 0
    target = config_of(tmp_path / "other", "")
    expected = {"file": "no whole file", "database": "is not what was saved",
                "whole": "no whole backup", "full": "is not empty"}  # fmt: skip
    if what == "file":
        next((saved / "spool").rglob("*.dcm")).write_bytes(b"")
    elif what == "database":
        with (saved / "database").open("ab") as file:
            file.write(b"more")
    elif what == "whole":
        (saved / "backup.json").unlink()
    else:
        target = config
    done = backup("restore", saved, target)
    assert done.returncode == 1
    assert expected[what] in done.stderr
    assert len(done.stderr.splitlines()) == 1
