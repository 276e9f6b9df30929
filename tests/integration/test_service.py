"""``triage serve`` as processes: what is killed, cut off, started twice or in the way."""

import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from sqlalchemy import text

from tests.builders import chest_radiograph, encoded, picture, radiograph, save
from tests.conftest import SAMPLES, Service, free_port, wait_for
from tests.integration.test_observability import page
from triage.admission import Population
from triage.app import METRICS_PORTS
from triage.assessment import Assessor
from triage.identity import Instance
from triage.pixels import Array
from triage.registry import ALIASES
from triage.scoring import Score
from triage.send import send
from triage.spool import Spool, digest_of
from triage.worker import Worker
from triage.worklist import Arrival, State, Worklist
from triage.worklist.schema import migrate, open_engine

SECRETS = {
    "PatientName": "SECRET^NAME",
    "PatientID": "SECRET-ID",
    "AccessionNumber": "SECRET-ACC",
    "StudyDescription": "SECRET DESCRIPTION",
}
COMMAND = (sys.executable, "-m", "triage")


@pytest.fixture
def exams(tmp_path: Path) -> list[Path]:
    """Forty radiographs of 0.5 MB."""
    folder = tmp_path / "exams"
    folder.mkdir()
    made = chest_radiograph(shape=(560, 464), **SECRETS)
    files = []
    for number in range(40):
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            setattr(made, keyword, generate_uid())
        files.append(save(made, folder / f"{number:02}.dcm"))
    return files


def uid_of(file: Path) -> str:
    """A file's SOP Instance UID."""
    return str(dcmread(file, stop_before_pixels=True).SOPInstanceUID)


def query(service: Service, sql: str) -> list[tuple[object, ...]]:
    """What the service's database answers, asked as somebody else would."""
    connection = sqlite3.connect(service.home / "worklist.sqlite", timeout=30)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def count(service: Service, sql: str) -> int:
    """A number that the service's database answers."""
    ((number,),) = query(service, f"SELECT count(*) FROM {sql}")
    assert isinstance(number, int)
    return number


def wait_until_settled(service: Service, seconds: float = 90.0) -> None:
    """Wait until nothing waits for its score."""
    wait_for(lambda: not count(service, "items WHERE state = 'RECEIVED'"), seconds)


def failed_start(service: Service, *arguments: str) -> str:
    """The one line that a start that fails ends with."""
    done = service.triage("serve", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert "Traceback" not in done.stderr
    assert all(line.startswith("triage: ") for line in lines)
    # The page may have come so far before another part refused.
    lines = [line for line in lines if not line.startswith("triage: first start: ")]
    assert lines
    return lines[0]


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def storescu(service: Service, files: list[Path]) -> list[Path]:
    """Send with DCMTK's storescu; the files that were acknowledged with Success."""
    command = ["storescu", "-v", "-aec", "TRIAGE", "127.0.0.1", str(service.port)]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
    acknowledged, current = [], Path()
    for line in (done.stdout + done.stderr).splitlines():
        if "Sending file: " in line:
            current = Path(line.partition("Sending file: ")[2])
        elif "Received Store Response (Success)" in line:
            acknowledged.append(current)
    return acknowledged


def console(service: Service, files: list[Path], acknowledged: list[Path]) -> None:
    """Send each file until it is acknowledged, as a console's queue does."""
    deadline = time.monotonic() + 90
    while len(acknowledged) < len(files) and time.monotonic() < deadline:
        acknowledged += storescu(service, [file for file in files if file not in acknowledged])
        time.sleep(0.1)


def test_samples_are_scored_or_say_why_not(service: Service) -> None:
    """A score for what it was trained on, a reason for the rest, and no patient data logged."""
    done = service.triage("send", str(SAMPLES))
    assert done.returncode == 0, done.stderr
    wait_until_settled(service)
    rows = json.loads(service.triage("worklist", "--json").stdout)
    assert len(rows) == len(list(SAMPLES.glob("*.dcm")))
    assert {row["state"] for row in rows} == {"SCORED", "NOT_SCORED"}
    for row in rows:
        scored = row["state"] == "SCORED"
        assert (row["reason"] is None) is scored
        assert (row["score"] is not None) is scored
        assert not scored or row["flagged"] is (row["score"] >= row["threshold"])
    lines = service.events()
    assert {"listening", "worker_ready", "stored", "scored", "not_scored"} <= {
        line["action"] for line in lines
    }
    log = service.log.read_text()
    for file in SAMPLES.glob("*.dcm"):
        header = dcmread(file, stop_before_pixels=True)
        for keyword in ("PatientName", "PatientID", "AccessionNumber"):
            assert str(header.get(keyword) or "\0") not in log


def test_kills_lose_no_acknowledged_image_and_score_none_twice(
    service: Service, exams: list[Path]
) -> None:
    """kill -9 of receiver and worker, twice each, in the middle of forty images."""
    acknowledged: list[Path] = []
    thread = threading.Thread(target=console, args=(service, exams, acknowledged))
    thread.start()
    for received, role in ((4, "receive"), (10, "score"), (16, "receive"), (22, "score")):
        wait_for(lambda at_least=received: count(service, "items") >= at_least)
        service.kill(role)
        listed = {uid for (uid,) in query(service, "SELECT sop_instance_uid FROM items")}
        assert {uid_of(file) for file in list(acknowledged)} <= listed
    thread.join(120)
    assert sorted(acknowledged) == exams
    wait_until_settled(service)
    assert_each_is_scored_once(service, exams)


def test_dcmsend_gets_everything_through_in_spite_of_kills(
    service: Service, exams: list[Path]
) -> None:
    """Called again until it succeeds, after both parts were killed in the middle of it."""
    command = ["dcmsend", "-aec", "TRIAGE", "127.0.0.1", str(service.port), *map(str, exams)]
    for attempt in range(60):
        sender = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if attempt == 0:
            wait_for(lambda: count(service, "items") >= 8)
            for role in ("receive", "score"):
                service.kill(role)
            assert sender.wait(60) != 0
        if sender.wait(60) == 0:
            break
        time.sleep(0.2)
    else:
        pytest.fail("dcmsend never succeeded")
    wait_until_settled(service)
    assert_each_is_scored_once(service, exams)


def assert_each_is_scored_once(service: Service, exams: list[Path]) -> None:
    """Each file has a row, a kept data set, one score and one SCORED event."""
    worklist = service.worklist()
    items = worklist.items()
    assert {item.sop_instance_uid for item in items} == {uid_of(file) for file in exams}
    for item in items:
        assert (item.state, item.reason) == (State.SCORED, None)
        kept = service.home / "spool" / "instances" / item.digest[:2] / f"{item.digest}.dcm"
        assert kept.is_file()
        actions = Counter(entry.action for entry in worklist.journal(item.sop_instance_uid))
        assert actions == {"RECEIVED": 1, "SCORED": 1}
    worklist.close()
    assert count(service, "scores") == len(exams)
    assert list((service.home / "spool" / "incoming").iterdir()) == []


def test_parts_end_with_a_killed_supervisor(service: Service) -> None:
    """kill -9 of the supervisor: no part is left, and the port is free for the next start."""
    assert service.process is not None
    parts = [service.part("receive"), service.part("score")]
    service.process.kill()
    service.process.wait()
    wait_for(lambda: all(map(gone, parts)), seconds=10)
    service.start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_within_seconds(
    new_service: Callable[..., Service], number: signal.Signals, exams: list[Path]
) -> None:
    """With exit status 0, in the middle of work, and no part left."""
    service = new_service()
    service.start()
    assert service.process is not None
    list(send(exams[:10], service.destination))
    parts = [service.part("receive"), service.part("score")]
    service.process.send_signal(number)
    assert service.process.wait(20) == 0
    assert all(map(gone, parts))
    service.process = None
    assert not service.answers()


def test_a_second_worker_goes_on_while_one_hangs(
    new_service: Callable[..., Service], exams: list[Path]
) -> None:
    """As `triage serve` comes: two workers; what the dead one held is scored by its successor."""
    base = free_port()
    service = new_service(TRIAGE_WORKERS="2", TRIAGE_METRICS_PORT=str(base))
    service.start("--roles", "receive,score")
    for port in (base + METRICS_PORTS["score"], base + len(METRICS_PORTS)):
        wait_for(lambda at=port: page(at, "/readyz") == (200, "ok\n"), 60)
    hung = service.part("score")
    os.kill(hung, signal.SIGSTOP)
    list(send(exams, service.destination))
    wait_for(lambda: count(service, "scores") >= len(exams) - 1, 60)
    os.kill(hung, signal.SIGKILL)
    wait_until_settled(service)
    assert_each_is_scored_once(service, exams)


def test_a_restart_keeps_everything(new_service: Callable[..., Service], exams: list[Path]) -> None:
    """What was scored and what still waited; nothing is scored twice."""
    service = new_service()
    service.start()
    list(send(exams[:10], service.destination))
    service.stop()
    before = count(service, "items")
    assert before == 10
    service.start()
    wait_until_settled(service)
    assert_each_is_scored_once(service, exams[:10])
    assert all(sent.accepted for sent in send(exams[:10], service.destination))
    assert_each_is_scored_once(service, exams[:10])
    service.stop()


@pytest.mark.parametrize("same_home", [True, False])
def test_a_second_service_on_a_taken_port_tells_so(
    service: Service, new_service: Callable[..., Service], exams: list[Path], *, same_home: bool
) -> None:
    """One clear line and exit status 1; the first goes on and nothing of it is disturbed."""
    half = service.home / "spool" / "incoming" / "half-received"
    half.write_bytes(b"the first service is writing this")
    second = new_service(TRIAGE_DICOM_PORT=str(service.port))
    if same_home:
        second.home = service.home
    line = failed_start(second)
    if same_home:
        assert str(service.home) in line
    else:
        assert str(service.port) in line
        assert "TRIAGE_DICOM_PORT" in line
    assert half.exists()
    half.unlink()
    assert service.answers()
    assert all(sent.accepted for sent in send(exams[:2], service.destination))
    wait_until_settled(service)
    assert_each_is_scored_once(service, exams[:2])


def test_a_home_that_cannot_be_written_is_told(new_service: Callable[..., Service]) -> None:
    """A file in its place or the spool's, and a file system that takes no folder."""
    service = new_service()
    service.home.write_bytes(b"")
    line = failed_start(service)
    assert str(service.home) in line
    assert "TRIAGE_HOME" in line
    assert service.home.read_bytes() == b""
    assert "/proc/triage" in failed_start(new_service(TRIAGE_HOME="/proc/triage"))
    service = new_service()
    service.home.mkdir()
    (service.home / "spool").write_bytes(b"")
    assert str(service.home / "spool") in failed_start(service)


def test_a_database_of_a_newer_version_is_told(new_service: Callable[..., Service]) -> None:
    """One line, exit status 1, nothing changed."""
    service = new_service()
    assert service.triage("migrate").returncode == 0
    connection = sqlite3.connect(service.home / "worklist.sqlite")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("UPDATE schema_compatibility SET oldest = '9999'")
    connection.close()
    line = failed_start(service)
    assert "newer" in line
    assert "9999" in line
    assert query(service, "SELECT version_num FROM alembic_version") == [("9999",)]
    for command in (["worklist"], ["migrate"], ["show", "1.2"]):
        done = service.triage(*command)
        assert done.returncode == 1
        assert "newer" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_parts_load_only_what_they_need(service: Service, exams: list[Path]) -> None:
    """The worker no TensorFlow, the receiver no OpenVINO and less than 200 MB."""
    list(send(exams[:2], service.destination))
    wait_until_settled(service)

    def maps(role: str) -> str:
        return Path(f"/proc/{service.part(role)}/maps").read_text().lower()

    assert "openvino" in maps("score")
    # What importing Keras maps; OpenVINO has a folder `tensorflow` of its own.
    for library in ("-packages/tensorflow/", "-packages/h5py/", "-packages/sklearn/"):
        assert library not in maps("score")
        assert library not in maps("receive")
    assert "openvino" not in maps("receive")
    status = Path(f"/proc/{service.part('receive')}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 200_000


def test_what_is_written_is_for_this_user_only(service: Service, exams: list[Path]) -> None:
    """Files and folders with patient data have no permissions for anybody else."""
    list(send(exams[:1], service.destination))
    paths = [service.home, *service.home.glob("worklist.sqlite*"), *service.home.rglob("*.dcm")]
    assert len(paths) >= 3
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


@pytest.fixture
def second_worker(service: Service) -> Iterator[subprocess.Popen[bytes]]:
    """Another worker on the same home."""
    with service.log.open("ab") as log:
        worker = subprocess.Popen(
            [*COMMAND, "serve", "--roles", "score"],
            env=service.environment, cwd=service.home.parent, stderr=log,
        )  # fmt: skip
    wait_for(lambda: service.log.read_text().count("worker_ready") == 2)
    yield worker
    worker.terminate()
    assert worker.wait(20) == 0


def test_workers_share_the_work(
    service: Service, second_worker: subprocess.Popen[bytes], exams: list[Path]
) -> None:
    """Both score, and no item is scored twice."""
    for _ in range(3):  # as much as it takes for both to come to it
        list(send(exams, service.destination))
        wait_until_settled(service)
    assert_each_is_scored_once(service, exams)
    workers = {
        actor for (actor,) in query(service, "SELECT actor FROM events WHERE action = 'SCORED'")
    }
    assert len(workers) == 2
    assert all(isinstance(name, str) and name.rpartition("/")[2] for name in workers)


def test_a_worker_that_was_stopped_for_long_records_nothing_twice(
    service: Service, second_worker: subprocess.Popen[bytes], exams: list[Path]
) -> None:
    """SIGSTOP while it holds a claim whose lease ends: the other one scores, its own is lost."""
    second_worker.send_signal(signal.SIGSTOP)
    list(send(exams[:10], service.destination))
    connection = sqlite3.connect(service.home / "worklist.sqlite", timeout=30)
    with connection:
        connection.execute(
            "UPDATE items SET claimed_until = '2000-01-01 00:00:00.000000' "
            "WHERE claimed_until IS NOT NULL"
        )
    connection.close()
    wait_until_settled(service)
    second_worker.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    assert_each_is_scored_once(service, exams[:10])


def test_a_model_that_is_away_holds_images_up_and_fails_none(
    service: Service, exams: list[Path]
) -> None:
    """The receiver goes on receiving, `triage check` names the model, and all are scored later."""
    aliases = service.home / "models" / ALIASES
    good = aliases.read_bytes()
    aliases.write_bytes(b"{")
    assert all(sent.accepted for sent in send(exams[:3], service.destination))
    wait_for(lambda: "model_unavailable" in service.log.read_text())
    check = service.triage("check")
    assert check.returncode == 1
    assert "FAIL  model" in check.stdout
    time.sleep(1.0)
    assert count(service, "items WHERE state = 'RECEIVED'") == 3
    aliases.write_bytes(good)
    wait_until_settled(service)
    assert_each_is_scored_once(service, exams[:3])


def test_a_database_that_was_away_is_waited_for(service: Service, exams: list[Path]) -> None:
    """The console gets a refusal, both parts go on, and what is sent again is scored."""
    connection = sqlite3.connect(service.home / "worklist.sqlite", isolation_level=None, timeout=30)
    connection.execute("ALTER TABLE items RENAME TO hidden")
    (sent,) = send(exams[:1], service.destination)
    assert not sent.accepted
    assert "A700" in sent.explanation
    wait_for(lambda: "worklist_unavailable" in service.log.read_text())
    connection.execute("ALTER TABLE hidden RENAME TO items")
    connection.close()
    assert all(sent.accepted for sent in send(exams[:2], service.destination))
    wait_until_settled(service)
    assert_each_is_scored_once(service, exams[:2])
    assert "SECRET" not in service.log.read_text()


def test_a_result_that_could_not_be_recorded_is_made_again_soon(tmp_path: Path) -> None:
    """The database goes away while an image is scored: its claim returns before its lease ends."""
    url = f"sqlite:///{tmp_path / 'worklist.sqlite'}"
    engine = open_engine(url, create=True)
    migrate(engine)
    worklist, spool = Worklist(url), Spool(tmp_path / "spool")
    spool.prepare()
    made = radiograph(picture(1))
    content = encoded(made)
    spool.put(digest_of(content), content)
    worklist.receive(
        Arrival(Instance.of(made), ExplicitVRLittleEndian, "X", "", digest_of(content), 1)
    )

    def rename(old: str, new: str) -> None:
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    class Saboteur:
        """A scorer that takes the database away when it is first asked."""

        model_version = "saboteur-1"
        asked = 0

        def score(self, array: Array) -> Score:
            self.asked += 1
            if self.asked == 1:
                rename("items", "hidden")
                threading.Timer(0.5, rename, ("hidden", "items")).start()
            return Score(0.5, 0.5, self.model_version)

    saboteur, stop = Saboteur(), threading.Event()
    population = Population("anybody", None, ("PA",))
    champion = Assessor(saboteur, population)
    worker = Worker("w", worklist, spool, lambda: champion)
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: saboteur.asked == 2, seconds=20)
    finally:
        stop.set()
        thread.join()
    assert worklist.counts()[State.SCORED] == 1
    worklist.close()
    engine.dispose()


def broken(**changes: object) -> Dataset:
    """A radiograph that cannot be scored."""
    return radiograph(picture(2), **SECRETS, **changes)


def test_broken_images_are_kept_told_and_hold_nothing_up(
    service: Service, exams: list[Path], tmp_path: Path
) -> None:
    """No pixel data, cut short, impossible sizes: Success, a reason, and the next is scored."""
    absent = broken()
    del absent.PixelData
    files = [
        save(absent, tmp_path / "absent.dcm"),
        save(broken(Rows=0), tmp_path / "no-rows.dcm"),
        save(broken(Rows=65_535, Columns=65_535), tmp_path / "huge.dcm"),
        save(broken(BitsAllocated=7), tmp_path / "bits.dcm"),
    ]
    cut = save(broken(), tmp_path / "cut.dcm")
    cut.write_bytes(cut.read_bytes()[:-1_000])
    files.append(cut)
    for file in files:
        (sent,) = send([file], service.destination)
        assert sent.accepted or sent.explanation, file
    assert all(sent.accepted for sent in send(exams[:1], service.destination))
    wait_until_settled(service)
    rows = json.loads(service.triage("worklist", "--json").stdout)
    assert {row["sop_instance_uid"]: row["state"] for row in rows}[uid_of(exams[0])] == "SCORED"
    others = [row for row in rows if row["sop_instance_uid"] != uid_of(exams[0])]
    assert len(others) == len(files)
    for row in others:
        assert row["state"] == "NOT_SCORED", row
        assert row["reason"]
        assert row["explanation"]
    log = service.log.read_text()
    assert "SECRET" not in log
    assert "Traceback" not in log


def test_a_command_that_there_is_not_ends_its_association_and_no_more(service: Service) -> None:
    """The log says who it was and that its message is none; no thread dies of it."""
    ae = AE()
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", service.port, ae_title="TRIAGE")
    command = struct.pack("<HHIH", 0x0000, 0x0100, 2, 0x7777)
    value = struct.pack(">IBB", len(command) + 2, 1, 0x03) + command
    association.dul.socket.send(struct.pack(">BxI", 0x04, len(value)) + value)
    wait_for(lambda: not association.is_established)
    wait_for(lambda: "association_aborted" in service.log.read_text())
    assert "what PS3.7 allows" in service.log.read_text()
    assert "thread_died" not in service.log.read_text()
    assert "Traceback" not in service.log.read_text()
    assert service.answers()


def test_a_silent_port_scan_does_not_disturb(service: Service) -> None:
    """A hundred connections that say nothing, and the next console is served."""
    connections = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(20)]
    assert service.answers()
    for connection in connections:
        connection.close()
    for _ in range(80):
        socket.create_connection(("127.0.0.1", service.port)).close()
    wait_for(service.answers, seconds=5)
