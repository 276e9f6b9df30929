"""An append-only file of JSON lines, each bound to the one before by its hash.

A line's hash covers its content and the hash of the line before it, so a line that was
changed, removed or put in between shows. Lines cut off at the end do not show here; who
keeps a ledger compares its last state with what it is the history of.
"""

import datetime as dt
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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


class Ledger:
    """The lines in a file.

    Parameters
    ----------
    path : Path
        Made with its folder when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[Entry]:
        """All lines, oldest first; empty before the first.

        Raises
        ------
        ModelError
            A line is not as it was written; the message says which.
        """
        try:
            return _parsed(self.path.read_bytes(), self.path)
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
                yield Pen(file, _parsed(whole, self.path))
                sync(self.path.parent)
        except OSError as error:
            raise ModelError(f"{self.path} cannot be written: {error.strerror}") from error


class Pen:
    """Appends to a ledger that is locked.

    Attributes
    ----------
    entries : list of Entry
        All lines, also those that were just written.
    """

    def __init__(self, file: IO[bytes], entries: list[Entry]) -> None:
        self._file, self.entries = file, entries

    def append(self, who: str, action: str, detail: Mapping[str, Any]) -> Entry:
        """Write a line; it is durable on return."""
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
        self._file.write(json.dumps(entry.as_json(), sort_keys=True).encode("utf-8") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries.append(entry)
        return entry


def _parsed(content: bytes, path: Path) -> list[Entry]:
    entries: list[Entry] = []
    previous = _GENESIS
    # A last line without its end is being written now, or a crash cut it off.
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
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
                f"{path} is broken at line {number}: it was changed after it was written; restore "
                "it from a backup"
            )
        entries.append(entry)
        previous = entry.hash
    return entries
