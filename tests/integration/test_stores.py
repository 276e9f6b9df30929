"""Stores of whole files: one suite over the folder and over a bucket of a real S3 server."""

import hashlib
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.dsutils import encode_file_meta

from tests.conftest import ROOT, Service, free_port
from tests.s3 import S3, s3_server
from triage.errors import PixelsError, SpoolError, SpoolOutage
from triage.sharing import share
from triage.spool import Spool, digest_of, name_of
from triage.store import Bucket, Folder, Store, open_store

DATA = b"\x08\x00\x18\x00UI\x06\x001.2.3\x00"
LARGE = bytes(range(256)) * 50_000
"""More than a request takes at once: 12.8 MB."""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """A server for this file."""
    with s3_server() as server:
        yield server


@pytest.fixture(params=["folder", "bucket"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the two."""
    return str(request.param)


@pytest.fixture
def new(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Store]:
    """Opens the test's store, as each of several nodes would."""
    if kind == "folder":
        return lambda: open_store((tmp_path / "shared").as_uri(), tmp_path / "node")
    server: S3 = request.getfixturevalue("s3")
    for name, value in server.settings.items():
        monkeypatch.setenv(name, value)
    return lambda: open_store(f"{server.url}/{tmp_path.name}", tmp_path / "node")


@pytest.fixture
def store(new: Callable[[], Store]) -> Store:
    """One that is prepared."""
    made = new()
    made.prepare()
    return made


@pytest.fixture
def spool(store: Store, tmp_path: Path) -> Spool:
    """A spool over it."""
    made = Spool(tmp_path / "node", store)
    made.prepare()
    return made


def instance(data: bytes = DATA) -> bytes:
    """A file as the receiver writes it."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    return bytes(128) + b"DICM" + encode_file_meta(meta) + data


def test_the_url_names_the_store(new: Callable[[], Store], kind: str) -> None:
    """By its scheme."""
    assert isinstance(new(), {"folder": Folder, "bucket": Bucket}[kind])


def test_what_is_kept_is_there_for_every_node(
    spool: Spool, new: Callable[[], Store], tmp_path: Path
) -> None:
    """Byte for byte, by each way to read it; also in a worker that the spool is sent to."""
    spool.put(digest_of(LARGE), [LARGE[:1000], LARGE[1000:]], "results")
    other = pickle.loads(pickle.dumps(Spool(tmp_path / "other", new())))
    name = name_of(digest_of(LARGE), "results")
    with other.store.open(name) as file:
        assert file.read() == LARGE
    with other.file(digest_of(LARGE), "results") as path:
        assert path.read_bytes() == LARGE
    assert other.size(digest_of(LARGE), "results") == len(LARGE)
    assert list(other.store.names("results")) == [name]
    assert other.where(digest_of(LARGE), "results").endswith(name)


def test_a_machine_s_files_go_to_what_nodes_share(store: Store, tmp_path: Path) -> None:
    """Each is read back; a second call copies what is new; a damaged one is told and left out."""
    alone = Spool(tmp_path / "alone")
    alone.prepare()
    alone.put(digest_of(DATA), instance())
    alone.put(digest_of(LARGE), LARGE, "results")
    alone.put("ab" * 32, instance(b"damaged"))
    seen: list[int] = []
    done = share(alone.store, store, seen.append)
    assert (done.files, done.copied, done.size) == (2, 2, len(instance()) + len(LARGE))
    assert done.damaged == (alone.where("ab" * 32),)
    assert seen == [1, 2]
    assert Spool(tmp_path / "node", store).intact(digest_of(DATA))
    alone.put("cd" * 32, b"another", "quarantine")
    done = share(alone.store, store, seen.append)
    assert (done.files, done.copied) == (3, 1)
    store.remove(name_of(digest_of(LARGE), "results"))
    Spool(tmp_path / "node", store).put(digest_of(LARGE), LARGE[::-1], "results")
    with pytest.raises(SpoolError, match="is not the file that is here"):
        share(alone.store, store, seen.append)


def test_nothing_stays_behind_on_the_node(spool: Spool, tmp_path: Path, kind: str) -> None:
    """Neither of what arrived nor of what was fetched."""
    spool.put("ab" * 32, LARGE)
    with spool.file("ab" * 32):
        pass
    left = [path for path in (tmp_path / "node").rglob("*") if path.is_file()]
    assert left == []


def test_keeping_again_changes_nothing(spool: Spool) -> None:
    """Also by many at once."""
    start = threading.Barrier(6)

    def put() -> None:
        start.wait()
        spool.put(digest_of(LARGE), LARGE)

    threads = [threading.Thread(target=put) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with spool.store.open(name_of(digest_of(LARGE))) as file:
        assert hashlib.sha256(file.read()).hexdigest() == digest_of(LARGE)
    assert len(list(spool.store.names("instances"))) == 1


def test_what_is_not_there(spool: Spool, store: Store) -> None:
    """Is told apart from what cannot be reached."""
    with pytest.raises(FileNotFoundError):
        store.open("instances/ab/none.dcm")
    assert store.size("instances/ab/none.dcm") is None
    assert list(store.names("instances")) == []
    store.remove("instances/ab/none.dcm")
    with pytest.raises(SpoolError, match="not there") as caught:
        spool.instance("ab" * 32)
    assert not isinstance(caught.value, SpoolOutage)
    with pytest.raises(SpoolError), spool.file("ab" * 32):
        pass
    assert not spool.intact("ab" * 32)


def test_an_instance_is_read_and_checked_against_its_name(spool: Spool) -> None:
    """A file that holds something else is damaged, one that came so is no picture."""
    spool.put(digest_of(DATA), instance())
    assert spool.instance(digest_of(DATA)).SOPInstanceUID == "1.2.3"
    assert spool.intact(digest_of(DATA))
    spool.put("ab" * 32, instance())
    assert not spool.intact("ab" * 32)
    cut = next((ROOT / "tests" / "faults" / "found").glob("*-ends-in-a-sequence.bin")).read_bytes()
    spool.put(digest_of(cut), instance(cut))
    with pytest.raises(PixelsError):
        spool.instance(digest_of(cut))
    spool.put("cd" * 32, instance(cut))
    with pytest.raises(SpoolError, match="damaged"):
        spool.instance("cd" * 32)


def test_what_arrived_once_is_kept_in_two_places(spool: Spool) -> None:
    """As an instance that comes under a UID that is taken."""
    arriving = spool.arriving(b"meta")
    arriving.write(DATA)
    for place in ("instances", "quarantine"):
        spool.keep(arriving, arriving.digest, place)  # type: ignore[arg-type]
    arriving.discard()
    for place in ("instances", "quarantine"):
        with spool.store.open(name_of(arriving.digest, place)) as file:  # type: ignore[arg-type]
            assert file.read() == b"meta" + DATA


def test_removing_is_for_good_and_of_one_place(spool: Spool) -> None:
    """The quarantine keeps its own."""
    for place in ("instances", "quarantine"):
        spool.put("ab" * 32, DATA, place)  # type: ignore[arg-type]
    spool.remove("ab" * 32)
    assert spool.size("ab" * 32) is None
    assert spool.size("ab" * 32, "quarantine") == len(DATA)


def test_a_bucket_keeps_what_it_acknowledged_when_its_server_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is away, nothing is kept and nothing is called missing or damaged."""
    with s3_server() as server:
        for name, value in server.settings.items():
            monkeypatch.setenv(name, value)
        spool = Spool(tmp_path, open_store(server.url, tmp_path))
        spool.prepare()
        spool.put(digest_of(DATA), instance())
        server.kill()
        for attempt in (
            lambda: spool.put("ab" * 32, LARGE),
            lambda: spool.instance(digest_of(DATA)),
            lambda: spool.intact(digest_of(DATA)),
            lambda: spool.size(digest_of(DATA)),
            spool.store.prepare,
        ):
            with pytest.raises(SpoolOutage, match="cannot be used now") as caught:
                attempt()
            assert "\n" not in str(caught.value)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        server.start()
        assert spool.intact(digest_of(DATA))
        assert spool.size("ab" * 32) is None


def test_a_bucket_that_is_not_there_is_named(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first radiograph comes."""
    for name, value in s3.settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SpoolError, match="s3://nothing"):
        Spool(tmp_path, open_store("s3://nothing/here", tmp_path)).prepare()
    service = Service(tmp_path / "home", free_port(), {"TRIAGE_SPOOL_URL": "s3://nothing"})
    told = service.triage("check").stdout.splitlines()
    assert any(line.startswith("FAIL  store") and "s3://nothing" in line for line in told)
