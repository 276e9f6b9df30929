"""Being woken when there is work, instead of asking all the time."""

import sqlite3
import threading
import time
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

ITEMS, DELIVERIES = "triage_items", "triage_deliveries"
"""What is rung for: an item to score, a delivery to make."""

LOOK_SECONDS = 1.0
"""How often somebody looks who is woken: for what comes due by itself, and leases that end."""

_SLICE_SECONDS = 0.25
"""So soon it is seen that the process is to stop."""

_GLANCE_SECONDS = 0.005
"""How often SQLite is asked whether anybody has committed: in 10 microseconds, without a lock."""


def ring(connection: Connection, channel: str) -> None:
    """Wake who waits, on whatever node, when the transaction is committed."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"NOTIFY {channel}"))


class Bell:
    """Waits for one kind of work: by LISTEN on PostgreSQL, by glances at SQLite's data version.

    The data version (``PRAGMA data_version``) changes when another connection commits, whatever
    it commits. Used by one thread. A connection that breaks costs nothing but speed: until it is
    there again the waiting is as short as it is without.

    Parameters
    ----------
    engine : Engine
    channel : str
    poll : float
        Seconds to wait where nobody rings; at most so many on SQLite.
    """

    def __init__(self, engine: Engine, channel: str, poll: float) -> None:
        self._engine, self._channel, self._poll = engine, channel, poll
        self._connection: Any = None
        self._version: int | None = None
        """Of SQLite's data, when it was last looked at."""

    def wait(self, stop: threading.Event) -> None:
        """Return when there may be work, after a while, or when told to stop."""
        if self._engine.dialect.name != "postgresql":
            self._glance(stop)
            return
        if not self._listening():
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

    def _glance(self, stop: threading.Event) -> None:
        """Wait until somebody has committed since the last look."""
        deadline = time.monotonic() + self._poll
        try:
            if self._connection is None:
                self._connection = self._held()
            while True:
                before, (self._version,) = (
                    self._version,
                    self._connection.execute("PRAGMA data_version").fetchone(),
                )
                if before != self._version or time.monotonic() >= deadline:
                    return
                if stop.wait(_GLANCE_SECONDS):
                    return
        except (SQLAlchemyError, sqlite3.Error):
            self.close()
            stop.wait(self._poll)

    def _held(self) -> Any:
        """A connection that is not the pool's: it is held while nothing is asked."""
        held = self._engine.raw_connection()
        connection = held.driver_connection
        held.detach()
        return connection

    def _listening(self) -> bool:
        """Whether the connection is there; who has just connected is to look once more."""
        if self._connection is not None:
            return True
        try:
            self._connection = self._held()
            self._connection.rollback()
            self._connection.autocommit = True
            self._connection.execute(f"LISTEN {self._channel}")
        except SQLAlchemyError:
            self.close()
        except self._broken():
            self.close()
        return False

    def _broken(self) -> tuple[type[Exception], ...]:
        if self._engine.dialect.name != "postgresql":
            return (sqlite3.Error,)
        import psycopg

        return (psycopg.Error, OSError)

    def close(self) -> None:
        """Give the connection back."""
        connection, self._connection, self._version = self._connection, None, None
        if connection is not None:
            with suppress(*self._broken()):
                connection.close()
