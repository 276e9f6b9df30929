"""The clock jumps: what was put off under another time is not put off for that long."""

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import create_engine, text

from tests.conftest import ROOT, Service
from tests.faults.consoles import SUCCESS, images, until
from tests.faults.invariants import KINDS, Destination, Ledger
from tests.faults.services import ask, hold, with_destinations
from tests.faults.tally import Tally, amount
from tests.integration.test_receiver import Console
from tests.peers import PacsPeer
from triage.identity import Instance
from triage.worklist import Arrival, Worklist

# Under faketime, the system call behind time.sleep fails; waiting for nobody is as good.
SLEEPS_ANYWAY = """
import threading, time
time.sleep = lambda seconds: threading.Event().wait(seconds)
"""

FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def set_clock(file: Path, offset: str) -> None:
    """Let every process of a service see another time from now on."""
    new = file.with_suffix(".new")
    new.write_text(f"{offset}\n")
    new.rename(file)


def test_jumps_of_a_month_and_an_hour_without_a_pacs_break_no_promise(
    new_service: Callable[..., Service], tmp_path: Path, tally: Tally
) -> None:
    """Images and results wait under one time, and go on under another; the PACS comes back slow."""
    assert FAKETIME, "faketime is not installed: `make test` installs it"
    clock, pacs, ledger = tmp_path / "clock", PacsPeer(), Ledger()
    set_clock(clock, "+0")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(SLEEPS_ANYWAY)
    service = new_service(
        **with_destinations(pacs)
        # The pauses between attempts are true seconds, and double.
        | {"TRIAGE_DELIVERY_PAUSE_SECONDS": "0.1", "TRIAGE_IDLE_SECONDS": "600"},
        PYTHONPATH=f"{tmp_path / 'start'}:{ROOT}",
        LD_PRELOAD=str(FAKETIME[0]),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_CACHE_DURATION="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    service.start("--roles", "receive,score,deliver")
    step = amount(1_800, 300)
    hour = [f"+{seconds}" for seconds in range(0, 3_601, step)]
    each = amount(1, 20, "FAULTS_JUMPED")
    attempts = "SELECT sum(attempts) FROM deliveries"
    parked = "SELECT count(*) FROM deliveries WHERE state <> 'PENDING'"
    try:
        # One association through all of it: no jump is a time in which a console said nothing.
        with Console(service.port) as console:
            for offset in ["+30d", "-30d", *hour]:
                set_clock(clock, offset)
                time.sleep(1.2)  # each process looks once a second what time it is to see
                tally.fault("jumps of the clock")
                for image in images(each):
                    ledger.offers(image.uid, image.data)
                    assert console.store(image.data, image.uid) == SUCCESS
                    ledger.success(image.uid, image.data)
                # The PACS is away: results wait for a time that the next jump takes away.
                before = ask(service, attempts)
                assert until(lambda so_far=before: ask(service, attempts) > so_far, 300)
        tally.fault("a PACS that is away for an hour")
        assert not ask(service, parked), "an hour is no reason to give up"
        pacs.hold = amount(1, 5) / 10
        with pacs:
            there = Destination("pacs-0", KINDS["dicom"], pacs.taken)
            hold(service, ledger, tally, [there], amount(900, 7_200))
    finally:
        service.stop()


def test_what_a_clock_that_was_ahead_put_off_is_due(worklist: Worklist) -> None:
    """A pause that no part of the program makes is the clock's, in both databases."""
    instance = Instance(**dict.fromkeys(Instance.__slots__, "1.2.3"))
    worklist.receive(Arrival(instance, "1.2", "AE", "127.0.0.1", "d" * 64, 1))
    assert worklist.claim("died with its clock ahead") is not None
    assert worklist.claim("another") is None
    engine = create_engine(worklist._reading.url)
    later = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(days=365)
    with engine.begin() as connection:
        statement = text("UPDATE items SET claimed_until = :later")
        connection.execute(statement, {"later": str(later)})
    engine.dispose()
    assert worklist.claim("another") is not None
