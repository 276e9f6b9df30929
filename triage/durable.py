"""Writing so that it survives losing power (POSIX fsync, of files and of folders)."""

import ctypes
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

_SYNC_FILE_RANGE_WRITE = 2


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_writing(descriptor: int) -> None:
    """Let the disk begin with what a file has got, so that a later fsync has less to wait for.

    A hint that promises nothing, where the system has it (sync_file_range(2), Linux).
    """
    hint = _sync_file_range()
    if hint is not None:
        hint(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Callable[..., int] | None:
    """Looked up once: it is asked for with every part of every data set."""
    return getattr(ctypes.CDLL(None), "sync_file_range", None)


def make_folder(folder: Path) -> None:
    """Make a folder, for this user only, whose entry in its parent is on the disk, too."""
    if not folder.is_dir():
        _make(folder)


def _make(folder: Path) -> None:
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync(folder.parent)


def keep_folder(folder: Path) -> None:
    """Make a folder as :func:`make_folder` does, and be certain of its entry in any case.

    One that is there may come from a process that died, or from a thread that runs, between
    making it and syncing its parent.
    """
    if not folder.is_dir():
        _make(folder)
        return
    # Somebody who may use a folder need not be allowed to read the one it is in.
    with suppress(PermissionError):
        sync(folder.parent)


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all; when this returns, it survives losing power.

    Raises
    ------
    OSError
        It cannot be written; what was there before still is.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix="new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
    sync(path.parent)
