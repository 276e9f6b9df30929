"""The ``triage`` commands, as a shell calls them: output, exit status, one line for an error."""

import json
import os
import pty
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pydicom.uid import generate_uid

from tests.builders import chest_radiograph, encoded, picture, radiograph, save
from tests.conftest import ROOT, SAMPLES, Service, free_port, wait_for
from tests.versions import another
from training.__main__ import main as training
from training.retrain import main as retrain
from triage.card import card
from triage.cli import main
from triage.config import Config
from triage.identity import Instance
from triage.registry import Registry
from triage.worklist import Arrival, State

PROMISED_KEYS = {
    "sop_instance_uid", "series_instance_uid", "study_instance_uid", "accession_number",
    "patient_id", "received_at", "scored_at", "state", "reason", "score", "threshold", "flagged",
    "priority", "model_version", "calling_ae_title",
}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service that has scored the samples. Tests add to it and change no sample."""
    service = Service(tmp_path_factory.mktemp("cli") / "home", free_port())
    service.start()
    done = service.triage("send", str(SAMPLES))
    assert done.returncode == 0, done.stderr
    worklist = service.worklist()
    wait_for(lambda: not worklist.counts()[State.RECEIVED], seconds=60)
    worklist.close()
    yield service
    service.stop()


def works(service: Service, *arguments: str) -> str:
    """The output of a command that gives exit status 0 and no error."""
    done = service.triage(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def fails(service: Service, status: int, *arguments: str) -> str:
    """The error of a command that gives an exit status; one line, unless click shows usage."""
    done = service.triage(*arguments)
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    assert "internal error" not in done.stderr
    assert done.stderr
    if not done.stderr.startswith("Usage: "):
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("triage: ")
    return done.stderr


def listed(service: Service, *options: str) -> list[dict[str, object]]:
    """What ``triage worklist --json`` prints."""
    rows = json.loads(works(service, "worklist", "--json", *options))
    assert isinstance(rows, list)
    return rows


def settled(service: Service, uid: str) -> dict[str, object]:
    """An item once it no longer waits for its score."""
    worklist = service.worklist()
    wait_for(lambda: worklist.item(uid).state is not State.RECEIVED)
    row = worklist.item(uid).as_json()
    worklist.close()
    return row


# The tree of commands


def commands(
    group: click.Group = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("program", "group"),
    [("triage", main), ("triage-retrain", retrain), ("python -m training", training)],
)
def test_every_command_and_option_is_documented(program: str, group: click.Group) -> None:
    """In docs/commands.md, in the row that begins with the command; and no others are."""
    text = (ROOT / "docs" / "commands.md").read_text()
    begin = f"| `{program} "
    rows = [line.replace(r"\|", "/") for line in text.splitlines() if line.startswith(begin)]
    documented = {}
    for row in rows:
        usage = row.removeprefix(begin).split("`")[0]
        words = [word for word in usage.split() if re.fullmatch("[a-z]+", word)]
        documented[tuple(words)] = set(re.findall(r"--[a-z-]+", usage))
    existing = {
        words: {
            option
            for parameter in command.params
            if isinstance(parameter, click.Option) and not parameter.hidden
            for option in parameter.opts
            if option.startswith("--")
        }
        for words, command in commands(group)
    }
    assert documented == existing


def test_every_command_says_what_it_does(tmp_path: Path) -> None:
    """--help and -h, with exit status 0."""
    service = Service(tmp_path / "home", free_port())
    for words, command in [((), main), *commands()]:
        assert command.help, words
    output = works(service, "--help")
    assert works(service, "-h") == output
    for name in main.commands:
        assert f"\n  {name} " in output
    assert "--verdict" in works(service, "read", "--help")
    assert re.fullmatch(r"cxr-triage, version \S+\n", works(service, "--version"))
    assert not service.home.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["worklist", "--nonsense"],
        ["worklist", "--state", "NONSENSE"],
        ["worklist", "--limit", "0"],
        ["worklist", "--limit", "many"],
        ["show"],
        ["read", "1.2.3", "--verdict", "perhaps", "--reader", "dr"],
        ["read", "1.2.3", "--reader", "dr"],
        ["read", "1.2.3", "--verdict", "confirmed"],
        ["read", "1.2.3", "--verdict", "confirmed", "--reader", "  "],
        ["read", "1.2.3", "--verdict", "confirmed", "--reader", "a\nb"],
        ["read", "1.2.3", "--verdict", "confirmed", "--reader", "x" * 65],
        ["send"],
        ["send", "--port", "0", "."],
        ["serve", "--roles", "receive,nonsense"],
        ["serve", "--roles", ""],
        ["models", "nonsense"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_gives_status_2(tmp_path: Path, arguments: list[str]) -> None:
    """And says how it is called; nothing is made."""
    home = tmp_path / "home"
    called = CliRunner().invoke(main, arguments, env={"TRIAGE_HOME": str(home)})
    assert called.exit_code == 2
    assert "Usage: " in called.stderr
    assert not home.exists()


# Settings


def test_an_unknown_setting_is_named_in_one_line(tmp_path: Path) -> None:
    """As is a bad value; exit status 2, by whatever command."""
    for name, value in (("TRIAGE_COLOUR", "red"), ("TRIAGE_DICOM_PORT", "high")):
        service = Service(tmp_path / "home", free_port(), {name: value})
        for command in (["config"], ["serve"]):
            assert name in fails(service, 2, *command)
    assert not (tmp_path / "home").exists()


def test_config_shows_every_setting(tmp_path: Path) -> None:
    """With its value in force and its meaning; a password is not shown."""
    url = "postgresql://user:hush@host/db"
    service = Service(tmp_path / "home", 4_242, {"TRIAGE_DATABASE_URL": url})
    output = works(service, "config")
    for name, field in Config.model_fields.items():
        assert f"TRIAGE_{name.upper()} = " in output
        assert str(field.description) in output
    assert "TRIAGE_DICOM_PORT = 4242\n" in output
    assert f"TRIAGE_HOME = {tmp_path / 'home'}\n" in output
    assert "TRIAGE_DATABASE_URL = postgresql://user:***@host/db\n" in output


# The worklist


def test_worklist_json_has_what_was_promised_in_reading_order(served: Service) -> None:
    """An array; --state and --limit choose from it."""
    rows = listed(served)
    assert len(rows) >= len(list(SAMPLES.glob("*.dcm")))
    for row in rows:
        assert set(row) >= PROMISED_KEYS
    priorities = [row["priority"] for row in rows]
    assert priorities == sorted(priorities, reverse=True)
    assert rows[0]["urgency"] == "STAT"
    scored = listed(served, "--state", "scored")
    assert [row["sop_instance_uid"] for row in scored] == [
        row["sop_instance_uid"] for row in rows if row["state"] == "SCORED"
    ]
    first = listed(served, "--limit", "2")
    assert [r["sop_instance_uid"] for r in first] == [r["sop_instance_uid"] for r in rows[:2]]
    assert listed(served, "--state", "FAILED") == []


def test_worklist_prints_a_table_in_reading_order(served: Service) -> None:
    """One line an exam, its number first; then the counts and what the program is not."""
    rows = listed(served)
    output = works(served, "worklist")
    places = [output.index(str(row["sop_instance_uid"])) for row in rows]
    assert places == sorted(places)
    for row in rows:
        assert str(row["reason"] or "") in output
    assert "A triage aid, not a diagnosis" in output
    scored = sum(row["state"] == "SCORED" for row in rows)
    assert f"{scored} SCORED" in output
    short = works(served, "worklist", "--limit", "1")
    assert str(rows[0]["sop_instance_uid"]) in short
    assert str(rows[1]["sop_instance_uid"]) not in short


def test_an_empty_worklist_is_no_error(tmp_path: Path) -> None:
    """The table says so, JSON is an empty array."""
    service = Service(tmp_path / "home", free_port())
    works(service, "migrate")
    assert "No items yet." in works(service, "worklist")
    assert listed(service) == []


def test_show_tells_everything_about_one_exam(served: Service) -> None:
    """Every key of the list, readings and events, as text and as JSON."""
    row = listed(served, "--state", "SCORED")[0]
    uid = str(row["sop_instance_uid"])
    shown = json.loads(works(served, "show", uid, "--json"))
    lasting = row.keys() - {"priority", "waiting_seconds"}
    assert {key: shown[key] for key in lasting} == {key: row[key] for key in lasting}
    assert [event["action"] for event in shown["events"]] == ["RECEIVED", "SCORED"]
    assert shown["readings"] == []
    assert len(shown["digest"]) == 64
    output = works(served, "show", uid)
    for key in row:
        assert f"\n{key} " in f"\n{output}"
    assert str(row["model_version"]) in output
    assert re.search(r"event +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC SCORED by ", output)


@pytest.mark.parametrize("command", [["show"], ["read", "--verdict", "confirmed", "--reader", "x"]])
@pytest.mark.parametrize("uid", ["1.2.3.4", "\x1b[31m"])
def test_an_unknown_uid_gives_one_line(served: Service, command: list[str], uid: str) -> None:
    """Exit status 1, and no control character comes back."""
    message = fails(served, 1, *command, uid)
    assert "no worklist item" in message
    assert message.rstrip("\n").isprintable()


def test_read_records_a_verdict(served: Service, tmp_path: Path) -> None:
    """A scored exam becomes CONFIRMED, then REJECTED; both readings are kept."""
    uid = generate_uid()
    works(served, "send", str(save(chest_radiograph(5, SOPInstanceUID=uid), tmp_path / "x.dcm")))
    scored = settled(served, uid)
    assert scored["state"] == "SCORED"
    reading = ("--reader", "Dr. M\u00fcller")
    for verdict, state in (("confirmed", "CONFIRMED"), ("rejected", "REJECTED")):
        said = works(served, "read", uid, "--verdict", verdict, *reading)
        assert said == f"{uid} is {state}\n"
    shown = json.loads(works(served, "show", uid, "--json"))
    assert shown["state"] == "REJECTED"
    assert [r["verdict"] for r in shown["readings"]] == ["confirmed", "rejected"]
    assert shown["readings"][0]["reader"] == "Dr. M\u00fcller"
    assert shown["readings"][0]["shown_score"] == scored["score"]
    assert "rejected by Dr. M\u00fcller" in works(served, "show", uid)


def test_what_has_no_score_cannot_be_read(served: Service) -> None:
    """The line says why there is none."""
    row = listed(served, "--state", "NOT_SCORED")[0]
    uid = str(row["sop_instance_uid"])
    message = fails(served, 1, "read", uid, "--verdict", "confirmed", "--reader", "dr")
    assert str(row["reason"]) in message


# Models, migrate, check


def test_models_list_names_the_champion(served: Service) -> None:
    """As a table and as the whole of model.json."""
    models = json.loads(works(served, "models", "list", "--json"))
    champions = [model for model in models if model["aliases"] == ["champion"]]
    (champion,) = champions
    assert {"version", "threshold", "pixel_fingerprint", "metrics", "population"} <= set(champion)
    output = works(served, "models", "list")
    assert champion["version"] in output
    assert "champion" in output


def test_models_list_without_models_is_no_error(tmp_path: Path) -> None:
    """It says what enters them."""
    service = Service(tmp_path / "home", free_port())
    assert "triage serve" in works(service, "models", "list")
    assert json.loads(works(service, "models", "list", "--json")) == []


def test_migrate_says_what_it_did(tmp_path: Path) -> None:
    """From nothing, and then nothing."""
    service = Service(tmp_path / "home", free_port())
    assert "moved from schema none to" in works(service, "migrate")
    assert "already" in works(service, "migrate")


def test_commands_without_an_installation_name_what_makes_one(tmp_path: Path) -> None:
    """One line, exit status 1, and no home is made."""
    service = Service(tmp_path / "home", free_port())
    for command in (["worklist"], ["worklist", "--json"], ["show", "1.2"]):
        message = fails(service, 1, *command)
        assert str(service.home) in message
        assert "`triage migrate`" in message
    assert not service.home.exists()


def test_check_finds_a_running_service_healthy(served: Service) -> None:
    """Part by part."""
    lines = works(served, "check").splitlines()
    parts = ("home", "store", "worklist", "queue", "model", "receiver", "tls", "page", "sign-in",
             "commitments", "deliveries", "destinations")  # fmt: skip
    assert [line.split()[:2] for line in lines] == [["ok", part] for part in parts]


def test_check_names_each_part_that_is_not_there(tmp_path: Path) -> None:
    """One line a part, all of them, and exit status 1."""
    service = Service(tmp_path / "home", free_port())
    done = service.triage("check")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["FAIL", "home"],
        ["ok", "store"],  # in the home
        *(["FAIL", part] for part in ("worklist", "queue", "model", "receiver")),
        ["ok", "tls"],  # switched off
        ["FAIL", "page"],
        ["FAIL", "sign-in"],
        ["FAIL", "commitments"],
        ["FAIL", "deliveries"],
        ["ok", "destinations"],  # none are configured, so none is missing
    ]
    assert not service.home.exists()


def test_check_names_a_queue_that_waits_and_what_has_failed(tmp_path: Path) -> None:
    """An image that nobody scores is told, though the rest is healthy."""
    service = Service(tmp_path / "home", free_port())
    works(service, "migrate")
    worklist = service.worklist()
    made = radiograph(picture(1))
    worklist.receive(Arrival(Instance.of(made), "1.2.840.10008.1.2.1", "X", "", "ab" * 32, 1))
    for _ in range(3):
        claim = worklist.claim("w")
        assert claim is not None
        worklist.failed(claim, "SCORING_ERROR", "KeyError while scoring")
        _sql(service, "UPDATE items SET claimed_until = NULL")
    assert _check(service)["queue"].startswith("FAIL")
    _sql(service, "UPDATE items SET state = 'RECEIVED', received_at = '2026-01-01 00:00:00.000000'")
    assert "2026-01-01 00:00 UTC" in _check(service)["queue"]
    _sql(service, "UPDATE items SET state = 'SCORED'")
    assert _check(service)["queue"].startswith("ok")
    worklist.close()


def _check(service: Service) -> dict[str, str]:
    lines = service.triage("check").stdout.splitlines()
    return {line.split()[1]: line for line in lines}


def _sql(service: Service, statement: str) -> None:
    connection = sqlite3.connect(service.home / "worklist.sqlite")
    with connection:
        connection.execute(statement)
    connection.close()


def test_a_damaged_installation_gives_lines_and_no_traceback(tmp_path: Path) -> None:
    """A database that is none, a registry that is none."""
    service = Service(tmp_path / "home", free_port())
    (service.home / "models").mkdir(parents=True)
    (service.home / "worklist.sqlite").write_bytes(b"this is a letter, not a database" * 100)
    (service.home / "models" / "aliases.json").write_bytes(b"[]")
    for command in (["worklist"], ["show", "1"], ["migrate"], ["models", "list"], ["serve"]):
        fails(service, 1, *command)
    done = service.triage("check")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout


# Sending


def test_send_sends_files_and_folders(served: Service, tmp_path: Path) -> None:
    """Again is no error; other files in a folder are left out."""
    (tmp_path / "notes.txt").write_text("not sent")
    nested = tmp_path / "a" / "b"
    nested.mkdir(parents=True)
    sample = next(SAMPLES.glob("*.dcm"))
    (nested / "one.dcm").write_bytes(sample.read_bytes())
    output = works(served, "send", str(tmp_path), str(sample))
    assert output == f"2 sent to TRIAGE at 127.0.0.1 port {served.port}\n"


def test_send_says_of_each_file_why_it_was_not_taken(served: Service, tmp_path: Path) -> None:
    """A text, an empty file, a cut header, a class that is not taken; the good one goes."""
    (tmp_path / "text.dcm").write_text("Dear colleague, " * 100)
    (tmp_path / "empty.dcm").write_bytes(b"")
    sample = next(SAMPLES.glob("*.dcm")).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(sample[:400])
    ct = radiograph(picture(1), SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    ct.file_meta.MediaStorageSOPClassUID = ct.SOPClassUID
    save(ct, tmp_path / "ct.dcm")
    (tmp_path / "good.dcm").write_bytes(sample)
    done = served.triage("send", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == f"1 sent to TRIAGE at 127.0.0.1 port {served.port}, 4 not\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    for name, reason in (
        ("text", "not a DICOM file"),
        ("empty", "not a DICOM"),
        ("ct", "SOP class"),
    ):
        (line,) = [line for line in lines if f"{name}.dcm: " in line]
        assert line.startswith("triage: ")
        assert reason in line
    assert served.answers()


def test_a_truncated_image_is_kept_and_says_why_it_is_not_scored(
    served: Service, tmp_path: Path
) -> None:
    """A quarter of its bytes is missing; the next image is scored."""
    uid, after = generate_uid(), generate_uid()
    whole = encoded(radiograph(picture(1), SOPInstanceUID=uid))
    (tmp_path / "cut.dcm").write_bytes(whole[: -len(whole) // 4])
    save(chest_radiograph(SOPInstanceUID=after), tmp_path / "whole.dcm")
    works(served, "send", str(tmp_path))
    row = settled(served, uid)
    assert row["state"] == "NOT_SCORED"
    assert row["reason"]
    assert row["explanation"]
    assert settled(served, after)["state"] == "SCORED"


def test_send_without_a_receiver_gives_one_line(served: Service, tmp_path: Path) -> None:
    """Nobody listens, another AE title, a host that nobody knows, and what is no AE title."""
    sample = str(next(SAMPLES.glob("*.dcm")))
    port = str(free_port())
    assert port in fails(served, 1, "send", sample, "--port", port)
    message = fails(served, 1, "send", sample, "--called-aet", "NOBODY")
    assert "NOBODY" in message
    assert "rejected" in message
    assert "nowhere.invalid" in fails(served, 1, "send", sample, "--host", "nowhere.invalid")
    assert "AE title" in fails(served, 2, "send", sample, "--called-aet", "A" * 17)


def test_send_of_a_missing_path_is_a_wrong_call(served: Service, tmp_path: Path) -> None:
    """Exit status 2, and the path is named; a folder without images is a failure."""
    assert "absent.dcm" in fails(served, 2, "send", str(tmp_path / "absent.dcm"))
    assert "no .dcm file" in fails(served, 1, "send", str(tmp_path))


# What comes from the wire


def test_text_from_the_wire_commands_no_terminal(
    new_service: Callable[..., Service], tmp_path: Path
) -> None:
    """Escape sequences and markup in a header are shown and not obeyed, also on a terminal."""
    service = new_service()
    works(service, "migrate")
    hostile = "\x1b[2J\x1b]0;owned\x07\r\u202e[red]RED[/red]\u009b31m"
    uid = generate_uid()
    header = radiograph(picture(1), SOPInstanceUID=uid)
    wire = "accession_number patient_id view_position patient_age body_part modality patient_sex"
    instance = replace(Instance.of(header), **dict.fromkeys(wire.split(), hostile))
    worklist = service.worklist()
    worklist.receive(Arrival(instance, "1.2.840.10008.1.2.1", "X", "", "ab" * 32, 1))
    worklist.close()
    for command in (["worklist"], ["show", uid]):
        piped = works(service, *command)
        assert "[red]RED[/red]" in piped
        assert piped.replace("\n", "").isprintable()
        assert on_a_terminal(service, *command).replace("\r\n", "").isprintable()
    assert on_a_terminal(service, "worklist", "--json").replace("\r\n", "").isprintable()


def on_a_terminal(service: Service, *arguments: str) -> str:
    """What a command writes to a terminal that knows no colours."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "triage", *arguments],
        env=service.environment | {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "400"},
        cwd=service.home.parent, stdin=slave, stdout=slave,
    )  # fmt: skip
    os.close(slave)
    written = b""
    while True:
        try:
            part = os.read(master, 65_536)
        except OSError:  # Linux's end of file of a terminal
            break
        if not part:
            break
        written += part
    os.close(master)
    assert process.wait(30) == 0
    return written.decode()


def test_a_pipe_that_is_closed_early_gives_no_traceback(served: Service) -> None:
    """As `| head -1` does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "triage", "worklist", "--json"],
        env=served.environment, cwd=served.home.parent,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    process.wait(30)
    assert b"Traceback" not in error
    assert b"internal error" not in error


# The way of a model version


def test_models_travel_and_are_promoted_by_commands(served: Service, tmp_path: Path) -> None:
    """Keys, export, import, show, compare, approve, promote, rollback, history."""
    other = Service(tmp_path / "other", free_port())
    shutil.copytree(served.home / "models", other.home / "models")
    champion = json.loads((served.home / "models" / "aliases.json").read_text())["champion"]
    (other.home / "models" / "history.jsonl").unlink()
    assert "No history" in works(other, "models", "history")
    assert "triage models keys new" in fails(other, 1, "models", "export", champion, "x.bundle")
    public = tmp_path / "other.pub"
    public.write_text(works(other, "models", "keys", "new"))
    assert works(other, "models", "keys", "public") == public.read_text()
    made = another(tmp_path / "another").folder
    version = Registry(other.home / "models").add(made).version
    bundle = str(tmp_path / "net.bundle")
    assert version in works(other, "models", "export", version, bundle)

    assert "not trusted here" in fails(served, 1, "models", "import", bundle)
    assert "No key" in works(served, "models", "keys", "list")
    told = works(served, "models", "keys", "trust", "other", str(public))
    assert works(served, "models", "keys", "list").split()[0] in told
    assert f"{version} is the challenger" in works(served, "models", "import", bundle)
    shown = works(served, "models", "show", version)
    for word in ("challenger", champion, "parent", "threshold", "approved             no"):
        assert word in shown
    assert card(Registry(served.home / "models").version(version)) in f"{shown}\n"
    assert json.loads(works(served, "models", "show", version, "--json"))["version"] == version
    assert "0.1235" in works(served, "models", "compare", champion, version)
    assert "has not compared" in fails(served, 1, "models", "approve", version)
    assert "--why" in fails(served, 1, "models", "approve", version, "--force")
    assert "not approved" in fails(served, 1, "models", "promote", version)
    works(served, "models", "approve", version, "--force", "--why", "a test")
    works(served, "models", "promote", version)
    assert "previous" in works(served, "models", "show", champion)
    assert f"{champion} scores again" in works(served, "models", "rollback")
    assert "no champion before" in fails(served, 1, "models", "rollback")
    lines = works(served, "models", "history", "--json").splitlines()
    actions = [json.loads(line)["action"] for line in lines]
    assert actions == [
        "NAMED", "TRUSTED", "IMPORTED", "NAMED", "APPROVED", "PROMOTED", "ROLLED_BACK",
    ]  # fmt: skip
    assert "ROLLED_BACK" in works(served, "models", "history")
    works(served, "models", "keys", "distrust", "other")
    assert "not trusted here" in fails(served, 1, "models", "import", bundle)
    assert "TRIAGE_FLEET_URL" in fails(served, 2, "models", "pull")
    assert "nothing" in fails(served, 1, "models", "show", "nothing")
