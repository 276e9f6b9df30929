"""The role `web` as a process and a server: its start, its end, TLS, the proxy before it."""

import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.responses import StreamingResponse

from tests.certificates import Authority, Identity
from tests.conftest import Service, free_port, wait_for
from tests.web import PASSWORD, Visitor, account, served, site_of, wait_for_page
from triage.config import Config
from triage.errors import ConfigError, ServiceError
from triage.web import build
from triage.web.server import listen, serve, tls_context
from triage.worklist import Worklist
from triage.worklist.accounts import Role

WEB = ("--roles", "web")


@pytest.fixture
def new_page(new_service: Callable[..., Service]) -> Callable[..., Service]:
    """Makes services that serve the page alone, and waits for it."""

    def new(**settings: str) -> Service:
        service = new_service(**settings)
        start(service)
        return service

    return new


def start(service: Service) -> None:
    """Start the page alone."""
    with service.log.open("ab") as log:
        service.process = subprocess.Popen(
            [sys.executable, "-m", "triage", "serve", *WEB],
            env=service.environment,
            cwd=service.home.parent,
            stderr=log,
            stdout=log,
        )
    wait_for_page(service.page)


def refused(service: Service) -> str:
    """The one line that a start that fails ends with."""
    done = service.triage("serve", *WEB)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("triage: ")
    assert "Traceback" not in done.stderr
    return lines[0]


# The first start


def test_the_first_start_shows_an_operator_s_one_time_password_once(
    new_page: Callable[..., Service],
) -> None:
    """On standard error and not in the log's events; with it the operator signs in."""
    service = new_page(TRIAGE_LOG_FORMAT="json")
    once = service.one_time_password()
    assert re.fullmatch(r"([a-z2-9]{4}-){3}[a-z2-9]{4}", once)
    lines = service.log.read_text().splitlines()
    (shown,) = [line for line in lines if once in line]
    assert shown.startswith("triage: first start: ")
    assert not [line for line in lines if line.startswith("{") and once in line]
    with Visitor(service.page) as visitor:
        assert visitor.sign_in("operator", once).headers["location"] == "/"
        form = {"csrf_token": visitor.form_token("/account"), "old": once}
        new = {"new": PASSWORD, "again": PASSWORD}
        assert visitor.post("/account/password", data={**form, **new}).status_code == 303
    assert once not in (service.home / "worklist.sqlite").read_bytes().decode("latin-1")
    service.stop()
    start(service)
    assert service.log.read_text().count("one-time password") == 1
    with Visitor(service.page) as visitor:
        assert visitor.sign_in("operator").status_code == 303
    service.stop()


def test_a_start_that_fails_burns_no_password(new_service: Callable[..., Service]) -> None:
    """It is shown when somebody can use it."""
    service = new_service()
    with socket.create_server(("127.0.0.1", service.web_port)):
        refused(service)
    start(service)
    assert service.one_time_password()
    service.stop()


# Errors at the start


def test_a_taken_port_is_told(new_service: Callable[..., Service]) -> None:
    """With the settings that move the page, and the option that leaves it out."""
    service = new_service()
    with socket.create_server(("127.0.0.1", service.web_port)):
        line = refused(service)
    assert f"127.0.0.1 port {service.web_port}" in line
    assert "TRIAGE_WEB_PORT" in line
    assert "--roles" in line


def test_a_certificate_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """Absent, no certificate, another's key."""
    house = Authority(tmp_path / "ca", "house")
    ours, other = house.issue("ours"), house.issue("other")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for certificate, key in (
        (tmp_path / "absent.pem", ours.key), (ours.certificate, tmp_path / "absent.key"),
        (text, ours.key), (ours.certificate, text), (ours.certificate, other.key),
        (tmp_path, ours.key),
    ):  # fmt: skip
        config = Config(web_tls_certificate=certificate, web_tls_key=key)
        with pytest.raises(ServiceError, match="TRIAGE_WEB_TLS_CERTIFICATE") as caught:
            tls_context(config)
        assert "\n" not in str(caught.value)


def test_an_address_that_is_not_this_machine_s_is_told() -> None:
    """Before anything is served."""
    with pytest.raises(ServiceError, match="TRIAGE_WEB_HOST"):
        listen(Config.model_validate({"web_host": "localhost.invalid", **PROXY}))
    with pytest.raises(ServiceError, match=r"192\.0\.2\.1"):
        listen(Config.model_validate({"web_host": "192.0.2.1", "web_port": 0, **PROXY}))


PROXY = {"web_behind_proxy": "127.0.0.1", "web_url": "https://triage.example.org"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"WEB_HOST": "0.0.0.0"}, "web_host 0.0.0.0 lets the network in without encryption"),
        ({"WEB_HOST": "::"}, "without encryption"),
        ({"WEB_HOST": "triage.example.org"}, "without encryption"),
        ({"WEB_TLS_CERTIFICATE": "a.pem"}, "belong together"),
        ({"WEB_TLS_KEY": "a.key"}, "belong together"),
        ({"WEB_BEHIND_PROXY": "10.0.0.1"}, "web_behind_proxy needs web_url"),
        ({"WEB_BEHIND_PROXY": "proxy"}, "'proxy': write an address or a CIDR network"),
        ({"WEB_URL": "triage.example.org"}, "TRIAGE_WEB_URL"),
        ({"WEB_URL": "https://triage.example.org/page"}, "without a path"),
        ({"WEB_URL": "https://user:secret@triage.example.org"}, "and nothing else"),
        ({"SESSION_IDLE_MINUTES": "0"}, "TRIAGE_SESSION_IDLE_MINUTES"),
        ({"OIDC_ROLES": "radiology=doctor"}, "write GROUP=ROLE"),
    ],
)
def test_settings_that_would_leave_the_page_open_are_refused(
    settings: dict[str, str], told: str, tmp_path: Path
) -> None:
    """The closed default: off loopback only with TLS, here or at a proxy."""
    environment = {f"TRIAGE_{name}": value for name, value in settings.items()}
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        Config.read(environment, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_loopback_needs_no_tls(host: str, tmp_path: Path) -> None:
    """This machine's own traffic leaves it not."""
    assert Config.read({"TRIAGE_WEB_HOST": host}, tmp_path).web_host == host


# The end


def test_it_ends_promptly_though_browsers_stay(new_page: Callable[..., Service]) -> None:
    """SIGTERM with idle connections and half a request open: exit status 0."""
    service = new_page()
    address = ("127.0.0.1", service.web_port)
    with (
        httpx.Client(trust_env=False) as idle,
        socket.create_connection(address) as silent,
        socket.create_connection(address) as half,
    ):
        idle.get(f"{service.page}/sign-in")
        half.sendall(b"POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nname=")
        service.stop()
        assert silent.recv(1) == b""


def streaming(worklist: Worklist, home: Path) -> tuple[object, Config, threading.Event]:
    """A site with a stream that never ends by itself."""
    site = site_of(worklist, home)
    app = build(site)

    def forever() -> Iterator[bytes]:
        while True:
            yield b": heartbeat\n\n"
            time.sleep(0.05)

    @app.get("/stream")
    def stream() -> StreamingResponse:
        return StreamingResponse(forever(), media_type="text/event-stream")

    return app, site.config, site.stop


def test_an_open_stream_does_not_hold_up_the_end(worklist: Worklist, tmp_path: Path) -> None:
    """It is cut off when the service ends."""
    account(worklist, "reader", Role.READER)
    app, config, stop = streaming(worklist, tmp_path)
    listening = listen(config)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=serve, args=(app, config, listening, None, stop))
    thread.start()
    with Visitor(url) as visitor:
        visitor.sign_in("reader")
        with visitor.stream("GET", "/stream") as answer:
            parts = answer.iter_bytes()
            assert next(parts).startswith(b": heartbeat")
            stop.set()
            with pytest.raises(httpx.RemoteProtocolError):
                for _ in parts:
                    pass
    thread.join(20)
    assert not thread.is_alive()


def test_a_stream_ends_with_its_session(
    worklist: Worklist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is disabled sees nothing more, though nothing is asked for."""
    monkeypatch.setattr("triage.web.signin.STREAM_CHECK_SECONDS", 0.1)
    account(worklist, "reader", Role.READER)
    app, config, stop = streaming(worklist, tmp_path)
    listening = listen(config)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=serve, args=(app, config, listening, None, stop))
    thread.start()
    try:
        with Visitor(url) as visitor:
            visitor.sign_in("reader")
            with visitor.stream("GET", "/stream") as answer:
                parts = answer.iter_bytes()
                assert next(parts).startswith(b": heartbeat")
                worklist.accounts.disable("reader", "test")
                for _ in parts:  # ends
                    pass
            assert visitor.get("/account").status_code == 303
    finally:
        stop.set()
        thread.join(20)


# Requests that do not come, or come and come


def test_a_body_without_a_length_is_cut_off_at_the_limit(
    worklist: Worklist, tmp_path: Path
) -> None:
    """413, though nothing was announced; and nothing of it was taken for a form."""

    def endless() -> Iterator[bytes]:
        yield b"name=x&password="
        for _ in range(1_000):
            yield b"y" * 1_000

    with served(site_of(worklist, tmp_path)) as url, Visitor(url) as visitor:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = visitor.post("/sign-in", content=endless(), headers=form)
        assert answer.status_code == 413
        assert answer.headers["content-security-policy"]
        assert answer.json()["detail"].startswith("the request is longer than 65536 bytes")
        for length in ("-1", "x", "9" * 30):
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:
                head = f"POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
                raw.sendall(head.encode())
                assert re.match(rb"HTTP/1.1 4(00|13) ", raw.recv(1_000))


def test_half_a_body_is_waited_for_a_while_only(
    worklist: Worklist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """408."""
    monkeypatch.setattr("triage.web.headers.BODY_SECONDS", 0.2)
    with (
        served(site_of(worklist, tmp_path)) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as half,
    ):
        half.sendall(
            b"POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\nname="
        )
        assert half.recv(1_000).startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_asks_for_nothing_is_closed(
    worklist: Worklist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor half a line of a request keeps it open."""
    monkeypatch.setattr("triage.web.server.OPENING_SECONDS", 0.2)
    with served(site_of(worklist, tmp_path)) as url:
        for sent in (b"", b"GET / HT"):
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as silent:
                silent.sendall(sent)
                silent.settimeout(20)
                assert silent.recv(1_000) == b""


# TLS, and a proxy that does it


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Identity]:
    """A certificate authority, and the page's certificate."""
    authority = Authority(tmp_path_factory.mktemp("ca"), "house")
    return authority, authority.issue("page")


def test_with_a_certificate_the_page_speaks_tls_only(
    house: tuple[Authority, Identity], worklist: Worklist, tmp_path: Path
) -> None:
    """1.2 and 1.3; cookies for TLS only, which no neighbour on the host may set; HSTS."""
    authority, ours = house
    account(worklist, "reader", Role.READER)
    port = free_port()
    site = site_of(
        worklist,
        tmp_path,
        web_port=port,
        web_tls_certificate=str(ours.certificate),
        web_tls_key=str(ours.key),
    )
    trusted = ssl.create_default_context(cafile=str(authority.certificate))
    with served(site) as url, Visitor(url, verify=trusted) as visitor:
        assert url == site.config.web_origin
        answer = visitor.sign_in("reader")
        assert answer.status_code == 303
        (cookie,) = [c for c in answer.headers.get_list("set-cookie") if "__Host-triage=" in c]
        assert "Secure" in cookie
        assert "Path=/" in cookie
        assert answer.headers["strict-transport-security"].startswith("max-age=")
        assert visitor.get("/account").status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/sign-in", trust_env=False)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context(cafile=str(authority.certificate))
            context.minimum_version = context.maximum_version = version
            assert httpx.get(f"{url}/sign-in", verify=context, trust_env=False).status_code == 200
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/sign-in", verify=old, trust_env=False)


def test_a_silent_connection_holds_up_no_handshake(
    house: tuple[Authority, Identity], worklist: Worklist, tmp_path: Path
) -> None:
    """Nor do a hundred."""
    _, ours = house
    site = site_of(
        worklist,
        tmp_path,
        web_tls_certificate=str(ours.certificate),
        web_tls_key=str(ours.key),
    )
    with served(site) as url:
        port = int(url.rpartition(":")[2])
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        assert httpx.get(f"{url}/sign-in", verify=False, trust_env=False).status_code == 200
        for each in silent:
            each.close()


def test_behind_a_proxy_only_the_proxy_gets_an_answer(worklist: Worklist, tmp_path: Path) -> None:
    """And what it says of who asks counts: the address of a visitor, and TLS."""
    account(worklist, "reader", Role.READER)
    site = site_of(worklist, tmp_path, **PROXY)
    with served(site) as url, Visitor(url) as proxy:
        headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
        page = proxy.get("/sign-in", headers=headers)
        (cookie,) = page.headers.get_list("set-cookie")
        assert "__Host-triage-form=" in cookie
        assert "Secure" in cookie
        token = re.search(r'value="([0-9a-f]{64})"', page.text)
        assert token is not None
        form = {"csrf_token": token[1], "name": "reader", "password": PASSWORD}
        value = cookie.partition("=")[2].partition(";")[0]
        headers |= {"Cookie": f"__Host-triage-form={value}", "Origin": "https://triage.example.org"}
        assert proxy.post("/sign-in", data=form, headers=headers).status_code == 303
    last = list(worklist.audit.records())[-1]
    assert last.detail["address"] == "203.0.113.7"
    elsewhere = site_of(worklist, tmp_path, **{**PROXY, "web_behind_proxy": "10.0.0.0/8,::2"})
    with served(elsewhere) as url, Visitor(url) as visitor:
        answer = visitor.get("/sign-in", headers={"X-Forwarded-For": "10.0.0.1"})
        assert answer.status_code == 403
        assert answer.text == "Use the address of the proxy.\n"


def test_without_a_proxy_nobody_chooses_his_address(worklist: Worklist, tmp_path: Path) -> None:
    """X-Forwarded-For of anybody is not believed: limits and audit go by the real one."""
    account(worklist, "reader", Role.READER)
    with served(site_of(worklist, tmp_path)) as url, Visitor(url) as visitor:
        visitor.headers["X-Forwarded-For"] = "203.0.113.7"
        assert visitor.sign_in("reader").status_code == 303
    assert list(worklist.audit.records())[-1].detail["address"] == "127.0.0.1"


# What it costs the others


def test_no_other_part_loads_what_the_page_needs() -> None:
    """The receiver's memory and the commands' start do not pay for it."""
    program = (
        "import sys\n"
        "import triage.cli, triage.app, triage.scp, triage.worker, triage.delivery\n"
        "import triage.worklist, triage.commitment\n"
        "heavy = {'fastapi', 'starlette', 'uvicorn', 'jinja2', 'argon2', 'authlib', 'joserfc',\n"
        "         'python_multipart'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_nothing_secret_is_logged(new_page: Callable[..., Service]) -> None:
    """Of a whole visit: no password, no cookie, no query."""
    service = new_page(TRIAGE_LOG_FORMAT="json")
    with Visitor(service.page) as visitor:
        visitor.sign_in("operator", "a-password-that-was-typed")
        visitor.get("/exams/1.2.3?secret=query")
        visitor.sign_in("operator", service.one_time_password())
        cookie = visitor.cookies["triage"]
    service.stop()
    told = service.log.read_text()
    for secret in ("a-password-that-was-typed", "secret=query", cookie, "1.2.3"):
        assert secret not in told


def test_check_tells_of_the_page_and_the_sign_in(
    new_page: Callable[..., Service], house: tuple[Authority, Identity]
) -> None:
    """Served or not, with or without TLS, with an identity provider that is off."""
    service = new_page()
    url = service.page

    def found(**settings: str) -> dict[str, str]:
        service.settings = settings
        lines = service.triage("check").stdout.splitlines()
        return {line.split()[1]: " ".join(line.split()) for line in lines}

    told = found()
    assert told["page"].startswith(f"ok page {url} answers")
    assert "1 accounts, no identity provider" in told["sign-in"]
    _, ours = house
    told = found(TRIAGE_WEB_TLS_CERTIFICATE=str(ours.certificate), TRIAGE_WEB_TLS_KEY=str(ours.key))
    assert told["page"].startswith("FAIL page no TLS on port")
    provider = {
        "TRIAGE_OIDC_ISSUER": f"http://127.0.0.1:{free_port()}",
        "TRIAGE_OIDC_CLIENT_ID": "x",
        "TRIAGE_OIDC_ROLES": "x=reader",
    }
    assert "FAIL sign-in the identity provider cannot be asked" in found(**provider)["sign-in"]
    service.stop()
    wait_for(lambda: not service.shows_page())
    assert found()["page"].startswith("FAIL page no page on 127.0.0.1 port")
