"""Instance files: durable, named by their content, and private.

Tests may run as root, for whom permission bits do nothing: what cannot be written here is
a folder whose place a file has taken, or a file above the process's size limit.
"""

import hashlib
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import RLELossless
from pynetdicom.dsutils import encode_file_meta

from triage.errors import PixelsError, SpoolError
from triage.spool import Spool, digest_of

CONTENT = b"preamble and meta and " + bytes(range(256))
DIGEST = digest_of(CONTENT)


CAME_DAMAGED = next(
    (Path(__file__).parent.parent / "faults" / "found").glob(
        f"{RLELossless}-ends-in-a-sequence.bin"
    )
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the spool is to be."""
    return tmp_path / "home" / "spool"


@pytest.fixture
def spool(folder: Path) -> Spool:
    """A prepared spool."""
    made = Spool(folder)
    made.prepare()
    return made


def files(folder: Path) -> list[Path]:
    """Every file under a folder."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def mode(path: Path) -> int:
    """Its permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond this: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_digest_is_the_sha_256_of_the_bytes() -> None:
    """Of a memoryview as of bytes."""
    assert DIGEST == hashlib.sha256(CONTENT).hexdigest() == digest_of(memoryview(CONTENT))


@pytest.mark.parametrize("place", ["instances", "quarantine"])
def test_what_is_put_is_kept_under_its_digest(spool: Spool, folder: Path, place: str) -> None:
    """Whole, as the only file."""
    spool.put(DIGEST, CONTENT, place)  # type: ignore[arg-type]
    path = spool.path(DIGEST, place)  # type: ignore[arg-type]
    assert path == folder / place / DIGEST[:2] / f"{DIGEST}.dcm"
    assert path.read_bytes() == CONTENT
    assert files(folder) == [path]


def test_what_is_put_again_changes_nothing(spool: Spool, folder: Path) -> None:
    """The first file stays, down to its inode."""
    spool.put(DIGEST, CONTENT)
    first = spool.path(DIGEST)
    before = first.stat()
    spool.put(DIGEST, CONTENT)
    after = first.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert files(folder) == [first]


def test_many_may_put_the_same_at_once(spool: Spool, folder: Path) -> None:
    """One file comes of it."""
    start = threading.Barrier(8)

    def put() -> None:
        start.wait()
        spool.put(DIGEST, CONTENT)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in files(folder)] == [CONTENT]


def test_the_quarantine_is_another_place(spool: Spool, folder: Path) -> None:
    """What is in one is not in the other."""
    spool.put(DIGEST, CONTENT, "quarantine")
    assert not spool.path(DIGEST).exists()


@pytest.mark.parametrize("taken", ["instances", f"instances/{DIGEST[:2]}", "incoming"])
def test_what_cannot_be_kept_is_an_error_and_leaves_nothing(
    spool: Spool, folder: Path, taken: str
) -> None:
    """A file stands where a folder is needed."""
    place = folder / taken
    if place.is_dir():
        place.rmdir()
    place.parent.mkdir(exist_ok=True)
    place.touch()
    with pytest.raises(SpoolError, match=r"the spool cannot keep an instance: .+") as caught:
        spool.put(DIGEST, CONTENT)
    assert "\n" not in str(caught.value)
    assert files(folder) == [place]


def test_half_a_file_is_not_kept(spool: Spool, folder: Path) -> None:
    """As on a disk that fills up in mid-write; afterwards it can be put."""
    large = CONTENT * 1000
    with largest_file(100_000), pytest.raises(SpoolError, match="File too large"):
        spool.put(digest_of(large), large)
    assert files(folder) == []
    spool.put(digest_of(large), large)
    assert spool.path(digest_of(large)).read_bytes() == large


def test_a_folder_that_went_missing_is_made_again(spool: Spool, folder: Path) -> None:
    """Somebody cleaned up too much while the receiver ran: the next instance is kept."""
    (folder / "incoming").rmdir()
    spool.put(DIGEST, CONTENT)
    assert spool.path(DIGEST).read_bytes() == CONTENT


def test_a_damaged_file_is_told_from_a_data_set_that_came_damaged(spool: Spool) -> None:
    """The one is to be restored from backup, the other cannot be."""
    meta, data = FileMetaDataset(), CAME_DAMAGED.read_bytes()
    meta.TransferSyntaxUID = RLELossless
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    content = bytes(128) + b"DICM" + encode_file_meta(meta) + data
    digest = digest_of(data)
    spool.put(digest, content)
    path = spool.path(digest)
    with pytest.raises(PixelsError) as refused:
        spool.instance(digest)
    assert refused.value.reason == "DATA_SET_UNDECODABLE"
    path.write_bytes(content[:-1])
    with pytest.raises(SpoolError, match=r"damaged.*restore it from backup"):
        spool.instance(digest)


def test_preparing_sweeps_what_was_half_received(spool: Spool, folder: Path) -> None:
    """And nothing else."""
    spool.put(DIGEST, CONTENT)
    kept = spool.path(DIGEST)
    (folder / "incoming" / "tmp1234").write_bytes(CONTENT[:20])
    spool.prepare()
    assert files(folder) == [kept]
    spool.prepare()
    assert files(folder) == [kept]


def test_a_spool_that_cannot_be_made_is_an_error_that_says_what_to_do(folder: Path) -> None:
    """A file stands in its place."""
    folder.parent.mkdir()
    folder.touch()
    with pytest.raises(SpoolError, match="TRIAGE_HOME") as caught:
        Spool(folder).prepare()
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_else_can_read(folder: Path) -> None:
    """Folders are 0700 and files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        spool = Spool(folder)
        spool.prepare()
        spool.put(DIGEST, CONTENT)
        path = spool.path(DIGEST)
        spool.put(DIGEST, CONTENT, "quarantine")
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    made = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    assert {path.name: mode(path) for path in made} == {path.name: 0o700 for path in made}
    assert len(made) == 6
