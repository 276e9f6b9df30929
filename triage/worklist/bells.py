"""Being woken when there is work, instead of asking all the time."""

import ctypes
import os
import select
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
"""How often SQLite is asked whether anybody has committed, where the system does not tell that
somebody writes: in 10 microseconds, without a lock."""

_BRISK_SECONDS, _WRITING_SECONDS = 0.0003, 0.02
"""How often, and for how long, it is asked after somebody began to write."""

_IN_MODIFY = 0x2


def ring(connection: Connection, channel: str) -> None:
    """Wake who waits, on whatever node, when the transaction is committed."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"NOTIFY {channel}"))


class Bell:
    """Waits for one kind of work: by LISTEN on PostgreSQL, by SQLite's data version.

    The data version (``PRAGMA data_version``) changes when another connection commits, whatever
    it commits; when to look at it, Linux tells (inotify(7)): somebody writes to the log of the
    database. Used by one thread. A connection that breaks costs nothing but speed: until it is
    there again the waiting is as short as it is without.

    Parameters
    ----------
    engine : Engine
    channel : str
    poll : float
        Seconds to wait where nobody rings; a quarter of a second, if that is more, where Linux
        tells of SQLite.
    """

    def __init__(self, engine: Engine, channel: str, poll: float) -> None:
        self._engine, self._channel, self._poll = engine, channel, poll
        self._connection: Any = None
        self._version: int | None = None
        """Of SQLite's data, when it was last looked at."""
        self._written: int | None = None
        """Becomes readable when somebody writes to SQLite's log."""
        self._writing_until = 0.0

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
        try:
            if self._connection is None:
                self._connection = self._held()
                self._written = _watched(f"{self._engine.url.database}-wal")
            # Not every file system tells: who is told looks less often by himself, but looks.
            longest = self._poll if self._written is None else max(self._poll, _SLICE_SECONDS)
            deadline = time.monotonic() + longest
            while not stop.is_set():
                before, (self._version,) = (
                    self._version,
                    self._connection.execute("PRAGMA data_version").fetchone(),
                )
                left = deadline - time.monotonic()
                if before != self._version or left <= 0:
                    return
                self._pause(min(left, _SLICE_SECONDS))
        except (SQLAlchemyError, sqlite3.Error):
            self.close()
            stop.wait(self._poll)

    def _pause(self, longest: float) -> None:
        """Wait until a look at the data version is worth while."""
        if self._written is None:
            time.sleep(_GLANCE_SECONDS)
        elif time.monotonic() < self._writing_until:
            # What is written is not committed yet.
            time.sleep(_BRISK_SECONDS)
        elif select.select([self._written], [], [], longest)[0]:
            os.read(self._written, 65_536)
            self._writing_until = time.monotonic() + _WRITING_SECONDS

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
        written, self._written = self._written, None
        if written is not None:
            os.close(written)
        connection, self._connection, self._version = self._connection, None, None
        if connection is not None:
            with suppress(*self._broken()):
                connection.close()


def _watched(file: str) -> int | None:
    """A descriptor that tells when somebody writes to a file; None where the system does not."""
    libc = ctypes.CDLL(None)
    try:
        descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    except AttributeError:  # not Linux
        return None
    if descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(file), _IN_MODIFY) >= 0:
        return descriptor
    if descriptor >= 0:
        os.close(descriptor)
    return None
