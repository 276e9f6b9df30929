"""The composition root: from a :class:`Config` to wired parts."""

import ctypes
import datetime as dt
import fcntl
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from triage import __version__
from triage.config import (
    Config,
    DicomDestination,
    Hl7Destination,
    WebhookDestination,
    store_url,
    without_password,
)
from triage.durable import keep_folder
from triage.errors import (
    ConfigError,
    ModelError,
    ServiceError,
    SpoolOutage,
    TriageError,
    WorklistError,
)
from triage.health import Health, Port
from triage.identity import valid_uid
from triage.registry import CHAMPION, DESCRIPTION, SERVICE, SHADOW, ModelVersion, Registry, Shared
from triage.scoring import Scorer
from triage.spool import Spool
from triage.store import open_store
from triage.supervisor import Supervisor, stop_on_signals, stop_with_parent
from triage.telemetry import Telemetry
from triage.worklist import Worklist
from triage.worklist.accounts import FIRST_OPERATOR
from triage.worklist.deliveries import ResultKind, Route
from triage.worklist.parts import EVERY, Parts
from triage.worklist.schema import HEAD, alone, migrate, open_engine

if TYPE_CHECKING:
    from pydicom.uid import UID
    from structlog.types import Processor

    from triage.arrays import Pictures
    from triage.assessment import Assessor
    from triage.bundles import Keys
    from triage.lineage import Ancestor
    from triage.rescoring import Outcome
    from triage.rescoring import Task as BackFileTask
    from triage.retention import Removed
    from triage.scp import Door
    from triage.shadow import Pair
    from triage.sharing import SharedFiles
    from triage.sinks import Sink
    from triage.worklist.backfile import Applied
    from triage.worklist.drifts import Alarm
    from triage.worklist.moving import Outcome as MoveOutcome
    from triage.worklist.moving import Removal
    from triage.worklist.shadows import Comparison

BUNDLED = Path(__file__).parent / "bundled"
"""Model versions that come with the program."""

MAX_WORKERS = 64

OBSERVE_LATER = 15.0
"""Seconds after the others: nobody waits for what it finds, and its import costs as theirs do."""

WORKER_LATER = 2.0
"""Seconds after the others: no console is to wait while a second worker starts."""

SHADOW_PAUSE, DRIFT_PAUSE, OUTAGE_PAUSE = 1.0, 60.0, 5.0
"""Seconds: between looks for work in shadow, between looks for drift, after an outage."""

_TAKEN = {
    "dicom": (ResultKind.FINDING, ResultKind.HEAT_MAP, ResultKind.READING),
    "hl7": (ResultKind.FINDING, ResultKind.READING),
    "webhook": (ResultKind.FINDING, ResultKind.READING),
}
"""What each kind of destination takes."""


def configure_logging(config: Config) -> None:
    """Send structlog events to standard error, and keep libraries from logging data.

    pydicom and pynetdicom put attribute values, so patient data, into their warnings.
    """
    loud = ("pydicom", "pynetdicom", "py.warnings", "uvicorn", "asyncio", "httpx", "opentelemetry")
    for name in loud:
        logger = logging.getLogger(name)
        logger.handlers[:] = [logging.NullHandler()]
        logger.propagate = False
    logging.captureWarnings(capture=True)
    from pynetdicom import _config

    # The standard handlers format every PDU even when nobody listens.
    _config.LOG_HANDLER_LEVEL = "none"
    last: Processor = (
        structlog.processors.JSONRenderer()
        if config.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            last,
        ],
        # One write a line: the parts share a log, and Python may be unbuffered.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    threading.excepthook = _thread_died


def _thread_died(died: threading.ExceptHookArgs) -> None:
    """Log a thread's end as an event: what a peer sends can end one of pynetdicom's."""
    log = structlog.get_logger("app")
    log.error("thread died", action="thread_died", error=died.exc_type.__name__)


def prepare(config: Config) -> None:
    """Make the home, bring the schema up to date and enter the bundled models.

    Raises
    ------
    TriageError
        The home or the database cannot be written, or is a newer version's.
    """
    _make_home(config)
    _leave_nothing_behind(config)
    _migrate(config)
    models = registry(config)
    models.settle()
    # Every process of a node may come here at once; one at a time adds and names.
    with _alone(config, "models"):
        bundled = [models.add(file.parent) for file in sorted(BUNDLED.glob(f"*/{DESCRIPTION}"))]
        if CHAMPION not in models.aliases() and bundled:
            newest = max(bundled, key=lambda model: str(model.description["created_at"]))
            models.begin(newest.version)


def _leave_nothing_behind(config: Config) -> None:
    """Refuse a shared store while instance files are in the home, where nobody would find them."""
    here = config.spool_folder
    if not config.spool_url or config.spool_url == here.as_uri():
        return
    if next((here / "instances").glob("*/*.dcm"), None) is not None:
        raise ConfigError(
            f"TRIAGE_SPOOL_URL is {config.spool_url}, and {here} has instance files: `triage "
            "migrate --files-to` without that setting copies them there; then move the folders "
            "instances, quarantine and results out of here"
        )


def _make_home(config: Config) -> None:
    try:
        # A home whose own name is lost with the power is lost with all that is in it; whoever
        # made it may have died before it was on the disk.
        keep_folder(config.home)
        config.locks_folder.mkdir(mode=0o700, exist_ok=True)
        with (config.locks_folder / "writable").open("w"):
            pass
    except OSError as error:
        raise ServiceError(
            f"the home {config.home} cannot be written: {error.strerror}: make it writable for "
            "this user, or set TRIAGE_HOME to another folder"
        ) from error


def _migrate(config: Config) -> str | None:
    """The schema revision before it was brought up to date."""
    engine = open_engine(config.worklist_url, create=True)
    try:
        return migrate(engine)
    finally:
        engine.dispose()


def worklist(config: Config) -> Worklist:
    """The worklist of an installation; what is recorded in it goes to the destinations."""
    return Worklist(
        config.worklist_url,
        [Route(there.name, _TAKEN[there.kind]) for there in config.destinations],
        config.audit_anchor,
        config.blind_sample,
    )


def migrate_worklist(config: Config) -> str:
    """Bring the schema up to date; what was done, in one line."""
    os.umask(0o077)
    _make_home(config)
    before = _migrate(config)
    place = without_password(config.worklist_url)
    if before == HEAD:
        return f"{place} is at schema {HEAD} already"
    return f"{place} moved from schema {before or 'none'} to {HEAD}"


def examine_move(config: Config, to: str) -> "MoveOutcome":
    """What a move of the site to another database would do; nothing is changed.

    Raises
    ------
    TriageError
        It cannot be done, and why.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Looking at an SQLite file makes it.
        if to.startswith("sqlite:///") and not Path(to.removeprefix("sqlite:///")).exists():
            to = f"sqlite:///{folder}/empty"
        with _removal(config, to, lambda _step, _done, _total: None) as removal:
            return removal.look()


def move(
    config: Config,
    to: str,
    who: str,
    progress: "Callable[[str, int, int], None]",
    *,
    copy_only: bool,
) -> "MoveOutcome":
    """Move the site to another database while it receives, or go on with that.

    Parameters
    ----------
    config : Config
        Of the site where it is.
    to : str
        An SQLAlchemy URL.
    who : str
    progress : callable
        Told the step, how many rows are done, and of how many.
    copy_only : bool
        Copy and verify, and leave the site where it is.

    Raises
    ------
    TriageError
        It cannot be done, or not go on now: the same command goes on where it stood.
    """
    os.umask(0o077)
    # As Ctrl-C: what was closed is opened again.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _moving_alone(config), _removal(config, to, progress) as removal:
            return removal.run(who, copy_only=copy_only)
    finally:
        signal.signal(signal.SIGTERM, before)


def abandon_move(config: Config) -> bool:
    """Let the site stay in its database; False if it was not moving."""
    from triage.worklist.moving import abandon

    engine = open_engine(config.worklist_url, create=False)
    try:
        with _moving_alone(config):
            return abandon(engine, without_password(config.worklist_url))
    finally:
        engine.dispose()


def share_files(config: Config, to: str, progress: "Callable[[int], None]") -> "SharedFiles":
    """Copy instance files, models and their history to where several nodes share them.

    Parameters
    ----------
    config : Config
        Of the site, on the one machine that it runs on yet.
    to : str
        As TRIAGE_SPOOL_URL.
    progress : callable
        Told how many files are done.

    Raises
    ------
    TriageError
        It cannot be done, or not go on now: the same command goes on where it stood.
    """
    from triage.sharing import share
    from triage.worklist.ledgers import History

    if config.spool_url:
        raise ConfigError("TRIAGE_SPOOL_URL is set: the site's files are shared already")
    try:
        shared = open_store(store_url(to or "empty"), config.spool_folder)
    except ValueError as error:
        raise ConfigError(f"bad value for --files-to: {error}") from None
    os.umask(0o077)
    with _moving_alone(config):
        try:
            shared.prepare()
        except OSError as error:
            raise ServiceError(f"{to} cannot be used: {error.strerror}") from error
        worklist(config).close()  # the site is there, and of this schema
        history = History(config.worklist_url)
        registry(config).share(Shared(shared, history))
        return share(spool(config).store, shared, progress)


@contextmanager
def _removal(
    config: Config, to: str, progress: "Callable[[str, int, int], None]"
) -> "Iterator[Removal]":
    from triage.worklist.moving import Removal

    places = (without_password(config.worklist_url), without_password(to))
    if places[0] == places[1]:
        raise ConfigError(f"the site is in {places[0]} already: TRIAGE_DATABASE_URL names it")
    source = open_engine(config.worklist_url, create=False)
    try:
        target = open_engine(to, create=True, setting="--to")
        try:
            yield Removal(source, target, places, config.audit_anchor, progress)
        finally:
            target.dispose()
    finally:
        source.dispose()


@contextmanager
def _moving_alone(config: Config) -> Iterator[None]:
    with ExitStack() as held:
        try:
            _make_home(config)
            held.enter_context(_lock(config.locks_folder / "move.lock", wait=False))
        except BlockingIOError:
            raise ServiceError("another `triage migrate --to` runs here: wait for it") from None
        yield


def spool(config: Config) -> Spool:
    """The instance files of an installation; the one place that knows where they are."""
    return Spool(config.spool_folder, open_store(config.spool_url, config.spool_folder))


def registry(config: Config) -> Registry:
    """The model registry of an installation; the one place that knows where it is."""
    if not config.spool_url:
        return Registry(config.models_folder)
    from triage.worklist.ledgers import History

    history = History(config.worklist_url)
    return Registry(config.models_folder, Shared(spool(config).store, history))


def pictures(config: Config) -> "Pictures":
    """The arrays that training keeps of an installation's objects."""
    from triage.arrays import Pictures

    return Pictures(spool(config), config.arrays_folder)


def retain(config: Config, who: str, *, dry_run: bool) -> "Removed":
    """Remove the objects and arrays that the policy no longer keeps."""
    from triage.retention import Housekeeping, Policy

    policy = Policy(config.keep_days, config.keep_array_days)
    with _alone(config, "retention"):
        keeper = Housekeeping(worklist(config), spool(config), pictures(config), policy, who)
        return keeper.run(dry_run=dry_run)


def rescore(
    config: Config,
    task: "BackFileTask",
    *,
    source: str | None,
    move_port: int,
    ray: str | None,
    workers: int | None,
    report: Path | None,
    apply: bool,
    who: str,
    progress: "Callable[[int, int | None], None]",
) -> "tuple[Outcome, Applied | None]":
    """Score the back file, write what would change and, if told to, let it stand.

    Parameters
    ----------
    config : Config
    task : Task
    source : str or None
        An archive as ``triage rescore --from`` takes it; None for what is stored.
    move_port : int
        Where we listen for C-MOVE's stores.
    ray : str or None
        The address of a Ray cluster; None for processes of this machine.
    workers : int or None
    report : Path or None
        Of the HTML; by default in the home, named after the version.
    apply : bool
    who : str
    progress : callable
        Told how many images are done, and of how many if that is known.

    Raises
    ------
    TriageError
        It cannot be done, or not go on now: the same command goes on where it stood.
    """
    from triage.archives import archive
    from triage.crew import Cluster, Processes
    from triage.rescoring import Packed, Rescoring, of_archive, of_spool

    os.umask(0o077)
    models, kept = registry(config), worklist(config)
    model = models.champion() if task.version is None else models.version(task.version)
    champion = models.aliases().get(CHAMPION, "")
    if apply and (source is not None or model.version != champion):
        raise ConfigError(
            "--apply lets the champion's scores stand in the rows of stored exams: approve and "
            "promote the version first, and leave --from out"
        )
    elsewhere = None if source is None else archive(source, config.ae_title, move_port)
    run = Rescoring(kept.back_file, model.version, source, task)
    make = Packed.of(model, warn_outside=config.outside_population == "warn")
    try:
        with part_name(config, "rescorer") as name, run.led_by(name):
            images = (
                of_spool(run, spool(config)) if elsewhere is None else of_archive(run, elsewhere)
            )
            total = run.total()
            if total != 0:
                crew = Processes(make, workers) if ray is None else Cluster(make, ray, workers)
                try:
                    run.score(crew, images, lambda done: progress(done, total))
                finally:
                    crew.close()
            folder = config.home / "reports"
            outcome = run.tell(
                report or folder / f"rescore-{model.version}.html",
                spool(config),
                task.against or champion,
            )
            applied = kept.back_file.apply(model.version, task.selection, who) if apply else None
            return outcome, applied
    finally:
        kept.close()


def withdraw(config: Config, patient_id: str, why: str, who: str, *, in_advance: bool) -> bool:
    """Take a patient's data out of training; False if it was out already."""
    learning = worklist(config).learning
    new = learning.withdraw(patient_id, why, who, in_advance=in_advance)
    # Again if it was out already: an earlier attempt may have ended between the two.
    for digest in learning.withdrawn_digests():
        pictures(config).forget(digest)
    return new


def keys(config: Config) -> "Keys":
    """The keys of an installation."""
    from triage.bundles import Keys

    return Keys(config.keys_folder)


def approve(config: Config, version: str, who: str, why: str, *, force: bool) -> None:
    """Let a version that was proven, and then seen in shadow, become champion.

    Raises
    ------
    ModelError
        It is not proven, or has scored too few exams in shadow, and is not forced.
    """
    models = registry(config)
    seen = shadowed(config, version)
    if not force and models.proven(version) and seen.exams < config.shadow_exams:
        raise ModelError(
            f"{version} has scored {seen.exams} exams in shadow beside {seen.champion}, "
            f"{config.shadow_exams} are wanted (TRIAGE_SHADOW_EXAMS): wait, start it with `triage "
            "models shadow --start`, or approve with --force and a reason"
        )
    models.approve(version, who=who, why=why, force=force, shadow=seen.as_json())


def shadowed(config: Config, version: str) -> "Comparison":
    """A version's silent scores against the champion's on the same exams.

    Raises
    ------
    ModelError
        There is no such version.
    """
    models = registry(config)
    models.version(version)
    with_database = worklist(config)
    try:
        return with_database.shadows.compared(version, models.champion().version)
    finally:
        with_database.close()


def lineage_of(config: Config, name: str) -> "list[Ancestor]":
    """A version and its ancestors, by its name, a report's Device UID or an exam's UID.

    Raises
    ------
    TriageError
        There is no such version or exam here, or the exam has no score.
    """
    from triage.lineage import lineage, of_device

    models = registry(config)
    if not models.has(name) and valid_uid(name):
        model = of_device(models, name)
        if model is not None:
            name = model.version
        else:
            with_database = worklist(config)
            try:
                item = with_database.item(name)
            finally:
                with_database.close()
            if item.model_version is None:
                raise ModelError(f"{name} was scored by no version: {item.reason or item.state}")
            name = item.model_version
    return lineage(models, config.snapshots_folder, name)


def promote(config: Config, version: str, who: str, why: str) -> None:
    """Make an approved version the champion, once it was seen to run here.

    Raises
    ------
    ModelError
        It is not approved, damaged, or cannot score on this machine.
    """
    models = registry(config)
    _network(models.version(version))
    models.promote(version, who=who, why=why)


def rollback(config: Config, who: str, why: str) -> str:
    """Return to the champion before this one; its version."""
    return registry(config).rollback(who=who, why=why)


def pull(config: Config, who: str, *, other_population: bool) -> ModelVersion | None:
    """Enter what the fleet has released for our ring; None if there is nothing new.

    Raises
    ------
    TriageError
        No fleet is configured, it is not to be believed, or what it has does not fit here.
    """
    from triage.bundles import enter
    from triage.updates import forget
    from triage.updates import pull as fetch

    if config.fleet_root is None:
        raise ConfigError("no fleet is configured: set TRIAGE_FLEET_URL and TRIAGE_FLEET_ROOT")
    _make_home(config)
    with _alone(config, "fleet"):
        bundle = fetch(config.fleet_url, config.fleet_root, config.fleet_ring, config.fleet_folder)
        if bundle is None:
            return None
        try:
            return enter(
                registry(config), bundle, keys(config), who, other_population=other_population
            )
        except ModelError:
            forget(bundle)
            raise


def receive(config: Config, stop: threading.Event) -> None:
    """Be the receiver until told to stop."""
    from triage.decoders import Proving

    _give_memory_back()
    # The decoders are tried in another process while this one opens the database.
    proving = Proving()
    from triage.scp import Receiver

    with _only_receiver(config), observed(config, "receive") as (telemetry, _):
        with_database = worklist(config)
        receiver = Receiver(
            config.ae_title,
            _door(config, proving.outcome()),
            config.max_associations,
            config.idle_seconds,
            spool(config),
            with_database,
            config.max_object_mb * 1_000_000,
            config.max_arriving_mb * 1_000_000,
            telemetry,
        )
        receiver.start()
        try:
            stop.wait()
        finally:
            receiver.stop()


def _give_memory_back() -> None:
    """Let what a large data set took go back to the system when it is freed.

    glibc learns from the first large blocks to keep such memory, in an arena for each
    thread: with many consoles a multiple of what is in use (mallopt(3), M_MMAP_THRESHOLD).
    """
    _allocate({_MMAP_THRESHOLD: 1_000_000})


def _keep_memory() -> None:
    """Keep what a radiograph took for the next one.

    glibc gives blocks of its size back to the system when they are freed, which then fills each
    page with zeros again: a fifth of a worker's processor time (mallopt(3), M_MMAP_THRESHOLD and
    M_TRIM_THRESHOLD).
    """
    _allocate({_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 128 << 20})


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def _allocate(thresholds: Mapping[int, int]) -> None:
    """Set glibc's thresholds, in bytes."""
    with suppress(AttributeError, OSError):  # another C library has no such habit
        libc = ctypes.CDLL(None)
        for which, count in thresholds.items():
            libc.mallopt(which, count)


def _door(config: Config, outcome: Mapping["UID", str]) -> "Door":
    """Where to listen, whom to admit and what to offer."""
    from triage.decoders import LIBRARIES
    from triage.scp import TRANSFER_SYNTAXES, Door
    from triage.transport import tls_context

    log = structlog.get_logger("scp")
    for syntax in TRANSFER_SYNTAXES:
        if outcome[syntax]:
            log.error(
                "not offered",
                action="transfer_syntax_not_offered",
                transfer_syntax=syntax.name,
                transfer_syntax_uid=str(syntax),
                advice=f"its decoder is not proven: install or mend {LIBRARIES[syntax]}",
                error=outcome[syntax],
            )
    offered = tuple(syntax for syntax in TRANSFER_SYNTAXES if not outcome[syntax])
    if not offered:
        raise ServiceError(
            "no transfer syntax can be decoded here; the lines above say why: install "
            "cxr-triage anew"
        )
    tls = None
    if config.tls_certificate is not None and config.tls_key is not None:
        tls = tls_context(config.tls_certificate, config.tls_key, config.tls_ca)
    return Door(
        (config.dicom_host, config.dicom_port) if config.dicom_port else None,
        config.peers,
        (config.dicom_host, config.tls_port) if tls else None,
        tls,
        frozenset(there.ae_title for there in config.commitment_peers),
        offered,
    )


def score(config: Config, stop: threading.Event) -> None:
    """Be a scoring worker until told to stop."""
    from triage.worker import Worker

    _keep_memory()
    with (
        _numbered(config, "worker") as (name, number),
        observed(config, "score", number) as (telemetry, health),
    ):
        Worker(
            name,
            worklist(config),
            spool(config),
            _current_champion(config),
            telemetry,
            health.beat,
        ).run(stop)


def deliver(config: Config, stop: threading.Event) -> None:
    """Deliver results until told to stop; with nowhere to deliver to, only wait."""
    if not config.destinations:
        stop.wait()
        return
    from triage.delivery import Deliverer, Materials, Patience

    files, models = spool(config), registry(config)
    with part_name(config, "deliverer") as name, observed(config, "deliver") as (telemetry, _):
        Deliverer(
            name,
            worklist(config).deliveries,
            _sinks(config, os.environ),
            Materials(files, models.version, _network),
            files,
            Patience(config.delivery_attempts, dt.timedelta(seconds=config.delivery_pause_seconds)),
            telemetry,
        ).run(stop)


def _sinks(config: Config, environment: Mapping[str, str]) -> dict[str, "Sink"]:
    """A sink for each destination, by its name.

    Raises
    ------
    ServiceError
        A secret or a certificate cannot be had.
    """
    from triage.send import Destination
    from triage.sinks.oru import InterfaceEngine
    from triage.sinks.pacs import Pacs
    from triage.sinks.webhook import Webhook, secret_of

    sinks: dict[str, Sink] = {}
    for there in config.destinations:
        match there:
            case DicomDestination():
                sinks[there.name] = Pacs(
                    Destination(there.host, there.port, there.ae_title),
                    config.ae_title,
                    there.timeout_seconds,
                    config.organization,
                )
            case Hl7Destination():
                sinks[there.name] = InterfaceEngine(
                    (there.host, there.port),
                    there.timeout_seconds,
                    there.sending_facility,
                    there.receiving_application,
                    there.receiving_facility,
                )
            case WebhookDestination():
                secret = secret_of(*_secret_text(there, environment))
                sinks[there.name] = Webhook(there.url, secret, there.timeout_seconds, there.ca_file)
    return sinks


def _secret_text(there: WebhookDestination, environment: Mapping[str, str]) -> tuple[str, str]:
    """A webhook's secret as it is written, and where that is."""
    if there.secret_file is None:
        variable = str(there.secret_variable)
        return environment.get(variable, ""), f"the variable {variable}"
    try:
        return there.secret_file.read_text("utf-8"), str(there.secret_file)
    except (OSError, ValueError) as error:
        raise ServiceError(
            f"the secret of destination {there.name} cannot be read from {there.secret_file} "
            f"({type(error).__name__})"
        ) from error


def _network(model: ModelVersion) -> Scorer:
    from triage.network import Network

    return Network(model)


def commit(config: Config, stop: threading.Event) -> None:
    """Report on Storage Commitment until told to stop; with nobody to report to, only wait."""
    if not config.commitment_peers:
        stop.wait()
        return
    from triage.commitment import Committer

    with part_name(config, "committer") as name, observed(config, "commit"):
        Committer(
            name,
            config.ae_title,
            worklist(config).commitments,
            spool(config),
            config.commitment_peers,
        ).run(stop)


def web(config: Config, stop: threading.Event) -> None:
    """Serve the radiologists' page until told to stop."""
    from triage.web import Site, build
    from triage.web.server import listen, serve, tls_context

    tls = tls_context(config)
    listening = listen(config)
    with_database = worklist(config)
    watched = ExitStack()
    try:
        telemetry, health = watched.enter_context(observed(config, "web"))
        site = Site(
            config,
            with_database,
            spool(config),
            registry(config),
            _network,
            stop,
            telemetry,
            health,
        )
        app = build(site)
        _tell_first_operator(with_database, config)
        serve(app, config, listening, tls, stop)
    finally:
        watched.close()
        with_database.close()


def retrain(config: Config, stop: threading.Event) -> None:
    """Start retrainings when they are due, until told to stop; without a schedule, only wait.

    The program of the package ``training`` does it, which this one does not import: a site that
    does not retrain needs no TensorFlow.
    """
    if not config.retrain_schedule:
        stop.wait()
        return
    line = [sys.executable, "-m", "training.retrain", "schedule", "--keep", "--supervised"]
    # Its standard input ends with us, and it with that.
    with observed(config, "retrain"), subprocess.Popen(line, stdin=subprocess.PIPE) as process:
        while not stop.wait(0.1):
            if process.poll() is not None:
                raise ServiceError("the schedule of retrainings ended; its line above says why")
        process.terminate()


def observe(config: Config, stop: threading.Event) -> None:
    """Let a challenger in shadow score silently, and watch for drift, until told to stop."""
    with observed(config, "observe") as (telemetry, health):
        _observe(config, stop, telemetry, health)


def _observe(config: Config, stop: threading.Event, telemetry: Telemetry, health: Health) -> None:
    from triage.shadow import Shadow, stand_back

    stand_back()
    log = structlog.get_logger("observe")
    with_database = worklist(config)
    shadow = Shadow(with_database.shadows, spool(config), _current_pair(config))
    checked = time.monotonic()
    asked = -math.inf
    every = 3600.0 * config.fleet_pull_hours
    while not stop.is_set():
        health.beat()
        try:
            if not shadow.step():
                stop.wait(SHADOW_PAUSE)
            if time.monotonic() - checked >= DRIFT_PAUSE:
                watch_drift(config, with_database)
                checked = time.monotonic()
            if every and time.monotonic() - asked >= every:
                asked = time.monotonic()
                _ask_fleet(config)
        except (WorklistError, ModelError, SpoolOutage) as error:
            of = telemetry.outage(error)
            log.warning("outage", action=f"{of}_unavailable", error=str(error))
            stop.wait(OUTAGE_PAUSE)


def _ask_fleet(config: Config) -> None:
    """Pull what is new and tell how the model fares, as far as the site wants either."""
    log = structlog.get_logger("observe")
    try:
        if config.fleet_root is not None:
            model = pull(config, SERVICE, other_population=False)
            if model is not None:
                log.info("pulled", action="fleet_pulled", model_version=model.version)
        if config.fleet_report_url:
            report(config)
            log.info("reported", action="fleet_reported")
    except TriageError as error:
        # The next look is a day away; nothing here depends on it.
        log.warning("fleet", action="fleet_unavailable", error=str(error))


def summarize(config: Config) -> dict[str, object]:
    """What the fleet is told of this site, if anything is."""
    from triage.summary import summary

    with_database = worklist(config)
    try:
        return summary(with_database, registry(config), config.organization)
    finally:
        with_database.close()


def report(config: Config) -> None:
    """Tell the fleet how the model fares here.

    Raises
    ------
    TriageError
        The site has not agreed to, or nobody takes it.
    """
    from triage.updates import tell

    if not config.fleet_report_url:
        raise ConfigError("nobody is told: set TRIAGE_FLEET_REPORT_URL if the site agrees")
    tell(config.fleet_report_url, summarize(config))


def watch_drift(config: Config, with_database: Worklist) -> "list[Alarm]":
    """Raise the alarms that are due; the new ones. Each is a line in the log, once."""
    models = registry(config)
    champion, since = models.aliases().get(CHAMPION), models.since(CHAMPION)
    if champion is None or since is None:
        return []
    raised = with_database.drifts.check(champion, since, config.drift_patience)
    for alarm in raised:
        structlog.get_logger("observe").warning(
            "drift",
            action="drift",
            alarm=alarm.id,
            measure=str(alarm.measure),
            console=alarm.console or "all",
            model_version=alarm.model_version,
            began_at=alarm.began_at.isoformat(timespec="seconds"),
            advice="look at the dashboard, then `triage drift acknowledge`",
        )
    return raised


def _current_pair(config: Config) -> "Callable[[], Pair | None]":
    """Gives who is in shadow, compiled anew only when an alias has moved."""
    from triage.shadow import Pair

    models = registry(config)
    compiled: dict[str, Pair] = {}

    def current() -> Pair | None:
        aliases = models.aliases()
        version, champion = aliases.get(SHADOW), aliases.get(CHAMPION)
        if version is None or champion is None or version == champion:
            compiled.clear()
            return None
        since = models.since(SHADOW)
        if since is None:
            return None
        found = compiled.get(version)
        if found is None or (found.champion, found.since) != (champion, since):
            compiled.clear()
            challenger = assessor(config, models.version(version))
            found = compiled[version] = Pair(challenger, champion, since)
        return found

    return current


def _tell_first_operator(with_database: Worklist, config: Config) -> None:
    """Make the first account and show its one-time password, here and never again."""
    password = with_database.accounts.first_operator()
    if password is None:
        return
    # Not through the log: that is kept, and read by more people.
    sys.stderr.write(
        f"triage: first start: sign in at {config.web_origin}/ as `{FIRST_OPERATOR}` with the "
        f"one-time password {password} (shown only here and now; you choose another at once)\n"
    )
    sys.stderr.flush()


ROLES: dict[str, Callable[[Config, threading.Event], None]] = {
    "receive": receive,
    "score": score,
    "deliver": deliver,
    "commit": commit,
    "web": web,
    "retrain": retrain,
    "observe": observe,
}
"""The parts of the service, each a process."""


METRICS_PORTS = {role: number for number, role in enumerate(ROLES)}
"""What is added to TRIAGE_METRICS_PORT, by role; further workers follow after the last."""


@contextmanager
def telemetry_of(config: Config, part: str) -> Iterator[Telemetry]:
    """What a part, or a command, tells of its work; its traces go where the settings say."""
    traces = None
    if config.traces_url:
        from triage.traces import Traces

        traces = Traces(config.traces_url, part, config.traces_share)
    telemetry = Telemetry(part, traces)
    try:
        yield telemetry
    finally:
        telemetry.close()


@contextmanager
def observed(config: Config, role: str, number: int = 1) -> Iterator[tuple[Telemetry, Health]]:
    """A part's telemetry and health, served on its port if there is one.

    Parameters
    ----------
    config : Config
    role : str
    number : int
        Of the processes with this role; from 1.
    """
    with telemetry_of(config, role) as telemetry, ExitStack() as ends:
        health = Health(_needs(config, role, telemetry, ends))
        if config.metrics_port:
            place = METRICS_PORTS[role] if number == 1 else len(METRICS_PORTS) + number - 2
            address = (config.metrics_host, config.metrics_port + place)
            _register(config, role, telemetry, ends)
            try:
                port = Port(address, health, telemetry.registry)
            except OSError as error:
                # Radiographs do not wait for who watches them.
                structlog.get_logger("health").error(
                    "no metrics",
                    action="metrics_unavailable",
                    address=f"{address[0]}:{address[1]}",
                    error=str(error.strerror),
                    advice="another part or program has the port: set TRIAGE_METRICS_PORT anew",
                )
            else:
                ends.callback(port.close)
        yield telemetry, health


def _needs(
    config: Config, role: str, telemetry: Telemetry, ends: ExitStack
) -> dict[str, Callable[[], object]]:
    """What a part cannot work without."""
    opened: list[Worklist] = []

    def database() -> None:
        if not opened:
            opened.append(Worklist(config.worklist_url))
            ends.callback(opened[0].close)
        opened[0].gauges.reachable()

    def champion() -> None:
        if role == "score" and not telemetry.model:
            raise ModelError("the champion is not loaded yet")
        if role == "web":
            registry(config).champion()

    needs: dict[str, Callable[[], object]] = {"database": database}
    if role != "retrain":
        needs["spool"] = lambda: spool(config).reachable()
    if role in {"score", "web"}:
        needs["champion"] = champion
    return needs


def _register(config: Config, role: str, telemetry: Telemetry, ends: ExitStack) -> None:
    """Add what a part tells of more than itself."""
    from triage.gauges import Disks, Queues

    if role in {"receive", "observe"}:
        telemetry.registry.register(Disks({"home": config.home}))
    if role == "observe":
        with_database = Worklist(config.worklist_url)
        ends.callback(with_database.close)
        telemetry.registry.register(Queues(with_database.gauges))


SAY_LATER = 1.0
"""Seconds after which a part first says that it runs: its work begins before."""

LAST_WORD = 2.0
"""Seconds that saying that it ends may hold up the end of a part."""

_LATER = {"web": 2.0}
"""Seconds by which a part lets the others go first: consoles are not to wait for the page."""


def serve(config: Config, roles: Sequence[str], *, supervised: bool) -> None:
    """Run one role here, or several as processes of their own, until a signal.

    Raises
    ------
    TriageError
        A part cannot start.
    """
    # Instance files and the database hold patient data: for this user only.
    os.umask(0o077)
    stop = stop_on_signals()
    if supervised:
        stop_with_parent(stop)
        if stop.wait(_LATER.get(roles[0], 0.0)):
            return
    else:
        prepare(config)
    if len(roles) == 1:
        with _heard_of(config, roles[0]):
            ROLES[roles[0]](config, stop)
        return
    # Else a process with nothing to do.
    has_work = {
        "deliver": config.destinations,
        "commit": config.commitment_peers,
        "retrain": config.retrain_schedule,
    }
    parts = {role: role for role in roles if has_work.get(role, True)}
    later = {"observe": OBSERVE_LATER}
    for number in range(2, config.workers + 1 if "score" in roles else 2):
        parts[f"score-{number}"], later[f"score-{number}"] = "score", WORKER_LATER
    Supervisor(
        {
            name: [sys.executable, "-m", "triage", "serve", "--roles", role, "--supervised"]
            for name, role in parts.items()
        },
        later,
    ).run(stop)


def _current_champion(config: Config) -> "Callable[[], Assessor]":
    """Gives the champion, compiled anew only when the alias has moved."""
    from triage.assessment import Assessor

    models = registry(config)
    compiled: dict[str, Assessor] = {}

    def current() -> Assessor:
        version = models.aliases().get(CHAMPION, "")
        if version not in compiled:
            model = models.champion()
            compiled.clear()
            compiled[model.version] = assessor(config, model)
            version = model.version
        return compiled[version]

    return current


def assessor(config: Config, model: ModelVersion) -> "Assessor":
    """A model version, compiled, with all that it scores with.

    Raises
    ------
    ModelError
        It does not fit this program, or cannot be compiled.
    """
    from triage.network import assessor as compiled

    return compiled(model, warn_outside=config.outside_population == "warn")


@contextmanager
def _heard_of(config: Config, role: str) -> Iterator[None]:
    """Say from a thread of its own that this part runs, for as long as it does."""
    ended = threading.Event()
    node, process = socket.gethostname(), os.getpid()

    def say(parts: Parts) -> None:
        parts.begin(node, role, process, __version__, _process_is_there)
        while not ended.wait(EVERY.total_seconds()):
            if not parts.beat(node, role, process):
                parts.begin(node, role, process, __version__, _process_is_there)
        parts.end(node, role, process)

    def keep_saying() -> None:
        pause = SAY_LATER
        while not ended.wait(pause):
            # A database that is away is told of by who needs it.
            with suppress(WorklistError):
                with_database = worklist(config)
                try:
                    say(with_database.parts)
                finally:
                    with_database.close()
            pause = EVERY.total_seconds()

    thread = threading.Thread(target=keep_saying, name="heard-of", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LAST_WORD)


def _process_is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextmanager
def _only_receiver(config: Config) -> Iterator[None]:
    """Be the one receiver of a home: at its start it sweeps what another half received."""
    with ExitStack() as held:
        try:
            held.enter_context(_lock(config.locks_folder / "receiver.lock", wait=False))
        except BlockingIOError:
            raise ServiceError(
                f"a receiver runs with the home {config.home} already: stop it, or set "
                "TRIAGE_HOME to another folder"
            ) from None
        yield


@contextmanager
def part_name(config: Config, part: str) -> Iterator[str]:
    """A name that no other live process has, of whatever node on the same database.

    The name is the number of a locked file. A killed process's lock is free at once, so
    its successor gets the same name and with it the claims that the dead one held.
    """
    with _numbered(config, part) as (name, _):
        yield name


@contextmanager
def _numbered(config: Config, part: str) -> Iterator[tuple[str, int]]:
    """As :func:`part_name`, with the number, which is this node's."""
    with ExitStack() as held:
        for number in range(1, MAX_WORKERS + 1):
            with suppress(BlockingIOError):
                held.enter_context(_lock(config.locks_folder / f"{part}-{number}.lock", wait=False))
                break
        else:
            raise ServiceError(f"{MAX_WORKERS} {part}s run with {config.home} already")
        # Homes on one machine may share a database, and so may machines with one name.
        home = config.locks_folder.stat()
        node = f"{home.st_dev:x}-{home.st_ino:x}"
        yield f"{socket.gethostname()[:64]}/{part}-{number}@{node}", number


@contextmanager
def _alone(config: Config, what: str) -> Iterator[None]:
    """Do something that one process does at a time, of all nodes on the same database."""
    with _lock(config.locks_folder / f"{what}.lock", wait=True), alone(config.worklist_url, what):
        yield


@contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends.

    Raises
    ------
    BlockingIOError
        Another process holds it, and ``wait`` is false.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
