"""Orthanc, a PACS that is not ours: consoles send to us, and it shows what we found.

Orthanc is asked by its REST interface, as its users' viewers do.
"""

import itertools
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from tests.conftest import SAMPLES, Service, wait_for
from tests.orthanc import Orthanc
from triage.worklist import State, WorklistItem
from triage.worklist.deliveries import DeliveryState, ResultKind

RESULTS = {
    ResultKind.FINDING: Comprehensive3DSRStorage,
    ResultKind.HEAT_MAP: SecondaryCaptureImageStorage,
}


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """A running Orthanc."""
    running = Orthanc(tmp_path / "orthanc")
    running.start()
    yield running
    running.stop()


@pytest.fixture
def service(orthanc: Orthanc, new_service: Callable[..., Service]) -> Iterator[Service]:
    """A service that delivers to Orthanc."""
    destination = {
        "kind": "dicom", "name": "pacs", "host": "127.0.0.1", "port": orthanc.dicom_port,
        "ae_title": "ORTHANC",
    }  # fmt: skip
    running = new_service(
        TRIAGE_DESTINATIONS=json.dumps([destination]),
        TRIAGE_DELIVERY_PAUSE_SECONDS="0.2",
        TRIAGE_ORGANIZATION="Städtisches Klinikum",
    )
    running.start()
    yield running
    running.stop()


def scored(service: Service) -> list[WorklistItem]:
    """The items with a score, once nothing waits for one."""
    worklist = service.worklist()
    try:
        wait_for(lambda: worklist.items() and not worklist.counts()[State.RECEIVED], seconds=60)
        return [item for item in worklist.items() if item.score is not None]
    finally:
        worklist.close()


def wait_for_deliveries(service: Service, count: int) -> None:
    """Until so many are delivered, and none is anything else."""
    worklist = service.worklist()

    def delivered() -> bool:
        states = [record.state for record in worklist.deliveries.records()]
        return states == [DeliveryState.DELIVERED] * count

    wait_for(delivered, seconds=120)
    worklist.close()


def check_with_dciodvfy(content: bytes, folder: Path) -> None:
    """Let dicom3tools look for errors in an instance."""
    file = folder / "from-orthanc.dcm"
    file.write_bytes(content)
    told = subprocess.run(
        ["dciodvfy", str(file)], capture_output=True, text=True, check=False
    ).stderr
    assert [line for line in told.splitlines() if line.startswith("Error")] == []


def send_as_consoles(service: Service, orthanc: Orthanc) -> None:
    """One console sends with dcmsend, one with storescu; each to us and to the PACS."""
    files = sorted(SAMPLES.glob("*.dcm"))
    plain = [f for f in files if not dcmread(f).file_meta.TransferSyntaxUID.is_encapsulated]
    for title, port in (("TRIAGE", service.port), ("ORTHANC", orthanc.dicom_port)):
        rest = [str(file) for file in files if file not in plain[:4]]
        subprocess.run(["dcmsend", "-aec", title, "127.0.0.1", str(port), *rest], check=True)
        first = [str(file) for file in plain[:4]]
        subprocess.run(["storescu", "-aec", title, "127.0.0.1", str(port), *first], check=True)


def test_results_stand_in_orthanc_beside_the_radiographs(
    service: Service, orthanc: Orthanc, tmp_path: Path
) -> None:
    """Right study, patient and accession number; valid; a second delivery adds nothing."""
    send_as_consoles(service, orthanc)
    radiographs = len(list(SAMPLES.glob("*.dcm")))
    items = scored(service)
    assert len(items) >= 8
    wait_for_deliveries(service, 2 * len(items))
    assert orthanc.count() == radiographs + 2 * len(items)

    by_uid = {item.sop_instance_uid: item for item in items}
    worklist = service.worklist()
    records = worklist.deliveries.records()
    for record in records:
        item = by_uid[record.sop_instance_uid]
        instance = orthanc.instance(str(record.result_uid))
        study = orthanc.get(f"/instances/{instance}/study")
        assert study["MainDicomTags"]["StudyInstanceUID"] == item.study_instance_uid
        assert study["MainDicomTags"]["AccessionNumber"] == item.accession_number
        assert study["PatientMainDicomTags"]["PatientID"] == item.patient_id
        content = orthanc.raw(f"/instances/{instance}/file")
        assert dcmread(DicomBytesIO(content)).SOPClassUID == RESULTS[record.kind]
        check_with_dciodvfy(content, tmp_path)
        if record.kind is ResultKind.HEAT_MAP:
            assert orthanc.raw(f"/instances/{instance}/preview").startswith(b"\x89PNG")

    before = orthanc.get("/statistics")
    for record in records:
        worklist.deliveries.retry(record.id, "test")
    worklist.close()
    wait_for_deliveries(service, 2 * len(items))
    assert orthanc.get("/statistics") == before


def test_a_reading_brings_an_updated_report_that_refers_to_the_first(
    service: Service, orthanc: Orthanc, tmp_path: Path
) -> None:
    """Confirmed, then rejected: three reports, each of which replaces the one before."""
    subprocess.run(
        ["dcmsend", "-aec", "TRIAGE", "127.0.0.1", str(service.port),
         str(SAMPLES / "03-dx-ap-opacity.dcm")],
        check=True,
    )  # fmt: skip
    (item,) = scored(service)
    wait_for_deliveries(service, 2)
    for number, verdict in enumerate(("confirmed", "rejected"), 1):
        ran = service.triage(
            "read", item.sop_instance_uid, "--verdict", verdict, "--reader", "Müller^Eva"
        )
        assert ran.returncode == 0, ran.stderr
        wait_for_deliveries(service, 2 + number)
    worklist = service.worklist()
    reports = []
    for record in worklist.deliveries.records():
        if record.kind is not ResultKind.HEAT_MAP:
            content = orthanc.raw(f"/instances/{orthanc.instance(str(record.result_uid))}/file")
            check_with_dciodvfy(content, tmp_path)
            reports.append(dcmread(DicomBytesIO(content)))
    worklist.close()
    reports.sort(key=lambda report: int(report.InstanceNumber))
    assert [report.VerificationFlag for report in reports] == [
        "UNVERIFIED", "VERIFIED", "VERIFIED"
    ]  # fmt: skip
    assert len({report.SeriesInstanceUID for report in reports}) == 1
    for replaced, report in itertools.pairwise(reports):
        (study,) = report.PredecessorDocumentsSequence
        (series,) = study.ReferencedSeriesSequence
        (instance,) = series.ReferencedSOPSequence
        assert instance.ReferencedSOPInstanceUID == replaced.SOPInstanceUID
        (verifier,) = report.VerifyingObserverSequence
        assert str(verifier.VerifyingObserverName) == "Müller^Eva"
        assert verifier.VerifyingOrganization == "Städtisches Klinikum"


def test_a_pacs_that_was_down_gets_its_results(service: Service, orthanc: Orthanc) -> None:
    """Nothing is lost in between, and the worklist is not kept waiting."""
    orthanc.stop()
    subprocess.run(
        ["dcmsend", "-aec", "TRIAGE", "127.0.0.1", str(service.port),
         *map(str, sorted(SAMPLES.glob("*.dcm"))[:4])],
        check=True,
    )  # fmt: skip
    items = scored(service)
    assert items
    worklist = service.worklist()
    wait_for(lambda: any(record.error for record in worklist.deliveries.records()))
    worklist.close()
    orthanc.start()
    wait_for_deliveries(service, 2 * len(items))
    assert orthanc.count() == 2 * len(items)
