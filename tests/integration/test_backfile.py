"""The back file: scored once, whatever becomes of workers; nothing live moves before --apply."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import Dataset

from tests.builders import chest_radiograph, save
from tests.conftest import Service, free_port, wait_for
from tests.exams import arrival, enter
from tests.orthanc import Orthanc
from tests.versions import another
from triage.admission import Population
from triage.app import prepare
from triage.archives import archive
from triage.assessment import Assessment, Assessor
from triage.cluster import connect
from triage.config import Config
from triage.crew import Cluster, Crew, Image, Processes, assess_all
from triage.errors import (
    ArchiveError,
    ConfigError,
    ServiceError,
    SpoolError,
    SpoolOutage,
    WorklistError,
)
from triage.pixels import Array
from triage.registry import CHAMPION, Registry
from triage.scoring import Evidence, Priority, Score
from triage.send import Destination, send
from triage.worklist import State, Worklist
from triage.worklist.backfile import Answer, BackFile, Selection
from triage.worklist.deliveries import ResultKind, Route
from triage.worklist.readings import Said

ALL = Selection()
NEW = "v2"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


class Grey:
    """A scorer that says how bright a picture is."""

    model_version = NEW

    def explained(self, array: Array) -> tuple[Score, Evidence | None]:
        return self.score(array), None

    def score(self, array: Array) -> Score:
        return Score(float(array.mean()), 0.5, NEW)


def grey() -> Assessor:
    """In a worker."""
    return Assessor(Grey(), Population("anybody", None, ()))


def unfit() -> Assessor:
    """In a worker of a broken installation."""
    raise ServiceError("no network here")


@dataclass(frozen=True)
class Here:
    """A picture that does something to who reads it."""

    does: str = ""
    file: Path | None = None

    def read(self) -> Dataset:
        if self.does == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.does == "hang":
            signal.setitimer(signal.ITIMER_REAL, 0.2)  # the time that it has, shortened
            while True:
                time.sleep(1)
        if self.does == "crash once" and self.file is not None and not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does == "lost":
            raise SpoolError("it is not there")
        if self.does == "down":
            raise ArchiveError("the archive is down")
        if self.does == "out":
            raise SpoolOutage("the store is out")
        return chest_radiograph()


@pytest.fixture(params=["processes", "ray"])
def crew(request: pytest.FixtureRequest) -> Iterator[Callable[..., Crew]]:
    """Two workers of either kind."""
    made: list[Processes | Cluster] = []

    def make(what: Callable[[], Assessor] = grey) -> Crew:
        if request.param == "ray":
            pytest.importorskip("ray")
            made.append(Cluster(what, "local", 2))
        else:
            made.append(Processes(what, 2))
        return made[-1]

    yield make
    for each in made:
        each.close()


def said(crew: Crew, images: list[Image]) -> dict[str, Assessment | str]:
    """What comes of images; each comes once."""
    found = [each for done in assess_all(crew, images) for each in done]
    assert sorted(image.name for image, _ in found) == sorted(image.name for image in images)
    return {image.name: what for image, what in found}


def test_what_breaks_a_worker_costs_one_image(crew: Callable[..., Crew], tmp_path: Path) -> None:
    """A crash, a hang, a killed worker and a missing file among many good ones."""
    images = [Image(str(n), "", Here()) for n in range(40)]
    images[5] = Image("5", "", Here("crash"))
    images[6] = Image("6", "", Here("crash once", tmp_path / "once"))
    images[17] = Image("17", "", Here("hang"))
    images[30] = Image("30", "", Here("lost"))
    found = said(crew(), images)
    failed = {name: what for name, what in found.items() if isinstance(what, str)}
    assert set(failed) == {"5", "17", "30"}
    assert failed["5"] == failed["17"] == "the worker died, or did not end, 3 times with it"
    assert failed["30"] == "it is not there"
    good = {what.score for what in found.values() if isinstance(what, Assessment)}
    assert len(good) == 1
    with pytest.raises(ArchiveError, match="the archive is down"):
        said(crew(), [Image("down", "", Here("down"))])
    with pytest.raises(SpoolOutage, match="the store is out"):
        said(crew(), [Image("out", "", Here("out"))])
    with pytest.raises(ServiceError, match="no network here"):
        said(crew(unfit), [Image("any", "", Here())])


def test_ray_reports_nothing_and_listens_on_loopback_only() -> None:
    """Neither usage statistics nor a port that another machine could reach."""
    pytest.importorskip("ray")
    script = (
        "import os, subprocess, sys\n"
        "os.environ.pop('RAY_USAGE_STATS_ENABLED', None)\n"
        "from triage.cluster import connect\n"
        "ray = connect('local', 1)\n"
        "from ray._common.usage import usage_lib\n"
        "assert not usage_lib.usage_stats_enabled()\n"
        "told = ray.remote(lambda: os.environ['RAY_USAGE_STATS_ENABLED'])\n"
        "assert ray.get(told.remote()) == '0'\n"
        "rows = subprocess.run(['ps', '-eo', 'pid=,ppid='], capture_output=True, text=True)\n"
        "pairs = [tuple(map(int, row.split())) for row in rows.stdout.splitlines()]\n"
        "ours = {os.getpid()}\n"
        "for _ in range(6): ours |= {pid for pid, parent in pairs if parent in ours}\n"
        "inodes = set()\n"
        "for pid in ours:\n"
        "    try:\n"
        "        for fd in os.listdir(f'/proc/{pid}/fd'):\n"
        "            try: inodes.add(os.readlink(f'/proc/{pid}/fd/{fd}'))\n"
        "            except OSError: pass\n"
        "    except OSError: pass\n"
        "for table in ('tcp', 'tcp6'):\n"
        "    for row in open(f'/proc/net/{table}').read().splitlines()[1:]:\n"
        "        field = row.split()\n"
        "        if field[3] == '0A' and f'socket:[{field[9]}]' in inodes: print(field[1])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    listening = ran.stdout.split()
    assert listening
    loopback = ("0100007F:", "0000000000000000FFFF00000100007F:", f"{'0' * 24}01000000:")
    assert [where for where in listening if not where.startswith(loopback)] == []


def test_a_cluster_that_is_not_there_is_told() -> None:
    """In a line, with what to look at."""
    pytest.importorskip("ray")
    with pytest.raises(ServiceError, match="is its head node running there"):
        connect(f"127.0.0.1:{free_port()}")
    with pytest.raises(ServiceError, match="is no Ray cluster"):
        connect("nonsense")


def judged(back_file: BackFile, uid: str, probability: float | None, failure: str = "") -> None:
    """Say of an image what the new version says."""
    found: Assessment | str
    if failure:
        found = failure
    elif probability is None:
        found = Assessment(reason="NOT_LIKE_TRAINING", explanation="a hand")
    else:
        found = Assessment(Score(probability, 0.5, NEW), notes=("BLURRED",), novelty=0.2)
    back_file.lead("me")
    back_file.keep("me", NEW, "spool", [Answer(uid, "", found)])
    back_file.resign("me")


def test_each_image_is_kept_once_and_only_a_failure_is_replaced(worklist: Worklist) -> None:
    """By image and version, with one process at a time."""
    back_file = worklist.back_file
    for number in range(3):
        enter(worklist, f"1.{number}")
    judged(back_file, "1.0", 0.9)
    judged(back_file, "1.0", 0.1)
    judged(back_file, "1.1", None, "lost")
    (first,) = [c for c in back_file.changes(NEW, "spool", ALL, "") if c.image == "1.0"]
    assert first.after == 0.9
    assert back_file.count(ALL, NEW, failed_too=False) == 1
    assert back_file.count(ALL, NEW, failed_too=True) == 2
    assert back_file.count(ALL, "v3", failed_too=False) == 3
    left = [
        each.sop_instance_uid
        for page in back_file.waiting(ALL, NEW, failed_too=True)
        for each in page
    ]
    assert left == ["1.1", "1.2"]
    judged(back_file, "1.1", 0.2)
    assert back_file.count(ALL, NEW, failed_too=True) == 1
    back_file.lead("me")
    with pytest.raises(WorklistError, match="being scored already"):
        back_file.lead("other")
    with pytest.raises(WorklistError, match="this one ends"):
        back_file.keep("other", NEW, "spool", [Answer("1.2", "", "no")])
    assert back_file.count(ALL, NEW, failed_too=False) == 1


def test_a_selection_is_what_it_says(worklist: Worklist) -> None:
    """By time, console, state and model version."""
    enter(worklist, "1.1")
    assert worklist.receive(arrival("1.2", console="CR2"))
    back_file, now = worklist.back_file, dt.datetime.now(dt.UTC)
    hour = dt.timedelta(hours=1)

    def count(**wanted: object) -> int:
        return back_file.count(Selection(**wanted), NEW, failed_too=False)  # type: ignore[arg-type]

    assert count() == 2
    assert (count(console="CR2"), count(console="CR3")) == (1, 0)
    assert (count(state=State.SCORED), count(model="v1"), count(model="v9")) == (1, 1, 0)
    assert (count(since=now - hour), count(since=now + hour)) == (2, 0)
    assert (count(until=now - hour), count(until=now + hour)) == (0, 2)


def test_live_rows_stay_until_told_and_are_never_lowered(worklist: Worklist) -> None:
    """Read exams keep their reading, orders and earlier flags their place; all is told."""
    worklist.back_file._routes = (Route("pacs", (ResultKind.FINDING,)),)
    old = {"high": Score(0.9, 0.5, "v1"), "low": Score(0.1, 0.5, "v1")}
    enter(worklist, "1.1", old["low"])  # gains a flag
    enter(worklist, "1.2", old["high"])  # loses one
    enter(worklist, "1.3", old["high"], ordered_priority="STAT")  # loses one
    enter(worklist, "1.4", old["high"])  # was read
    enter(worklist, "1.5", old["high"])  # the new version does not score it
    worklist.readings.add("1.4", Said("confirmed", "one"))
    assert worklist.receive(arrival("1.6"))  # is the worker's
    for uid, probability in (("1.1", 0.8), ("1.2", 0.2), ("1.3", 0.2), ("1.4", 0.2), ("1.6", 0.9)):
        judged(worklist.back_file, uid, probability)
    judged(worklist.back_file, "1.5", None)
    uids = [f"1.{n}" for n in range(1, 7)]
    before = {uid: worklist.item(uid) for uid in uids}
    assert all(item.model_version in {"v1", None} for item in before.values())
    assert all(e.action != "RESCORED" for uid in uids for e in worklist.journal(uid))

    done = worklist.back_file.apply(NEW, ALL, "me")
    assert (done.scored, done.gained, done.lost, done.kept, done.waiting) == (3, 1, 2, 1, 1)
    after = {uid: worklist.item(uid) for uid in uids}
    gained, lost, stat = after["1.1"], after["1.2"], after["1.3"]
    assert (gained.flagged, gained.urgency, gained.model_version) == (True, Priority.HIGH, NEW)
    assert (gained.notes, gained.revision) == (("BLURRED",), before["1.1"].revision + 1)
    assert (lost.flagged, lost.urgency) == (False, Priority.HIGH)
    assert (stat.flagged, stat.urgency) == (False, Priority.STAT)
    for uid in ("1.4", "1.5", "1.6"):
        same = ("state", "score", "flagged", "model_version", "revision", "urgency", "unread")
        assert [getattr(after[uid], n) for n in same] == [getattr(before[uid], n) for n in same]
    (event,) = [e for e in worklist.journal("1.4") if e.action == "RESCORED"]
    assert (event.actor, event.detail["kept"]) == ("me", "reading")
    told = [row for row in worklist.audit.records() if row.action == "RESCORED"]
    assert [row.subject for row in told] == ["1.1", "1.2", "1.3", "1.4"]
    worklist.audit.verify()
    assert sorted(
        each.sop_instance_uid for each in worklist.deliveries.records()
        if each.sop_instance_uid in uids
    ) == ["1.1", "1.2", "1.3"]  # fmt: skip
    assert worklist.back_file.apply(NEW, ALL, "me").scored == 0


@pytest.fixture
def home(new_service: Callable[..., Service]) -> Service:
    """An installation whose service does not run, with one scored exam of the live worker's."""
    service = new_service(TRIAGE_OUTSIDE_POPULATION="warn")
    prepare(Config.read(service.environment, service.home.parent))
    return service


def drawn(folder: Path, count: int) -> list[str]:
    """Files of radiographs; their SOP Instance UIDs."""
    uids = []
    folder.mkdir()
    for number in range(count):
        dataset = chest_radiograph(number, StudyDate="20260105", Modality="DX")
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            setattr(dataset, keyword, f"1.2.{len(keyword)}.{number}")
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        save(dataset, folder / f"{number}.dcm")
        uids.append(dataset.SOPInstanceUID)
    return uids


def told(service: Service, *options: str) -> dict[str, object]:
    """What `triage rescore --json` says."""
    ran = service.triage("rescore", "--json", *options)
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, object] = json.loads(ran.stdout)
    return answer


def test_the_command_says_what_the_live_worker_says(home: Service, tmp_path: Path) -> None:
    """From consoles to --apply: the same score to the last bit, and a report with pictures."""
    drawn(tmp_path / "files", 3)
    home.start("--roles", "receive,score")
    assert all(sent.accepted for sent in send([tmp_path / "files"], home.destination))
    worklist = home.worklist()
    wait_for(lambda: worklist.counts()[State.RECEIVED] == 0, 120)
    home.stop()
    live = {item.sop_instance_uid: item for item in worklist.items()}
    assert len(live) == 3
    models = Registry(home.home / "models")
    champion = models.aliases()[CHAMPION]
    changed = another(tmp_path / "another", threshold=0.000001).folder
    version = models.add(changed).version
    answer = told(home, "--model", version, "--where", "since=2020-01-01", "--workers", "1")
    assert (answer["images"], answer["failed"]) == (3, 0)
    rows = {c.image: c for c in worklist.back_file.changes(version, "spool", ALL, champion)}
    assert {uid: row.after for uid, row in rows.items()} == {u: i.score for u, i in live.items()}
    assert answer["gained"] == sum(not item.flagged for item in live.values() if item.score)
    page = Path(str(answer["report"])).read_text()
    assert "What " + version in page
    if answer["gained"]:
        assert "data:image/png;base64," in page or "None." in page
    assert {i.sop_instance_uid: i for i in worklist.items()}.keys() == live.keys()
    assert all(item.model_version == live[item.sop_instance_uid].model_version
               for item in worklist.items())  # fmt: skip
    refused = home.triage("rescore", "--model", version, "--apply")
    assert refused.returncode == 2
    assert "promote the version first" in refused.stderr
    again = told(home, "--model", version)
    assert again["images"] == 3
    wrong = home.triage("rescore", "--where", "colour=red")
    assert wrong.returncode == 2
    assert "since, until, console, state, model" in wrong.stderr
    worklist.close()


def test_archives_give_the_same_as_their_files(home: Service, tmp_path: Path) -> None:
    """A folder, DICOMweb, C-GET and C-MOVE, each against Orthanc."""
    if not PLUGIN.exists():
        pytest.skip("needs Debian's orthanc-dicomweb")
    uids = drawn(tmp_path / "files", 3)
    (tmp_path / "files" / "notes.txt").write_text("no DICOM")
    move_port = free_port()
    there = {"triage": Destination("127.0.0.1", move_port, "TRIAGE")}
    pacs = Orthanc(tmp_path / "pacs", there, {"Plugins": [str(PLUGIN)]})
    pacs.start()
    try:
        sent = list(
            send([tmp_path / "files"], Destination("127.0.0.1", pacs.dicom_port, "ORTHANC"))
        )
        assert all(each.accepted for each in sent)
        at = f"ORTHANC@127.0.0.1:{pacs.dicom_port}"
        sources = [
            f"folder:{tmp_path / 'files'}",
            f"dicomweb:http://127.0.0.1:{pacs.http_port}/dicom-web",
            f"cget:{at}",
            f"cmove:{at}",
        ]
        found: list[dict[str, bytes]] = []
        for source in sources:
            images = list(archive(source, "TRIAGE", move_port).images(None, None))
            assert sorted(image.name for image in images) == sorted(uids), source
            found.append({i.name: i.place.read().PixelData for i in images})
            day = dt.datetime(2026, 1, 6, tzinfo=dt.UTC)
            assert not list(archive(source, "TRIAGE", move_port).images(day, None))
        assert all(each == found[0] for each in found)
        answer = told(home, "--from", sources[1], "--workers", "1")
        assert (answer["images"], answer["failed"], answer["compared"]) == (3, 0, 0)
        assert told(home, "--from", sources[2], "--workers", "1")["images"] == 0  # known already
    finally:
        pacs.stop()
    down = home.triage("rescore", "--from", sources[1], "--where", "since=2020-01-01")
    assert down.returncode == 1
    assert "cannot be reached" in down.stderr
    down = home.triage("rescore", "--from", sources[2])
    assert down.returncode == 1
    assert "gives no association" in down.stderr
    with pytest.raises(ConfigError, match="is no archive"):
        archive("ftp:somewhere", "TRIAGE", 0)
