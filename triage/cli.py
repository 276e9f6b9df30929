"""The ``triage`` commands. Exit status 0, 1 (it failed) or 2 (the call was wrong).

Each command imports what it needs when it runs: ``triage --help`` and the supervisor
should not wait for OpenVINO.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from triage import __version__
from triage.config import Config
from triage.errors import ConfigError, TriageError
from triage.peers import valid_ae_title

if TYPE_CHECKING:
    import datetime as dt

    from rich.table import Table

    from triage.registry import ModelVersion
    from triage.worklist import WorklistItem
    from triage.worklist.accounts import Role
    from triage.worklist.backfile import Selection
    from triage.worklist.moving import Outcome

TABLE_ROWS = 50
"""So many rows ``triage worklist`` prints unless told otherwise."""

OPERATOR = "operator"
"""Who an event names when a command moved something."""

SERVED = ("receive", "score", "deliver", "commit", "web", "retrain", "observe")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cxr-triage")
@click.pass_context
def main(context: click.Context) -> None:
    """Put chest radiographs that look urgent first. A triage aid, not a diagnosis.

    Settings come from triage.toml and TRIAGE_* variables: see `triage config`.
    """
    context.obj = Config.read(os.environ, Path.cwd())


def _roles(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
    roles = [role.strip() for role in value.split(",") if role.strip()]
    wrong = [role for role in roles if role not in SERVED]
    if wrong or not roles:
        raise click.BadParameter(f"choose from {', '.join(SERVED)}, separated by commas")
    return list(dict.fromkeys(roles))


@main.command()
@click.option(
    "--roles",
    callback=_roles,
    default=",".join(SERVED),
    show_default=True,
    help="Which parts to run here.",
)
@click.option("--supervised", is_flag=True, hidden=True)
@click.pass_obj
def serve(config: Config, roles: list[str], *, supervised: bool) -> None:
    """Receive, score, deliver results and vouch for images until Ctrl-C or SIGTERM."""
    from triage import app

    app.configure_logging(config)
    app.serve(config, roles, supervised=supervised)


def _ae_title(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    try:
        return None if value is None else valid_ae_title(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--host", help="Receiver's address. [default: TRIAGE_DICOM_HOST]")
@click.option("--port", type=click.IntRange(1, 65_535), help="[default: TRIAGE_DICOM_PORT]")
@click.option(
    "--called-aet", callback=_ae_title, help="Receiver's AE title. [default: TRIAGE_AE_TITLE]"
)
@click.pass_obj
def send(
    config: Config,
    paths: tuple[Path, ...],
    host: str | None,
    port: int | None,
    called_aet: str | None,
) -> None:
    """Send files, or the .dcm files in folders, by C-STORE."""
    from triage import app
    from triage.send import Destination
    from triage.send import send as send_files

    app.configure_logging(config)
    if not (port or config.dicom_port):
        raise click.UsageError("give --port: the receiver's own is closed (TRIAGE_DICOM_PORT is 0)")
    destination = Destination(
        host or config.dicom_host, port or config.dicom_port, called_aet or config.ae_title
    )
    accepted = refused = 0
    for sent in send_files(paths, destination):
        if sent.accepted:
            accepted += 1
        else:
            refused += 1
            click.echo(f"triage: {sent.path}: {_printable(sent.explanation)}", err=True)
    if not accepted and not refused:
        raise TriageError("there was no .dcm file to send")
    click.echo(f"{accepted} sent to {destination}" + (f", {refused} not" if refused else ""))
    if refused:
        sys.exit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON array in reading order.")
@click.option(
    "--state",
    type=click.Choice(
        ["RECEIVED", "SCORED", "NOT_SCORED", "FAILED", "CONFIRMED", "REJECTED"],
        case_sensitive=False,
    ),
    help="Only items in this state.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"At most so many. [default: {TABLE_ROWS} in the table, all with --json]",
)
@click.pass_obj
def worklist(config: Config, state: str | None, limit: int | None, *, as_json: bool) -> None:
    """List exams in reading order: flagged first, and waiting counts."""
    from triage import app
    from triage.worklist import State

    with_database = app.worklist(config)
    wanted = None if state is None else State(state.upper())
    items = with_database.items(wanted, limit if as_json or limit else TABLE_ROWS + 1)
    if as_json:
        click.echo(json.dumps([item.as_json() for item in items], indent=2))
        return
    shown = items[: limit or TABLE_ROWS]
    _print(_table(shown))
    if len(shown) < len(items):
        click.echo(f"The first {TABLE_ROWS}; --limit N shows more.")
    counts = with_database.counts()
    click.echo(
        ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "No items yet."
    )
    click.echo("A triage aid, not a diagnosis: an unflagged exam may still show disease.")


@main.command()
@click.argument("uid")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def show(config: Config, uid: str, *, as_json: bool) -> None:
    """Show one exam by its SOP Instance UID: score, readings, events."""
    from triage import app

    with_database = app.worklist(config)
    item = with_database.item(uid)
    readings = with_database.readings.of(uid)
    journal = with_database.journal(uid)
    if as_json:
        content = item.as_json() | {
            "digest": item.digest,
            "readings": [_plain(reading) for reading in readings],
            "events": [_plain(event) for event in journal],
        }
        click.echo(json.dumps(content, indent=2))
        return
    for name, value in item.as_json().items():
        text = ", ".join(value) if isinstance(value, list) else value
        click.echo(f"{name:20} {'' if text is None else _printable(str(text))}")
    for reading in readings:
        click.echo(f"{'reading':20} {_time(reading.read_at)} {reading.verdict} by {reading.reader}")
    for event in journal:
        detail = json.dumps(event.detail) if event.detail else ""
        click.echo(
            f"{'event':20} {_time(event.at)} {event.action} by {event.actor} {detail}".rstrip()
        )


@main.command()
@click.argument("uid", metavar="SOP_INSTANCE_UID")
@click.option("--verdict", type=click.Choice(["confirmed", "rejected"]), required=True)
@click.option("--reader", required=True, help="Who reads: a name or a number, 1 to 64 characters.")
@click.pass_obj
def read(config: Config, uid: str, verdict: Any, reader: str) -> None:
    """Record that a radiologist sees the finding, or does not."""
    from triage import app
    from triage.worklist.readings import Said

    try:
        said = Said(verdict, reader.strip())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--reader") from error
    with (
        app.telemetry_of(config, "command") as telemetry,
        telemetry.step("read", uid, verdict=said.verdict),
    ):
        _, item = app.worklist(config).readings.add(uid, said)
    click.echo(f"{uid} is {item.state}")


@main.group()
def readings() -> None:
    """Readings in bulk, as CSV."""


@readings.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Only say what would become of each line.")
@click.pass_obj
def readings_import(config: Config, file: Path, *, dry_run: bool) -> None:
    """Take readings from a CSV file, such as labels from reports: all lines or none."""
    from triage import app
    from triage.errors import BadImport

    try:
        # The mark that some programs put before UTF-8 is none of the heading.
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reports = app.worklist(config).readings.take(lines, OPERATOR, dry_run=dry_run)
    except OSError as error:
        raise TriageError(f"{file} cannot be read: {error.strerror}") from error
    except BadImport as error:
        for line, problem in error.lines:
            click.echo(f"line {line}: {problem}")
        raise
    wrong = [report for report in reports if report.problem]
    for report in wrong:
        click.echo(f"line {report.line}: {_printable(report.sop_instance_uid)}: {report.problem}")
    if dry_run:
        click.echo(f"{len(reports) - len(wrong)} can be taken, {len(wrong)} not; nothing was taken")
    else:
        click.echo(f"{len(reports)} readings taken")
    if wrong:
        sys.exit(1)


@readings.command("export")
@click.argument("file", type=click.File("w", encoding="utf-8", lazy=False), default="-")
@click.pass_obj
def readings_export(config: Config, file: Any) -> None:
    """Write all readings to a CSV file, or to standard output."""
    import csv

    from triage import app
    from triage.worklist.readings import EXPORTED

    rows = csv.DictWriter(file, EXPORTED, lineterminator="\n")
    rows.writeheader()
    rows.writerows(app.worklist(config).readings.export(OPERATOR))


@main.group()
def patients() -> None:
    """Whose data training must not use."""


BECAUSE = "For the audit trail, which is kept for ever: no patient data."


@patients.command("withdraw")
@click.argument("patient_id")
@click.option("--because", required=True, help=BECAUSE)
@click.option("--in-advance", is_flag=True, help="Though no exam has this Patient ID yet.")
@click.pass_obj
def patients_withdraw(config: Config, patient_id: str, because: str, *, in_advance: bool) -> None:
    """Take a patient's data out of every later snapshot. The exams stay in the worklist."""
    from triage import app

    try:
        new = app.withdraw(config, patient_id, because, _who(), in_advance=in_advance)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--because") from error
    click.echo(
        "withdrawn: no snapshot that is taken from now on has this patient's data"
        if new
        else "this patient was withdrawn already; nothing was changed"
    )


@patients.command("restore")
@click.argument("patient_id")
@click.option("--because", required=True, help=BECAUSE)
@click.pass_obj
def patients_restore(config: Config, patient_id: str, because: str) -> None:
    """Let a withdrawn patient's data back into later snapshots."""
    from triage import app

    try:
        new = app.worklist(config).learning.restore(patient_id, because, _who())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--because") from error
    click.echo(
        "restored: later snapshots may have this patient's data again"
        if new
        else "this patient is not withdrawn; nothing was changed"
    )


@main.group()
def retention() -> None:
    """How long objects and arrays are kept."""


@retention.command("run")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.pass_obj
def retention_run(config: Config, *, dry_run: bool) -> None:
    """Remove what TRIAGE_KEEP_DAYS and TRIAGE_KEEP_ARRAY_DAYS no longer keep."""
    from triage import app

    app.configure_logging(config)
    removed = app.retain(config, _who(), dry_run=dry_run)
    if not (config.keep_days or config.keep_array_days):
        click.echo("every object is kept: TRIAGE_KEEP_DAYS is 0")
    click.echo(
        f"{removed.objects} objects ({removed.object_bytes / 1e6:.1f} MB) and {removed.arrays} "
        f"arrays {'would be' if dry_run else 'were'} removed"
    )
    if removed.kept:
        click.echo(f"{removed.kept} objects stay: no array could be made of them for training")


_WHERE = ("since", "until", "console", "state", "model")


def _selection(
    _context: click.Context, _parameter: click.Parameter, filters: tuple[str, ...]
) -> "Selection":
    import datetime as dt

    from triage.worklist import State
    from triage.worklist.backfile import Selection

    known: dict[str, Any] = {}
    for each in filters:
        name, equals, value = each.partition("=")
        if name not in _WHERE or not equals or not value:
            raise click.BadParameter(f"{each!r}: write NAME=VALUE with {', '.join(_WHERE)}")
        if name in known:
            raise click.BadParameter(f"{name} is given twice")
        try:
            match name:
                case "since" | "until":
                    moment = dt.datetime.fromisoformat(value)
                    known[name] = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
                case "state":
                    known[name] = State(value.upper())
                case _:
                    known[name] = value
        except ValueError as error:
            what = "a state" if name == "state" else "a time such as 2026-01-31 or 2026-01-31T12:00"
            raise click.BadParameter(f"{each!r}: {value!r} is not {what}") from error
    return Selection(**known)


@main.command()
@click.option(
    "--where",
    "selection",
    multiple=True,
    callback=_selection,
    metavar="NAME=VALUE",
    help=f"Only some exams; may be repeated. Names: {', '.join(_WHERE)}.",
)
@click.option("--model", "version", help="The model version that scores. [default: the champion]")
@click.option(
    "--from",
    "source",
    help="An archive instead of what is stored: folder:PATH, dicomweb:URL, cget:AET@HOST:PORT or "
    "cmove:AET@HOST:PORT.",
)
@click.option(
    "--against",
    help="The version that images which are not stored here are compared by. "
    "[default: the champion]",
)
@click.option("--ray", help="A Ray cluster: local, auto, HOST:PORT or ray://HOST:PORT.")
@click.option(
    "--workers", type=click.IntRange(1, 10_000), help="So many at once. [default: the cores]"
)
@click.option(
    "--move-port",
    type=click.IntRange(1, 65_535),
    default=11_113,
    show_default=True,
    help="Where we listen for what a PACS moves here.",
)
@click.option("--retry-failed", is_flag=True, help="Ask again about images that failed.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the HTML goes. [default: reports/ in TRIAGE_HOME]",
)
@click.option("--apply", is_flag=True, help="Let the champion's scores stand in the live rows.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object of what would change.")
@click.pass_obj
def rescore(
    config: Config,
    selection: "Selection",
    version: str | None,
    source: str | None,
    against: str | None,
    ray: str | None,
    workers: int | None,
    move_port: int,
    report: Path | None,
    *,
    retry_failed: bool,
    apply: bool,
    as_json: bool,
) -> None:
    """Score what is stored, or an archive, anew; live rows stay until --apply.

    Goes on where it was stopped. Writes a report of what would change.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )  # fmt: skip

    from triage import app
    from triage.rescoring import Task

    app.configure_logging(config)
    bar = Progress(
        SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
    with bar:
        shown = bar.add_task("images", total=None)
        outcome, applied = app.rescore(
            config,
            Task(selection, version, against, retry_failed),
            source=source,
            move_port=move_port,
            ray=ray,
            workers=workers,
            report=report,
            apply=apply,
            who=_who(),
            progress=lambda done, total: bar.update(shown, completed=done, total=total),
        )
    if as_json:
        told = outcome.as_json() | {"applied": None if applied is None else _plain(applied)}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(
        f"{outcome.images} images: {outcome.scored} scored, {outcome.refused} not scored, "
        f"{outcome.failed} failed"
    )
    click.echo(
        f"of {outcome.compared} that had a score: {outcome.gained} flags gained, {outcome.lost} "
        f"lost; {outcome.new_flags} flagged that had none"
    )
    if applied is not None:
        click.echo(
            f"applied to {applied.scored} exams: {applied.gained} flags gained, {applied.lost} "
            f"lost; {applied.kept} were read and stay as they were read; {applied.waiting} wait "
            "for the worker"
        )
    click.echo(f"report: {outcome.report}")


@main.group()
def commitments() -> None:
    """What consoles asked us to vouch for, and whether they know the answer."""


@commitments.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, newest first.")
@click.option(
    "--state",
    type=click.Choice(["PENDING", "REPORTED", "PARKED"], case_sensitive=False),
    help="Only transactions in this state.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"At most so many. [default: {TABLE_ROWS} in the table, all with --json]",
)
@click.pass_obj
def commitments_list(
    config: Config, state: str | None, limit: int | None, *, as_json: bool
) -> None:
    """List Storage Commitment transactions, the newest first."""
    from triage import app
    from triage.worklist.commitments import CommitmentState

    with_database = app.worklist(config).commitments
    wanted = None if state is None else CommitmentState(state.upper())
    records = with_database.records(wanted, limit if as_json or limit else TABLE_ROWS + 1)
    if as_json:
        click.echo(json.dumps([_plain(record) for record in records], indent=2))
        return
    shown = records[: limit or TABLE_ROWS]
    table = _new_table(
        "ID", "Requester", "Instances", "State", "Attempts", "Next attempt", "Transaction UID",
        "Why not reported",
    )  # fmt: skip
    for record in shown:
        table.add_row(
            str(record.id),
            record.requester,
            str(record.instances),
            record.state.value,
            str(record.attempts),
            "" if record.next_attempt_at is None else _time(record.next_attempt_at),
            record.transaction_uid,
            record.error,
        )
    _print(table)
    if len(shown) < len(records):
        click.echo(f"The newest {TABLE_ROWS}; --limit N shows more.")
    if not records:
        click.echo("No console has asked for Storage Commitment.")


@commitments.command("retry")
@click.argument("number", metavar="ID", type=click.IntRange(min=1), required=False)
@click.option("--all", "all_parked", is_flag=True, help="Every parked report.")
@click.pass_obj
def commitments_retry(config: Config, number: int | None, *, all_parked: bool) -> None:
    """Let a report, or every parked one, be attempted anew at once."""
    from triage import app

    if (number is None) != all_parked:
        raise click.UsageError("give either the ID of a transaction or --all")
    with_database = app.worklist(config).commitments
    if number is None:
        click.echo(f"{with_database.retry_parked()} parked reports will be attempted")
        return
    record = with_database.retry(number)
    click.echo(f"the report of {record.id} to {record.requester} will be attempted")


@main.group()
def deliveries() -> None:
    """The results on their way to PACS and other destinations."""


@deliveries.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, newest first.")
@click.option(
    "--state",
    type=click.Choice(["PENDING", "DELIVERED", "PARKED"], case_sensitive=False),
    help="Only deliveries in this state.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"At most so many. [default: {TABLE_ROWS} in the table, all with --json]",
)
@click.pass_obj
def deliveries_list(config: Config, state: str | None, limit: int | None, *, as_json: bool) -> None:
    """List deliveries, the newest first."""
    from triage import app
    from triage.worklist.deliveries import DeliveryState

    with_database = app.worklist(config).deliveries
    wanted = None if state is None else DeliveryState(state.upper())
    records = with_database.records(wanted, limit if as_json or limit else TABLE_ROWS + 1)
    if as_json:
        click.echo(json.dumps([_plain(record) for record in records], indent=2))
        return
    shown = records[: limit or TABLE_ROWS]
    table = _new_table(
        "ID", "Destination", "Result", "State", "Attempts", "Next attempt", "SOP Instance UID",
        "Why not delivered",
    )  # fmt: skip
    for record in shown:
        table.add_row(
            str(record.id),
            record.destination,
            record.kind.value,
            record.state.value,
            str(record.attempts),
            "" if record.next_attempt_at is None else _time(record.next_attempt_at),
            record.sop_instance_uid,
            record.error,
        )
    _print(table)
    if len(shown) < len(records):
        click.echo(f"The newest {TABLE_ROWS}; --limit N shows more.")
    if not records:
        click.echo("No deliveries." if config.destinations else "No destinations are configured.")


@deliveries.command("retry")
@click.argument("number", metavar="ID", type=click.IntRange(min=1), required=False)
@click.option("--all", "all_parked", is_flag=True, help="Every parked delivery.")
@click.pass_obj
def deliveries_retry(config: Config, number: int | None, *, all_parked: bool) -> None:
    """Let a delivery, or every parked one, be attempted anew at once."""
    from triage import app

    if (number is None) != all_parked:
        raise click.UsageError("give either the ID of a delivery or --all")
    with_database = app.worklist(config).deliveries
    if number is None:
        click.echo(f"{with_database.retry_parked(OPERATOR)} parked deliveries will be attempted")
        return
    record = with_database.retry(number, OPERATOR)
    click.echo(f"delivery {record.id} of {record.kind} to {record.destination} will be attempted")


ROLE_NAMES = click.Choice(["viewer", "reader", "operator"], case_sensitive=False)


@main.group()
def users() -> None:
    """Who may sign in to the page, as what."""


@users.command("list")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def users_list(config: Config, *, as_json: bool) -> None:
    """List accounts."""
    from triage import app

    records = app.worklist(config).accounts.records()
    if as_json:
        click.echo(json.dumps([_plain(record) for record in records], indent=2))
        return
    table = _new_table("Name", "Display name", "Roles", "Kind", "State", "Made")
    for record in records:
        state = "one-time password" if record.must_change else ""
        table.add_row(
            record.name,
            _printable(record.display_name),
            ", ".join(record.roles),
            record.kind,
            "disabled" if record.disabled else state,
            _time(record.created_at),
        )
    _print(table)
    if not records:
        click.echo("No accounts yet: the first `triage serve` makes one.")


@users.command("add")
@click.argument("name")
@click.argument("roles", nargs=-1, required=True, type=ROLE_NAMES)
@click.option("--display-name", default="", help="What the page shows. [default: the name]")
@click.pass_obj
def users_add(config: Config, name: str, roles: tuple[str, ...], display_name: str) -> None:
    """Make an account and show its one-time password, now and never again."""
    from triage import app

    accounts = app.worklist(config).accounts
    password = accounts.add(name, display_name, _as_roles(roles), _who())
    click.echo(f"{name}'s one-time password is {password}: to be changed at the first sign-in")


@users.command("roles")
@click.argument("name")
@click.argument("roles", nargs=-1, required=True, type=ROLE_NAMES)
@click.pass_obj
def users_roles(config: Config, name: str, roles: tuple[str, ...]) -> None:
    """Give an account these roles and no others, at once."""
    from triage import app

    app.worklist(config).accounts.set_roles(name, _as_roles(roles), _who())
    click.echo(f"{name} is {', '.join(sorted(set(roles)))}")


@users.command("reset")
@click.argument("name")
@click.pass_obj
def users_reset(config: Config, name: str) -> None:
    """Give an account a one-time password, show it once, and end its sessions."""
    from triage import app

    password = app.worklist(config).accounts.reset(name, _who())
    click.echo(f"{name}'s one-time password is {password}: to be changed at the next sign-in")


@users.command("disable")
@click.argument("name")
@click.pass_obj
def users_disable(config: Config, name: str) -> None:
    """Let an account sign in no longer, and end its sessions."""
    from triage import app

    app.worklist(config).accounts.disable(name, _who())
    click.echo(f"{name} is disabled")


@users.command("enable")
@click.argument("name")
@click.pass_obj
def users_enable(config: Config, name: str) -> None:
    """Let a disabled account sign in again."""
    from triage import app

    app.worklist(config).accounts.enable(name, _who())
    click.echo(f"{name} may sign in")


def _as_roles(names: tuple[str, ...]) -> "list[Role]":
    from triage.worklist.accounts import Role

    return [Role(name) for name in names]


def _who() -> str:
    """Who runs the command, for the audit trail."""
    import pwd

    try:
        return f"command of {pwd.getpwuid(os.getuid()).pw_name}"[:128]
    except KeyError:  # as in a container
        return f"command of uid {os.getuid()}"


@main.group()
def audit() -> None:
    """Who saw and who said what."""


@audit.command("verify")
@click.pass_obj
def audit_verify(config: Config) -> None:
    """Is the trail as it was written? Names the first broken row; exit status 1."""
    from triage import app

    head = app.worklist(config).audit.verify()
    click.echo(f"{head.id} rows, unbroken; the newest is {head.hash}")


@audit.command("export")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="From this day or time on, in UTC. [default: all]",
)
@click.pass_obj
def audit_export(config: Config, since: "dt.datetime | None") -> None:
    """Print the trail as JSON lines, oldest first."""
    import datetime as dt

    from triage import app
    from triage.worklist.audit import Action

    trail = app.worklist(config).audit
    begin = None if since is None else since.replace(tzinfo=dt.UTC)
    rows = 0
    for record in trail.records(begin):
        click.echo(json.dumps(record.as_json(), ensure_ascii=False))
        rows += 1
    trail.record(_who(), Action.EXPORTED, "audit", {"rows": rows})


@main.group()
def models() -> None:
    """The model versions of this installation."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def models_list(config: Config, *, as_json: bool) -> None:
    """List model versions, and which one scores."""
    from triage import app

    registry = app.registry(config)
    aliases = registry.aliases()
    versions = registry.versions()
    named = {
        model.version: [alias for alias, version in aliases.items() if version == model.version]
        for model in versions
    }
    if as_json:
        content = [{"aliases": named[m.version], **m.description} for m in versions]
        click.echo(json.dumps(content, indent=2))
        return
    table = _new_table("Version", "Alias", "Made", "Threshold", "AUC (95% interval)", "Population")
    for model in versions:
        auc = _held_out(model).get("auc")
        table.add_row(
            model.version,
            ", ".join(named[model.version]),
            model.description["created_at"][:10],
            f"{model.threshold:.3f}",
            _figure(auc) if auc else "",
            model.population.description,
        )
    _print(table)
    if not versions:
        click.echo("No models yet: `triage serve` enters the bundled one.")


@models.command("show")
@click.argument("version")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def models_show(config: Config, version: str, *, as_json: bool) -> None:
    """Show what is stated about a version: card, lineage, decisions, approval."""
    from triage import app
    from triage.card import card
    from triage.registry import CHAMPION

    registry = app.registry(config)
    model = registry.version(version)
    decisions = registry.decisions(version)
    names = [alias for alias, named in registry.aliases().items() if named == version]
    if as_json:
        said = [
            {"at": d.at, "champion": d.champion, "outcome": d.outcome, "path": str(d.path)}
            for d in decisions
        ]
        content = {"aliases": names, **model.description, "decisions": said}
        click.echo(json.dumps(content, indent=2))
        return
    told = model.description
    ages = model.population.age_years
    facts = {
        "version": model.version,
        "aliases": ", ".join(names) or "none",
        "made": told["created_at"],
        "architecture": told.get("architecture", ""),
        "parent": told.get("parent") or "none",
        "snapshot": told.get("data", {}).get("snapshot", ""),
        "data": told.get("data", {}).get("name", ""),
        "attribution": told.get("data", {}).get("attribution", ""),
        "population": model.population.description,
        "ages": f"{ages[0]} to {ages[1]} years" if ages else "not stated",
        "views": ", ".join(model.population.views) or "not stated",
        "threshold": f"{model.threshold:.6f} ({told.get('threshold_rule', '')})",
        "pixels": model.pixel_fingerprint,
        "device UID": told.get("device_uid", ""),
    }
    for name, fact in facts.items():
        click.echo(f"{name:20} {_printable(str(fact))}".rstrip())
    for name, digest in told["files"].items():
        click.echo(f"{'file':20} {name} sha256:{digest}")
    for decision in decisions:
        report = decision.path.with_suffix(".html")
        against = f"against {decision.champion}"
        click.echo(f"{'decision':20} {decision.at} {decision.outcome} {against}; see {report}")
    if CHAMPION not in names:
        click.echo(f"{'approved':20} {'yes' if registry.approved(version) else 'no'}")
    click.echo()
    for line in card(model).splitlines():
        click.echo(_printable(line))


@models.command("lineage")
@click.argument("name", metavar="VERSION|UID")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def models_lineage(config: Config, name: str, *, as_json: bool) -> None:
    """From a version, a report's Device UID or an exam's SOP Instance UID back to the readings."""
    from triage import app

    ancestors = app.lineage_of(config, name)
    if as_json:
        click.echo(json.dumps([each.as_json() for each in ancestors], indent=2))
        return
    for each in ancestors:
        facts = {
            "version": each.version,
            "made": each.made,
            "device UID": each.device_uid,
            "model.json": f"sha256:{each.described}" if each.described else "",
            "snapshot": each.snapshot,
            "cases": ", ".join(f"{count} {part}" for part, count in sorted(each.parts.items())),
            "readings": f"{len(each.readings)}, their numbers with --json" if each.readings else "",
            "readers": ", ".join(map(_printable, each.readers)),
            "note": _printable(each.note),
        }
        for fact, value in facts.items():
            if value:
                click.echo(f"{fact:12} {value}")
        if each is not ancestors[-1]:
            click.echo("descends from")


@models.command("compare")
@click.argument("first")
@click.argument("second")
@click.pass_obj
def models_compare(config: Config, first: str, second: str) -> None:
    """Show two versions side by side. Only the gate compares them on the same cases."""
    from triage import app

    registry = app.registry(config)
    both = [registry.version(version) for version in (first, second)]
    table = _new_table("", first, second)
    facts: dict[str, list[str]] = {
        "made": [model.description["created_at"][:10] for model in both],
        "parent": [str(model.description.get("parent") or "none") for model in both],
        "snapshot": [
            str(model.description.get("data", {}).get("snapshot", ""))[:19] for model in both
        ],
        "threshold": [f"{model.threshold:.4f}" for model in both],
        "population": [model.population.description for model in both],
    }
    figures = [_held_out(model) for model in both]
    for name in dict.fromkeys([*figures[0], *figures[1]]):
        facts[name] = [_figure(of[name]) if name in of else "" for of in figures]
    for name, cells in facts.items():
        table.add_row(name, *map(_printable, cells))
    _print(table)
    if facts["snapshot"][0] != facts["snapshot"][1]:
        click.echo("Their figures are of different cases: they cannot be held against each other.")
    for challenger, champion in ((second, first), (first, second)):
        for decision in registry.decisions(challenger):
            if decision.champion == champion:
                click.echo(
                    f"The gate on {challenger} against {champion}: {decision.outcome}; see "
                    f"{decision.path.with_suffix('.html')}"
                )


@models.command("approve")
@click.argument("version")
@click.option("--why", default="", help="For the history; needed with --force.")
@click.option("--force", is_flag=True, help="Though the gate has not proven it.")
@click.pass_obj
def models_approve(config: Config, version: str, why: str, *, force: bool) -> None:
    """Let a proven challenger become champion. `promote` then makes it one."""
    from triage import app

    app.approve(config, version, _who(), why, force=force)
    if force:
        click.echo("Approved without a proof: its scores may be worse than the champion's.")
    click.echo(f"{version} is approved; `triage models promote {version}` lets it score")


@models.command("promote")
@click.argument("version")
@click.option("--why", default="", help="For the history.")
@click.pass_obj
def models_promote(config: Config, version: str, why: str) -> None:
    """Make an approved version the champion. Running workers follow at their next exam."""
    from triage import app

    app.promote(config, version, _who(), why)
    click.echo(f"{version} scores from now on; `triage models rollback` goes back")


@models.command("shadow")
@click.option("--start", metavar="VERSION", help="Let a proven challenger score silently.")
@click.option("--end", is_flag=True, help="Let nobody score silently any more.")
@click.option("--why", default="", help="For the history.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def models_shadow(config: Config, start: str | None, why: str, *, end: bool, as_json: bool) -> None:
    """Show what the challenger in shadow says of the exams that the champion scores."""
    from triage import app
    from triage.registry import SHADOW

    registry = app.registry(config)
    if start is not None and end:
        raise click.UsageError("give either --start or --end")
    if start is not None:
        registry.shadow(start, who=_who(), why=why)
    if end:
        click.echo(f"{registry.end_shadow(who=_who(), why=why)} scores silently no more")
        return
    version = registry.aliases().get(SHADOW)
    if version is None:
        click.echo("No challenger scores in shadow: the gate has to prove one first.")
        return
    seen = app.shadowed(config, version)
    if as_json:
        click.echo(json.dumps(seen.as_json(), indent=2))
        return
    wanted = f"of {config.shadow_exams} wanted before it may be approved"
    facts = {
        "in shadow": seen.version,
        "champion": seen.champion,
        "exams": f"{seen.exams}, {wanted}",
        "not scored by it": str(seen.failed),
        "same flag": "" if seen.agreement is None else f"{seen.agreement:.1%}",
        "flags gained": str(seen.gained),
        "flags lost": str(seen.lost),
        "mean difference": f"{seen.mean_difference:+.4f}",
        "milliseconds": f"{seen.milliseconds:.1f} (95%: {seen.milliseconds_p95:.1f})",
        "read": f"{seen.read}; flag as the readers: {seen.right}, champion {seen.champion_right}",
    }
    for name, fact in facts.items():
        click.echo(f"{name:18} {fact}".rstrip())


@models.command("rollback")
@click.option("--why", default="", help="For the history.")
@click.pass_obj
def models_rollback(config: Config, why: str) -> None:
    """Return to the champion before this one, with its threshold."""
    from triage import app

    click.echo(f"{app.rollback(config, _who(), why)} scores again from now on")


@models.command("history")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, oldest first.")
@click.pass_obj
def models_history(config: Config, *, as_json: bool) -> None:
    """Show who moved which alias, when and why; verifies the history, exit status 1 if broken."""
    from triage import app

    entries = app.registry(config).history()
    if as_json:
        for entry in entries:
            click.echo(json.dumps(entry.as_json(), sort_keys=True))
        return
    table = _new_table("Number", "When", "Who", "What", "Version", "Why")
    for entry in entries:
        table.add_row(
            str(entry.number),
            entry.at[:19],
            _printable(entry.who),
            " ".join(filter(None, (entry.action, str(entry.detail.get("outcome") or "")))),
            str(entry.detail.get("version", "")),
            _printable(str(entry.detail.get("why", ""))),
        )
    _print(table)
    if not entries:
        click.echo("No history yet.")


@models.command("export")
@click.argument("version")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def models_export(config: Config, version: str, file: Path) -> None:
    """Write a version as a signed bundle for other sites."""
    from triage import app
    from triage.bundles import export

    export(app.registry(config), version, file, app.keys(config), config.organization)
    click.echo(f"{file} holds {version}")


OTHER_POPULATION = "Take it though it was made for others than the champion."


@models.command("import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--other-population", is_flag=True, help=OTHER_POPULATION)
@click.pass_obj
def models_import(config: Config, file: Path, *, other_population: bool) -> None:
    """Verify a bundle and enter its version as the challenger."""
    from triage import app
    from triage.bundles import enter

    model = enter(
        app.registry(config), file, app.keys(config), _who(), other_population=other_population
    )
    click.echo(f"{model.version} is the challenger; the gate decides on it with cases of this site")


@models.command("pull")
@click.option("--other-population", is_flag=True, help=OTHER_POPULATION)
@click.pass_obj
def models_pull(config: Config, *, other_population: bool) -> None:
    """Enter what the fleet has released for our ring as the challenger."""
    from triage import app

    model = app.pull(config, _who(), other_population=other_population)
    if model is None:
        click.echo("nothing new")
        return
    click.echo(f"{model.version} is the challenger; the gate decides on it with cases of this site")


@models.command("report")
@click.option("--send", is_flag=True, help="To TRIAGE_FLEET_REPORT_URL, instead of printing it.")
@click.pass_obj
def models_report(config: Config, *, send: bool) -> None:
    """Print what the fleet is told of this site: counts and versions, no patient data."""
    from triage import app

    if send:
        app.report(config)
        click.echo("the fleet has taken the report")
        return
    click.echo(json.dumps(app.summarize(config), indent=2))


@models.group("keys")
def models_keys() -> None:
    """Whose bundles are believed, and the key that signs ours."""


@models_keys.command("new")
@click.pass_obj
def keys_new(config: Config) -> None:
    """Make the key that signs our bundles, and print its public key."""
    from triage import app

    click.echo(app.keys(config).create(), nl=False)


@models_keys.command("public")
@click.pass_obj
def keys_public(config: Config) -> None:
    """Print the public key that other sites must trust to import our bundles."""
    from triage import app
    from triage.bundles import as_pem

    click.echo(as_pem(app.keys(config).signing().public_key()), nl=False)


@models_keys.command("trust")
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_obj
def keys_trust(config: Config, name: str, file: Path) -> None:
    """Believe bundles that are signed with a public key."""
    from triage import app

    key = app.keys(config).trust(name, file.read_bytes())
    app.registry(config).note(_who(), "TRUSTED", {"key": key.identifier, "key_name": name})
    click.echo(f"{name} is trusted; compare with its owner: {key.identifier}")


@models_keys.command("distrust")
@click.argument("name")
@click.pass_obj
def keys_distrust(config: Config, name: str) -> None:
    """Believe a key no longer. Versions that it brought stay."""
    from triage import app

    app.keys(config).distrust(name)
    app.registry(config).note(_who(), "DISTRUSTED", {"key_name": name})
    click.echo(f"{name} is no longer trusted")


@models_keys.command("list")
@click.pass_obj
def keys_list(config: Config) -> None:
    """List the trusted keys."""
    from triage import app

    keys = app.keys(config).trusted()
    for key in keys:
        click.echo(f"{key.identifier}  {key.name}")
    if not keys:
        click.echo("No key is trusted: `triage models keys trust NAME FILE`.")


def _held_out(model: "ModelVersion") -> dict[str, dict[str, float]]:
    """A version's own figures, by name."""
    return dict(model.description.get("metrics", {}).get("held_out", {}))


def _figure(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


@main.group()
def drift() -> None:
    """Whether what comes now is still like what came before."""


@drift.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@click.option("--all", "all_of_them", is_flag=True, help="Acknowledged ones, too.")
@click.pass_obj
def drift_list(config: Config, *, as_json: bool, all_of_them: bool) -> None:
    """List alarms. Looks anew first."""
    from triage import app

    app.configure_logging(config)
    worklist = app.worklist(config)
    app.watch_drift(config, worklist)
    alarms = worklist.drifts.alarms(all_of_them=all_of_them)
    if as_json:
        click.echo(json.dumps([alarm.as_json() for alarm in alarms], indent=2))
        return
    table = _new_table("Number", "Measure", "Console", "Began", "Raised", "Model", "Acknowledged")
    for alarm in alarms:
        table.add_row(
            str(alarm.id),
            str(alarm.measure),
            _printable(alarm.console) or "all",
            f"{alarm.began_at:%Y-%m-%d %H:%M}",
            f"{alarm.raised_at:%Y-%m-%d %H:%M}",
            alarm.model_version,
            _printable(alarm.acknowledged_by or ""),
        )
    _print(table)
    if not alarms:
        click.echo("No alarm of drift.")


@drift.command("acknowledge")
@click.argument("number", type=int)
@click.pass_obj
def drift_acknowledge(config: Config, number: int) -> None:
    """Say that somebody has seen to an alarm. What came since it is compared with itself."""
    from triage import app

    new = app.worklist(config).drifts.acknowledge(number, _who())
    click.echo("acknowledged" if new else "it was acknowledged already")


@main.command()
@click.pass_obj
def config(config: Config) -> None:
    """Show every setting."""
    fields = type(config).model_fields
    for variable, value in config.shown().items():
        meaning = fields[variable.removeprefix("TRIAGE_").lower()].description
        click.echo(f"{variable} = {value}\n    {meaning}")


def _target(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """The URL itself, or the one that a file or standard input holds."""
    from triage.config import without_password

    if value is None or not (value == "-" or value.startswith("@")):
        if value is not None and without_password(value) != value:
            click.echo(
                "triage: every user of this machine can read a password on the command line while "
                "it runs: write --to @FILE, or leave it to PGPASSFILE",
                err=True,
            )
        return value
    try:
        told = sys.stdin.readline() if value == "-" else Path(value[1:]).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise click.BadParameter(
            f"{value[1:] or 'standard input'} cannot be read ({type(error).__name__})"
        ) from error
    if not told.strip():
        raise click.BadParameter(f"{value[1:] or 'standard input'} holds no URL")
    return told.strip()


@main.command()
@click.option(
    "--to",
    metavar="URL",
    callback=_target,
    help="Move the site to this database; @FILE or - (standard input) keeps a password off the "
    "command line.",
)
@click.option(
    "--dry-run", is_flag=True, help="Only look whether it can be moved, and what there is."
)
@click.option("--copy-only", is_flag=True, help="Copy and verify; the site stays where it is yet.")
@click.option("--abandon", is_flag=True, help="Stay: end a move that has begun.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object of what was moved.")
@click.option(
    "--files-to", metavar="URL", help="Copy instances and models to a store that nodes share."
)
@click.pass_obj
def migrate(
    config: Config,
    to: str | None,
    files_to: str | None,
    *,
    dry_run: bool,
    copy_only: bool,
    abandon: bool,
    as_json: bool,
) -> None:
    """Bring the worklist database to this program's schema, or move it to another (--to).

    A move goes on while the service receives, and goes on where it was stopped.
    """
    from triage import app

    if to is None:
        if dry_run or copy_only or as_json:
            raise click.UsageError("--dry-run, --copy-only and --json need --to URL")
        if files_to is not None:
            if abandon:
                raise click.UsageError("--abandon needs no --files-to")
            _share_files(config, files_to)
            return
        if abandon:
            stays = app.abandon_move(config)
            click.echo("the site stays where it is" if stays else "the site was not moving")
            return
        click.echo(app.migrate_worklist(config))
        return
    if abandon or files_to is not None:
        raise click.UsageError("give --abandon, --files-to and --to one at a time")
    if dry_run:
        _tell_move(app.examine_move(config, to), to, as_json=as_json, dry_run=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    with bar:
        steps: dict[str, Any] = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in steps:
                steps[step] = bar.add_task(step, total=total)
            bar.update(steps[step], completed=done, total=max(total, done))

        outcome = app.move(config, to, _who(), progress, copy_only=copy_only)
    _tell_move(outcome, to, as_json=as_json)


def _share_files(config: Config, to: str) -> None:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from triage import app

    bar = Progress(
        SpinnerColumn(), TextColumn("{task.completed} files"), TimeElapsedColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    with bar:
        shown = bar.add_task("files", total=None)
        done = app.share_files(config, to, lambda files: bar.update(shown, completed=files))
    click.echo(
        f"{to} has {done.files} files of {done.size / 1e6:.1f} MB, each read back and equal, "
        f"{done.copied} of them new, and the models with their history"
    )
    with_database = app.worklist(config)
    running = with_database.parts.records()
    with_database.close()
    if running:
        click.echo(
            f"{len(running)} parts of the service run: what comes now is not there. Stop it, call "
            "this again, and start it with TRIAGE_SPOOL_URL"
        )
    for path in done.damaged:
        click.echo(f"triage: {path} is damaged: restore it from backup, and call again", err=True)
    if done.damaged:
        sys.exit(1)


def _tell_move(outcome: "Outcome", to: str, *, as_json: bool, dry_run: bool = False) -> None:
    from triage.config import without_password

    if as_json:
        told = _plain(outcome) | {
            "tables": [_plain(table) for table in outcome.tables],
            "audit": None if outcome.audit is None else _plain(outcome.audit),
        }
        click.echo(json.dumps(told, indent=2))
        return
    table = _new_table("Table", "Rows", "Read back and equal")
    for each in outcome.tables:
        table.add_row(each.name, str(each.rows), "" if dry_run else str(each.verified))
    _print(table)
    if outcome.left:
        click.echo(f"not ours, and left where they are: {', '.join(outcome.left)}")
    place = without_password(to)
    if outcome.audit is not None:
        click.echo(f"the audit trail is unbroken up to row {outcome.audit.id}")
    if outcome.here:
        click.echo(
            f"the site is in {place} now; nothing could be changed for "
            f"{outcome.closed_seconds:.1f} s: set TRIAGE_DATABASE_URL to it and start the service "
            "anew"
        )
    elif dry_run:
        click.echo(f"it can be moved to {place}; nothing was changed")
    else:
        click.echo(
            f"copied to {place} and verified, with {outcome.followed} changes that came meanwhile; "
            "the site stays where it is until the same command comes without --copy-only"
        )


@main.command()
@click.pass_obj
def check(config: Config) -> None:
    """Is this installation healthy, part by part? Exit status 1 if not."""
    from triage import app
    from triage.checks import check as look

    app.configure_logging(config)
    healthy = True
    for result in look(config, app.registry(config), app.spool(config)):
        healthy = healthy and result.healthy
        click.echo(f"{'ok  ' if result.healthy else 'FAIL'}  {result.part:11} {result.finding}")
    if not healthy:
        sys.exit(1)


def _table(items: list["WorklistItem"]) -> "Table":
    table = _new_table(
        "", "Priority", "Urgency", "State", "Score", "Flag", "View", "Age", "Waiting",
        "Accession", "SOP Instance UID", "Why not scored, and notes",
    )  # fmt: skip
    for number, item in enumerate(items, 1):
        table.add_row(
            str(number),
            str(item.priority),
            item.urgency.name,
            item.state.value,
            "" if item.score is None else f"{item.score:.3f}",
            "FLAG" if item.flagged else "",
            _printable(item.view_position),
            _printable(item.patient_age),
            _waiting(item.waiting),
            _printable(item.accession_number),
            item.sop_instance_uid,
            " ".join(filter(None, (item.reason, *item.notes))),
        )
    return table


def _new_table(*columns: str) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: "Table") -> None:
    from rich.console import Console

    # Text from the wire is no markup; a file or a pipe has no width to fit into.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 240)
    console.print(table)


def _printable(text: str) -> str:
    """Text from the wire without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _waiting(waiting: "dt.timedelta") -> str:
    minutes = int(waiting.total_seconds() // 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _time(moment: "dt.datetime") -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _plain(record: Any) -> dict[str, Any]:
    """A record of the worklist as JSON values."""
    values = {name: getattr(record, name) for name in type(record).__slots__}
    return {
        name: value.isoformat() if hasattr(value, "isoformat") else value
        for name, value in values.items()
    }


def run_command(command: Callable[[], object], program: str) -> None:
    """Run a command line; an error becomes one line and an exit status, never a traceback."""
    try:
        command()
    except ConfigError as error:
        click.echo(f"{program}: {error}", err=True)
        sys.exit(2)
    except TriageError as error:
        click.echo(f"{program}: {error}", err=True)
        sys.exit(1)
    # The last boundary: what we did not foresee is told without data and without a traceback.
    except Exception as error:  # noqa: BLE001
        frame = traceback.extract_tb(error.__traceback__)[-1]
        click.echo(
            f"{program}: internal error: {type(error).__name__} in {Path(frame.filename).name} "
            f"line {frame.lineno}: report it with the command that was called",
            err=True,
        )
        sys.exit(1)


def run() -> None:
    """Entry point of ``triage``."""
    run_command(lambda: main(standalone_mode=True), "triage")
