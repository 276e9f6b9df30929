"""Back up an installation while it receives, and restore it into an empty place.

    python deploy/backup/backup.py save FOLDER      # FOLDER is new, or an earlier backup's
    python deploy/backup/backup.py restore FOLDER   # into the home and database of TRIAGE_...

Both read the settings that `triage` reads. The order is what makes a backup whole without
stopping anything: the end of the audit trail first, then the database at one moment, then the
files, which never change and are never later than their rows. So a backup has every file of
every row that it has, and the trail goes on from where its anchor says. Files that an earlier
backup in the same folder has are not copied again; the database always is.

`docs/deploy.md` says what a backup does not have, and how often to rehearse it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
from sqlalchemy import func, select
from sqlalchemy.engine import URL, make_url

from triage import app
from triage.config import Config
from triage.errors import ServiceError
from triage.worklist import Worklist
from triage.worklist.schema import alone, open_engine
from triage.worklist.tables import Event, Item

DATABASE = "database"
WORD = "backup.json"
FILES = (
    "spool/instances",
    "spool/quarantine",
    "spool/results",
    "models",
    "keys",
    "training",
    "fleet",
)
"""Folders of the home whose files never change once they have their name; in this order."""
REMOVED = "OBJECT_REMOVED"


def save(config: Config, folder: Path) -> dict[str, int]:
    """Make a backup; what is in it.

    Raises
    ------
    ServiceError
        The database cannot be dumped.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / WORD).unlink(missing_ok=True)  # until it is whole, it is none
    # Retention removes files of rows; it waits meanwhile, on every node.
    with _held(config.locks_folder / "retention.lock"), alone(config.worklist_url, "retention"):
        began = datetime.now(UTC)
        if config.audit_anchor.exists():
            _copy(config.audit_anchor, folder / "audit-head")
        dump = folder / f"{DATABASE}.new"
        _dump(make_url(config.worklist_url), dump)
        dump.replace(folder / DATABASE)
        copied = 0
        for name in FILES:
            copied += _copy_all(config.home / name, folder / name)
    told = {"files": copied, "bytes": (folder / DATABASE).stat().st_size}
    word = {"began": began.isoformat(), "database": _sha256(folder / DATABASE)}
    _write(folder / WORD, json.dumps(word).encode())
    return told


def restore(config: Config, folder: Path) -> dict[str, int]:
    """Put a backup where nothing is, and look at each file; what was found.

    Raises
    ------
    ServiceError
        The backup is not whole, something is there already, or a file is missing or damaged.
    """
    try:
        word = json.loads((folder / WORD).read_text())
    except (OSError, ValueError) as error:
        raise ServiceError(f"{folder} has no whole backup: {WORD} is missing") from error
    if _sha256(folder / DATABASE) != word["database"]:
        raise ServiceError(f"{folder / DATABASE} is not what was saved: take another backup")
    if config.home.exists() and any(config.home.iterdir()):
        raise ServiceError(f"{config.home} is not empty: set TRIAGE_HOME to a new folder")
    os.umask(0o077)
    config.home.mkdir(parents=True, exist_ok=True)
    _load(make_url(config.worklist_url), folder / DATABASE)
    for name in FILES:
        _copy_all(folder / name, config.home / name)
    if (folder / "audit-head").exists():
        _copy(folder / "audit-head", config.audit_anchor)
    app.prepare(config)
    return verify(config)


def verify(config: Config) -> dict[str, int]:
    """Hold a restored installation against itself: each row has its file, whole.

    Raises
    ------
    ServiceError
        A file is missing or damaged.
    TriageError
        The audit trail or the models are not as they were written.
    """
    engine = open_engine(config.worklist_url, create=False)
    spool = app.spool(config)
    removed = select(Event.item_id).where(Event.action == REMOVED)
    rows = 0
    with engine.connect() as connection:
        lacking = [
            digest
            for (digest,) in connection.execute(select(Item.digest).where(Item.id.not_in(removed)))
            if not spool.intact(digest)
        ]
        rows = connection.scalar(select(func.count()).select_from(Item)) or 0
    engine.dispose()
    if lacking:
        raise ServiceError(
            f"{len(lacking)} of {rows} exams have no whole file, {lacking[0]}.dcm the first: take "
            "another backup"
        )
    with closing(_worklist(config)) as worklist:
        head = worklist.audit.verify()
    app.registry(config).champion()
    return {"exams": rows, "audited": head.id}


def _worklist(config: Config) -> Worklist:
    return Worklist(config.worklist_url, anchor=config.audit_anchor)


def _dump(url: URL, target: Path) -> None:
    """The database as it is at one moment; writers go on."""
    if url.get_backend_name() == "sqlite":
        target.unlink(missing_ok=True)
        with (
            closing(sqlite3.connect(f"file:{url.database}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            # All pages in one step: in WAL mode a reader holds up no writer.
            source.backup(copy, pages=-1)
    else:
        _run("pg_dump", "--format=custom", "--file", target, "--dbname", _libpq(url), url=url)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _load(url: URL, dump: Path) -> None:
    if url.get_backend_name() == "sqlite":
        _copy(dump, Path(str(url.database)))
    else:
        _run(
            "pg_restore", "--exit-on-error", "--single-transaction", "--no-owner",
            "--dbname", _libpq(url), dump, url=url,
        )  # fmt: skip


def _libpq(url: URL) -> str:
    """As PostgreSQL's programs take it; the password goes by the environment."""
    return url.set(drivername="postgresql", password=None).render_as_string()


def _run(*command: str | Path, url: URL) -> None:
    environment = dict(os.environ)
    if url.password:
        environment["PGPASSWORD"] = str(url.password)
    try:
        done = subprocess.run(
            [str(each) for each in command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise ServiceError(f"{command[0]} is not here: install PostgreSQL's client") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ServiceError(f"{command[0]} failed: {said[-1][:300]}")


def _copy_all(source: Path, target: Path) -> int:
    """Copy files that are not there yet; how many. What is half written has another name."""
    count = 0
    for file in sorted(source.rglob("*")) if source.is_dir() else ():
        there = target / file.relative_to(source)
        # Aliases and histories of models do change: only what is named after its content stays.
        fixed = file.suffix == ".dcm"
        if not file.is_file() or (fixed and there.exists()):
            continue
        try:
            _copy(file, there)
        except FileNotFoundError:  # a temporary one, which has its name by now
            continue
        count += 1
    return count


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.chmod(0o600)
    part.replace(target)


def _write(target: Path, content: bytes) -> None:
    with target.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@click.command()
@click.argument("what", type=click.Choice(["save", "restore"]))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(what: str, folder: Path) -> None:
    """Save to a folder, or restore from it."""
    config = Config.read(os.environ, Path.cwd())
    app.configure_logging(config)
    told = save(config, folder) if what == "save" else restore(config, folder)
    click.echo(", ".join(f"{count:,} {name}" for name, count in told.items()))


if __name__ == "__main__":
    from triage.cli import run_command

    run_command(main, Path(sys.argv[0]).name)
