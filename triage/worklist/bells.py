"""Being woken when there is work, instead of asking all the time."""

import threading
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

ITEMS, DELIVERIES = "triage_items", "triage_deliveries"
"""What is rung for: an item to score, a delivery to make."""

LOOK_SECONDS = 1.0
"""How often somebody looks who is woken: for what comes due by itself, and leases that end."""

_SLICE_SECONDS = 0.25
"""So soon it is seen that the process is to stop."""


def ring(session: Session, channel: str) -> None:
    """Wake who waits, on whatever node, when the transaction is committed."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"NOTIFY {channel}"))


class Bell:
    """Waits for one kind of work: by LISTEN on PostgreSQL, by asking again soon elsewhere.

    Used by one thread. A connection that breaks costs nothing but speed: until it is there again
    the waiting is as short as it is without.

    Parameters
    ----------
    engine : Engine
    channel : str
    poll : float
        Seconds to wait where nobody rings.
    """

    def __init__(self, engine: Engine, channel: str, poll: float) -> None:
        self._engine, self._channel, self._poll = engine, channel, poll
        self._connection: Any = None

    def wait(self, stop: threading.Event) -> None:
        """Return when there may be work, after a while, or when told to stop."""
        if self._engine.dialect.name != "postgresql" or not self._listening():
            stop.wait(self._poll)
            return
        for _ in range(round(LOOK_SECONDS / _SLICE_SECONDS)):
            if stop.is_set():
                return
            try:
                rung = list(self._connection.notifies(timeout=_SLICE_SECONDS, stop_after=1))
            except self._broken():
                self.close()
                return
            if rung:
                return

    def _listening(self) -> bool:
        """Whether the connection is there; who has just connected is to look once more."""
        if self._connection is not None:
            return True
        try:
            # Not the pool's: it is held while nothing is asked.
            held = self._engine.raw_connection()
            self._connection = held.driver_connection
            held.detach()
            self._connection.rollback()
            self._connection.autocommit = True
            self._connection.execute(f"LISTEN {self._channel}")
        except SQLAlchemyError:
            self.close()
        except self._broken():
            self.close()
        return False

    def _broken(self) -> tuple[type[Exception], ...]:
        import psycopg

        return (psycopg.Error, OSError)

    def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*self._broken()):
                connection.close()
