"""A decoder whose native code crashes or hangs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Service
from tests.faults.consoles import Queue, images
from tests.faults.invariants import Ledger
from tests.faults.services import ask, hold
from tests.faults.tally import FULL, Tally
from tests.faults.variants import Variant, variant

DECODES = "        values = decoded(dataset)\n"
CRASHES = "        if rows == 77:\n            __import__('os').abort()\n"
HANGS = "        while rows == 77:\n            __import__('signal').pause()\n"
HANGS_ONCE = (
    "        import os, pathlib, signal\n"
    "        known = pathlib.Path(os.environ['TRIAGE_HOME'], 'hung')\n"
    "        while rows == 77 and not known.exists():\n"
    "            known.touch()\n"
    "            signal.pause()\n"
)
SOON = Variant("worker.py", "SETTLE_SECONDS = 50", "SETTLE_SECONDS = 5")


@pytest.mark.parametrize(
    "does",
    [pytest.param(HANGS, id="hangs"), pytest.param(CRASHES, id="crashes")]
    if FULL
    else [pytest.param(HANGS_ONCE + CRASHES, id="hangs and then crashes")],
)
def test_a_decoder_that_crashes_or_hangs_costs_one_image(
    new_service: Callable[..., Service], tmp_path: Path, tally: Tally, does: str
) -> None:
    """The worker dies with it, three times; the image is FAILED, told, and the rest is scored."""
    bad, good = images(1, rows=77), images(4)
    changed = variant(tmp_path / "variant", Variant("pixels.py", DECODES, does + DECODES), SOON)
    service, ledger = new_service(PYTHONPATH=str(changed)), Ledger()
    service.start("--roles", "receive,score")
    try:
        receiver = service.part("receive")
        Queue(service.port, [*good[:2], *bad, *good[2:]], ledger).finish(180)
        tally.fault("crashes and hangs of a decoder", 3)
        hold(service, ledger, tally)
        died = "SELECT count(*) FROM items WHERE state = 'FAILED' AND reason = 'WORKER_DIED'"
        assert ask(service, died) == 1
        assert ask(service, "SELECT count(*) FROM items WHERE state = 'SCORED'") == len(good)
        assert service.part("receive") == receiver, "the receiver decodes nothing"
    finally:
        service.stop()
