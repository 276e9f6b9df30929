"""The ``triage-retrain`` commands, and the schedule that starts retrainings by itself."""

import datetime as dt
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
import structlog

from triage import app
from triage.cli import run_command
from triage.config import AFTER_READINGS, Config
from triage.errors import ConfigError, TriageError, WorklistError
from triage.registry import SHADOW
from triage.supervisor import stop_on_signals, stop_with_parent
from triage.worklist import Worklist
from triage.worklist.retrainings import LEASE, RetrainingRecord, RetrainingState

if TYPE_CHECKING:
    from apscheduler.schedulers.background import BackgroundScheduler

JOB, GO_ON, PROMOTE = "retrain", "go-on", "promote"
"""Jobs: the one that is configured, one for a run that was killed, and automatic promotion."""

TICK = LEASE / 12
"""So often a node looks whether it keeps the schedule, and whether a run was left."""

LOOK = dt.timedelta(minutes=5)
"""So often the number of new readings is looked at."""

STOPPED = 143
"""Exit status of a run that was told to stop, as of SIGTERM."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Make a better model version from radiologists' readings."""
    context.obj = Config.read(os.environ, Path.cwd())


@main.command("run")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--force", is_flag=True, help="Though there are few readings, or a small exam.")
@click.option(
    "--ray", help="A Ray cluster that trains, instead of TRIAGE_RETRAIN_RAY; see rescore."
)
@click.option("--scheduled", is_flag=True, hidden=True)
@click.option("--go-on", is_flag=True, hidden=True)
@click.option("--supervised", is_flag=True, hidden=True)
@click.pass_obj
def run_now(
    config: Config,
    *,
    dry_run: bool,
    force: bool,
    ray: str | None,
    scheduled: bool,
    go_on: bool,
    supervised: bool,
) -> None:
    """Retrain now, or go on with the retraining whose process died.

    Exit status 0 if it was done or there was no cause to.
    """
    if ray is not None:
        config = config.model_copy(update={"retrain_ray": ray})
    app.configure_logging(config)
    # Snapshots and checkpoints are of patients: for this user only.
    os.umask(0o077)
    _stop_when_told(supervised=supervised)
    _limit(config.retrain_threads)
    retraining = _parts()
    if dry_run:
        _tell_what_would_be(config, force=force)
        return
    trigger = "schedule" if scheduled else "command"
    told = retraining.ran(config, trigger, forced=force, anew=not go_on)
    if told is not None:
        click.echo(told)


def _limit(threads: int) -> None:
    """Of TensorFlow and NumPy, which count them when they are imported."""
    for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _parts() -> Any:
    """What needs the extra."""
    try:
        from training import retraining
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"retraining needs the extra cxr-triage[train]; {error.name} is missing"
        ) from error
    return retraining


def _stop_when_told(*, supervised: bool) -> None:
    """End by an exception when told to, so that the lease is given back at once."""
    import signal

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(STOPPED)

    signal.signal(signal.SIGTERM, stop)
    if not supervised:
        return
    over = threading.Event()
    stop_with_parent(over)

    def follow() -> None:
        over.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="parent-follow", daemon=True).start()


def _tell_what_would_be(config: Config, *, force: bool) -> None:
    worklist = app.worklist(config)
    running, left = worklist.retrainings.running(), worklist.retrainings.left()
    if running is not None:
        click.echo(f"nothing would be done: retraining {running.id} runs already")
        return
    if left is not None:
        click.echo(f"retraining {left.id} would go on ({left.stage}); its process died")
        return
    found = _parts().outlook(config, worklist, None, forced=force)
    click.echo(f"{found.new_readings} new readings")
    if found.snapshot is not None:
        click.echo(f"snapshot {found.snapshot.digest}")
        for part, counts in found.snapshot.counts().items():
            told = ", ".join(f"{number} {name}" for name, number in counts.items())
            click.echo(f"  {part:12} {told}")
        for reason, number in sorted(found.snapshot.left_out.items()):
            if number:
                click.echo(f"  left out     {number} {reason}")
    if found.obstacle:
        click.echo(f"nothing would be done: {found.obstacle}")
    else:
        base = config.retrain_base_data
        click.echo(
            f"a challenger would be trained from {app.registry(config).champion().version}, "
            + ("without base data" if base is None else f"rehearsing {base}")
        )


@main.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON array, newest first.")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True)
@click.pass_obj
def status(config: Config, limit: int, *, as_json: bool) -> None:
    """Show retrainings, what came of them, and why nothing was done."""
    retrainings = app.worklist(config).retrainings
    records = retrainings.records(limit)
    if as_json:
        click.echo(json.dumps([record.as_json() for record in records], indent=2))
        return
    if not records:
        click.echo("No retraining yet.")
    left = retrainings.left()
    for record in records:
        click.echo(_line(record))
        if left is not None and left.id == record.id:
            click.echo(
                "     its process died: the schedule or `triage-retrain run` goes on with it"
            )
    last = retrainings.last(RetrainingState.DONE)
    number = retrainings.new_readings(None if last is None else last.cutoff)
    click.echo(f"{number} new readings; {config.retrain_after_readings} are worth a retraining")


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder that gets the manifest.",
)
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"]),
    help="Readings until then, in UTC. [default: a minute ago]",
)
@click.pass_obj
def snapshot(config: Config, out: Path, until: dt.datetime | None) -> None:
    """Write the manifest of the site's labels: train, validation and the frozen exam."""
    app.configure_logging(config)
    # It names readers and readings.
    os.umask(0o077)
    _parts()
    from training.snapshots import take

    cutoff = None if until is None else until.replace(tzinfo=dt.UTC)
    taken = take(app.worklist(config), app.pictures(config), cutoff, config.exam_share)
    path = taken.write(out)
    for part, counts in taken.counts().items():
        told = ", ".join(f"{number} {name}" for name, number in counts.items())
        click.echo(f"{part:11} {told}")
    for reason, number in sorted(taken.left_out.items()):
        click.echo(f"{reason:14} {number}")
    click.echo(f"{path} holds snapshot {taken.digest[:19]}")


def _line(record: RetrainingRecord) -> str:
    told = record.reason if record.ended_at else f"{record.stage}, on {record.holder}"
    ended = "" if record.ended_at is None else f" to {record.ended_at:%H:%M}"
    return (
        f"{record.id:<4} {record.started_at:%Y-%m-%d %H:%M}{ended} UTC  {record.state:8} "
        f"{record.trigger:8} {told}"
    )


@main.command()
@click.option("--keep", is_flag=True, help="Keep the schedule until SIGTERM, as the role does.")
@click.option("--supervised", is_flag=True, hidden=True)
@click.pass_obj
def schedule(config: Config, *, keep: bool, supervised: bool) -> None:
    """Show when retrainings start by themselves, and which node sees to it."""
    if keep:
        app.configure_logging(config)
        os.umask(0o077)
        stop = stop_on_signals()
        if supervised:
            stop_with_parent(stop)
        keep_schedule(config, stop)
        # A thread may wait for a run, which ends with this process.
        sys.stdout.flush()
        os._exit(0)
    retrainings = app.worklist(config).retrainings
    click.echo(_told(config))
    if config.retrain_promotion == "automatic":
        click.echo("warning: a proven challenger is promoted, and nobody is asked")
    click.echo(f"kept by {retrainings.leader() or 'no node: run `triage serve --roles retrain`'}")
    due = retrainings.scheduled().get(JOB)
    if due is not None:
        verb = "looks" if config.retrain_schedule == AFTER_READINGS else "starts"
        click.echo(f"next {verb} at {due:%Y-%m-%d %H:%M:%S} UTC")


def _told(config: Config) -> str:
    """The schedule in one line; also the job's name, by which a change of it is seen."""
    more = f"jitter {config.retrain_jitter_seconds} s, grace {config.retrain_grace_minutes} min"
    if not config.retrain_schedule:
        return "no schedule: set TRIAGE_RETRAIN_SCHEDULE"
    if config.retrain_schedule == AFTER_READINGS:
        return f"after {config.retrain_after_readings} new readings, {more}"
    return f"cron {config.retrain_schedule!r}, {config.retrain_time_zone}, {more}"


def keep_schedule(config: Config, stop: threading.Event) -> None:
    """Start retrainings when they are due, on one node at a time, until told to stop.

    APScheduler's jobs are in the worklist database, but two of its schedulers must not share
    them. So one node holds a lease and runs the scheduler, and the others wait for it to end.

    Raises
    ------
    WorklistError
        The database cannot be used at the start.
    """
    log = structlog.get_logger("schedule")
    logging.getLogger("apscheduler").addHandler(logging.NullHandler())
    scheduler: BackgroundScheduler | None = None
    worklist = app.worklist(config)
    with app.part_name(config, "schedule") as holder:
        try:
            while True:
                try:
                    leads = worklist.retrainings.lead(holder)
                except WorklistError as error:
                    log.warning(str(error), action="schedule_not_renewed")
                    leads = False
                if leads and scheduler is None:
                    scheduler = _scheduler(config, worklist)
                    log.info(_told(config), action="schedule_kept", holder=holder)
                    if config.retrain_promotion == "automatic":
                        log.warning(
                            "proven challengers are promoted, and nobody is asked",
                            action="promotion_automatic",
                        )
                elif not leads and scheduler is not None:
                    log.warning("another node keeps the schedule", action="schedule_lost")
                    scheduler.shutdown(wait=False)
                    scheduler = None
                if scheduler is not None:
                    _see_to_the_left(worklist, scheduler, log)
                if stop.wait(TICK.total_seconds()):
                    return
        finally:
            if scheduler is not None:
                scheduler.shutdown(wait=False)
                worklist.retrainings.resign(holder)
            worklist.close()


def _scheduler(config: Config, worklist: Worklist) -> "BackgroundScheduler":
    """A running scheduler whose job is the configured one.

    A job that is there already keeps the time that it is due at, so that a start missed while
    nobody kept the schedule is made up for.
    """
    from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MISSED
    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.jobstores.memory import MemoryJobStore
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
    from apscheduler.schedulers.background import BackgroundScheduler
    from apscheduler.triggers.cron import CronTrigger
    from apscheduler.triggers.interval import IntervalTrigger

    store = SQLAlchemyJobStore(engine=worklist.engine(), tablename="retrain_jobs")
    scheduler = BackgroundScheduler(
        jobstores={"default": store, "memory": MemoryJobStore()},
        executors={"default": ThreadPoolExecutor(2)},
        timezone=dt.UTC,
        job_defaults={
            "coalesce": True,
            "max_instances": 1,
            "misfire_grace_time": config.retrain_grace_minutes * 60,
        },
    )
    scheduler.add_listener(_tell_trouble, EVENT_JOB_ERROR | EVENT_JOB_MISSED)
    scheduler.start(paused=True)
    known = scheduler.get_job(JOB)
    jitter = config.retrain_jitter_seconds or None
    if not config.retrain_schedule:
        if known is not None:
            scheduler.remove_job(JOB)
    elif known is None or known.name != _told(config):
        after = config.retrain_schedule == AFTER_READINGS
        if after:
            trigger: Any = IntervalTrigger(seconds=LOOK.total_seconds(), jitter=jitter)
        else:
            trigger = CronTrigger.from_crontab(config.retrain_schedule, config.retrain_time_zone)
            trigger.jitter = jitter
        scheduler.add_job(
            "training.retrain:fire_if_worth_it" if after else "training.retrain:fire",
            trigger,
            id=JOB,
            name=_told(config),
            replace_existing=True,
            **({"next_run_time": dt.datetime.now(dt.UTC)} if after else {}),
        )
    if config.retrain_promotion == "automatic":
        scheduler.add_job(
            "training.retrain:promote_proven",
            IntervalTrigger(seconds=LOOK.total_seconds()),
            id=PROMOTE,
            jobstore="memory",
        )
    scheduler.resume()
    return scheduler


def _tell_trouble(event: Any) -> None:
    """Log a job that broke or was missed; APScheduler's own log has tracebacks."""
    error = getattr(event, "exception", None)
    structlog.get_logger("schedule").error(
        str(error) if isinstance(error, TriageError) else type(error).__name__,
        action="schedule_missed" if error is None else "schedule_broke",
        job=event.job_id,
        due=event.scheduled_run_time.isoformat(),
    )


def _see_to_the_left(worklist: Worklist, scheduler: "BackgroundScheduler", log: Any) -> None:
    """Let a run whose process died go on."""
    try:
        left = worklist.retrainings.left()
    except WorklistError:
        return
    if left is not None and scheduler.get_job(GO_ON, "memory") is None:
        log.warning("a retraining's process died", action="retraining_left", retraining=left.id)
        scheduler.add_job("training.retrain:go_on", id=GO_ON, jobstore="memory")


def fire() -> None:
    """Run a retraining in a process of its own, on the ground of this node's settings."""
    _started("--scheduled")


def go_on() -> None:
    """Go on with the retraining whose process died, in another."""
    _started("--scheduled", "--go-on")


def fire_if_worth_it() -> None:
    """Run a retraining if enough readings came since the last one that ended."""
    config = Config.read(os.environ, Path.cwd())
    worklist = app.worklist(config)
    try:
        # Also one that failed: the same readings would fail again every five minutes.
        last = worklist.retrainings.last(
            RetrainingState.DONE, RetrainingState.NOTHING, RetrainingState.FAILED
        )
        since = None if last is None else last.cutoff
        enough = worklist.retrainings.new_readings(since) >= config.retrain_after_readings
    finally:
        worklist.close()
    if enough:
        fire()


def promote_proven() -> None:
    """Promote what waits in shadow without a person, once the registry's rules let it."""
    config = Config.read(os.environ, Path.cwd())
    waits = app.registry(config).aliases().get(SHADOW)
    if waits is not None:
        _parts().promoted(config, waits)


def _started(*options: str) -> None:
    log = structlog.get_logger("schedule")
    line = [sys.executable, "-m", "training.retrain", "run", "--supervised", *options]
    # Its standard input ends with us, and it with that.
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        status = process.wait()
    if status:
        log.error("a retraining ended badly", action="retraining_died", status=status)


def run() -> None:
    """Entry point of ``triage-retrain``."""
    run_command(main, "triage-retrain")


if __name__ == "__main__":
    run()
