"""Rows as they move, as server-sent events (HTML Living Standard, 9.2).

One thread of the process asks the database for new events while anybody listens, and hands
each moved item to all listeners.
"""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog

from triage.errors import TriageError
from triage.worklist import Worklist
from triage.worklist.queries import Moved

PAUSE_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
MOST_MISSED = 500
"""Events that a browser which comes back is told of; after more it loads the list anew."""

MOST_WAITING = 1_000
"""Items that wait for a slow browser; after more its stream ends, and it comes back."""

_OVERLAP = 100
"""Transactions may end in another order than their events are numbered."""

_Queue = asyncio.Queue[Moved | None]


class Live:
    """What moves in a worklist, for any number of listeners.

    Parameters
    ----------
    worklist : Worklist
    stop : threading.Event
        Set when the service ends.
    """

    def __init__(self, worklist: Worklist, stop: threading.Event) -> None:
        self._worklist, self._stop = worklist, stop
        self._lock = threading.Lock()
        self._listeners: dict[_Queue, asyncio.AbstractEventLoop] = {}
        self._thread: threading.Thread | None = None

    async def stream(
        self, last: int | None, row: Callable[[Moved], dict[str, Any]]
    ) -> AsyncIterator[bytes]:
        """The stream of one browser.

        Parameters
        ----------
        last : int, optional
            The event that it has seen last.
        row : callable
            What it may see of an item, as JSON values; called in a thread.

        Yields
        ------
        bytes
            Events `item`, `reset` (load the list anew) and `heartbeat`.
        """
        queue: _Queue = asyncio.Queue(MOST_WAITING)
        # Before anything is answered: what comes after the answer is told.
        await asyncio.to_thread(self._listen, queue, asyncio.get_running_loop())
        try:
            yield b"retry: 2000\n\n"
            yield _event("heartbeat", {})
            for moved in await asyncio.to_thread(self._missed, last):
                if moved is None:
                    yield _event("reset", {})
                else:
                    yield _event("item", await asyncio.to_thread(row, moved), moved.event)
            while not self._stop.is_set():
                try:
                    found = await asyncio.wait_for(queue.get(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    yield _event("heartbeat", {})
                    continue
                if found is None:
                    return
                yield _event("item", await asyncio.to_thread(row, found), found.event)
        finally:
            with self._lock:
                self._listeners.pop(queue, None)

    def _listen(self, queue: _Queue, loop: asyncio.AbstractEventLoop) -> None:
        newest = self._worklist.queries.newest_event()
        with self._lock:
            self._listeners[queue] = loop
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._watch, args=(newest,), name="live", daemon=True
                )
                self._thread.start()

    def _missed(self, last: int | None) -> list[Moved | None]:
        if last is None:
            return []
        newest = self._worklist.queries.newest_event()
        if not 0 <= newest - last <= MOST_MISSED:
            return [None]
        return list(self._worklist.queries.moves(last, MOST_MISSED).items)

    def _watch(self, newest: int) -> None:
        """Ask for events after the newest one known, for as long as anybody listens."""
        log = structlog.get_logger("web")
        told: deque[int] = deque(maxlen=4 * _OVERLAP)
        while not self._stop.wait(PAUSE_SECONDS):
            with self._lock:
                if not self._listeners:
                    self._thread = None
                    return
            try:
                after = max(0, newest - _OVERLAP)
                if not told:
                    told.extend(range(after + 1, newest + 1))
                moves = self._worklist.queries.moves(after, 4 * _OVERLAP, set(told))
                told.extend(moves.events)
                newest = max(newest, *moves.events, 0)
                for moved in moves.items:
                    self._tell(moved)
            # A database that is away for a while is not the end of the page.
            except TriageError as error:
                log.warning("live rows wait", action="live_waits", error=str(error))
                self._stop.wait(5.0)
        with self._lock:
            for queue, loop in self._listeners.items():
                loop.call_soon_threadsafe(_put, queue, None)

    def _tell(self, moved: Moved) -> None:
        with self._lock:
            for queue, loop in self._listeners.items():
                loop.call_soon_threadsafe(_put, queue, moved)


def _put(queue: _Queue, moved: Moved | None) -> None:
    if queue.full():  # too slow: the end, after which it comes back and asks what it missed
        queue.get_nowait()
        moved = None
    queue.put_nowait(moved)


def _event(name: str, content: dict[str, Any], number: int | None = None) -> bytes:
    """One event; its number is what the browser says when it comes back."""
    told = "" if number is None else f"id: {number}\n"
    return f"{told}event: {name}\ndata: {json.dumps(content)}\n\n".encode()
