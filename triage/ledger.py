"""Append-only JSON lines, each bound to the one before by its hash.

They are in a file, or, where several nodes share them, in rows of the database
(:mod:`triage.worklist.ledgers`).

A line's hash covers its content and the hash of the line before it, so a line that was
changed, removed or put in between shows. Lines cut off at the end do not show here; who
keeps a ledger compares its last state with what it is the history of.
"""

import datetime as dt
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from triage.durable import make_folder, sync
from triage.errors import ModelError

_GENESIS = "0" * 64
"""What the first line has for the hash of the line before it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line.

    Attributes
    ----------
    number : int
        1, 2, 3 and so on, without a gap.
    at : str
        ISO 8601, UTC.
    who : str
        A person, or the part of the program that did it.
    action : str
    detail : mapping
        JSON values.
    previous, hash : str
        SHA-256, hexadecimal: of the line before, and of this one.
    """

    number: int
    at: str
    who: str
    action: str
    detail: Mapping[str, Any]
    previous: str
    hash: str

    def as_json(self) -> dict[str, Any]:
        """A mapping of JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}

    def expected_hash(self) -> str:
        """What the hash must be, from all the rest."""
        rest = {name: value for name, value in self.as_json().items() if name != "hash"}
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("utf-8")).hexdigest()


class Ledger(Protocol):
    """Lines, wherever they are."""

    def entries(self) -> list[Entry]:
        """All lines, oldest first; empty before the first.

        Raises
        ------
        ModelError
            A line is not as it was written; the message says which.
        """
        ...

    def writing(self) -> AbstractContextManager["Pen"]:
        """Be the only one who writes, on whatever node; what was written stays if it ends well."""
        ...

    def __str__(self) -> str:
        """Where the lines are, for a person."""
        ...


class LedgerFile:
    """The lines in a file.

    Parameters
    ----------
    path : Path
        Made with its folder when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        """The path."""
        return str(self.path)

    def entries(self) -> list[Entry]:
        """All lines, oldest first; empty before the first.

        Raises
        ------
        ModelError
            A line is not as it was written; the message says which.
        """
        try:
            return _parsed(self.path.read_bytes(), str(self.path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ModelError(f"{self.path} cannot be read: {error.strerror}") from error

    @contextmanager
    def writing(self) -> Iterator["Pen"]:
        """Be the only one who writes; the lock ends with the process, however it ends.

        Raises
        ------
        ModelError
            The file is broken, or cannot be written.
        """
        try:
            make_folder(self.path.parent)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                content = file.read()
                # What a crash left of a line was never acknowledged.
                whole = content[: content.rfind(b"\n") + 1]
                if whole != content:
                    file.truncate(len(whole))

                def write(line: bytes) -> None:
                    file.write(line + b"\n")
                    file.flush()
                    os.fsync(file.fileno())

                yield Pen(write, _parsed(whole, str(self.path)))
                sync(self.path.parent)
        except OSError as error:
            raise ModelError(f"{self.path} cannot be written: {error.strerror}") from error


class Pen:
    """Appends to a ledger that is locked.

    Parameters
    ----------
    write : callable
        Keeps one line, without its end.

    Attributes
    ----------
    entries : list of Entry
        All lines, also those that were just written.
    """

    def __init__(self, write: Callable[[bytes], object], entries: list[Entry]) -> None:
        self._write, self.entries = write, entries

    def append(self, who: str, action: str, detail: Mapping[str, Any]) -> Entry:
        """Write a line."""
        last = self.entries[-1] if self.entries else None
        draft = Entry(
            number=last.number + 1 if last else 1,
            at=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            who=who,
            action=action,
            detail=dict(detail),
            previous=last.hash if last else _GENESIS,
            hash="",
        )
        entry = Entry(**{**draft.as_json(), "hash": draft.expected_hash()})
        self.copy(entry)
        return entry

    def copy(self, entry: Entry) -> None:
        """Write a line as it stands in another ledger; it has to follow the last one."""
        self._write(json.dumps(entry.as_json(), sort_keys=True).encode("utf-8"))
        self.entries.append(entry)


def _parsed(content: bytes, where: str) -> list[Entry]:
    # A last line without its end is being written now, or a crash cut it off.
    return parsed(content.split(b"\n")[:-1], where, [])


def parsed(lines: Sequence[bytes], where: str, before: Sequence[Entry]) -> list[Entry]:
    """Lines as entries, behind those that were read before.

    Raises
    ------
    ModelError
        A line is not as it was written, or does not follow.
    """
    entries = list(before)
    previous = entries[-1].hash if entries else _GENESIS
    for number, line in enumerate(lines, len(entries) + 1):
        try:
            entry = Entry(**json.loads(line))
            whole = (entry.number, entry.previous, entry.hash) == (
                number,
                previous,
                entry.expected_hash(),
            )
        except (ValueError, TypeError):
            whole = False
        if not whole:
            raise ModelError(
                f"{where} is broken at line {number}: it was changed after it was written; restore "
                "it from a backup"
            )
        entries.append(entry)
        previous = entry.hash
    return entries
