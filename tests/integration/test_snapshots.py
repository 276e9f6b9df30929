"""Snapshots of a site's labels: by patient and time, free of who withdrew, whole on disk."""

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from tests.retraining import retrain
from tests.site import Site
from training.labels import Label
from training.snapshots import (
    MANIFEST,
    PARTS,
    SiteSnapshot,
    age_band,
    arrays,
    read,
    take,
)
from triage.arrays import HalfArray
from triage.cli import main
from triage.config import Config
from triage.errors import DataError
from triage.worklist import Worklist
from triage.worklist.schema import migrate, open_engine


@pytest.fixture
def site(worklist: Worklist, tmp_path: Path) -> Site:
    """An empty site, once on each database."""
    return Site(worklist, tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Site]:
    """An empty site on SQLite."""
    site = Site(new_worklist(f"sqlite:///{tmp_path / 'worklist.sqlite'}"), tmp_path)
    yield site
    site.worklist.close()


def new_worklist(url: str, blind_share: float = 0.0) -> Worklist:
    """An empty worklist."""
    engine = open_engine(url, create=True)
    migrate(engine)
    engine.dispose()
    return Worklist(url, blind_share=blind_share)


def snapshot(site: Site, share: float = 0.5) -> SiteSnapshot:
    """All labels so far, half of the patients in the exam."""
    return take(site.worklist, site.pictures, dt.datetime.now(dt.UTC), share)


def parts_of(taken: SiteSnapshot) -> dict[str, str]:
    """The part of each case by its SOP Instance UID."""
    return {case.label.sop_instance_uid: case.part for case in taken.cases}


def filled(site: Site, number: int) -> None:
    """Exams of as many patients, every other one confirmed."""
    for each in range(number):
        site.read(site.exam(each), "confirmed" if each % 2 else "rejected")


def test_every_labelled_exam_is_in_one_part_with_its_picture(site: Site) -> None:
    """The parts' columns and arrays are in one order, and the manifest gives all back."""
    filled(site, 24)
    taken = snapshot(site)
    names = [set(taken.names(part).tolist()) for part in PARTS]
    assert sum(map(len, names)) == len(set.union(*names)) == 24
    assert all(names)
    for part in PARTS:
        pictures = arrays(taken, part, site.pictures)
        assert pictures.shape == (len(taken.part(part)), 256, 256)
        assert pictures.dtype == np.float16
        for row, label in enumerate(taken.part(part)):
            assert np.array_equal(pictures[row], site.pictures.array(label.digest))
    taken.write(site.folder / "snapshot")
    again = read(site.folder / "snapshot")
    assert again == taken
    assert again.digest == taken.digest


def test_the_same_labels_give_the_same_hash_and_another_verdict_another(small: Site) -> None:
    """Whenever it is taken: the cutoff decides."""
    filled(small, 6)
    cutoff = dt.datetime.now(dt.UTC)
    first = take(small.worklist, small.pictures, cutoff, 0.5)
    small.read("1.2.0", "confirmed")
    assert take(small.worklist, small.pictures, cutoff, 0.5).digest == first.digest
    assert snapshot(small).digest != first.digest


def test_a_reading_of_the_last_minute_waits_for_the_next_snapshot(small: Site) -> None:
    """Its reader may still take it back."""
    filled(small, 1)
    assert take(small.worklist, small.pictures).cases == ()
    assert len(snapshot(small).cases) == 1


def test_the_newest_patients_validate_and_nobody_does_both(small: Site) -> None:
    """What validates came after all that trains; a training patient's later exams wait."""
    filled(small, 40)
    small.read(small.exam(100, patient="P0"))
    taken = snapshot(small, 0.0)
    came = {part: [label.received_at for label in taken.part(part)] for part in PARTS}
    assert max(came["train"]) < min(came["validation"])
    assert not set(taken.patients("train")) & set(taken.patients("validation"))
    assert taken.left_out["straddling"] == 1
    assert min(np.bincount(taken.labels("validation"))) >= 5


@pytest.mark.parametrize(
    "again",
    [
        {"patient": "P0"},
        {"patient": "P0", "study_instance_uid": "7.7"},
        {"study_instance_uid": "1.2.0.2"},
        {"picture_hash": "ab" * 32},
    ],
)
def test_a_patient_in_the_exam_is_never_trained_on(small: Site, again: dict[str, str]) -> None:
    """Not with a second study, not under another Patient ID, not as the same picture sent anew."""
    small.read(small.exam(0, picture_hash="ab" * 32))
    assert parts_of(snapshot(small, 1.0)) == {"1.2.0": "exam"}
    small.read(small.exam(1, **again))  # type: ignore[arg-type]
    parts = parts_of(snapshot(small, 0.0))
    assert set(parts.values()) == {"exam"}


def test_two_patients_on_both_sides_who_turn_out_to_be_one_are_on_none(small: Site) -> None:
    """One was trained on: an exam of them proves nothing."""
    small.read(small.exam(0, study_instance_uid="7.7"))
    snapshot(small, 1.0)
    small.read(small.exam(1))
    assert parts_of(snapshot(small, 0.0)) == {"1.2.0": "exam", "1.2.1": "train"}
    small.exam(2, patient="P1", study_instance_uid="7.7")
    taken = snapshot(small, 0.0)
    assert taken.cases == ()
    assert taken.left_out["both_sides"] == 2


def test_the_exam_only_grows(small: Site) -> None:
    """With more readings, and whatever becomes of the share."""
    filled(small, 20)
    early = set(snapshot(small, 0.4).names("exam"))
    for number in range(20, 30):
        small.read(small.exam(number))
    late = parts_of(snapshot(small, 0.0))
    assert {uid for uid, part in late.items() if part == "exam"} == early


def test_what_a_reader_chose_to_read_trains_but_measures_nothing(small: Site) -> None:
    """Of the unflagged, only what chance drew is examined."""
    filled(small, 4)
    for number in range(10, 20):
        small.exam(number, score=0.1)
    small.read("1.2.10")
    assert "1.2.10" not in parts_of(snapshot(small, 1.0))
    assert snapshot(small, 1.0).left_out["unmeasured"] == 1
    small.read(small.exam(30, score=0.1))
    assert parts_of(snapshot(small, 0.0))["1.2.30"] == "train"


def test_what_a_champion_missed_in_the_exam_is_locked(tmp_path: Path) -> None:
    """Findings that a reader found in unflagged exams that chance drew."""
    url = f"sqlite:///{tmp_path / 'worklist.sqlite'}"
    site = Site(new_worklist(url, blind_share=1.0), tmp_path)
    site.read(site.exam(0, score=0.1), "confirmed")
    site.read(site.exam(1, score=0.1), "rejected")
    site.read(site.exam(2, score=0.9), "confirmed")
    taken = snapshot(site, 1.0)
    assert taken.locked == {"1.2.0"}
    judged = taken.exam(np.full(3, 0.4), np.full(3, 0.6))
    assert judged.cases.tolist() == ["1.2.0", "1.2.1", "1.2.2"]
    assert judged.labels.tolist() == [1, 0, 1]
    assert set(judged.groups) == {"age", "sex", "view", "console"}
    assert not taken.trained_on & set(judged.patients.tolist())


def test_who_withdraws_while_a_snapshot_is_taken_is_not_in_it(small: Site) -> None:
    """Nor is the array that was just made for it kept."""
    filled(small, 3)
    learning, digest = small.worklist.learning, small.worklist.digest("1.2.1") or ""
    make = small.pictures.array

    def array(asked: str) -> HalfArray:
        made = make(asked)
        learning.withdraw("P1", "asked by letter", "clerk", in_advance=False)
        return made

    small.pictures.array = array  # type: ignore[method-assign]
    assert set(parts_of(snapshot(small))) == {"1.2.0", "1.2.2"}
    assert not small.pictures.has(digest)


def test_a_missing_or_damaged_object_is_left_out_and_told_in_a_line(small: Site) -> None:
    """The others are taken; a kept array needs its object no more."""
    filled(small, 4)
    digests = [small.worklist.digest(f"1.2.{number}") or "" for number in range(4)]
    small.pictures.array(digests[0])
    small.spool.remove(digests[0])
    small.spool.remove(digests[1])
    path = small.spool.path(digests[2])
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with capture_logs() as told:
        taken = snapshot(small)
    assert set(parts_of(taken)) == {"1.2.0", "1.2.3"}
    assert taken.left_out["damaged"] == 2
    lines = [line for line in told if line["action"] == "label_left_out"]
    assert [line["sop_instance_uid"] for line in lines] == ["1.2.1", "1.2.2"]
    assert all("restore" in line["event"] for line in lines)


def test_an_object_that_goes_after_the_snapshot_stops_its_arrays(small: Site) -> None:
    """Rows would no longer be cases."""
    filled(small, 1)
    taken = snapshot(small, 0.0)
    digest = taken.part("train")[0].digest
    small.pictures.forget(digest)
    small.spool.remove(digest)
    with pytest.raises(DataError, match="missing from the spool"):
        arrays(taken, "train", small.pictures)


def test_arrays_that_no_disk_can_hold_are_refused_before_the_first(small: Site) -> None:
    """In one line: a full disk would otherwise end the process at some row."""
    with pytest.raises(DataError, match="cannot be laid out"):
        small.pictures.stack(_Many())


class _Many(list[str]):
    """So many digests that no file system holds their arrays."""

    def __len__(self) -> int:
        return 2**44


def test_a_damaged_array_is_made_again(small: Site) -> None:
    """Cut short, or with a bit turned."""
    filled(small, 1)
    digest = small.worklist.digest("1.2.0") or ""
    array = small.pictures.array(digest)
    path = small.pictures.path(digest)
    whole = path.read_bytes()
    turned = bytearray(whole)
    turned[len(whole) // 2] ^= 4
    for damaged in (whole[:1000], bytes(turned), b""):
        path.write_bytes(damaged)
        assert np.array_equal(small.pictures.array(digest), array)
        assert path.read_bytes() != damaged


def test_a_manifest_that_was_changed_is_refused(small: Site) -> None:
    """One label is enough; so is what is no manifest, or of another pixel pipeline."""
    filled(small, 2)
    taken = snapshot(small, 0.0)
    path = taken.write(small.folder / "snapshot")
    content = json.loads(path.read_text())
    content["cases"][0]["label"] ^= 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="changed"):
        read(path.parent)
    path.write_text("{}")
    with pytest.raises(DataError, match="no snapshot"):
        read(path.parent)
    with pytest.raises(DataError, match="cannot be read"):
        read(small.folder / "elsewhere")
    with pytest.raises(DataError, match="another pixel pipeline"):
        arrays(replace(taken, pixel_fingerprint="sha256:other"), "train", small.pictures)


def test_ages_are_banded_and_what_is_none_is_unknown() -> None:
    """VR AS of PS3.5 6.2."""
    told = {"003Y": "1 to 5", "011M": "under 1", "018M": "1 to 5", "010D": "under 1",
            "006Y": "6 to 17", "064Y": "18 to 64", "099Y": "65 and over", "": "", "3": "",
            "abcY": ""}  # fmt: skip
    assert {age: age_band(age) for age in told} == told


def test_the_commands_withdraw_and_take_a_snapshot_without_the_patient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an operator calls them: the arrays go at once, the manifest names nobody."""
    config = Config(home=tmp_path)
    config.locks_folder.mkdir()
    site = Site(new_worklist(config.worklist_url), tmp_path)
    site.pictures = type(site.pictures)(site.spool, config.arrays_folder)
    for number in range(6):
        site.read(site.exam(number, patient=f"SECRET-{number}"))
    snapshot(site)
    digest = site.worklist.digest("1.2.3") or ""
    assert site.pictures.has(digest)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIAGE_HOME", str(tmp_path))

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    withdraw = ("patients", "withdraw", "SECRET-3", "--because", "asked by letter")
    assert "withdrawn: no snapshot" in call(*withdraw)
    assert not site.pictures.has(digest)
    assert "nothing was changed" in call(*withdraw)
    later = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)).strftime("%Y-%m-%dT%H:%M:%S")
    taking = retrain({"TRIAGE_HOME": str(tmp_path)}, "snapshot", "--out", "out", "--until", later)
    told, log = taking.communicate(timeout=60)
    assert taking.returncode == 0, told + log
    assert "train" in told
    manifest = (tmp_path / "out" / MANIFEST).read_text()
    assert "SECRET" not in manifest
    assert "1.2.3" not in parts_of(read(tmp_path / "out"))
    assert len(read(tmp_path / "out").cases) == 5
    assert "restored" in call("patients", "restore", "SECRET-3", "--because", "a mistake")
    assert len(snapshot(site).cases) == 6
    wrong = CliRunner().invoke(main, ["patients", "withdraw", "SECRET-3", "--because", "secret-3"])
    assert wrong.exit_code == 2


def test_a_label_that_is_read_back_is_the_one_that_was_written(small: Site) -> None:
    """Every attribute, with its type."""
    filled(small, 1)
    taken = snapshot(small, 0.0)
    taken.write(small.folder)
    (before,), (after,) = taken.part("train"), read(small.folder).part("train")
    assert {name: type(getattr(after, name)) for name in Label.__slots__} == {
        name: type(getattr(before, name)) for name in Label.__slots__
    }
