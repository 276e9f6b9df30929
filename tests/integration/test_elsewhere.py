"""Training on a Ray cluster: what a machine there writes stands here, whatever becomes of it."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import wait_for
from training.elsewhere import MOST_DEATHS, Job, Tell, spread
from triage.errors import DataError, ServiceError

EPOCHS = 3


def epochs(name: str, dies_in: int, home: Path, shared: Path, folder: Path, tell: Tell) -> None:
    """A training: a file an epoch, a result, and no checkpoint in the end.

    The first worker ends in one epoch, once those before it have come to the job's home.
    """
    checkpoint = folder / "checkpoint" / "history"
    checkpoint.parent.mkdir(exist_ok=True)
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    with (shared / name).open("a") as file:
        file.write(f"from {done}\n")
    for epoch in range(done, EPOCHS):
        if epoch == dies_in and (shared / name).read_text().count("from") == 1:
            wait_for(partial(holds, home / "checkpoint" / "history", str(epoch)), 120)
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.write_text(str(epoch + 1))
        tell(f"{name}: epoch {epoch + 1}")
    (folder / "whole").write_text(f"{name} is whole")
    checkpoint.unlink()
    checkpoint.parent.rmdir()


def holds(path: Path, content: str) -> bool:
    """Whether a file is there and says so."""
    return path.exists() and path.read_text() == content


def dies(_shared: Path, _folder: Path, _tell: Tell) -> None:
    """A job that ends whoever does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuses(_shared: Path, folder: Path, _tell: Tell) -> None:
    """A job that finds its data at fault."""
    raise DataError(f"no picture beside {(folder / 'given').read_text()}")


def test_a_killed_worker_s_epochs_come_back_and_another_goes_on(tmp_path: Path) -> None:
    """Of two jobs one loses its worker: it goes on where it was, the other knows nothing of it."""
    there = tmp_path / "there"
    there.mkdir()
    jobs = [
        Job(
            name,
            tmp_path / name,
            partial(epochs, name, dies_in, tmp_path / name),
            ("checkpoint/history", "whole"),
        )
        for name, dies_in in (("one", 2), ("two", EPOCHS))
    ]
    told: list[str] = []
    spread("local", there, jobs, 1, told.append)
    for job in jobs:
        assert [path.name for path in job.folder.rglob("*")] == ["whole"]
        assert (job.folder / "whole").read_text() == f"{job.name} is whole"
    assert (there / "one").read_text() == "from 0\nfrom 2\n"
    assert (there / "two").read_text() == "from 0\n"
    wanted = [f"one: epoch {number}" for number in (1, 2)]
    wanted += ["one: its worker was lost, another goes on", "one: epoch 3", "one: done"]
    assert [line for line in told if line.startswith("one")] == wanted


def test_what_is_at_fault_itself_is_said(tmp_path: Path) -> None:
    """An error of ours comes here as it is; a job that ends worker after worker is given up."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "given").write_text("this")
    with pytest.raises(DataError, match="no picture beside this"):
        spread("local", tmp_path, [Job("bad", tmp_path / "bad", refuses, ())], None, print)
    told: list[str] = []
    with pytest.raises(ServiceError, match=f"deadly: {MOST_DEATHS} workers were lost"):
        spread("local", tmp_path, [Job("deadly", tmp_path / "d", dies, ())], None, told.append)
    assert told == ["deadly: its worker was lost, another goes on"] * (MOST_DEATHS - 1)
