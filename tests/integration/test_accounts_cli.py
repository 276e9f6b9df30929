"""`triage users` and `triage audit`, as a shell calls them."""

import json
import re
import sqlite3
from collections.abc import Callable

import pytest

from tests.conftest import Service, wait_for
from tests.web import PASSWORD, Visitor
from triage.errors import SignInRefused
from triage.worklist.accounts import Role
from triage.worklist.sessions import ATTEMPTS_OF_ACCOUNT


@pytest.fixture
def installed(new_service: Callable[..., Service]) -> Service:
    """An installation that does not run."""
    service = new_service()
    assert service.triage("migrate").returncode == 0
    return service


def works(service: Service, *arguments: str) -> str:
    """The output of a command that gives exit status 0."""
    done = service.triage(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def fails(service: Service, *arguments: str) -> str:
    """The one line of a command that gives exit status 1."""
    done = service.triage(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_accounts_are_made_changed_and_disabled(installed: Service) -> None:
    """Each command tells what it did, and the audit trail who ran it."""
    assert "No accounts yet" in works(installed, "users", "list")
    told = works(installed, "users", "add", "Zoe", "reader", "--display-name", "Zoë Chen")
    once = re.search(r"one-time password is (\S+):", told)
    assert once is not None
    worklist = installed.worklist()
    assert worklist.accounts.verify("zoe", once[1])
    reset = works(installed, "users", "reset", "zoe")
    assert worklist.accounts.verify("zoe", once[1]) is None
    assert once[1] not in reset
    works(installed, "users", "roles", "zoe", "reader", "operator")
    assert "only operator" in fails(installed, "users", "disable", "zoe")
    works(installed, "users", "add", "head", "OPERATOR")
    works(installed, "users", "disable", "zoe")
    (head, zoe) = json.loads(works(installed, "users", "list", "--json"))
    assert (head["name"], head["roles"], head["must_change"]) == ("head", ["operator"], True)
    assert (zoe["name"], zoe["display_name"], zoe["disabled"]) == ("zoe", "Zoë Chen", True)
    assert zoe["roles"] == ["operator", "reader"]
    assert "disabled" in works(installed, "users", "list")
    works(installed, "users", "enable", "zoe")
    assert "already" in fails(installed, "users", "add", "ZOE", "viewer")
    assert "no account 'nobody'" in fails(installed, "users", "reset", "nobody")
    rows = list(worklist.audit.records())
    worklist.close()
    assert [row.action for row in rows] == [
        "ACCOUNT_ADDED", "ACCOUNT_RESET", "ACCOUNT_ROLES", "ACCOUNT_ADDED", "ACCOUNT_DISABLED",
        "ACCOUNT_ENABLED",
    ]  # fmt: skip
    assert all(re.fullmatch(r"command of \S+( \d+)?", row.actor) for row in rows)
    assert {row.subject for row in rows} == {"zoe", "head"}
    everything = json.dumps([row.as_json() for row in rows])
    assert once[1] not in everything


def test_a_role_that_is_none_is_a_wrong_call(installed: Service) -> None:
    """Exit status 2, and nothing is made."""
    done = installed.triage("users", "add", "zoe", "doctor")
    assert done.returncode == 2
    assert "'viewer', 'reader', 'operator'" in done.stderr
    assert "No accounts yet" in works(installed, "users", "list")


def test_the_audit_trail_is_verified_and_exported(installed: Service) -> None:
    """As JSON lines; the export itself is a row of the next one."""
    assert works(installed, "audit", "verify").startswith("0 rows, unbroken")
    worklist = installed.worklist()
    assert works(installed, "audit", "export") == ""
    works(installed, "users", "add", "zoe", "reader")
    lines = works(installed, "audit", "export").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["id"], row["action"]) for row in rows] == [(1, "EXPORTED"), (2, "ACCOUNT_ADDED")]
    assert rows[1]["previous"] == rows[0]["hash"]
    assert works(installed, "audit", "export", "--since", "2999-01-01") == ""
    head = worklist.audit.verify()
    worklist.close()
    assert works(installed, "audit", "verify") == (
        f"{head.id} rows, unbroken; the newest is {head.hash}\n"
    )
    with sqlite3.connect(installed.home / "worklist.sqlite") as database:
        database.execute("DROP TRIGGER audit_no_update")
        database.execute("UPDATE audit SET actor = 'somebody' WHERE id = 2")
    database.close()
    assert "row 2 of the audit trail is not as it was written" in fails(
        installed, "audit", "verify"
    )


def test_a_running_page_obeys_the_commands(new_service: Callable[..., Service]) -> None:
    """A reset is the way back for an operator who forgot, and for one who guessed too often."""
    service = new_service()
    service.start("--roles", "receive,web")
    wait_for(service.shows_page)
    wait_for(lambda: "one-time password" in service.log.read_text())
    worklist = service.worklist()
    for _ in range(ATTEMPTS_OF_ACCOUNT):
        with pytest.raises(SignInRefused):
            worklist.sessions.sign_in("operator", "guess", "10.0.0.1")
    told = works(service, "users", "add", "second", "operator", "reader")
    once = re.search(r"one-time password is (\S+):", told)
    assert once is not None
    with Visitor(service.page) as visitor:
        assert visitor.sign_in("operator").status_code == 429
        reset = re.search(
            r"one-time password is (\S+):", works(service, "users", "reset", "operator")
        )
        assert reset is not None
        assert visitor.sign_in("operator", reset[1]).status_code == 303
        assert visitor.sign_in("second", once[1]).status_code == 303
        form = {"csrf_token": visitor.form_token("/account"), "old": once[1]}
        new = {"new": PASSWORD, "again": PASSWORD}
        assert visitor.post("/account/password", data={**form, **new}).status_code == 303
        works(service, "users", "disable", "operator")
        assert visitor.get("/account").status_code == 200
        works(service, "users", "reset", "second")
        assert visitor.get("/account").status_code == 303
    found = {record.name: record for record in worklist.accounts.records()}
    worklist.close()
    assert found["operator"].disabled
    assert found["second"].must_change
    assert set(found["second"].roles) == {Role.READER, Role.OPERATOR}
    service.stop()
