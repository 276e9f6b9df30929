"""One behaviour in every sink: taken or not taken, told apart, and never taken as two."""

import itertools
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from tests.builders import picture, radiograph
from tests.conftest import SAMPLES
from tests.peers import PATIENT, PEERS, READING, PacsPeer, Storescp, kept, material, send
from triage.errors import DeliveryError
from triage.worklist.deliveries import ResultKind


@pytest.fixture(params=list(PEERS))
def peer(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each kind of destination, running."""
    with PEERS[request.param]() as running:
        yield running


def test_what_is_sent_is_taken_under_its_identifier(peer: Any, tmp_path: Path) -> None:
    """The peer has exactly it, over one connection or two."""
    sink = peer.sink()
    first = send(sink, tmp_path)
    second = send(sink, tmp_path, material(readings=(READING,)))
    sink.rest()
    third = send(sink, tmp_path, material(radiograph(picture(1))))
    sink.rest()
    assert set(peer.taken) == {first.uid, second.uid, third.uid}
    assert len(peer.taken) == 3


def test_a_result_is_built_the_same_whenever_it_is_built(peer: Any) -> None:
    """To the byte, in another sink of that kind, too."""
    for readings in ((), (READING,)):
        built = [peer.sink().build(material(readings=readings)) for _ in range(2)]
        assert built[0] == built[1]
        time.sleep(1.01)  # no clock may show
        assert peer.sink().build(material(readings=readings)) == built[0]


def test_a_second_sending_adds_nothing(peer: Any, tmp_path: Path) -> None:
    """It is the same bytes under the same identifier."""
    sink = peer.sink()
    uid = send(sink, tmp_path).uid
    assert send(sink, tmp_path).uid == uid
    sink.rest()
    assert list(peer.taken) == [uid]
    assert len(set(peer.taken[uid])) == 1


def test_a_busy_peer_has_not_taken_it_and_may_later(peer: Any, tmp_path: Path) -> None:
    """It is not a refusal."""
    sink = peer.sink()
    peer.answers = ["busy"]
    with pytest.raises(DeliveryError) as caught:
        send(sink, tmp_path)
    assert not caught.value.refused
    assert not peer.taken
    send(sink, tmp_path)
    sink.rest()
    assert len(peer.taken) == 1


def test_a_refusal_is_told_apart_and_leaks_nothing(peer: Any, tmp_path: Path) -> None:
    """What the peer says in words may name a patient, so it is not repeated."""
    sink = peer.sink()
    peer.answers = ["refuse"]
    with pytest.raises(DeliveryError) as caught:
        send(sink, tmp_path)
    sink.rest()
    assert caught.value.refused
    assert not peer.taken
    told = str(caught.value)
    assert "\n" not in told
    patient = dcmread(SAMPLES / "03-dx-ap-opacity.dcm")
    for secret in (PATIENT, str(patient.PatientName), patient.PatientID):
        assert secret not in told


def test_a_peer_that_is_not_there_is_found_when_it_is_back(peer: Any, tmp_path: Path) -> None:
    """Stopped with a connection open to it, absent, back: the same sink serves on."""
    sink = peer.sink()
    send(sink, tmp_path)
    peer.stop()
    for _ in range(2):
        with pytest.raises(DeliveryError) as caught:
            send(sink, tmp_path)
        assert not caught.value.refused
    peer.start()
    send(sink, tmp_path)
    sink.rest()
    assert len(peer.taken) == 1


def test_a_peer_that_hangs_is_left_within_the_time_limit(peer: Any, tmp_path: Path) -> None:
    """It took the message and says nothing."""
    sink = peer.sink(timeout=1.0)
    peer.answers = ["hang"]
    began = time.monotonic()
    with pytest.raises(DeliveryError) as caught:
        send(sink, tmp_path)
    assert time.monotonic() - began < 3
    assert not caught.value.refused


@pytest.mark.parametrize("name", list(PEERS))
def test_a_listener_that_never_speaks_is_left_within_the_time_limit(
    name: str, tmp_path: Path
) -> None:
    """A TCP connection is no destination."""
    peer = PEERS[name]()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer.port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(DeliveryError) as caught:
            send(peer.sink(timeout=1.0), tmp_path)
    assert time.monotonic() - began < 4
    assert not caught.value.refused


def test_sending_to_nobody_leaves_no_sockets_behind(tmp_path: Path) -> None:
    """A PACS may be away for days."""
    sinks = [PEERS[name]().sink() for name in PEERS]
    built = [(sink, sink.build(material())) for sink in sinks]

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    counts = []
    for _ in range(3):
        for sink, result in built:
            for _ in range(5):
                with pytest.raises(DeliveryError):
                    sink.send(result.uid, kept(result, tmp_path))
        counts.append(open_files())
    assert counts[-1] <= counts[0] + 1


def test_one_association_carries_report_and_picture(tmp_path: Path) -> None:
    """And the next ones, until the sink rests."""
    with PacsPeer() as peer:
        sink = peer.sink()
        for kind in (ResultKind.FINDING, ResultKind.HEAT_MAP):
            send(sink, tmp_path, material(kind=kind))
        assert peer.associations == 1
        sink.rest()
        send(sink, tmp_path)
        assert peer.associations == 2
        sink.rest()
        assert len(peer.taken) == 2


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0111])
def test_a_warning_or_a_duplicate_has_been_taken(status: int, tmp_path: Path) -> None:
    """PS3.4 table B.2-1; and who has an instance already has it."""
    with PacsPeer() as peer:
        peer.success = status
        sink = peer.sink()
        send(sink, tmp_path)
        sink.rest()


def test_storescp_keeps_what_was_built_to_the_byte(tmp_path: Path) -> None:
    """DCMTK has the data set that the spool has."""
    with Storescp(tmp_path / "pacs") as peer:
        sink = peer.sink()
        results = [
            send(sink, tmp_path, material(kind=kind))
            for kind in (ResultKind.FINDING, ResultKind.HEAT_MAP)
        ]
        sink.rest()
        found = {dataset.SOPInstanceUID: dataset for dataset in peer.datasets()}
    for result in results:
        file = kept(result, tmp_path)
        assert found[result.uid] == dcmread(file)


def test_a_pacs_that_takes_only_the_default_syntax_gets_it(tmp_path: Path) -> None:
    """Implicit VR Little Endian is what every SCP takes (PS3.5 10.1)."""
    with Storescp(tmp_path / "pacs", "+xi") as peer:
        sink = peer.sink()
        result = send(sink, tmp_path)
        sink.rest()
        (found,) = peer.datasets()
    assert found.SOPInstanceUID == result.uid
    assert found.file_meta.TransferSyntaxUID.is_implicit_VR
    assert found.ContentSequence == dcmread(kept(result, tmp_path)).ContentSequence


def test_each_update_refers_to_the_report_before_it(tmp_path: Path) -> None:
    """First report, reading, contrary reading: a chain of three reports in one series."""
    other = replace(READING, verdict="rejected", read_at=datetime(2026, 1, 6, tzinfo=UTC))
    chain = []
    for readings in ((), (READING,), (READING, other)):
        result = PacsPeer().sink().build(material(readings=readings))
        chain.append(dcmread(kept(result, tmp_path)))
    for before, after in itertools.pairwise(chain):
        (study,) = after.PredecessorDocumentsSequence
        (series,) = study.ReferencedSeriesSequence
        (instance,) = series.ReferencedSOPSequence
        assert instance.ReferencedSOPInstanceUID == before.SOPInstanceUID
        assert series.SeriesInstanceUID == before.SeriesInstanceUID == after.SeriesInstanceUID
    assert [report.InstanceNumber for report in chain] == [1, 2, 3]
