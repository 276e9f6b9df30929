"""Model versions: verified, immutable, and named by an alias that moves at once."""

import json
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triage.admission import Population
from triage.errors import ModelError
from triage.registry import ALIASES, CHAMPION, DESCRIPTION, ModelVersion, Registry, file_hash

FILES = {"model.xml": b"<net/>", "model.bin": b"\0\1\2", "model.weights.h5": b"\x89HDF"}


def describe(folder: Path, **changes: Any) -> None:
    """Write ``model.json`` for the files that are there."""
    description = {
        "format": 1,
        "version": folder.name,
        "created_at": "2026-01-05T10:00:00+00:00",
        "pixel_fingerprint": "sha256:" + "0" * 64,
        "threshold": 0.4,
        "population": {"description": "children", "age_years": [1, 5], "views": ["AP", "PA"]},
        "files": {name: file_hash(folder / name) for name in FILES},
    } | changes
    (folder / DESCRIPTION).write_text(json.dumps(description), "utf-8")


def version(folder: Path, **changes: Any) -> Path:
    """A folder with a version of that name."""
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    describe(folder, **changes)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A version that was made elsewhere."""
    return version(tmp_path / "made" / "net-1")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry that is not there yet."""
    return Registry(tmp_path / "models")


def refusal(do: Callable[[], object]) -> str:
    """The one line of a ModelError."""
    with pytest.raises(ModelError) as caught:
        do()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_version_is_what_its_description_says(source: Path) -> None:
    """And its description stays at hand."""
    model = ModelVersion.load(source)
    assert (model.version, model.folder, model.threshold) == ("net-1", source, 0.4)
    assert model.pixel_fingerprint == "sha256:" + "0" * 64
    assert model.population == Population("children", (1, 5), ("AP", "PA"))
    assert model.description["created_at"] == "2026-01-05T10:00:00+00:00"


def test_an_age_may_be_unstated(tmp_path: Path) -> None:
    """Then the population has none."""
    population = {"description": "anyone", "age_years": None, "views": []}
    model = ModelVersion.load(version(tmp_path / "m", population=population))
    assert model.population == Population("anyone", None, ())


def test_a_version_is_copied_in(registry: Registry, source: Path) -> None:
    """Its described files and no others; the source may go."""
    (source / "notes.txt").write_text("not described")
    added = registry.add(source)
    shutil.rmtree(source)
    assert added == ModelVersion.load(registry.folder / "net-1")
    assert sorted(path.name for path in added.folder.iterdir()) == sorted([DESCRIPTION, *FILES])
    assert [path.name for path in registry.folder.iterdir()] == ["net-1"]


def test_adding_again_changes_nothing(registry: Registry, source: Path) -> None:
    """Not even a time stamp."""
    first = registry.add(source)
    before = (first.folder / "model.xml").stat()
    assert registry.add(source) == first
    assert registry.add(first.folder) == first
    assert (first.folder / "model.xml").stat().st_mtime_ns == before.st_mtime_ns
    assert registry.versions() == [first]


def test_another_model_of_the_same_name_is_refused(
    registry: Registry, source: Path, tmp_path: Path
) -> None:
    """The first stays as it is."""
    registry.add(source)
    other = version(tmp_path / "other" / "net-1", threshold=0.9)
    assert "another model of that name" in refusal(lambda: registry.add(other))
    assert [model.threshold for model in registry.versions()] == [0.4]


def test_versions_are_listed_oldest_first(registry: Registry, tmp_path: Path) -> None:
    """By when they were made, not by name; an unfinished addition is none."""
    assert registry.versions() == []
    for name, day in (("b", "02"), ("c", "01"), ("a", "03")):
        registry.add(version(tmp_path / "made" / name, created_at=f"2026-01-{day}T00:00:00+00:00"))
    version(registry.folder / ".adding-x" / "d")
    assert [model.version for model in registry.versions()] == ["c", "b", "a"]


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("a byte differs", lambda f: (f / "model.bin").write_bytes(b"\0\1\3"), "SHA-256 differs"),
    ("a file is empty", lambda f: (f / "model.xml").write_bytes(b""), "SHA-256 differs"),
    ("a file is missing", lambda f: (f / "model.bin").unlink(), "cannot be read: No such file"),
    ("a file is a folder", lambda f: _folder(f / "model.bin"), "cannot be read"),
    ("no description", lambda f: (f / DESCRIPTION).unlink(), "cannot be read: No such file"),
    ("half a description", lambda f: _halve(f / DESCRIPTION), "is damaged"),
    ("bytes", lambda f: (f / DESCRIPTION).write_bytes(b"\xff\xfe"), "is damaged"),
    ("a list", lambda f: (f / DESCRIPTION).write_text("[]"), "is damaged"),
    ("another format", lambda f: describe(f, format=2), "has format 2, this program reads 1"),
    ("no format", lambda f: describe(f, format=None), "has format None"),
    ("files is a list", lambda f: describe(f, files=["model.xml"]), "is damaged"),
    ("a threshold of text", lambda f: describe(f, threshold="high"), "is damaged"),
    ("a threshold of NaN", lambda f: describe(f, threshold=math.nan), "is damaged"),
    ("a threshold of 2", lambda f: describe(f, threshold=2), "is damaged"),
    ("a date that is a number", lambda f: describe(f, created_at=1), "is damaged"),
    ("no population", lambda f: describe(f, population=None), "is damaged"),
    ("half an age", lambda f: describe(f, population=_population([1])), "IndexError"),
    ("a name elsewhere", lambda f: describe(f, version="../../x"), "is damaged"),
    ("no name", lambda f: describe(f, version=""), "is damaged"),
    ("a file elsewhere", lambda f: describe(f, files=_elsewhere(f)), "is damaged"),
]  # fmt: skip


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _population(age: list[int]) -> dict[str, Any]:
    return {"description": "children", "age_years": age, "views": []}


def _elsewhere(folder: Path) -> dict[str, str]:
    (folder.parent / "secret").write_text("not a model")
    return {"../secret": file_hash(folder.parent / "secret")}


@pytest.mark.parametrize(("damage", "said"), [pytest.param(*d, id=i) for i, *d in DAMAGES])
def test_a_damaged_version_is_refused(
    registry: Registry, source: Path, damage: Callable[[Path], object], said: str
) -> None:
    """Loading, adding, naming and asking for the champion alike; the message names the place."""
    registry.add(source)
    registry.name(CHAMPION, "net-1")
    before = sorted(registry.folder.rglob("*"))
    damage(source)
    assert said in refusal(lambda: registry.add(source))
    assert sorted(registry.folder.rglob("*")) == before

    damage(registry.folder / "net-1")
    line = refusal(registry.champion)
    assert said in line
    assert str(registry.folder / "net-1") in line
    refusal(lambda: registry.name("challenger", "net-1"))
    assert registry.aliases() == {CHAMPION: "net-1"}


@pytest.mark.parametrize(
    "key", ["version", "created_at", "threshold", "pixel_fingerprint", "files"]
)
def test_a_description_without_a_key_is_damaged(source: Path, key: str) -> None:
    """The message names the key."""
    description = json.loads((source / DESCRIPTION).read_text())
    del description[key]
    (source / DESCRIPTION).write_text(json.dumps(description))
    assert key in refusal(lambda: ModelVersion.load(source))


def test_a_registry_without_a_champion_says_so(registry: Registry, source: Path) -> None:
    """Before the first version and after it."""
    assert registry.aliases() == {}
    assert "names no champion" in refusal(registry.champion)
    registry.add(source)
    assert "names no champion" in refusal(registry.champion)


def test_an_alias_names_a_version(registry: Registry, source: Path, tmp_path: Path) -> None:
    """It moves, and other aliases stay."""
    registry.add(source)
    registry.add(version(tmp_path / "made" / "net-2"))
    registry.name(CHAMPION, "net-1")
    registry.name("challenger", "net-2")
    assert registry.champion().version == "net-1"
    registry.name(CHAMPION, "net-2")
    assert registry.champion().version == "net-2"
    assert Registry(registry.folder).aliases() == {CHAMPION: "net-2", "challenger": "net-2"}
    assert not list(registry.folder.glob(".aliases-*"))


def test_an_alias_cannot_name_what_is_not_there(registry: Registry, source: Path) -> None:
    """The old champion stays."""
    registry.add(source)
    registry.name(CHAMPION, "net-1")
    assert "net-2" in refusal(lambda: registry.name(CHAMPION, "net-2"))
    assert registry.champion().version == "net-1"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_damaged_aliases_are_named(registry: Registry, source: Path, content: bytes) -> None:
    """Instead of a champion that nobody chose."""
    registry.add(source)
    (registry.folder / ALIASES).write_bytes(content)
    assert str(registry.folder / ALIASES) in refusal(registry.champion)


def test_a_reader_sees_the_old_champion_or_the_new_one(
    registry: Registry, source: Path, tmp_path: Path
) -> None:
    """Never neither, and no half-written file, however often it moves."""
    registry.add(source)
    registry.add(version(tmp_path / "made" / "net-2"))
    registry.name(CHAMPION, "net-1")
    done = threading.Event()
    seen: list[str] = []
    broken: list[ModelError] = []

    def read() -> None:
        while not done.is_set():
            try:
                seen.append(registry.champion().version)
            except ModelError as error:
                broken.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for move in range(150):
        registry.name(CHAMPION, f"net-{move % 2 + 1}")
    done.set()
    for reader in readers:
        reader.join()
    assert broken == []
    assert set(seen) == {"net-1", "net-2"}


def test_a_registry_that_cannot_be_written_is_named(source: Path, tmp_path: Path) -> None:
    """A file stands in its place."""
    taken = tmp_path / "models"
    taken.touch()
    assert str(taken) in refusal(lambda: Registry(taken).add(source))


# Moves, their history, and the way to champion


@pytest.fixture
def two(registry: Registry, tmp_path: Path) -> Registry:
    """Three versions; the first is champion, the second challenger."""
    for name in ("net-1", "net-2", "net-3"):
        registry.add(version(tmp_path / "made" / name, threshold=0.1 * int(name[-1])))
    registry.name(CHAMPION, "net-1")
    registry.name("challenger", "net-2", who="retraining", why="trained")
    return registry


def decide(registry: Registry, challenger: str, outcome: str = "PROVEN") -> None:
    """Store what the gate says of a challenger against the present champion."""
    champion = registry.champion().version
    told = {"challenger": challenger, "champion": champion, "outcome": outcome}
    registry.decided(json.dumps(told).encode(), b"<html>", "gate")


def promote(registry: Registry, name: str) -> None:
    """The whole way."""
    decide(registry, name)
    registry.approve(name, who="dr", why="better")
    registry.promote(name, who="dr", why="go")


def test_every_move_says_who_when_from_where_and_why(two: Registry) -> None:
    """In the order in which they were made, each bound to the one before."""
    promote(two, "net-2")
    told = [(entry.who, entry.action, entry.detail["version"]) for entry in two.history()]
    assert told == [
        ("service", "NAMED", "net-1"), ("retraining", "NAMED", "net-2"),
        ("gate", "DECIDED", "net-2"), ("dr", "APPROVED", "net-2"), ("dr", "PROMOTED", "net-2"),
    ]  # fmt: skip
    last = two.history()[-1]
    assert last.detail["from"] == {CHAMPION: "net-1", "challenger": "net-2"}
    assert last.detail["aliases"] == {CHAMPION: "net-2", "previous": "net-1"} == two.aliases()
    assert last.detail["why"] == "go"
    assert last.previous == two.history()[-2].hash


def test_an_alias_that_stays_leaves_no_line(two: Registry) -> None:
    """Nothing moved."""
    before = two.history()
    two.name(CHAMPION, "net-1")
    assert two.history() == before


def test_a_challenger_is_promoted_only_when_approved(two: Registry) -> None:
    """And approved only when proven against the present champion."""
    assert "has not compared" in refusal(lambda: two.approve("net-2", who="dr", why=""))
    assert "not approved" in refusal(lambda: two.promote("net-2", who="dr"))
    decide(two, "net-2", "NOT_PROVEN")
    assert "NOT_PROVEN" in refusal(lambda: two.approve("net-2", who="dr", why="I like it"))
    decide(two, "net-2")
    assert "not approved" in refusal(lambda: two.promote("net-2", who="dr"))
    two.approve("net-2", who="dr", why="")
    assert two.approved("net-2")
    assert not two.approved("net-3")
    two.promote("net-2", who="dr")
    assert two.aliases() == {CHAMPION: "net-2", "previous": "net-1"}
    assert "champion already" in refusal(lambda: two.approve("net-2", who="dr", why=""))


def test_an_approval_can_be_forced_for_a_reason(two: Registry) -> None:
    """Which the history keeps."""
    assert "--why" in refusal(lambda: two.approve("net-2", who="dr", why=" ", force=True))
    two.approve("net-2", who="dr", why="the exam is lost", force=True)
    two.promote("net-2", who="dr")
    forced = [entry.detail for entry in two.history() if entry.action == "APPROVED"]
    assert [(one["forced"], one["why"]) for one in forced] == [(True, "the exam is lost")]


def test_a_proof_against_another_champion_is_none(two: Registry) -> None:
    """Nor is an approval: what it replaced is gone."""
    decide(two, "net-2")
    decide(two, "net-3")
    two.approve("net-2", who="dr", why="")
    two.approve("net-3", who="dr", why="")
    two.promote("net-3", who="dr")
    assert "not approved" in refusal(lambda: two.promote("net-2", who="dr"))
    assert "has not compared" in refusal(lambda: two.approve("net-2", who="dr", why=""))
    two.rollback(who="dr")
    assert "not approved" in refusal(lambda: two.promote("net-3", who="dr"))


def test_a_later_decision_ends_an_approval(two: Registry) -> None:
    """More cases may show harm."""
    decide(two, "net-2")
    two.approve("net-2", who="dr", why="")
    decide(two, "net-2", "WORSE")
    assert "not approved" in refusal(lambda: two.promote("net-2", who="dr"))
    assert "WORSE" in refusal(lambda: two.approve("net-2", who="dr", why=""))


def test_a_rollback_restores_the_exact_version(two: Registry) -> None:
    """With its threshold and its files, and one step at a time."""
    first = two.champion()
    promote(two, "net-2")
    promote(two, "net-3")
    assert two.champion().threshold == pytest.approx(0.3)
    assert two.rollback(who="dr", why="complaints") == "net-2"
    assert two.aliases() == {CHAMPION: "net-2", "previous": "net-1"}
    assert two.rollback(who="dr") == "net-1"
    assert two.champion() == first
    assert two.aliases() == {CHAMPION: "net-1"}
    assert "no champion before" in refusal(lambda: two.rollback(who="dr"))
    promote(two, "net-3")
    assert two.rollback(who="dr") == "net-1"


def test_a_rollback_to_a_damaged_version_is_refused(two: Registry) -> None:
    """The champion stays."""
    promote(two, "net-2")
    (two.folder / "net-1" / "model.bin").write_bytes(b"")
    assert "SHA-256 differs" in refusal(lambda: two.rollback(who="dr"))
    assert two.champion().version == "net-2"


def test_a_decision_that_was_changed_proves_nothing(two: Registry) -> None:
    """Nor one that is away."""
    decide(two, "net-2", "WORSE")
    (stored,) = two.decisions("net-2")
    stored.path.write_text(stored.path.read_text().replace("WORSE", "PROVEN"))
    assert "not the one that was stored" in refusal(lambda: two.approve("net-2", who="d", why=""))
    stored.path.unlink()
    assert "cannot be read" in refusal(lambda: two.approve("net-2", who="dr", why=""))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"challenger": "net-2"}'])
def test_what_is_no_decision_is_not_stored(two: Registry, content: bytes) -> None:
    """Nor one about a version that is not here."""
    before = two.history()
    assert "not a decision" in refusal(lambda: two.decided(content, b"", "gate"))
    told = b'{"challenger": "net-9", "champion": "net-1", "outcome": "PROVEN"}'
    assert "net-9" in refusal(lambda: two.decided(told, b"", "gate"))
    assert two.history() == before


HISTORY_DAMAGES: list[tuple[str, Callable[[list[bytes]], list[bytes]], str]] = [
    ("a name", lambda n: [n[0], n[1].replace(b"retraining", b"somebody"), *n[2:]], "line 2"),
    ("a bit", lambda n: [bytes([n[0][0] ^ 1]) + n[0][1:], *n[1:]], "line 1"),
    ("a line is gone", lambda n: [n[0], *n[2:]], "line 2"),
    ("a line is twice", lambda n: [n[0], n[0], *n[1:]], "line 2"),
    ("lines changed places", lambda n: [n[1], n[0], *n[2:]], "line 1"),
    ("the end is gone", lambda n: n[:-1], "is not what"),
]


@pytest.mark.parametrize(
    ("damage", "said"), [pytest.param(*rest, id=name) for name, *rest in HISTORY_DAMAGES]
)
def test_a_history_that_was_changed_says_so(
    two: Registry, damage: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    """The champion still scores: a broken history stops no service."""
    promote(two, "net-2")
    path = two.folder / "history.jsonl"
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    assert said in refusal(two.history)
    assert two.champion().version == "net-2"


def test_a_move_that_a_crash_broke_off_is_finished(two: Registry) -> None:
    """The line is the move: what a reader has not seen yet follows, half a line does not."""
    before = (two.folder / ALIASES).read_bytes()
    promote(two, "net-2")
    (two.folder / ALIASES).write_bytes(before)
    with (two.folder / "history.jsonl").open("ab") as file:
        file.write(b'{"number": 6, "wh')
    assert "is not what" in refusal(two.history)
    two.settle()
    assert two.champion().version == "net-2"
    two.name("shadow", "net-3")
    assert [entry.action for entry in two.history()][-2:] == ["PROMOTED", "NAMED"]


def test_aliases_from_before_there_was_a_history_are_taken_over(two: Registry) -> None:
    """As they are found."""
    (two.folder / "history.jsonl").unlink()
    two.settle()
    assert two.history() == []
    two.name("shadow", "net-3")
    assert [entry.action for entry in two.history()] == ["FOUND", "NAMED"]
    assert two.aliases() == {CHAMPION: "net-1", "challenger": "net-2", "shadow": "net-3"}


def test_writers_wait_for_each_other(two: Registry) -> None:
    """Eight at once: every line is there, none is torn."""
    names = [f"alias-{number}" for number in range(8)]

    def move(name: str) -> None:
        for target in ("net-1", "net-2", "net-3"):
            two.name(name, target)

    writers = [threading.Thread(target=move, args=(name,)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(two.history()) == 2 + 8 * 3
    assert {name: two.aliases()[name] for name in names} == dict.fromkeys(names, "net-3")
