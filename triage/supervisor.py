"""Runs the parts of the service as processes and starts again those that die."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

import structlog

from triage.errors import ServiceError

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0
"""A part that ran so long starts again at once when it dies."""
STOP_SECONDS = 15.0
CHECK_SECONDS = 0.1
REFUSED = 1
"""Exit status of a part that told in one line why it cannot start."""


@dataclass
class _Part:
    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None
    started: float
    pause: float = FIRST_PAUSE
    start_again: float | None = None
    starts: int = field(default=1)


class Supervisor:
    """Keeps one process per command alive until told to stop.

    Parameters
    ----------
    commands : mapping of str to sequence of str
        The command of each part by its name. Each part must end when its standard input
        does, so that none outlives a supervisor that was killed.
    later : mapping of str to float, optional
        Seconds after which a part is first started: what nobody waits for lets the others go
        first.
    """

    def __init__(
        self, commands: Mapping[str, Sequence[str]], later: Mapping[str, float] | None = None
    ) -> None:
        self._log = structlog.get_logger("supervisor")
        self._parts = []
        now = time.monotonic()
        for name, command in commands.items():
            wait = (later or {}).get(name, 0.0)
            part = _Part(name, command, None, now, start_again=now + wait, starts=0)
            self._parts.append(part)
            if not wait:
                self._begin(part)

    def run(self, stop: threading.Event) -> None:
        """Watch the parts; returns after all have ended.

        Raises
        ------
        ServiceError
            A part refused to start; it has said why.
        """
        try:
            while not stop.wait(CHECK_SECONDS):
                for part in self._parts:
                    self._look_after(part)
        finally:
            self._stop()

    def _begin(self, part: _Part) -> None:
        part.process, part.started = _start(part.command), time.monotonic()
        part.start_again = None
        part.starts += 1
        self._log.info("started", action="part_started", part=part.name, pid=part.process.pid)

    def _look_after(self, part: _Part) -> None:
        now = time.monotonic()
        if part.start_again is not None:
            if now >= part.start_again:
                self._begin(part)
            return
        status = None if part.process is None else part.process.poll()
        if status is None:
            return
        if status == REFUSED and part.starts == 1 and now - part.started < STEADY_SECONDS:
            raise ServiceError(f"the part `{part.name}` cannot start; its line above says why")
        steady = now - part.started >= STEADY_SECONDS
        part.pause = FIRST_PAUSE if steady else min(2 * part.pause, LONGEST_PAUSE)
        part.start_again = now + part.pause
        self._log.error(
            "died",
            action="part_died",
            part=part.name,
            status=status,
            starts_again_in=round(part.pause, 1),
        )

    def _stop(self) -> None:
        running = [(part.name, part.process) for part in self._parts if part.process is not None]
        for _, process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for name, process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._log.error("killed", action="part_killed", part=name)
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set. Main thread only."""
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


def stop_with_parent(stop: threading.Event) -> None:
    """Set an event when standard input ends, which it does when the supervisor dies."""

    def watch() -> None:
        # Not through sys.stdin: its lock, held while reading, would hold up our own end.
        while os.read(0, 1):
            pass
        stop.set()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
