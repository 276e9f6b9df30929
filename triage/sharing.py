"""Copying the files of one machine into a store that several nodes share.

A file is copied if it is not there, and always read back: it has to be the same, and an instance
has to be the one that its name says. So the same call goes on where it was stopped, and one that
has nothing left to copy has verified everything.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triage.errors import SpoolError, SpoolOutage
from triage.spool import data_digest
from triage.store import Copied, Store

PLACES = ("instances", "quarantine", "results")
"""What nodes share of a spool; what is arriving is each node's own."""


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """What was copied.

    Attributes
    ----------
    files : int
        In the shared store now, read back and equal.
    copied : int
        Of these, so many were not there before.
    size : int
        Bytes of all of them.
    damaged : tuple of str
        Instance files here that are not what their names say; they were left out.
    """

    files: int
    copied: int
    size: int
    damaged: tuple[str, ...]


def share(source: Store, target: Store, progress: Callable[[int], None]) -> SharedFiles:
    """Copy all files of a spool; called again it goes on.

    Parameters
    ----------
    source, target : Store
    progress : callable
        Told how many files are done.

    Raises
    ------
    SpoolError
        A store cannot be used, or a file there is another one.
    """
    files = copied = size = 0
    damaged = []
    for place in PLACES:
        for name in source.names(place):
            try:
                with source.open(name) as file:
                    content = file.read()
            except FileNotFoundError:
                continue  # retention was faster
            if place == "instances" and data_digest(io.BytesIO(content)) != Path(name).stem:
                damaged.append(source.where(name))
                continue
            copied += _keep(target, name, content)
            files, size = files + 1, size + len(content)
            progress(files)
    return SharedFiles(files, copied, size, tuple(damaged))


def _keep(target: Store, name: str, content: bytes) -> bool:
    """Keep a file unless it is there, and read it back; whether it was not there."""
    try:
        new = target.size(name) != len(content)
        if new:
            target.keep(Copied(lambda: io.BytesIO(content)), name)
        with target.open(name) as file:
            there = file.read()
    except SpoolOutage:
        raise
    except OSError as error:
        raise SpoolError(f"{target.where(name)} cannot be kept: {error.strerror}") from error
    if hashlib.sha256(there).digest() != hashlib.sha256(content).digest():
        raise SpoolError(
            f"{target.where(name)} is not the file that is here: remove it there, and call again"
        )
    return new
