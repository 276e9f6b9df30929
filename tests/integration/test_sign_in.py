"""Signing in, staying signed in, and what is refused, over real HTTP and both databases."""

import datetime as dt
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text, update

from tests.web import PASSWORD, Visitor, account, served, site_of
from triage.errors import AccountError, SignInRefused, TooManyAttempts
from triage.web import Site
from triage.web.headers import POLICY
from triage.web.signin import local_path
from triage.worklist import Worklist
from triage.worklist.accounts import Role
from triage.worklist.audit import Action
from triage.worklist.sessions import ATTEMPTS_OF_ACCOUNT, ATTEMPTS_OF_ADDRESS, WINDOW, Limits
from triage.worklist.tables import Account, SignInAttempt, WebSession


@pytest.fixture
def site(worklist: Worklist, tmp_path: Path) -> Site:
    """A site with a viewer, a reader and an operator."""
    for role in Role:
        account(worklist, f"a-{role}", role)
    return site_of(worklist, tmp_path)


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    """Where the site is served."""
    with served(site) as address:
        yield address


def actions(worklist: Worklist) -> list[str]:
    """What the audit trail tells, but of the making of accounts."""
    told = [record.action for record in worklist.audit.records()]
    return [action for action in told if action not in {"ACCOUNT_ADDED", "PASSWORD_CHANGED"}]


# Without a session


@pytest.mark.parametrize("path", ["/", "/exams/1.2.3", "/nothing", "/account", "/dashboard?days=7"])
def test_a_page_without_a_session_leads_to_the_sign_in_and_back(url: str, path: str) -> None:
    """Whether it exists or not."""
    with Visitor(url) as visitor:
        answer = visitor.get(path)
        assert answer.status_code == 303
        there = httpx_path(answer.headers["location"])
        assert there == "/sign-in" or there.startswith("/sign-in?next=%2F")
        assert visitor.sign_in("a-viewer", next=path).headers["location"] == path


def httpx_path(location: str) -> str:
    """A redirect's target, which must be a path here."""
    assert location.startswith("/")
    assert not location.startswith("//")
    return location


@pytest.mark.parametrize("path", ["/api/v1/items", "/api/v1/openapi.json", "/api/nothing"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_the_api_without_a_session_is_a_401_problem(url: str, path: str, method: str) -> None:
    """Whether it exists or not; in JSON, for programs."""
    with Visitor(url) as visitor:
        answer = visitor.request(method, path)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 401
    assert answer.json()["type"] == "urn:cxr-triage:problem:NotSignedIn"


@pytest.mark.parametrize("token", ["", "x", "é".encode().decode("latin-1"), "a" * 5000])
def test_a_forged_cookie_is_no_session(url: str, token: str) -> None:
    """Of any length and letters."""
    with Visitor(url) as visitor:
        answer = visitor.get("/api/v1/items", headers={"Cookie": f"triage={token}".encode()})
    assert answer.status_code == 401


def test_every_answer_has_the_security_headers(url: str) -> None:
    """Refusals, redirects, errors and files, too."""
    with Visitor(url) as visitor:
        answers = [
            visitor.get("/"),
            visitor.get("/sign-in"),
            visitor.get("/api/v1/items"),
            visitor.get("/static/nothing.css"),
            visitor.put("/sign-in"),
            visitor.post("/sign-in", content=b"x" * 1_000_000),
            visitor.post("/sign-in", data={"name": "n"}, headers={"Origin": "https://evil.test"}),
        ]
    assert [each.status_code for each in answers] == [303, 200, 401, 404, 405, 413, 403]
    for answer in answers:
        assert answer.headers["content-security-policy"] == POLICY
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
        assert "strict-transport-security" not in answer.headers  # without TLS it means nothing


# Signing in


def test_a_session_begins_with_the_right_password(url: str, site: Site) -> None:
    """Its cookie is for HTTP only, and the database does not hold what is in it."""
    with Visitor(url) as visitor:
        answer = visitor.sign_in("a-reader")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = next(c for c in answer.headers.get_list("set-cookie") if c.startswith("triage="))
        assert "HttpOnly" in cookie
        assert "samesite=lax" in cookie.lower()
        assert "Domain" not in cookie
        token = visitor.cookies["triage"]
        assert "a-reader" in visitor.get("/account").text
    with site.worklist._transaction() as session:
        stored = session.scalars(text("SELECT token_hash FROM sessions")).all()
    assert len(stored) == 1
    assert token not in stored
    assert actions(site.worklist) == [Action.SIGNED_IN]


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("a-reader", "wrong password"), ("nobody", PASSWORD), ("", ""), ("a-reader", ""),
        ("a-reader", PASSWORD + " "), ("a-reader", PASSWORD.upper()), ("a-reader", "x" * 300),
        ("a-reader' OR 1=1 --", "x"), ("\u0000", "\u0000"),
    ],
)  # fmt: skip
def test_a_wrong_name_or_password_is_refused_alike(
    url: str, site: Site, name: str, password: str
) -> None:
    """The answer does not tell which was wrong; no session begins."""
    with Visitor(url) as visitor:
        answer = visitor.sign_in(name, password)
        assert answer.status_code == 401
        assert "The name or the password is not right." in answer.text
        assert "triage" not in visitor.cookies
        assert visitor.get("/account").status_code == 303
    assert actions(site.worklist) == [Action.SIGN_IN_REFUSED]
    told = list(site.worklist.audit.records())[-1]
    assert told.actor == ("a-reader" if name == "a-reader" else "unknown")
    assert password not in json.dumps(told.detail) or not password
    assert name == "a-reader" or name not in json.dumps(told.as_json()) or not name


def test_names_do_not_differ_by_case_and_composition(url: str, worklist: Worklist) -> None:
    """Nor passwords by the way a keyboard writes them (NFKC)."""
    once = worklist.accounts.add("Zoë", "Zoë", {Role.READER}, "test")
    worklist.accounts.change_password("zoë", once, "crème brûlée twice")
    with Visitor(url) as visitor:
        answer = visitor.sign_in("ZOE\u0308", "cre\u0300me bru\u0302le\u0301e twice")
        assert answer.status_code == 303


def test_a_disabled_account_is_out_at_once(url: str, site: Site) -> None:
    """Its open session, too; enabled, it signs in again."""
    with Visitor(url) as visitor:
        assert visitor.sign_in("a-reader").status_code == 303
        site.worklist.accounts.disable("a-reader", "test")
        assert visitor.get("/account").status_code == 303
        assert visitor.sign_in("a-reader").status_code == 401
        site.worklist.accounts.enable("a-reader", "test")
        assert visitor.sign_in("a-reader").status_code == 303


def test_roles_change_in_open_sessions(url: str, site: Site) -> None:
    """At the next request."""
    with Visitor(url) as visitor:
        visitor.sign_in("a-viewer")
        site.worklist.accounts.set_roles("a-viewer", {Role.READER}, "test")
        assert "reader" in visitor.get("/account").text


def test_signing_out_ends_the_session_for_whoever_has_its_cookie(url: str, site: Site) -> None:
    """Not only in this browser."""
    with Visitor(url) as visitor, Visitor(url) as thief:
        visitor.sign_in("a-reader")
        thief.cookies.set("triage", visitor.cookies["triage"])
        assert thief.get("/account").status_code == 200
        answer = visitor.sign_out()
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
        assert "triage" not in visitor.cookies
        assert thief.get("/account").status_code == 303
    assert actions(site.worklist) == [Action.SIGNED_IN, Action.SIGNED_OUT]


def test_a_sign_in_gives_a_new_session_whatever_the_cookie_held(url: str) -> None:
    """No session can be planted (session fixation)."""
    with Visitor(url) as visitor:
        visitor.cookies.set("triage", "planted", domain="127.0.0.1", path="/")
        visitor.sign_in("a-reader")
        values = [cookie.value for cookie in visitor.cookies.jar if cookie.name == "triage"]
        assert "planted" not in values
        assert len(values) == 1


@pytest.mark.parametrize(
    "text",
    ["https://evil.test/", "//evil.test", "/\\evil.test", "\\\\evil.test", "javascript:alert(1)",
     "", "exams", "/\t/evil.test", "/x\r\nSet-Cookie: a=b", "http:/evil.test", "///evil.test",
     "/%zz\u2028"],
)  # fmt: skip
def test_the_sign_in_leads_to_no_other_site(text: str) -> None:
    """Only to a path of ours; else to the list."""
    assert local_path(text) == "/"


@pytest.mark.parametrize("text", ["/", "/exams/1.2.840.1?x=1&y=%2F", "/dashboard", "/a#b"])
def test_the_sign_in_leads_to_what_was_asked_for(text: str) -> None:
    """A path, with its query."""
    assert local_path(text) == text


# How long a session lasts


@pytest.mark.parametrize(
    ("column", "ago", "holds"),
    [
        ("seen_at", dt.timedelta(minutes=59), True),
        ("seen_at", dt.timedelta(minutes=61), False),
        ("created_at", dt.timedelta(hours=11), True),
        ("created_at", dt.timedelta(hours=13), False),
        # After a clock that went backwards
        ("seen_at", dt.timedelta(hours=-1), True),
        ("created_at", dt.timedelta(hours=-13), False),
    ],
)
def test_a_session_lasts_as_long_as_it_is_used_and_no_longer_than_a_shift(
    worklist: Worklist, column: str, ago: dt.timedelta, *, holds: bool
) -> None:
    """The limits of the settings' defaults."""
    account(worklist, "reader", Role.READER)
    token = worklist.sessions.sign_in("reader", PASSWORD, "127.0.0.1")
    with worklist._transaction(write=True) as session:
        session.execute(update(WebSession).values({column: dt.datetime.now(dt.UTC) - ago}))
    limits = Limits(dt.timedelta(minutes=60), dt.timedelta(hours=12))
    if holds:
        assert worklist.sessions.user(token, limits).name == "reader"
    else:
        with pytest.raises(Exception, match="sign in first"):
            worklist.sessions.user(token, limits)


def test_listening_does_not_keep_a_session_alive(worklist: Worklist) -> None:
    """A page that is open is not somebody at work."""
    account(worklist, "reader", Role.READER)
    token = worklist.sessions.sign_in("reader", PASSWORD, "127.0.0.1")
    early = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=30)
    with worklist._transaction(write=True) as session:
        session.execute(update(WebSession).values(seen_at=early))

    def seen() -> dt.datetime:
        with worklist._transaction() as session:
            return session.query(WebSession).one().seen_at

    worklist.sessions.user(token, Limits(), active=False)
    assert seen() == early
    worklist.sessions.user(token, Limits())
    assert seen() > early


def test_what_has_ended_is_swept(worklist: Worklist) -> None:
    """Sessions that nobody asks for again do not stay in the database."""
    account(worklist, "reader", Role.READER)
    for _ in range(2):
        worklist.sessions.sign_in("reader", PASSWORD, "127.0.0.1")
    with worklist._transaction(write=True) as session:
        first = session.query(WebSession).first()
        assert first is not None
        first.seen_at = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    worklist.sessions.sweep(Limits())
    with worklist._transaction() as session:
        assert session.query(WebSession).count() == 1


# The one-time password, and one's own


def test_the_first_operator_must_choose_a_password_before_anything_else(
    worklist: Worklist, tmp_path: Path
) -> None:
    """The one-time password opens the account page, and nothing else; then it is worth nothing."""
    once = worklist.accounts.first_operator()
    assert once is not None
    assert worklist.accounts.first_operator() is None
    with served(site_of(worklist, tmp_path)) as url, Visitor(url) as visitor:
        assert visitor.sign_in("operator", once).status_code == 303
        before = visitor.cookies["triage"]
        for path in ("/", "/dashboard", "/exams/1"):
            answer = visitor.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/account")
        answer = visitor.get("/api/v1/openapi.json")
        assert (answer.status_code, answer.json()["status"]) == (403, 403)
        form = {"csrf_token": visitor.form_token("/account"), "old": once}
        for new, again in (
            ("short", "short"), ("x" * 20, "x" * 20), (PASSWORD, "another"), ("", ""),
            ("operator operator", "operator operator"), (once, once),
        ):  # fmt: skip
            answer = visitor.post("/account/password", data={**form, "new": new, "again": again})
            assert answer.status_code == 422
            assert 'role="alert"' in answer.text
            assert visitor.get("/").headers["location"] == "/account"
        wrong = {**form, "old": "not it", "new": PASSWORD, "again": PASSWORD}
        assert visitor.post("/account/password", data=wrong).status_code == 422
        right = {**form, "new": PASSWORD, "again": PASSWORD}
        assert visitor.post("/account/password", data=right).headers["location"] == "/"
        assert visitor.cookies["triage"] != before
        assert visitor.get("/api/v1/openapi.json").status_code == 200
        with Visitor(url) as old:
            assert old.sign_in("operator", once).status_code == 401
            old.cookies.set("triage", before)
            assert old.get("/api/v1/openapi.json").status_code == 401


def test_a_reset_ends_the_sessions_and_the_old_password(url: str, site: Site) -> None:
    """Whoever knew it is out."""
    with Visitor(url) as visitor:
        visitor.sign_in("a-reader")
        once = site.worklist.accounts.reset("a-reader", "test")
        assert visitor.get("/account").status_code == 303
        assert visitor.sign_in("a-reader").status_code == 401
        assert visitor.sign_in("a-reader", once).status_code == 303
        assert visitor.get("/").headers["location"] == "/account"


def test_passwords_are_kept_as_argon2id_hashes_only(worklist: Worklist) -> None:
    """With 64 MiB and three passes (RFC 9106, section 4)."""
    once = worklist.accounts.add("reader", "", {Role.READER}, "test")
    worklist.accounts.change_password("reader", once, PASSWORD)
    with worklist._transaction() as session:
        kept = session.query(Account).one().password_hash
    assert kept is not None
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert PASSWORD not in kept


def test_accounts_that_cannot_be_are_refused(worklist: Worklist) -> None:
    """In one line each."""
    accounts = worklist.accounts
    account(worklist, "operator", Role.OPERATOR)
    refusals = [
        lambda: accounts.add("Operator", "", {Role.READER}, "test"),
        lambda: accounts.add("", "", {Role.READER}, "test"),
        lambda: accounts.add("two words", "", {Role.READER}, "test"),
        lambda: accounts.add("bell\a", "", {Role.READER}, "test"),
        lambda: accounts.add("x" * 65, "", {Role.READER}, "test"),
        lambda: accounts.add("fine", "bad\nname", {Role.READER}, "test"),
        lambda: accounts.add("fine", "", set(), "test"),
        lambda: accounts.set_roles("nobody", {Role.READER}, "test"),
        lambda: accounts.set_roles("operator", {Role.READER}, "test"),  # the only one
        lambda: accounts.disable("operator", "test"),
        lambda: accounts.reset("nobody", "test"),
    ]
    for refused in refusals:
        with pytest.raises(AccountError) as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert [record.name for record in accounts.records()] == ["operator"]


def test_the_name_of_a_refused_sign_in_is_never_kept_if_it_is_nobodys(worklist: Worklist) -> None:
    """Now and then somebody types the password where the name belongs."""
    with pytest.raises(SignInRefused):
        worklist.sessions.sign_in(PASSWORD, "", "127.0.0.1")
    everything = [record.as_json() for record in worklist.audit.records()]
    with worklist._transaction() as session:
        everything += [row.account_hash for row in session.query(SignInAttempt)]  # type: ignore[misc]
    assert PASSWORD not in json.dumps(everything)


# How often it may be tried


def test_an_account_is_guessed_at_a_few_times_only(worklist: Worklist) -> None:
    """From whatever address; then the right password helps no more until the window has passed."""
    account(worklist, "reader", Role.READER)
    for number in range(ATTEMPTS_OF_ACCOUNT):
        with pytest.raises(SignInRefused):
            worklist.sessions.sign_in("reader", "guess", f"10.0.0.{number}")
    with pytest.raises(TooManyAttempts, match="15 minutes") as caught:
        worklist.sessions.sign_in("READER", PASSWORD, "10.0.0.99")
    assert 0 < caught.value.retry_seconds <= WINDOW.total_seconds() + 1
    with worklist._transaction(write=True) as session:
        session.execute(update(SignInAttempt).values(at=dt.datetime.now(dt.UTC) - WINDOW * 1.01))
    assert worklist.sessions.sign_in("reader", PASSWORD, "10.0.0.99")


def test_a_success_wipes_the_slate(worklist: Worklist) -> None:
    """Who mistypes now and then is never shut out."""
    account(worklist, "reader", Role.READER)
    for _ in range(2):
        for _ in range(ATTEMPTS_OF_ACCOUNT - 1):
            with pytest.raises(SignInRefused):
                worklist.sessions.sign_in("reader", "guess", "10.0.0.1")
        worklist.sessions.sign_in("reader", PASSWORD, "10.0.0.1")


def test_an_address_guesses_a_few_times_only_whatever_the_names(worklist: Worklist) -> None:
    """One password tried on many accounts is guessing, too."""
    early = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
    account(worklist, "reader", Role.READER)
    with worklist._transaction(write=True) as session:
        for number in range(ATTEMPTS_OF_ADDRESS):
            session.add(SignInAttempt(at=early, account_hash=f"{number:064}", address="10.0.0.1"))
    with pytest.raises(TooManyAttempts):
        worklist.sessions.sign_in("reader", PASSWORD, "10.0.0.1")
    assert worklist.sessions.sign_in("reader", PASSWORD, "10.0.0.2")


def test_many_guesses_at_once_are_no_way_around_the_limit(worklist: Worklist) -> None:
    """Each is counted before it is tried."""
    account(worklist, "reader", Role.READER)
    tried = ATTEMPTS_OF_ACCOUNT + 8
    barrier = threading.Barrier(tried)

    def guess(number: int) -> str:
        barrier.wait()
        try:
            worklist.sessions.sign_in("reader", "guess", f"10.0.1.{number}")
        except (SignInRefused, TooManyAttempts) as error:
            return type(error).__name__
        return "in"

    with ThreadPoolExecutor(tried) as pool:
        told = sorted(pool.map(guess, range(tried)))
    assert told == ["SignInRefused"] * ATTEMPTS_OF_ACCOUNT + ["TooManyAttempts"] * 8


def test_attempts_that_a_backward_clock_left_in_the_future_shut_nobody_out(
    worklist: Worklist,
) -> None:
    """They count not until their time has come."""
    account(worklist, "reader", Role.READER)
    late = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    key = "b" * 64
    with worklist._transaction(write=True) as session:
        for _ in range(ATTEMPTS_OF_ADDRESS):
            session.add(SignInAttempt(at=late, account_hash=key, address="10.0.0.1"))
    assert worklist.sessions.sign_in("reader", PASSWORD, "10.0.0.1")


def test_too_many_attempts_are_told_with_the_time_to_wait(url: str, site: Site) -> None:
    """429 and Retry-After; the audit trail does not grow by what is not even tried."""
    for _ in range(ATTEMPTS_OF_ACCOUNT):
        with pytest.raises(SignInRefused):
            site.worklist.sessions.sign_in("a-reader", "guess", "10.0.0.1")
    before = site.worklist.audit.verify()
    with Visitor(url) as visitor:
        answer = visitor.sign_in("a-reader")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    assert "15 minutes" in answer.text
    assert site.worklist.audit.verify() == before


# Requests that are not from our own page (CSRF)


def test_a_form_without_its_token_changes_nothing(url: str, site: Site) -> None:
    """Signing in, signing out, a new password."""
    with Visitor(url) as visitor:
        form = {"name": "a-reader", "password": PASSWORD}
        for token in ("", "0" * 64, "é"):
            answer = visitor.post("/sign-in", data={**form, "csrf_token": token})
            assert answer.status_code == 403
        visitor.sign_in("a-reader")
        for path in ("/sign-out", "/account/password"):
            for token in ("", "0" * 64, "é"):
                answer = visitor.post(path, data={"csrf_token": token, "old": PASSWORD})
                assert answer.status_code == 403
        assert visitor.get("/account").status_code == 200
    assert actions(site.worklist) == [Action.SIGNED_IN]


def test_a_form_of_another_visitor_does_not_fit(url: str) -> None:
    """The token belongs to the cookie."""
    with Visitor(url) as visitor, Visitor(url) as attacker:
        visitor.get("/sign-in")
        form = {"name": "a-reader", "password": PASSWORD, "csrf_token": attacker.form_token()}
        assert visitor.post("/sign-in", data=form).status_code == 403
        visitor.sign_in("a-reader")
        attacker.sign_in("a-viewer")
        stolen = attacker.form_token("/account")
        assert visitor.post("/sign-out", data={"csrf_token": stolen}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.test"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://127.0.0.1:1"},
    ],
)  # fmt: skip
def test_a_request_from_another_site_changes_nothing(url: str, headers: dict[str, str]) -> None:
    """Though it had the token."""
    with Visitor(url) as visitor:
        visitor.sign_in("a-reader")
        form = {"csrf_token": visitor.form_token("/account")}
        assert visitor.post("/sign-out", data=form, headers=headers).status_code == 403
        ours = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
        assert visitor.post("/sign-out", data=form, headers=ours).status_code == 303


def test_the_api_needs_the_token_in_a_header(url: str) -> None:
    """A form of another site cannot send headers."""
    with Visitor(url) as visitor:
        visitor.sign_in("a-reader")
        without = visitor.post("/api/v1/nothing", json={})
        assert (without.status_code, without.json()["status"]) == (403, 403)
        with_it = visitor.post("/api/v1/nothing", json={}, headers=visitor.with_csrf())
        assert (with_it.status_code, with_it.json()["status"]) == (404, 404)
