"""Stores of whole files: a folder, or a bucket of an object store (S3).

A file comes whole or not at all, and survives losing power when :meth:`Store.keep` returns. It
never changes afterwards: its name says what it holds, so that keeping it again, from whatever
node, changes nothing. Nothing here therefore needs a lock, or a put that is conditional.
"""

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

from triage.durable import keep_folder, make_folder, sync, write_whole
from triage.errors import SpoolError, SpoolOutage

PATIENCE = timedelta(seconds=10)
"""So long a request to a bucket is tried again: a console waits for its answer meanwhile."""

_TIMEOUT = timedelta(seconds=30)
_PARTS = 4
"""Parts of a large file, of 5 MiB, that are on their way at once."""


class Coming(Protocol):
    """A local file that is to be kept."""

    def become(self, target: Path) -> None:
        """Take a name on the same file system, durably, or another one."""
        ...

    def content(self) -> IO[bytes]:
        """All of it, opened for reading.

        Raises
        ------
        OSError
            The disk did not take it.
        """
        ...


class Copied:
    """What is copied into a store and stays where it came from.

    Parameters
    ----------
    opened : callable
        Gives all of it, opened for reading.
    """

    def __init__(self, opened: Callable[[], IO[bytes]]) -> None:
        self._opened = opened

    def become(self, target: Path) -> None:
        """Copy it, whole or not at all."""
        with self._opened() as file:
            write_whole(target, lambda made: shutil.copyfileobj(file, made))

    def content(self) -> IO[bytes]:
        """Open it."""
        return self._opened()


class Store(Protocol):
    """Whole files by name; a name is a relative path with `/` between its parts.

    Every method raises :class:`SpoolOutage` where the store cannot be reached now, and an
    :class:`OSError` where a file cannot be written or read for another reason.
    """

    def prepare(self) -> None:
        """See that it can be used, as far as that shows before the first file."""
        ...

    def reachable(self) -> None:
        """See that it is there now, at little cost."""
        ...

    def keep(self, coming: Coming, name: str) -> None:
        """Keep a file; one that has the name already is the same."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """A kept file for reading; FileNotFoundError if it is not there."""
        ...

    def file(self, name: str) -> AbstractContextManager[Path]:
        """A kept file as one of this machine's, not to be changed, while it is needed."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a kept file; None if it is not there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file for good, if it is there."""
        ...

    def names(self, folder: str) -> Iterator[str]:
        """The names of all files below a folder, which may not be there; in no order."""
        ...

    def where(self, name: str) -> str:
        """Where a file is, for a person who restores it from backup."""
        ...


def open_store(url: str, folder: Path) -> Store:
    """The store that a URL names.

    Parameters
    ----------
    url : str
        ``s3://BUCKET/PREFIX``, ``file:///FOLDER``, or empty for the default.
    folder : Path
        The default; a bucket's files lie there while they are on their way.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return Bucket(parts.netloc, parts.path.strip("/"), folder)
    return Folder(Path(parts.path) if url else folder)


class Folder:
    """Files in a folder, of this machine or shared by several.

    Parameters
    ----------
    folder : Path
        Made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._certain: set[Path] = set()
        """Folders whose names this process has synced, whoever made them."""

    def prepare(self) -> None:
        """Make the folder."""
        make_folder(self._folder)

    def reachable(self) -> None:
        """Look whether the folder is there and may be written."""
        if not (self._folder.is_dir() and os.access(self._folder, os.W_OK)):
            raise SpoolError(f"the spool {self._folder} is not there, or may not be written")

    def keep(self, coming: Coming, name: str) -> None:
        """Give a file its name."""
        target = self._folder / name
        self._keep_folders(target.parent)
        if not target.exists():
            coming.become(target)
        # Also of what another thread has written, which may not have synced yet.
        sync(target.parent)

    def _keep_folders(self, folder: Path) -> None:
        """Have a folder below ours that survives losing power, with all above it."""
        if folder in self._certain and folder.is_dir():
            return
        below = folder.relative_to(self._folder).parents
        for level in (*(self._folder / each for each in reversed(below)), folder):
            if level not in self._certain or not level.is_dir():
                keep_folder(level)
                self._certain.add(level)

    def open(self, name: str) -> IO[bytes]:
        """Open a file."""
        return (self._folder / name).open("rb")

    def file(self, name: str) -> AbstractContextManager[Path]:
        """The file itself."""
        (self._folder / name).stat()
        return nullcontext(self._folder / name)

    def size(self, name: str) -> int | None:
        """From the file system."""
        try:
            return (self._folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Unlink it."""
        (self._folder / name).unlink(missing_ok=True)

    def names(self, folder: str) -> Iterator[str]:
        """Walk the folder."""
        for where, _, files in os.walk(self._folder / folder):
            for file in files:
                yield str((Path(where) / file).relative_to(self._folder))

    def where(self, name: str) -> str:
        """A path."""
        return str(self._folder / name)


class Bucket:
    """Files in a bucket of S3, or of a server that speaks its protocol, through obstore.

    Where it is and with which key comes from the environment that all of S3's programs know:
    ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` and so on.

    Parameters
    ----------
    bucket : str
    prefix : str
        Before all names; may be empty.
    folder : Path
        Where files are that are on their way.
    """

    def __init__(self, bucket: str, prefix: str, folder: Path) -> None:
        try:
            from obstore.store import S3Store
        except ImportError as error:
            raise SpoolError(
                "TRIAGE_SPOOL_URL names a bucket, which needs the extra cxr-triage[s3]"
            ) from error
        self._at = f"s3://{bucket}/{prefix}".rstrip("/")
        self._fetched = folder / "fetched"
        try:
            self._store: S3Store = S3Store(
                bucket,
                prefix=prefix or None,
                # The endpoint's own scheme says whether it is to be reached without TLS.
                client_options={
                    "timeout": _TIMEOUT,
                    "connect_timeout": timedelta(seconds=5),
                    "allow_http": True,
                },
                retry_config={"max_retries": 4, "retry_timeout": PATIENCE},
            )
        except Exception as error:  # a boundary: settings that obstore does not take
            raise SpoolError(f"{self._at} cannot be used: {_told(error)}") from error

    def prepare(self) -> None:
        """See that the bucket is there and may be listed; remove what was being fetched."""
        make_folder(self._fetched)
        for leftover in self._fetched.iterdir():
            leftover.unlink()
        self.reachable()

    def reachable(self) -> None:
        """List nothing."""
        for _ in self.names("no-such-folder"):
            break

    def keep(self, coming: Coming, name: str) -> None:
        """Send a file; the server answers once it is durable there."""
        import obstore

        with coming.content() as content, self._reached():
            obstore.put(self._store, name, content, max_concurrency=_PARTS)

    def open(self, name: str) -> IO[bytes]:
        """A file, in memory."""
        import obstore

        with self._reached():
            return io.BytesIO(obstore.get(self._store, name).bytes())

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """A copy, which is removed afterwards."""
        content = self.open(name)
        make_folder(self._fetched)
        with tempfile.NamedTemporaryFile(dir=self._fetched) as copy:
            copy.write(content.read())
            copy.flush()
            yield Path(copy.name)

    def size(self, name: str) -> int | None:
        """By HEAD."""
        import obstore

        try:
            with self._reached():
                return int(obstore.head(self._store, name)["size"])
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """By DELETE."""
        import obstore

        with suppress(FileNotFoundError), self._reached():
            obstore.delete(self._store, name)

    def names(self, folder: str) -> Iterator[str]:
        """List page by page."""
        import obstore

        with self._reached():
            for page in obstore.list(self._store, f"{folder}/"):
                for found in page:
                    yield found["path"]

    def where(self, name: str) -> str:
        """As S3's programs write it."""
        return f"{self._at}/{name}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Translate what obstore raises; a file that is not there is a FileNotFoundError."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise SpoolOutage(f"there is no bucket {self._at}: make it") from error
            raise
        except BaseError as error:
            raise SpoolOutage(f"{self._at} cannot be used now: {_told(error)}") from error


def _told(error: Exception) -> str:
    """An error of obstore in one line; it tells of the request at length below."""
    return " ".join(str(error).partition("\n")[0].split())[:300]
