"""The port with TLS (PS3.15 B.12), called by DCMTK, by OpenSSL and by silence."""

import contextlib
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority, Identity
from tests.conftest import SAMPLES, Service, free_port, wait_for
from tests.integration.test_receiver import Console
from triage.config import Config
from triage.errors import ConfigError
from triage.transport import OPENING_SECONDS

SAMPLE = min(SAMPLES.glob("*.dcm"))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs our certificate and the consoles'."""
    return Authority(tmp_path_factory.mktemp("hospital"), "hospital")


@pytest.fixture(scope="module")
def ours(hospital: Authority) -> Identity:
    """Our certificate."""
    return hospital.issue("ours")


@pytest.fixture(scope="module")
def console(hospital: Authority) -> Identity:
    """A console's certificate."""
    return hospital.issue("console")


@pytest.fixture
def secure(
    new_service: Callable[..., Service], hospital: Authority, ours: Identity
) -> Iterator[Service]:
    """A receiver that wants certificates of consoles."""
    service = new_service(
        TRIAGE_TLS_PORT=str(free_port()),
        TRIAGE_TLS_CERTIFICATE=str(ours.certificate),
        TRIAGE_TLS_KEY=str(ours.key),
        TRIAGE_TLS_CA=str(hospital.certificate),
    )
    service.start("--roles", "receive")
    yield service
    service.stop()


def tls_port(service: Service) -> int:
    """Where a service speaks TLS."""
    return int(service.settings["TRIAGE_TLS_PORT"])


def told(service: Service, action: str) -> list[dict[str, Any]]:
    """What the log says of an action."""
    lines = service.events()
    return [line for line in lines if line["action"] == action]


def told_once(service: Service, action: str) -> dict[str, Any]:
    """The one line that the log has, or soon has, of an action."""
    wait_for(lambda: told(service, action))
    (line,) = told(service, action)
    return line


def dcmtk(
    service: Service, program: str, *options: str | Path, port: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program of DCMTK against a service."""
    address = ["-aec", "TRIAGE", "127.0.0.1", str(port or tls_port(service))]
    files = [options[-1]] if options and options[-1] == SAMPLE else []
    rest = options[: len(options) - len(files)]
    return subprocess.run(
        [program, *map(str, rest), *address, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def with_certificate(identity: Identity, authority: Authority) -> list[str | Path]:
    """DCMTK's options of a console with a certificate."""
    return ["+tls", identity.key, identity.certificate, "+cf", authority.certificate]


@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_a_console_with_a_certificate_is_served(
    secure: Service, hospital: Authority, console: Identity, profile: str
) -> None:
    """Echo and store, in each of DCMTK's profiles of BCP 195."""
    options = [profile, *with_certificate(console, hospital)]
    assert dcmtk(secure, "echoscu", *options).returncode == 0
    answer = dcmtk(secure, "storescu", *options, SAMPLE)
    assert answer.returncode == 0, answer.stderr
    assert len(told(secure, "stored")) == 1


def test_a_console_without_a_certificate_is_refused(secure: Service, hospital: Authority) -> None:
    """And the log says where to install one."""
    answer = dcmtk(secure, "echoscu", "+tla", "+cf", hospital.certificate)
    assert answer.returncode != 0
    line = told_once(secure, "connection_refused")
    assert "shows no certificate" in line["advice"]
    assert line["calling_address"] == "127.0.0.1"


@pytest.mark.parametrize("fault", ["expired", "of another authority", "self-signed"])
def test_a_console_with_a_wrong_certificate_is_refused(
    secure: Service, hospital: Authority, tmp_path: Path, fault: str
) -> None:
    """And the log says what is wrong with it, and on which side to mend it."""
    other = Authority(tmp_path / "other", "other")
    identity, words = {
        "expired": (lambda: hospital.issue("old", days=-1), "expired"),
        "of another authority": (lambda: other.issue("stranger"), "unable to get local issuer"),
        "self-signed": (
            lambda: Identity(other.certificate, tmp_path / "other" / "other.key"),
            "self-signed certificate",
        ),
    }[fault]
    answer = dcmtk(secure, "echoscu", *with_certificate(identity(), hospital))
    assert answer.returncode != 0
    line = told_once(secure, "connection_refused")
    assert words in line["advice"]
    assert "renew it there, or add who signed it to TRIAGE_TLS_CA here" in line["advice"]
    assert told(secure, "stored") == []


def test_a_console_that_does_not_know_our_authority_is_told_of(
    secure: Service, console: Identity, tmp_path: Path
) -> None:
    """It refuses us; the log says what to import there."""
    other = Authority(tmp_path / "other", "other")
    assert dcmtk(secure, "echoscu", *with_certificate(console, other)).returncode != 0
    line = told_once(secure, "connection_refused")
    assert "does not accept our certificate" in line["advice"]


def test_ports_that_are_confused_are_told_of(
    secure: Service, hospital: Authority, console: Identity
) -> None:
    """TLS to the port without, and none to the port with."""
    assert dcmtk(secure, "echoscu").returncode != 0
    options = with_certificate(console, hospital)
    assert dcmtk(secure, "echoscu", *options, port=secure.port).returncode != 0
    wait_for(lambda: len(told(secure, "connection_refused")) == 2)
    advice = [line["advice"] for line in told(secure, "connection_refused")]
    assert "switch TLS on there, or send to TRIAGE_DICOM_PORT" in advice[0]
    assert "switch TLS off there, or send to TRIAGE_TLS_PORT" in advice[1]


def handshake(secure: Service, *options: str) -> subprocess.CompletedProcess[str]:
    """What OpenSSL's client gets."""
    return subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{tls_port(secure)}", *options],
        input="", capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


def test_old_tls_is_refused(secure: Service) -> None:
    """TLS 1.1, and suites of TLS 1.2 that RFC 9325 does not recommend."""
    old = ["-cipher", "ALL:@SECLEVEL=0"]
    assert "Cipher is (NONE)" in handshake(secure, "-tls1_1", *old).stdout
    for suite in ("AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA256", "ECDHE-RSA-CHACHA20-POLY1305"):
        assert "Cipher is (NONE)" in handshake(secure, "-tls1_2", "-cipher", suite).stdout, suite
    wait_for(lambda: len(told(secure, "connection_refused")) == 4)
    advice = [line["advice"] for line in told(secure, "connection_refused")]
    assert all("update its TLS" in line for line in advice), advice


@pytest.mark.parametrize(
    ("version", "suite"),
    [
        ("-tls1_2", "ECDHE-RSA-AES128-GCM-SHA256"),
        ("-tls1_2", "ECDHE-RSA-AES256-GCM-SHA384"),
        ("-tls1_3", "TLS_AES_128_GCM_SHA256"),
    ],
)
def test_current_tls_is_taken(
    secure: Service, hospital: Authority, console: Identity, version: str, suite: str
) -> None:
    """TLS 1.2 with the suites that B.12 requires, and TLS 1.3; our certificate verifies."""
    choice = ["-ciphersuites" if version == "-tls1_3" else "-cipher", suite]
    shown = handshake(
        secure, version, *choice, "-CAfile", str(hospital.certificate),
        "-cert", str(console.certificate), "-key", str(console.key),
    )  # fmt: skip
    assert f"Cipher is {suite}" in shown.stdout
    assert "Verify return code: 0 (ok)" in shown.stdout


def test_silence_delays_nobody(secure: Service, hospital: Authority, console: Identity) -> None:
    """Forty connections that shake no hands, some after the first byte; then an echo."""
    options = with_certificate(console, hospital)
    silent = [socket.create_connection(("127.0.0.1", tls_port(secure))) for _ in range(40)]
    for connection in silent[::2]:
        connection.sendall(b"\x16\x03\x01")
    began = time.monotonic()
    assert dcmtk(secure, "echoscu", *options).returncode == 0
    assert time.monotonic() - began < OPENING_SECONDS, "it waited for the silent ones"
    for connection in silent:
        connection.settimeout(2 * OPENING_SECONDS)  # by then it must have been cut off
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        connection.close()
    wait_for(lambda: len(told(secure, "connection_refused")) == 40)
    assert len([1 for line in told(secure, "connection_refused") if "TLS" in line["advice"]]) == 20


def test_a_stall_in_mid_image_is_cut_off(
    new_service: Callable[..., Service], ours: Identity
) -> None:
    """Within idle_seconds, with TLS as without; the place is free again."""
    service = new_service(
        TRIAGE_TLS_PORT=str(free_port()),
        TRIAGE_TLS_CERTIFICATE=str(ours.certificate),
        TRIAGE_TLS_KEY=str(ours.key),
        TRIAGE_IDLE_SECONDS="2",
        TRIAGE_MAX_ASSOCIATIONS="1",
    )
    service.start("--roles", "receive")
    console = admitted(service)
    console.command("1.2.3")
    console.fragment(bytes(1_000), last=False)
    console.half_a_pdu()
    began = time.monotonic()
    assert console.receive()[0] in {0x07, None}
    assert time.monotonic() - began < 12.0
    console.socket.close()
    wait_for(lambda: told(service, "association_aborted"))
    assert "stalled" in told(service, "association_aborted")[0]["advice"]
    wait_for(service.answers, seconds=5.0)
    service.stop()


class EncryptedConsole(Console):
    """A console over TLS without a certificate."""

    def connect(self, port: int) -> socket.socket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(super().connect(port))


def admitted(service: Service) -> EncryptedConsole:
    """A console that has the only place, which the one before may still be leaving."""
    consoles: list[EncryptedConsole] = []

    def comes() -> bool:
        consoles.append(EncryptedConsole(tls_port(service)))
        if consoles[-1].kind != 0x02:
            consoles[-1].socket.close()
        return consoles[-1].kind == 0x02

    wait_for(comes)
    return consoles[-1]


def test_without_an_authority_any_console_may_encrypt(
    new_service: Callable[..., Service], hospital: Authority, ours: Identity
) -> None:
    """And the port without TLS is closed if it is 0; check sees that all is well."""
    service = new_service(
        TRIAGE_TLS_PORT=str(free_port()),
        TRIAGE_TLS_CERTIFICATE=str(ours.certificate),
        TRIAGE_TLS_KEY=str(ours.key),
    )
    service.start("--roles", "receive")
    assert dcmtk(service, "echoscu", "+tla", "+cf", hospital.certificate).returncode == 0
    line = re.search(r"^ok +tls +.*$", service.triage("check").stdout, re.MULTILINE)
    assert line is not None
    assert "valid for 36" in line[0]
    assert "consoles need no certificate" in line[0]
    service.stop()


def test_the_port_without_tls_can_be_closed(
    new_service: Callable[..., Service], hospital: Authority, ours: Identity
) -> None:
    """TRIAGE_DICOM_PORT=0."""
    service = new_service(
        TRIAGE_DICOM_PORT="0",
        TRIAGE_TLS_PORT=str(free_port()),
        TRIAGE_TLS_CERTIFICATE=str(ours.certificate),
        TRIAGE_TLS_KEY=str(ours.key),
    )
    service.start("--roles", "receive", wait=False)
    options = ["+tla", "+cf", hospital.certificate]
    wait_for(lambda: dcmtk(service, "echoscu", *options).returncode == 0)
    assert [line["tls"] for line in told(service, "listening")] == [True]
    assert "listens with TLS only" in service.triage("check").stdout
    assert service.triage("send", str(SAMPLE)).returncode == 2
    service.stop()


def test_an_expired_certificate_of_ours_fails_the_check(
    new_service: Callable[..., Service], hospital: Authority
) -> None:
    """In one line that says which file to renew."""
    old = hospital.issue("ours-old", days=-1)
    service = new_service(
        TRIAGE_TLS_PORT=str(free_port()),
        TRIAGE_TLS_CERTIFICATE=str(old.certificate),
        TRIAGE_TLS_KEY=str(old.key),
    )
    service.start("--roles", "receive")
    line = re.search(r"^FAIL +tls +.*$", service.triage("check").stdout, re.MULTILINE)
    assert line is not None
    assert "certificate has expired" in line[0]
    assert str(old.certificate) in line[0]
    service.stop()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"TRIAGE_TLS_CERTIFICATE": "a.pem"}, "tls_certificate and tls_key belong together"),
        ({"TRIAGE_TLS_CA": "a.pem"}, "tls_ca needs tls_certificate"),
        ({"TRIAGE_DICOM_PORT": "0"}, "dicom_port 0 leaves TLS only"),
        (
            {"TRIAGE_TLS_CERTIFICATE": "a", "TRIAGE_TLS_KEY": "b", "TRIAGE_DICOM_PORT": "2762"},
            "are the same",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_told(
    tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    """In one line that names them."""
    with pytest.raises(ConfigError, match=words) as caught:
        Config.read(settings, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["missing", "not PEM", "key of another", "password"])
def test_a_certificate_that_cannot_be_used_stops_the_start(
    new_service: Callable[..., Service], ours: Identity, console: Identity, tmp_path: Path,
    fault: str,
) -> None:  # fmt: skip
    """With exit status 1 and one line that names the settings."""
    (tmp_path / "text").write_text("Dear Sir or Madam")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", ours.key, "-out", locked],
        check=True, capture_output=True,
    )  # fmt: skip
    certificate, key = {
        "missing": (tmp_path / "none.pem", ours.key),
        "not PEM": (tmp_path / "text", ours.key),
        "key of another": (ours.certificate, console.key),
        "password": (ours.certificate, locked),
    }[fault]
    service = new_service(TRIAGE_TLS_CERTIFICATE=str(certificate), TRIAGE_TLS_KEY=str(key))
    ended = service.triage("serve", "--roles", "receive")
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("triage: ")]
    assert "TRIAGE_TLS_CERTIFICATE" in line
    assert "TRIAGE_TLS_KEY" in line
    assert "Traceback" not in ended.stderr
