"""Results on their way: a dead destination, restarts, kills, parking; with the real service."""

import datetime as dt
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from tests.conftest import SAMPLES, Service, wait_for
from tests.peers import PATIENT, PEERS, SECRET, HttpPeer, MllpPeer, PacsPeer, Storescp
from triage.delivery import LONGEST_PAUSE, Patience
from triage.worklist import State
from triage.worklist.deliveries import DeliveryRecord, DeliveryState

OPACITY = SAMPLES / "03-dx-ap-opacity.dcm"
PARTS = "receive,score,deliver"
"""What results pass through; the first test runs the whole service."""


@pytest.fixture
def new(new_service: Callable[..., Service]) -> Callable[..., Service]:
    """Makes services that deliver to peers, and try again soon."""

    def make(*peers: Any, **settings: str) -> Service:
        destinations = [peer.setting(f"to-{number}") for number, peer in enumerate(peers)]
        return new_service(
            TRIAGE_DESTINATIONS=json.dumps(destinations),
            TRIAGE_DELIVERY_PAUSE_SECONDS="0.1",
            HOOK_SECRET=SECRET,
            **settings,
        )

    return make


def records(service: Service, state: DeliveryState | None = None) -> list[DeliveryRecord]:
    """The deliveries of a service."""
    worklist = service.worklist()
    try:
        return worklist.deliveries.records(state)
    finally:
        worklist.close()


def all_delivered(service: Service, count: int) -> Callable[[], bool]:
    """A condition: so many deliveries, and all of them DELIVERED."""

    def condition() -> bool:
        found = [record.state for record in records(service)]
        return len(found) == count and set(found) <= {DeliveryState.DELIVERED}

    return condition


def uid_of(file: Path) -> str:
    return str(dcmread(file, stop_before_pixels=True).SOPInstanceUID)


def listed(service: Service, *arguments: str) -> list[dict[str, Any]]:
    """What ``triage deliveries list --json`` prints."""
    ran = service.triage("deliveries", "list", "--json", *arguments)
    assert ran.returncode == 0, ran.stderr
    content: list[dict[str, Any]] = json.loads(ran.stdout)
    return content


def test_every_kind_of_destination_gets_its_results(
    new: Callable[..., Service], tmp_path: Path
) -> None:
    """DCMTK's storescp report and picture, the others a message; then the reading."""
    with Storescp(tmp_path / "pacs") as pacs, MllpPeer() as ris, HttpPeer() as hook:
        service = new(pacs, ris, hook)
        service.start()
        assert service.triage("send", str(OPACITY)).returncode == 0
        wait_for(all_delivered(service, 4))
        found = {dataset.SOPClassUID: dataset for dataset in pacs.datasets()}
        report = found[Comprehensive3DSRStorage]
        assert set(found) == {Comprehensive3DSRStorage, SecondaryCaptureImageStorage}
        source = dcmread(OPACITY)
        for dataset in found.values():
            assert dataset.StudyInstanceUID == source.StudyInstanceUID
            assert dataset.PatientID == source.PatientID
            assert dataset.AccessionNumber == source.AccessionNumber

        uid = uid_of(OPACITY)
        ran = service.triage("read", uid, "--verdict", "rejected", "--reader", "Dr. A")
        assert ran.returncode == 0, ran.stderr
        wait_for(all_delivered(service, 7))
        (update,) = [d for d in pacs.datasets() if "PredecessorDocumentsSequence" in d]
        assert predecessor(update) == report.SOPInstanceUID
        assert update.SeriesInstanceUID == report.SeriesInstanceUID
        assert [len(found) for found in ris.taken.values()] == [1, 1]
        read = [json.loads(body[0])["reading"] for body in hook.taken.values()]
        assert [reading and reading["verdict"] for reading in read] == [None, "rejected"]

        rows = listed(service)
        assert {row["state"] for row in rows} == {"DELIVERED"}
        known = {str(d.SOPInstanceUID) for d in pacs.datasets()} | set(ris.taken) | set(hook.taken)
        assert {row["result_uid"] for row in rows} == known
        ran = service.triage("check")
        assert "deliveries nothing waits long" in " ".join(ran.stdout.split())
        service.stop()


def predecessor(report: Dataset) -> str:
    """Which report another one replaces (PS3.3 C.17.2)."""
    (study,) = report.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    return str(instance.ReferencedSOPInstanceUID)


def test_dead_destinations_hide_no_score_and_get_their_results_later(
    new: Callable[..., Service],
) -> None:
    """Scored in seconds, other destinations served, and delivered over a restart."""
    dead, alive = [PEERS[name]() for name in PEERS], HttpPeer()
    with alive:
        service = new(*dead, alive)
        service.start("--roles", PARTS)
        assert service.triage("send", str(SAMPLES)).returncode == 0
        worklist = service.worklist()
        wait_for(lambda: not worklist.counts()[State.RECEIVED], seconds=20)
        scored = worklist.counts()[State.SCORED]
        assert scored >= 8
        wait_for(lambda: len(alive.taken) == scored, seconds=20)
        # Two for the PACS, one for each of the others. A peer has a result before its row says so.
        wait_for(lambda: len(records(service, DeliveryState.PENDING)) == 4 * scored)
        wait_for(lambda: sum(bool(r.error) for r in records(service)) >= 3)
        assert {r.destination for r in records(service) if r.error} == {"to-0", "to-1", "to-2"}
        assert service.triage("worklist").returncode == 0
        service.stop()
        for peer in dead:
            peer.start()
        service.start("--roles", PARTS)
        wait_for(all_delivered(service, 5 * scored), seconds=60)
        service.stop()
    for peer, count in zip(dead, (2 * scored, scored, scored), strict=True):
        assert len(peer.taken) == count
        peer.stop()


RESULTS = {"pacs": 2, "hl7": 1, "webhook": 1}
"""Of one scored exam, by who gets them."""


@pytest.fixture
def peers() -> Iterator[dict[str, Any]]:
    """One of each kind, which listen; the destination `to-0` is the first."""
    with ExitStack() as kept:
        yield {name: kept.enter_context(PEERS[name]()) for name in RESULTS}


def test_a_busy_destination_is_asked_again_until_it_takes_it(
    peers: dict[str, Any], new: Callable[..., Service]
) -> None:
    """Each refuses n times with "busy", and takes the attempt after it."""
    for peer in peers.values():
        peer.answers = ["busy"] * 4
    service = new(*peers.values())
    service.start("--roles", PARTS)
    service.triage("send", str(OPACITY))
    wait_for(all_delivered(service, sum(RESULTS.values())), seconds=60)
    for number, (name, peer) in enumerate(peers.items()):
        count = RESULTS[name]
        assert len(peer.taken) == count
        assert peer.asked == count + 4
        own = [record for record in records(service) if record.destination == f"to-{number}"]
        assert sum(record.attempts for record in own) == count + 4
    service.stop()


def test_what_is_refused_is_parked_shown_and_delivered_when_retried(
    peers: dict[str, Any], new: Callable[..., Service]
) -> None:
    """``triage check`` fails, the list says why, ``retry`` sends it; no patient in any of it."""
    for peer in peers.values():
        peer.answers = ["refuse"] * 10
    service = new(*peers.values())
    service.start("--roles", PARTS)
    service.triage("send", str(OPACITY))
    count = sum(RESULTS.values())
    wait_for(lambda: len(records(service, DeliveryState.PARKED)) == count, seconds=60)
    assert {record.attempts for record in records(service)} == {5}
    for name, peer in peers.items():
        assert peer.asked == 5 * RESULTS[name]
        peer.answers.clear()

    ran = service.triage("check")
    assert ran.returncode == 1
    assert "PARKED" in ran.stdout
    parked = listed(service, "--state", "parked")
    assert len(parked) == count
    assert all(row["error"] for row in parked)
    told = ran.stdout + json.dumps(parked) + service.triage("deliveries", "list").stdout
    told += service.log.read_text()
    patient = dcmread(OPACITY)
    for secret in (PATIENT, str(patient.PatientName), patient.PatientID, SECRET):
        assert secret not in told

    ran = service.triage("deliveries", "retry", str(parked[0]["id"]))
    assert ran.returncode == 0
    assert service.triage("deliveries", "retry", "--all").returncode == 0
    wait_for(all_delivered(service, count))
    for name, peer in peers.items():
        assert len(peer.taken) == RESULTS[name]
    service.stop()


def test_an_absent_destination_parks_after_its_attempts(new: Callable[..., Service]) -> None:
    """As many as the setting says."""
    service = new(MllpPeer(), TRIAGE_DELIVERY_ATTEMPTS="3")
    service.start("--roles", PARTS)
    service.triage("send", str(OPACITY))
    wait_for(lambda: bool(records(service, DeliveryState.PARKED)), seconds=60)
    (record,) = records(service)
    assert record.attempts == 3
    assert "ConnectionRefusedError" in record.error
    service.stop()


def test_killed_in_the_middle_it_delivers_each_result_once(new: Callable[..., Service]) -> None:
    """``kill -9`` while the PACS thinks: it ends with each instance once, with one content."""
    with PacsPeer() as peer:
        peer.hold = 0.15
        service = new(peer)
        service.start("--roles", PARTS)
        service.triage("send", str(SAMPLES))
        worklist = service.worklist()
        wait_for(lambda: not worklist.counts()[State.RECEIVED], seconds=30)
        scored = worklist.counts()[State.SCORED]
        for kill in range(1, 5):
            wait_for(lambda kill=kill: peer.asked >= 3 * kill, seconds=60)  # type: ignore[misc]
            service.kill("deliver")
        peer.hold = 0.0
        wait_for(all_delivered(service, 2 * scored), seconds=90)
        service.stop()
        assert len(peer.taken) == 2 * scored, "no result under two identifiers"
        assert {len(set(contents)) for contents in peer.taken.values()} == {1}, "always the same"
        assert set(peer.taken) == {record.result_uid for record in records(service)}


def test_a_delivery_that_is_sent_again_adds_nothing(new: Callable[..., Service]) -> None:
    """An operator may retry what was delivered: the same bytes under the same UID."""
    with PacsPeer() as peer:
        service = new(peer)
        service.start("--roles", PARTS)
        service.triage("send", str(OPACITY))
        wait_for(all_delivered(service, 2))
        for record in records(service):
            assert service.triage("deliveries", "retry", str(record.id)).returncode == 0
        wait_for(lambda: peer.asked == 4)
        wait_for(all_delivered(service, 2))
        assert len(peer.taken) == 2
        for contents in peer.taken.values():
            assert len(contents) == 2
            assert contents[0] == contents[1]
        service.stop()


def test_a_hanging_destination_does_not_hold_up_the_end(new: Callable[..., Service]) -> None:
    """SIGTERM ends the service while a peer keeps it waiting; the next start delivers."""
    with MllpPeer() as peer:
        peer.hold = 30.0
        service = new(peer)
        settings = json.loads(service.settings["TRIAGE_DESTINATIONS"])
        settings[0]["timeout_seconds"] = 60
        service.settings = {**service.settings, "TRIAGE_DESTINATIONS": json.dumps(settings)}
        service.start("--roles", PARTS)
        service.triage("send", str(OPACITY))
        wait_for(lambda: peer.asked == 1)
        began = time.monotonic()
        service.stop()
        assert time.monotonic() - began < 14
        peer.hold = 0.0
        service.start("--roles", PARTS)
        wait_for(all_delivered(service, 1), seconds=60)
        service.stop()


def test_the_page_of_commands_answers_wrong_calls(new: Callable[..., Service]) -> None:
    """Exit status 2 for a wrong call, 1 for what is not there."""
    service = new()
    assert service.triage("migrate").returncode == 0
    assert service.triage("deliveries", "retry").returncode == 2
    assert service.triage("deliveries", "retry", "3", "--all").returncode == 2
    assert service.triage("deliveries", "retry", "3").returncode == 1
    assert service.triage("deliveries", "list", "--state", "x").returncode == 2
    assert "No destinations" in service.triage("deliveries", "list").stdout


def test_a_secret_that_is_missing_stops_the_start_and_is_not_shown(
    new: Callable[..., Service], tmp_path: Path
) -> None:
    """In one line that says where it was looked for."""
    hook = HttpPeer()
    service = new(hook)
    service.settings = {**service.settings, "HOOK_SECRET": ""}
    ran = service.triage("serve", "--roles", "deliver")
    assert ran.returncode == 1
    assert "HOOK_SECRET" in ran.stderr
    service.settings = {**service.settings, "HOOK_SECRET": "too brief"}
    ran = service.triage("serve")
    assert ran.returncode == 1
    assert "too brief" not in ran.stderr
    assert SECRET not in new(hook).triage("config").stdout


def test_without_destinations_no_process_is_spent(service: Service) -> None:
    """The default is cheap, and ``deliver`` alone waits."""
    with pytest.raises(LookupError):
        service.part("deliver")
    service.part("score")


def test_a_leftover_destination_is_noticed(new: Callable[..., Service]) -> None:
    """Taken out of the settings while something waits for it."""
    service = new(MllpPeer())
    service.start("--roles", PARTS)
    service.triage("send", str(OPACITY))
    wait_for(lambda: any(record.error for record in records(service)))
    service.stop()
    service.settings = {**service.settings, "TRIAGE_DESTINATIONS": ""}
    ran = service.triage("check")
    assert "1 deliveries wait for to-0, which is no longer" in ran.stdout


def test_a_result_that_cannot_be_built_is_parked_and_the_rest_goes_on(
    new: Callable[..., Service],
) -> None:
    """Here: the radiograph is gone from the spool."""
    peer = PacsPeer()
    service = new(peer)
    service.start("--roles", PARTS)
    service.triage("send", str(OPACITY), str(SAMPLES / "01-dx-pa-12bit.dcm"))
    worklist = service.worklist()
    wait_for(lambda: worklist.counts()[State.SCORED] == 2)
    service.stop()
    digest = worklist.item(uid_of(OPACITY)).digest
    (service.home / "spool" / "instances" / digest[:2] / f"{digest}.dcm").unlink()
    for file in (service.home / "spool" / "results").rglob("*"):
        if file.is_file():
            file.unlink()
    with peer:
        service.start("--roles", PARTS)
        wait_for(lambda: len(peer.taken) == 2, seconds=60)
        wait_for(lambda: len(records(service, DeliveryState.PARKED)) == 2, seconds=60)
        assert {r.sop_instance_uid for r in records(service, DeliveryState.PARKED)} == {
            uid_of(OPACITY)
        }
        assert all("restore" in r.error for r in records(service, DeliveryState.PARKED))
        service.stop()


def test_pauses_grow_to_a_limit() -> None:
    """5 s, 10 s, 20 s ... 15 minutes; refused ones are given up sooner."""
    patience = Patience(100, dt.timedelta(seconds=5))
    pauses = [patience.pause(failures).total_seconds() for failures in range(1, 101)]
    assert pauses[:4] == [5, 10, 20, 40]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE.total_seconds()
    assert sum(pauses) > 23 * 3600, "a day, less what the jitter takes"
    assert not patience.gives_up(99, refused=False)
    assert patience.gives_up(100, refused=False)
    assert not patience.gives_up(4, refused=True)
    assert patience.gives_up(5, refused=True)
    assert Patience(2, dt.timedelta(seconds=5)).gives_up(2, refused=True)


def test_a_stopped_deliverer_is_started_again(new: Callable[..., Service]) -> None:
    """By the supervisor, as every part."""
    with HttpPeer() as peer:
        service = new(peer)
        service.start("--roles", PARTS)
        os.kill(service.part("deliver"), signal.SIGKILL)
        service.triage("send", str(OPACITY))
        wait_for(all_delivered(service, 1))
        service.stop()
