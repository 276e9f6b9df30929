"""Least privilege: files for one user, a worker without network, secrets out of sight."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from tests.certificates import Authority
from tests.conftest import ROOT, Service, free_port
from tests.faults.consoles import Image, Queue, images, send
from tests.faults.invariants import Ledger, open_to_others
from tests.faults.services import MAY_MOUNT, hold, with_destinations
from tests.faults.tally import Tally
from tests.peers import HttpPeer, PacsPeer
from triage.cli import main

SECRET = "a-secret-that-nobody-may-see-0123456789"

UNITS = ROOT / "deploy" / "systemd"


@pytest.fixture
def generous() -> Iterator[None]:
    """A shell that lets everybody read what it makes."""
    before = os.umask(0o000)
    yield
    os.umask(before)


@pytest.mark.usefixtures("generous")
def test_a_whole_home_is_for_its_user_alone_and_secrets_are_not_shown(
    new_service: Callable[..., Service], tmp_path: Path, tally: Tally
) -> None:
    """With all parts at work: TLS, quarantine, results, kept locks; and no secret anywhere."""
    ours = Authority(tmp_path, "hospital").issue("ours")
    (image,) = images(1)
    with PacsPeer() as pacs, HttpPeer() as hook:
        settings = with_destinations(pacs, hook) | {
            "HOOK_SECRET": SECRET,
            "TRIAGE_TLS_PORT": str(free_port()),
            "TRIAGE_TLS_CERTIFICATE": str(ours.certificate),
            "TRIAGE_TLS_KEY": str(ours.key),
        }
        service, ledger = new_service(**settings), Ledger()
        assert service.triage("migrate").returncode == 0
        assert open_to_others(service.home) == []
        service.start()
        Queue(service.port, [image], ledger).finish(180)
        other = Image(image.uid, image.data[:-2] + b"\x01\x01")
        assert send(service.port, [other], ledger) == 0, "another data set under a known UID"
        hold(service, ledger, tally)
        shown = service.triage("config").stdout + service.triage("check").stdout
        lines = subprocess.run(
            ["ps", "-eo", "args", "ww"], capture_output=True, text=True, check=True
        ).stdout
        service.stop()
    assert (service.home / "spool" / "quarantine").is_dir()
    assert open_to_others(service.home) == []
    said = {"the log": service.log.read_text(), "triage": shown, "the process list": lines}
    for file in service.home.rglob("*"):
        if file.is_file():
            said[file.name] = file.read_bytes().decode("latin-1")
    assert [where for where, text in said.items() if SECRET in text] == []


def test_no_command_takes_a_secret_as_an_argument() -> None:
    """An argument is in every process list: secrets come by file or environment."""
    commands: list[click.Command] = [main]
    names = []
    while commands:
        command = commands.pop()
        names += [f"{command.name} {option}" for each in command.params for option in each.opts]
        if isinstance(command, click.Group):
            commands += command.commands.values()
    assert len(names) > 10
    told = [name for name in names for word in ("secret", "passw", "token") if word in name.lower()]
    assert told == []


@pytest.mark.skipif(not MAY_MOUNT, reason="makes a network namespace: needs root")
def test_a_worker_without_a_network_scores(
    new_service: Callable[..., Service], tally: Tally
) -> None:
    """In a network namespace of its own, without even loopback, as its unit states."""
    service, ledger = new_service(), Ledger()
    service.start("--roles", "receive")
    alone = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-m", "triage", "serve", "--roles", "score"],
        env=service.environment, cwd=service.home.parent,
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        Queue(service.port, images(2), ledger).finish(180)
        hold(service, ledger, tally)
    finally:
        alone.terminate()
        assert alone.wait(120) == 0
        service.stop()


@pytest.mark.parametrize(
    ("role", "most"), [("receive", 15), ("score", 6), ("deliver", 15), ("retrain", 15)]
)
def test_a_unit_is_valid_and_closed(tmp_path: Path, role: str, most: int) -> None:
    """systemd's own judgement, in tenths; a unit without any of it has 96."""
    units = tmp_path / "units"
    shutil.copytree(UNITS, units)
    unit = units / f"cxr-triage@{role}.service"
    # The program is not installed here; everything else of the unit is judged as it is.
    text = (units / "cxr-triage@.service").read_text()
    unit.write_text(text.replace("/opt/cxr-triage/bin/triage", sys.executable))
    for judgement in (
        ["verify", "--recursive-errors=no", unit],
        ["security", "--offline=true", f"--threshold={most}", unit],
    ):
        done = subprocess.run(
            ["systemd-analyze", *judgement], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_worker_s_unit_has_no_network() -> None:
    """What the namespace test shows to be enough is what the unit says."""
    text = (UNITS / "cxr-triage@score.service.d" / "worker.conf").read_text()
    assert "PrivateNetwork=yes" in text
    assert "IPAddressDeny=any" in text
