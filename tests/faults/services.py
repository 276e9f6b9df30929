"""Services of the fault suite: their destinations, and how to see that they are done."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from tests.conftest import Service
from tests.faults.consoles import until
from tests.faults.invariants import Destination, Ledger
from tests.faults.tally import Tally
from tests.peers import SECRET

_CAPABILITIES = Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0]
MAY_MOUNT = bool(int(_CAPABILITIES, 16) >> 21 & 1)
"""Whether this user has CAP_SYS_ADMIN; in a container root may not."""


def with_destinations(*peers: Any) -> dict[str, str]:
    """Settings of a service whose results go to some peers, without long pauses."""
    return {
        "TRIAGE_DESTINATIONS": json.dumps(
            [peer.setting(f"pacs-{number}") for number, peer in enumerate(peers)]
        ),
        "TRIAGE_DELIVERY_PAUSE_SECONDS": "0.2",
        "HOOK_SECRET": SECRET,
    }


def url_of(service: Service) -> str:
    """Where its worklist is."""
    default = f"sqlite:///{service.home / 'worklist.sqlite'}"
    return service.settings.get("TRIAGE_DATABASE_URL", "") or default


def ask(service: Service, sql: str) -> int:
    """A number from its database."""
    engine = create_engine(url_of(service).replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            return int(connection.scalar(text(sql)) or 0)
    finally:
        engine.dispose()


def hold(
    service: Service,
    ledger: Ledger,
    tally: Tally,
    destinations: Sequence[Destination] = (),
    seconds: float = 240.0,
) -> None:
    """Let a service come to its end with all it has, and hold it to its promises."""
    waiting = (
        "SELECT (SELECT count(*) FROM items WHERE state = 'RECEIVED') + "
        "(SELECT count(*) FROM deliveries WHERE state = 'PENDING')"
    )
    # A mutation that keeps it from coming to its end need not be waited for so long.
    until(lambda: not ask(service, waiting), float(os.environ.get("FAULTS_PATIENCE", seconds)))
    tally.holds(ledger.check(url_of(service), service.home / "spool", destinations=destinations))
