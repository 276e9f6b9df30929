"""Storage Commitment, asked for by Orthanc and by a requester that does what it likes."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ComputedRadiographyImageStorage, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from tests.conftest import SAMPLES, Service, free_port, wait_for
from tests.orthanc import Orthanc
from triage.send import Destination, send
from triage.spool import Spool
from triage.worklist import Worklist
from triage.worklist.commitments import CommitmentState

CR = str(ComputedRadiographyImageStorage)
FILES = sorted(SAMPLES.glob("*.dcm"))[:4]

Reference = tuple[str, str]


def reference(file: Path) -> Reference:
    """A file's SOP class and instance."""
    header = dcmread(file, stop_before_pixels=True)
    return str(header.SOPClassUID), str(header.SOPInstanceUID)


def told(service: Service, action: str) -> list[dict[str, Any]]:
    """What the log says of an action."""
    lines = service.events()
    return [line for line in lines if line["action"] == action]


def kept_file(service: Service, file: Path) -> Path:
    """Where a service keeps what was sent."""
    worklist = service.worklist()
    digest = worklist.item(reference(file)[1]).digest
    worklist.close()
    return Spool(service.home / "spool").path(digest)


# Orthanc


@pytest.fixture
def orthanc_and_service(
    new_service: Callable[..., Service], tmp_path: Path
) -> Iterator[tuple[Orthanc, Service]]:
    """Orthanc that asks, and our service that knows where it is; both run."""
    port = free_port()
    orthanc = Orthanc(tmp_path / "orthanc", {"triage": Destination("127.0.0.1", port, "TRIAGE")})
    service = new_service(
        TRIAGE_DICOM_PORT=str(port),
        TRIAGE_COMMITMENT_PEERS=f"ORTHANC@127.0.0.1:{orthanc.dicom_port}",
    )
    service.port = port
    service.start("--roles", "receive,commit")
    orthanc.start()
    assert all(sent.accepted for sent in send(FILES, service.destination))
    yield orthanc, service
    orthanc.stop()
    service.stop()


def ask(orthanc: Orthanc, references: list[Reference]) -> str:
    """Let Orthanc ask for commitment; where it tells the outcome."""
    instances = [{"SOPClassUID": kind, "SOPInstanceUID": uid} for kind, uid in references]
    answer = orthanc.post(
        "/modalities/triage/storage-commitment", {"DicomInstances": instances, "Timeout": 10}
    )
    return str(answer["Path"])


def outcome(orthanc: Orthanc, path: str) -> dict[str, Any]:
    """What Orthanc knows of a transaction once it was reported."""
    wait_for(lambda: orthanc.get(path)["Status"] != "Pending", seconds=40.0)
    found: dict[str, Any] = orthanc.get(path)
    return found


def test_orthanc_hears_that_everything_is_safe(
    orthanc_and_service: tuple[Orthanc, Service],
) -> None:
    """Event type 1: all instances are ours to keep."""
    orthanc, service = orthanc_and_service
    found = outcome(orthanc, ask(orthanc, [reference(file) for file in FILES]))
    assert found["Status"] == "Success"
    assert found["RemoteAET"] == "TRIAGE"
    committed = {(each["SOPClassUID"], each["SOPInstanceUID"]) for each in found["Success"]}
    assert committed == {reference(file) for file in FILES}
    assert found["Failures"] == []
    wait_for(lambda: told(service, "commitment_reported"))
    (line,) = told(service, "commitment_reported")
    assert (line["committed"], line["failed"], line["requester"]) == (len(FILES), 0, "ORTHANC")


def test_orthanc_hears_what_is_not_safe(orthanc_and_service: tuple[Orthanc, Service]) -> None:
    """Event type 2: a missing instance, another class, a damaged file and a lost one."""
    orthanc, service = orthanc_and_service
    missing = (CR, str(generate_uid()))
    other_class = ("1.2.840.10008.5.1.4.1.1.7", reference(FILES[1])[1])
    damaged, lost = kept_file(service, FILES[2]), kept_file(service, FILES[3])
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 0x01
    damaged.write_bytes(content)
    lost.unlink()
    references = [reference(FILES[0]), missing, other_class, *map(reference, FILES[2:])]
    found = outcome(orthanc, ask(orthanc, references))
    assert found["Status"] == "Failure"
    assert [each["SOPInstanceUID"] for each in found["Success"]] == [reference(FILES[0])[1]]
    reasons = {each["SOPInstanceUID"]: each["FailureReason"] for each in found["Failures"]}
    assert reasons == {
        missing[1]: 0x0112,
        other_class[1]: 0x0119,
        reference(FILES[2])[1]: 0x0110,
        reference(FILES[3])[1]: 0x0110,
    }
    assert len(told(service, "instance_damaged")) == 2


def test_a_restart_in_between_loses_no_request(
    orthanc_and_service: tuple[Orthanc, Service],
) -> None:
    """The process that reports is down when it is asked, killed, and then the service anew."""
    orthanc, service = orthanc_and_service
    service.stop()
    service.start("--roles", "receive")  # nobody reports
    path = ask(orthanc, [reference(FILES[0]), (CR, "1.2.3.4")])
    assert service.process is not None
    service.process.kill()
    service.process.wait()
    assert orthanc.get(path)["Status"] == "Pending"
    service.start("--roles", "receive,commit")
    found = outcome(orthanc, path)
    assert found["Status"] == "Failure"
    assert [each["FailureReason"] for each in found["Failures"]] == [0x0112]
    assert [each["SOPInstanceUID"] for each in found["Success"]] == [reference(FILES[0])[1]]


# A requester that does what it likes


class Requester:
    """An SCU of Storage Commitment that keeps the reports it gets."""

    def __init__(self, ae_title: str = "CONSOLE") -> None:
        self.port, self.ae_title = free_port(), ae_title
        self.reports: list[tuple[int, Dataset, bool]] = []
        """Event type, Event Information, and whether we were proposed the SCU role."""
        self.answers: list[int] = []
        self._server: Any = None

    @property
    def entry(self) -> str:
        """As TRIAGE_COMMITMENT_PEERS has it."""
        return f"{self.ae_title}@127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Take reports."""
        ae = AE(self.ae_title)
        ae.require_called_aet = True
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        self._server = ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._reported)],
        )

    def close(self) -> None:
        """Take no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _reported(self, event: evt.Event) -> tuple[int, None]:
        roles = event.assoc.requestor.role_selection
        role = roles.get(StorageCommitmentPushModel)
        status = self.answers.pop(0) if self.answers else 0x0000
        self.reports.append(
            (
                event.event_type,
                event.event_information,
                role is not None and bool(role.scp_role) and not role.scu_role,
            )
        )
        return status, None

    def ask(
        self,
        service: Service,
        information: Dataset | None,
        action: int = 1,
        instance: str = StorageCommitmentPushModelInstance,
    ) -> int:
        """N-ACTION; the status."""
        ae = AE(self.ae_title)
        ae.add_requested_context(StorageCommitmentPushModel)
        association = ae.associate(
            "127.0.0.1",
            service.port,
            ae_title="TRIAGE",
            ext_neg=[build_role(StorageCommitmentPushModel, scu_role=True)],
        )
        assert association.is_established
        try:
            status, _ = association.send_n_action(
                information, action, StorageCommitmentPushModel, instance
            )
            return int(status.Status)
        finally:
            association.release()


def information(references: list[Reference], transaction_uid: str | None = None) -> Dataset:
    """Action Information (PS3.4 table J.3-1)."""
    made = Dataset()
    made.TransactionUID = transaction_uid or generate_uid()
    made.ReferencedSOPSequence = []
    for kind, uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = kind, uid
        made.ReferencedSOPSequence.append(item)
    return made


@pytest.fixture
def requester() -> Iterator[Requester]:
    """A requester that listens."""
    made = Requester()
    made.listen()
    yield made
    made.close()


@pytest.fixture
def service(new_service: Callable[..., Service], requester: Requester) -> Iterator[Service]:
    """A service that knows the requester and has the files."""
    made = new_service(TRIAGE_COMMITMENT_PEERS=requester.entry)
    made.start("--roles", "receive,commit")
    assert all(sent.accepted for sent in send(FILES[:2], made.destination))
    yield made
    made.stop()


def test_the_report_comes_from_an_scp(service: Service, requester: Requester) -> None:
    """On a new association that proposes us the SCU's place (PS3.4 J.3.3)."""
    asked = information([reference(FILES[0]), (CR, "1.2.3")])
    assert requester.ask(service, asked) == 0x0000
    wait_for(lambda: requester.reports)
    ((kind, report, from_scp),) = requester.reports
    assert kind == 2
    assert from_scp
    assert report.TransactionUID == asked.TransactionUID
    (committed,), (failed,) = report.ReferencedSOPSequence, report.FailedSOPSequence
    assert committed.ReferencedSOPInstanceUID == reference(FILES[0])[1]
    assert committed.ReferencedSOPClassUID == reference(FILES[0])[0]
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == ("1.2.3", 0x0112)


def test_all_failed_and_all_safe(service: Service, requester: Requester) -> None:
    """Neither report has an empty sequence."""
    requester.ask(service, information([(CR, "1.2.3")]))
    wait_for(lambda: len(requester.reports) == 1)
    requester.ask(service, information([reference(FILES[1])]))
    wait_for(lambda: len(requester.reports) == 2)
    (first, failed, _), (second, safe, _) = requester.reports
    assert (first, "ReferencedSOPSequence" in failed) == (2, False)
    assert (second, "FailedSOPSequence" in safe) == (1, False)


def test_the_same_request_again_is_reported_again(service: Service, requester: Requester) -> None:
    """For a console that has lost the report; it stays one transaction."""
    asked = information([reference(FILES[0])])
    for count in (1, 2):
        assert requester.ask(service, asked) == 0x0000
        wait_for(lambda count=count: len(requester.reports) == count)  # type: ignore[misc]
    assert [kind for kind, *_ in requester.reports] == [1, 1]
    worklist = service.worklist()
    wait_for(lambda: worklist.commitments.records()[0].state is CommitmentState.REPORTED)
    assert len(worklist.commitments.records()) == 1
    worklist.close()


def test_a_transaction_uid_in_use_fails_what_comes_second(
    service: Service, requester: Requester
) -> None:
    """0131: other instances under a known Transaction UID."""
    uid = generate_uid()
    assert requester.ask(service, information([reference(FILES[0])], uid)) == 0x0000
    wait_for(lambda: len(requester.reports) == 1)
    assert requester.ask(service, information([reference(FILES[1])], uid)) == 0x0000
    wait_for(lambda: len(requester.reports) == 2)
    kind, report, _ = requester.reports[1]
    assert kind == 2
    assert [item.FailureReason for item in report.FailedSOPSequence] == [0x0131]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The value length")
def test_what_is_no_request_is_refused(service: Service, requester: Requester) -> None:
    """With the status of PS3.7, a line in the log, and nothing kept."""
    good = [reference(FILES[0])]
    without_uid, without_items = information(good), information(good)
    del without_uid.TransactionUID
    del without_items.ReferencedSOPSequence
    empty, broken, long = information([]), information([(CR, "1.2.x")]), information([(CR, "1.2")])
    long.TransactionUID = "1." + "2" * 70
    calls = [
        ((information(good), 1, "1.2.3"), 0x0112),
        ((information(good), 2), 0x0123),
        ((without_uid,), 0x0114),
        ((without_items,), 0x0114),
        ((empty,), 0x0114),
        ((None,), 0x0114),
        ((broken,), 0x0115),
        ((long,), 0x0115),
    ]
    for arguments, status in calls:
        assert requester.ask(service, *arguments) == status, arguments  # type: ignore[arg-type]
    stranger = Requester("STRANGER")
    assert stranger.ask(service, information(good)) == 0x0124
    lines = told(service, "commitment_refused")
    assert len(lines) == len(calls) + 1
    assert "STRANGER@HOST:PORT" in lines[-1]["advice"]
    worklist = service.worklist()
    assert worklist.commitments.records() == []
    worklist.close()
    assert requester.reports == []


def test_a_requester_that_is_away_gets_its_report_later(
    service: Service, requester: Requester
) -> None:
    """It refuses once, is gone, and comes back; until then the operator sees it waiting."""
    requester.answers = [0x0110]
    requester.ask(service, information([reference(FILES[0])]))
    wait_for(lambda: told(service, "commitment_not_reported"))
    line = told(service, "commitment_not_reported")[0]
    assert "0x0110" in line["error"]
    assert line["next_attempt_in"] == 5.0
    requester.close()
    # On a machine with much else to do the next attempts may have come by now.
    wait_for(lambda: len(told(service, "commitment_not_reported")) >= 2)
    assert (
        "no answer from CONSOLE@127.0.0.1" in told(service, "commitment_not_reported")[1]["error"]
    )
    assert "PENDING" in service.triage("commitments", "list").stdout
    requester.listen()
    retried = service.triage("commitments", "retry", "1")
    assert retried.returncode == 0, retried.stderr
    wait_for(lambda: len(requester.reports) == 2)
    wait_for(lambda: "REPORTED" in service.triage("commitments", "list").stdout)


def test_a_killed_reporter_s_claim_returns(service: Service, requester: Requester) -> None:
    """It dies between claim and report; its successor reports."""
    held, go_on = threading.Event(), threading.Event()

    def hold(event: evt.Event) -> tuple[int, None]:
        held.set()
        go_on.wait(20)
        return 0x0000, None

    requester._server.bind(evt.EVT_N_EVENT_REPORT, hold)
    requester.ask(service, information([reference(FILES[0])]))
    assert held.wait(10)
    requester._server.bind(evt.EVT_N_EVENT_REPORT, requester._reported)
    dead = service.part("commit")
    os.kill(dead, signal.SIGKILL)
    go_on.set()
    wait_for(lambda: requester.reports)
    assert requester.reports[0][0] == 1
    assert told(service, "claims_returned")[0]["count"] == 1


# The rows, on both databases


def test_what_fails_for_long_is_parked_and_can_be_tried_again(worklist: Worklist) -> None:
    """And a claim is held by one at a time."""
    rows = worklist.commitments
    assert rows.request("1.2", "CONSOLE", [(CR, "1.2.3")])
    assert not rows.request("1.2", "CONSOLE", [(CR, "1.2.3")])
    assert rows.claim("one", "OTHER", 3) is None
    claim = rows.claim("one", "CONSOLE", 3)
    assert claim is not None
    assert (claim.attempt, claim.references, claim.duplicate) == (1, ((CR, "1.2.3"),), False)
    assert rows.claim("two", "CONSOLE", 3) is None
    assert rows.abandon("two") == 0
    assert rows.abandon("one") == 1
    assert not rows.reported(claim), "the claim was lost"
    second = rows.claim("two", "CONSOLE", 3)
    assert second is not None
    assert rows.not_reported(second, "no answer", None)
    (record,) = rows.records(CommitmentState.PARKED)
    assert (record.error, record.attempts, record.next_attempt_at) == ("no answer", 2, None)
    assert rows.counts()[CommitmentState.PARKED] == 1
    assert rows.claim("two", "CONSOLE", 3) is None
    assert rows.retry_parked() == 1
    third = rows.claim("two", "CONSOLE", 3)
    assert third is not None
    assert third.attempt == 1
    assert rows.reported(third)
    assert rows.oldest_pending() is None
    assert rows.retry(record.id).state is CommitmentState.PENDING


def test_a_report_that_kills_every_process_is_parked(worklist: Worklist) -> None:
    """After the last attempt, so that it holds up no other."""
    rows = worklist.commitments
    rows.request("1.2", "CONSOLE", [(CR, "1.2.3")])
    for _ in range(3):
        assert rows.claim("one", "CONSOLE", 3) is not None
        rows.abandon("one")
    assert rows.claim("one", "CONSOLE", 3) is None
    (record,) = rows.records()
    assert record.state is CommitmentState.PARKED
    assert "died" in record.error


def test_two_associations_ask_the_same_at_once(worklist: Worklist) -> None:
    """It is one transaction."""
    barrier = threading.Barrier(8)
    new: list[bool] = []

    def ask() -> None:
        barrier.wait()
        new.append(worklist.commitments.request("1.2", "CONSOLE", [(CR, "1.2.3")]))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(new) == [False] * 7 + [True]
    assert len(worklist.commitments.records()) == 1
