"""Immutable model versions, the aliases that say which one scores, and their history.

A registry is a folder. Each version is a subfolder that is written once and never
changed: ``model.json`` (its description, with the SHA-256 of every other file), the
exported network and the Keras weights. ``aliases.json`` beside them maps ``champion`` to a
version; it is replaced atomically, so a reader sees the old champion or the new one.

Every move of an alias is a line in ``history.jsonl`` (:mod:`triage.ledger`). The line is
written first and is the move; ``aliases.json`` is what it comes to, for readers in a hurry.
A crash between the two is made good by the next writer. Where nodes share versions
(:class:`Shared`), the files are in their store and the history in their database.
``decisions`` holds what the gate said of each version.
"""

import datetime as dt
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triage.admission import Population
from triage.durable import make_folder, sync
from triage.errors import ModelError
from triage.ledger import Entry, Ledger, LedgerFile, Pen
from triage.store import Copied, Store

FORMAT = 1
"""The version of ``model.json`` that this program writes and reads."""

DESCRIPTION = "model.json"
EXPORTED = "model.xml"
ALIASES = "aliases.json"
HISTORY = "history.jsonl"
DECISIONS = "decisions"

CHAMPION = "champion"
CHALLENGER = "challenger"
SHADOW = "shadow"
PREVIOUS = "previous"
"""The champion before this one, which a rollback returns to."""

PROVEN = "PROVEN"
"""The outcome of the gate that an approval needs (``training.gate.Outcome``)."""

SERVICE = "service"
"""Who moved an alias where no person did."""


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """What the gate said of a version.

    Attributes
    ----------
    version, champion : str
        The challenger, and whom it was compared with.
    outcome : str
        ``PROVEN`` and others.
    at : str
        When it was stored, ISO 8601.
    path : Path
        The JSON; the report beside it ends in ``.html``.
    content : mapping
        The whole JSON.
    """

    version: str
    champion: str
    outcome: str
    at: str
    path: Path
    content: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One trained network and everything that is stated about it.

    Attributes
    ----------
    version : str
        Its name, unique for ever: architecture and a hash of its files.
    folder : Path
        Where its files are.
    pixel_fingerprint : str
        The only :func:`triage.pixels.fingerprint` whose arrays it may score.
    threshold : float
        The probability, 0 to 1, at and above which an exam is flagged.
    population : Population
    description : mapping
        The whole of ``model.json``.
    """

    version: str
    folder: Path
    pixel_fingerprint: str
    threshold: float
    population: Population
    description: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "ModelVersion":
        """Read and verify a version.

        Raises
        ------
        ModelError
            The folder has no readable description, or a file is missing or not the one
            that was described.
        """
        try:
            description = json.loads((folder / DESCRIPTION).read_text("utf-8"))
            if description["format"] != FORMAT:
                raise ModelError(
                    f"model version in {folder} has format {description['format']}, this program "
                    f"reads {FORMAT}: use the program that made it, or a newer one"
                )
            for name, expected in description["files"].items():
                if file_hash(folder / name) != expected:
                    raise ModelError(
                        f"model file {folder / name} is not the one that was described "
                        "(SHA-256 differs): restore it or remove the version"
                    )
            population = description["population"]
            age = population["age_years"]
            version, threshold = str(description["version"]), float(description["threshold"])
            if not 0.0 <= threshold <= 1.0:
                raise ValueError(f"threshold {threshold} is not 0 to 1")
            for name in (version, *description["files"]):
                if name in {"", ".", ".."} or Path(name).name != name:
                    raise ValueError(f"{name!r} is not the name of a file")
            if not isinstance(description["created_at"], str):
                raise TypeError("created_at is not a text")
            return cls(
                version=version,
                folder=folder,
                pixel_fingerprint=str(description["pixel_fingerprint"]),
                threshold=threshold,
                population=Population(
                    str(population["description"]),
                    None if age is None else (int(age[0]), int(age[1])),
                    tuple(map(str, population["views"])),
                ),
                description=description,
            )
        except OSError as error:
            raise ModelError(
                f"model version in {folder} cannot be read: {error.strerror}: {error.filename}"
            ) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{folder / DESCRIPTION} is damaged ({type(error).__name__}: {error}): "
                "restore it or remove the version"
            ) from error


@dataclass(frozen=True, slots=True)
class Shared:
    """Where the nodes of a cluster have their versions in common.

    Attributes
    ----------
    store : Store
        Holds each version's files under ``models/VERSION``, its description last.
    ledger : Ledger
        The history. What it comes to are the aliases: there is no second place for them.
    """

    store: Store
    ledger: Ledger


class Registry:
    """The model versions in a folder, or those that several nodes share.

    Parameters
    ----------
    folder : Path
        Made when the first version is added. Of shared ones it holds this node's copies, each
        verified when it is read.
    shared : Shared, optional
    """

    def __init__(self, folder: Path, shared: Shared | None = None) -> None:
        self.folder = folder
        self._shared = shared
        self._ledger: Ledger = LedgerFile(folder / HISTORY) if shared is None else shared.ledger

    def add(self, source: Path) -> ModelVersion:
        """Copy a version in, once; adding it again changes nothing.

        Raises
        ------
        ModelError
            It is damaged, another version has its name, or the folder cannot be written.
        """
        model = ModelVersion.load(source)
        added = self._add(source, model)
        if self._shared is not None and not self._is_shared(model):
            for name in (*model.description["files"], DESCRIPTION):
                self._send(self._shared.store, added.folder / name, f"{model.version}/{name}")
        return added

    def share(self, shared: Shared) -> int:
        """Give what is here to all nodes: versions, decisions and the history; its lines.

        Called again, it gives what has come since.

        Raises
        ------
        ModelError
            Other nodes have a history of their own, or something is damaged.
        """
        entries = self._ledger.entries()
        if _state(entries) != (self.aliases() or None):
            raise ModelError(f"{self.folder}: the aliases are not what the history comes to")
        together = Registry(self.folder, shared)
        for model in self.versions():
            together.add(model.folder)
            for decision in self.decisions(model.version):
                for file in (decision.path, decision.path.with_suffix(".html")):
                    name = f"{DECISIONS}/{model.version}/{_named(file, file.read_bytes())}"
                    self._send(shared.store, file, name)
        with shared.ledger.writing() as pen:
            if pen.entries != entries[: len(pen.entries)]:
                raise ModelError(
                    f"{shared.ledger} has a history of its own: nodes that share a store have run "
                    "with this database already"
                )
            for entry in entries[len(pen.entries) :]:
                pen.copy(entry)
        return len(entries)

    def _is_shared(self, model: ModelVersion) -> bool:
        """Whether the version is in the store; as another model, it is an error."""
        if not self._in_store(model.version):
            return False
        with self._reading(f"{model.version}/{DESCRIPTION}") as path:
            if json.loads(path.read_text("utf-8")) != model.description:
                raise ModelError(
                    f"{self._where(model.version)} already holds another model of that name"
                )
        return True

    def _in_store(self, version: str) -> bool:
        if self._shared is None:
            return False
        try:
            return self._shared.store.size(f"{_MODELS}/{version}/{DESCRIPTION}") is not None
        except OSError as error:
            raise ModelError(f"{self._where(version)} cannot be read: {error.strerror}") from error

    def _where(self, name: str) -> str:
        """For a person."""
        if self._shared is None:
            return str(self.folder / name)
        return self._shared.store.where(f"{_MODELS}/{name}")

    def _send(self, store: Store, file: Path, name: str) -> None:
        try:
            store.keep(Copied(lambda: file.open("rb")), f"{_MODELS}/{name}")
        except OSError as error:
            raise ModelError(f"{self._where(name)} cannot be written: {error.strerror}") from error

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        """A file of the store, here while it is needed."""
        assert self._shared is not None  # noqa: S101
        try:
            with self._shared.store.file(f"{_MODELS}/{name}") as path:
                yield path
        except OSError as error:
            raise ModelError(f"{self._where(name)} cannot be read: {error.strerror}") from error

    def _here(self, version: str) -> Path:
        """A version's folder; a shared one that this node has not yet is fetched, and verified."""
        target = self.folder / version
        if (target / DESCRIPTION).is_file() or not self._in_store(version):
            return target
        make_folder(self.folder)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=_ADDING) as temporary:
            with self._reading(f"{version}/{DESCRIPTION}") as path:
                shutil.copyfile(path, Path(temporary) / DESCRIPTION)
            for name in json.loads((Path(temporary) / DESCRIPTION).read_text("utf-8"))["files"]:
                with self._reading(f"{version}/{Path(name).name}") as path:
                    shutil.copyfile(path, Path(temporary) / Path(name).name)
            self._add(Path(temporary), ModelVersion.load(Path(temporary)))
        return target

    def has(self, version: str) -> bool:
        """Whether there is a version of that name, damaged or not."""
        return (self.folder / version / DESCRIPTION).is_file() or self._in_store(version)

    def _add(self, source: Path, model: ModelVersion) -> ModelVersion:
        target = self.folder / model.version
        if target.exists():
            return _same(target, model)
        try:
            make_folder(self.folder)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=_ADDING) as temporary:
                copy = Path(temporary) / model.version
                copy.mkdir()
                for name in (DESCRIPTION, *model.description["files"]):
                    shutil.copyfile(source / name, copy / name)
                    sync(copy / name)
                sync(copy)
                copy.rename(target)
                sync(self.folder)
        except OSError as error:
            if target.exists():  # another process was faster
                return _same(target, model)
            raise ModelError(
                f"cannot add model {model.version} to {self.folder}: {error.strerror}"
            ) from error
        return ModelVersion.load(target)

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        if self._shared is not None:
            try:
                for name in self._shared.store.names(_MODELS):
                    if name.endswith(f"/{DESCRIPTION}"):
                        self._here(name.split("/")[-2])
            except OSError as error:
                raise ModelError(f"{self._where('')} cannot be read: {error.strerror}") from error
        if not self.folder.is_dir():
            return []
        found = [
            ModelVersion.load(folder)
            for folder in self.folder.iterdir()
            if (folder / DESCRIPTION).is_file()
        ]
        return sorted(found, key=lambda model: (model.description["created_at"], model.version))

    def aliases(self) -> dict[str, str]:
        """Alias to version; empty before the first."""
        if self._shared is not None:
            return _state(self._ledger.entries()) or {}
        path = self.folder / ALIASES
        try:
            content = json.loads(path.read_text("utf-8"))
            return {str(alias): str(version) for alias, version in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{path} cannot be read ({error}): restore it or remove it") from error

    def champion(self) -> ModelVersion:
        """The version that scores.

        Raises
        ------
        ModelError
            None is named, or it is damaged.
        """
        version = self.aliases().get(CHAMPION)
        if version is None:
            raise ModelError(f"{self._where('')} names no champion: start `triage serve` once")
        return self.version(version)

    def version(self, name: str) -> ModelVersion:
        """A version by its name.

        Raises
        ------
        ModelError
            It is not here, or it is damaged.
        """
        return ModelVersion.load(self._here(name))

    def history(self) -> list[Entry]:
        """Every move of an alias and every decision, oldest first.

        Raises
        ------
        ModelError
            A line was changed, or the last ones are missing: the aliases are not what they
            come to.
        """
        entries = self._ledger.entries()
        state = _state(entries)
        if state is not None and state != self.aliases():
            raise ModelError(
                f"{self.folder / ALIASES} is not what {self._ledger} comes to: one of "
                "them was changed by hand, or a command was broken off; starting `triage serve` "
                "follows the history"
            )
        return entries

    def name(self, alias: str, version: str, *, who: str = SERVICE, why: str = "") -> None:
        """Let an alias point at a version, atomically and durably."""
        self.version(version)
        self._move("NAMED", who, why, lambda before: {**before, alias: version}, version)

    def begin(self, version: str) -> None:
        """Let a version be the first champion, unless another node was first."""
        self.version(version)
        self._move("NAMED", SERVICE, "", lambda before: {CHAMPION: version, **before}, version)

    def decided(self, content: bytes, report: bytes, who: str) -> StoredDecision:
        """Store what the gate said of a version.

        Parameters
        ----------
        content : bytes
            JSON with at least ``challenger``, ``champion`` and ``outcome``.
        report : bytes
            The same as HTML.
        who : str

        Raises
        ------
        ModelError
            It is no decision, or about a version that is not here.
        """
        try:
            told = json.loads(content)
            version, champion = str(told["challenger"]), str(told["champion"])
            outcome = str(told["outcome"])
        except (ValueError, LookupError, TypeError) as error:
            raise ModelError(
                "that is not a decision of the gate: make one with `python -m training gate`"
            ) from error
        self.version(version)
        folder = self.folder / DECISIONS / version
        with self._ledger.writing() as pen:
            make_folder(folder)
            number = 1 + sum(
                entry.action == "DECIDED" and entry.detail["version"] == version
                for entry in pen.entries
            )
            path = folder / f"{number:04}.json"
            for file, data in ((path, content), (path.with_suffix(".html"), report)):
                _replace(file, data)
                if self._shared is not None:
                    self._send(
                        self._shared.store, file, f"{DECISIONS}/{version}/{_named(file, data)}"
                    )
            pen.append(
                who,
                "DECIDED",
                {
                    "version": version,
                    "champion": champion,
                    "outcome": outcome,
                    "decision": path.name,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "report_sha256": hashlib.sha256(report).hexdigest(),
                },
            )
        return self.decisions(version)[-1]

    def decisions(self, version: str) -> list[StoredDecision]:
        """What the gate said of a version, oldest first.

        Raises
        ------
        ModelError
            A decision is not the one that was stored.
        """
        found = []
        for entry in self._ledger.entries():
            if entry.action != "DECIDED" or entry.detail["version"] != version:
                continue
            path = self.folder / DECISIONS / version / str(entry.detail["decision"])
            self._fetch_decision(path, entry)
            try:
                content = path.read_bytes()
            except OSError as error:
                raise ModelError(
                    f"decision {path} cannot be read ({error.strerror}): restore it, or decide "
                    "again with `python -m training gate`"
                ) from error
            if hashlib.sha256(content).hexdigest() != entry.detail["sha256"]:
                raise ModelError(
                    f"decision {path} is not the one that was stored (SHA-256 differs): decide "
                    "again with `python -m training gate`"
                )
            found.append(
                StoredDecision(
                    version,
                    str(entry.detail["champion"]),
                    str(entry.detail["outcome"]),
                    entry.at,
                    path,
                    json.loads(content),
                )
            )
        return found

    def proven(self, version: str) -> bool:
        """Whether the gate's last word on a version and the present champion is a proof."""
        champion = self.aliases().get(CHAMPION)
        against = [d for d in self.decisions(version) if d.champion == champion]
        return bool(against) and against[-1].outcome == PROVEN

    def since(self, alias: str) -> dt.datetime | None:
        """When an alias came to point at its version; None if it points at none."""
        entries = self._ledger.entries()
        found, version = None, self.aliases().get(alias)
        for entry in reversed(entries):
            if entry.action in _MOVES and version is not None:
                if entry.detail["aliases"].get(alias) != version:
                    break
                found = dt.datetime.fromisoformat(entry.at)
        return found

    def approve(
        self,
        version: str,
        *,
        who: str,
        why: str,
        force: bool = False,
        shadow: Mapping[str, Any] | None = None,
    ) -> None:
        """Let a version become champion, on the ground of a proof against the present one.

        Parameters
        ----------
        version : str
        who, why : str
        force : bool
            Though it is not proven; needs a reason.
        shadow : mapping, optional
            What was seen of it in shadow, for the history.

        Raises
        ------
        ModelError
            It is not proven and not forced, or forced without a reason.
        """
        self.version(version)
        champion = self.champion().version
        if version == champion:
            raise ModelError(f"{version} is the champion already")
        if force and not why.strip():
            raise ModelError("an approval without a proof needs a reason: say it with --why")
        against = [d for d in self.decisions(version) if d.champion == champion]
        last = against[-1] if against else None
        if not force and last is None:
            raise ModelError(
                f"the gate has not compared {version} with the champion {champion}: run `python -m "
                "training gate`"
            )
        if not force and last is not None and last.outcome != PROVEN:
            raise ModelError(
                f"the gate says of {version}: {last.outcome}, and it stays a challenger; "
                f"{last.path.with_suffix('.html')} says why"
            )
        with self._ledger.writing() as pen:
            pen.append(
                who,
                "APPROVED",
                {
                    "version": version,
                    "champion": champion,
                    "decision": last.path.name if last else None,
                    "outcome": last.outcome if last else None,
                    "forced": force,
                    "why": why,
                    **({} if shadow is None else {"shadow": dict(shadow)}),
                },
            )

    def approved(self, version: str) -> bool:
        """Whether a version may be promoted.

        An approval ends with the champion that it was given against, and with a later decision
        that does not prove the version.
        """
        champion = self.aliases().get(CHAMPION)
        for entry in reversed(self._ledger.entries()):
            if entry.action in _MOVES and entry.detail["aliases"].get(CHAMPION) != champion:
                return False
            if entry.action in {"PROMOTED", "ROLLED_BACK"}:
                return False
            if entry.detail.get("version") != version:
                continue
            if entry.action == "DECIDED" and entry.detail["outcome"] != PROVEN:
                return False
            if entry.action == "APPROVED":
                return bool(entry.detail["champion"] == champion)
        return False

    def promote(self, version: str, *, who: str, why: str = "") -> None:
        """Make an approved version the champion; the one before becomes ``previous``.

        Raises
        ------
        ModelError
            It is not approved, or damaged.
        """
        self.version(version)
        champion = self.aliases().get(CHAMPION)
        if version != champion and not self.approved(version):
            raise ModelError(
                f"{version} is not approved to follow the present champion: `triage models "
                f"approve {version}`"
            )

        def after(before: dict[str, str]) -> dict[str, str]:
            if before.get(CHAMPION) == version:
                return before
            if before.get(CHAMPION) != champion:
                raise ModelError(_OVERTAKEN)
            kept = {a: v for a, v in before.items() if not (a in _CANDIDATES and v == version)}
            return {**kept, CHAMPION: version, PREVIOUS: before[CHAMPION]}

        self._move("PROMOTED", who, why, after, version)

    def rollback(self, *, who: str, why: str = "") -> str:
        """Return to the champion before this one; the version that scores from now on.

        Its files are untouched since, and with them its threshold.

        Raises
        ------
        ModelError
            There is none before, or it is damaged.
        """
        earlier = self.aliases().get(PREVIOUS)
        if earlier is None:
            raise ModelError("there is no champion before this one to return to")
        self.version(earlier)

        def after(before: dict[str, str]) -> dict[str, str]:
            champion = before.get(PREVIOUS)
            if champion != earlier:
                raise ModelError(_OVERTAKEN)
            kept = {a: v for a, v in before.items() if a != PREVIOUS}
            entries = self._ledger.entries()
            still = _champions(entries)[:-2]
            return {**kept, CHAMPION: champion, **({PREVIOUS: still[-1]} if still else {})}

        self._move("ROLLED_BACK", who, why, after, earlier)
        return earlier

    def shadow(self, version: str, *, who: str, why: str = "") -> None:
        """Let a version that the gate has proven score silently beside the champion.

        Raises
        ------
        ModelError
            The gate has not proven it against the present champion, or it is damaged.
        """
        self.version(version)
        if not self.proven(version):
            raise ModelError(
                f"the gate has not proven {version} against the champion "
                f"{self.champion().version}: it does not score in shadow"
            )
        self.name(SHADOW, version, who=who, why=why)

    def end_shadow(self, *, who: str, why: str = "") -> str:
        """Let nobody score in shadow any more; who did.

        Raises
        ------
        ModelError
            Nobody does.
        """
        version = self.aliases().get(SHADOW)
        if version is None:
            raise ModelError("no challenger scores in shadow")
        self._move(
            "NAMED", who, why, lambda b: {a: v for a, v in b.items() if a != SHADOW}, version
        )
        return version

    def settle(self) -> None:
        """Finish a move that a crash broke off: write the aliases that the history comes to.

        What an entry that was killed left behind is removed after an hour.
        """
        for left in self.folder.glob(f"{_ADDING}*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > 3_600:
                    shutil.rmtree(left)
        if self._shared is None and (self.folder / HISTORY).exists():
            with self._ledger.writing() as pen:
                if _state(pen.entries) is not None and self._unsettled(pen):
                    self._write_aliases(_state(pen.entries) or {})

    def _unsettled(self, pen: Pen) -> bool:
        try:
            return self.aliases() != _state(pen.entries)
        except ModelError:
            return True

    def note(self, who: str, action: str, detail: Mapping[str, Any]) -> None:
        """Write a line of another kind into the history, such as an import's."""
        with self._ledger.writing() as pen:
            pen.append(who, action, detail)

    def _move(
        self,
        action: str,
        who: str,
        why: str,
        after: Callable[[dict[str, str]], dict[str, str]],
        version: str,
    ) -> None:
        with self._ledger.writing() as pen:
            before = self._settled(pen)
            aliases = after(dict(before))
            if aliases != before or not pen.entries:
                pen.append(
                    who,
                    action,
                    {"version": version, "why": why, "from": before, "aliases": aliases},
                )
            self._write_aliases(aliases)

    def _settled(self, pen: Pen) -> dict[str, str]:
        """The aliases as the history has them; without one, as they are found."""
        if _state(pen.entries) is None:
            found = self.aliases()
            if found:
                pen.append(
                    SERVICE, "FOUND", {"version": "", "why": "", "from": {}, "aliases": found}
                )
            return found
        return _state(pen.entries) or {}

    def _fetch_decision(self, path: Path, entry: Entry) -> None:
        """Have another node's decision here, too."""
        if self._shared is None or path.exists():
            return
        make_folder(path.parent)
        for name, file in (
            (f"{entry.detail['sha256']}.json", path),
            (f"{entry.detail['report_sha256']}.html", path.with_suffix(".html")),
        ):
            with self._reading(f"{DECISIONS}/{entry.detail['version']}/{name}") as found:
                _replace(file, found.read_bytes())

    def _write_aliases(self, aliases: Mapping[str, str]) -> None:
        if self._shared is not None:
            return
        _replace(self.folder / ALIASES, (json.dumps(aliases, indent=2) + "\n").encode("utf-8"))


def _named(file: Path, content: bytes) -> str:
    """By its content, as all that a store holds: what another node decided is not in its way."""
    return f"{hashlib.sha256(content).hexdigest()}{file.suffix}"


_MODELS = "models"
_ADDING = ".adding-"
_MOVES = {"FOUND", "NAMED", "PROMOTED", "ROLLED_BACK"}
_CANDIDATES = {CHALLENGER, SHADOW}
_OVERTAKEN = "another command moved the champion just now: look, and try again"


def _state(entries: Sequence[Entry]) -> dict[str, str] | None:
    """The aliases that a history comes to; None if it moves none."""
    for entry in reversed(entries):
        if entry.action in _MOVES:
            return dict(entry.detail["aliases"])
    return None


def _champions(entries: Sequence[Entry]) -> list[str]:
    """The champions that rollbacks would return to in turn, the present one last."""
    stack: list[str] = []
    for entry in entries:
        if entry.action not in _MOVES:
            continue
        champion = entry.detail["aliases"].get(CHAMPION)
        if entry.action == "ROLLED_BACK":
            stack.pop()
        elif champion and stack[-1:] != [champion]:
            stack.append(champion)
    return stack


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and durably."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)
    sync(path.parent)


def _same(folder: Path, model: ModelVersion) -> ModelVersion:
    """The version in a folder, if it is this model."""
    known = ModelVersion.load(folder)
    if known.description != model.description:
        raise ModelError(f"{folder} already holds another model of that name")
    return known


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
