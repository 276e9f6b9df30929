"""The webhook: signed as Standard Webhooks has it, and to nobody else than was configured."""

import base64
import hashlib
import hmac
import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.peers import READING, SCORE, SECRET, HttpPeer, material, send
from triage.errors import DeliveryError, ServiceError
from triage.sinks.webhook import Webhook, secret_of, signature


def test_the_signature_is_that_of_the_specification() -> None:
    """The example that the reference libraries of Standard Webhooks test themselves with."""
    secret = secret_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", "the example")
    signed = signature(
        secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}'
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_receiver_can_check_every_request(tmp_path: Path) -> None:
    """By the secret, the id, the time and the body; each attempt has its own time."""
    with HttpPeer() as peer:
        sink = peer.sink()
        first = send(sink, tmp_path)
        time.sleep(1.01)
        send(sink, tmp_path)
        assert list(peer.taken) == [first.uid]
        stamps = []
        for headers, body in zip(peer.headers, peer.taken[first.uid], strict=True):
            stamp = headers["webhook-timestamp"]
            signed = f"{first.uid}.{stamp}.".encode() + body
            expected = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest())
            assert headers["webhook-signature"] == f"v1,{expected.decode()}"
            assert abs(int(stamp) - time.time()) < 10
            stamps.append(stamp)
        assert len(set(stamps)) == 2
        assert len(set(peer.taken[first.uid])) == 1


def test_the_body_says_what_was_found_and_read() -> None:
    """Identifiers, score and reading; no name of the patient."""
    what = material(readings=(READING,))
    result = HttpPeer().sink().build(what)
    content = json.loads(result.content)
    assert content["id"] == result.uid
    assert content["radiograph"]["sop_instance_uid"] == what.subject.sop_instance_uid
    assert content["finding"]["probability"] == SCORE.probability
    assert content["finding"]["flagged"] is True
    assert content["reading"] == {
        "verdict": "confirmed", "reader": "Dr. Ä. Reader", "read_at": "2026-01-05T11:00:00+00:00"
    }  # fmt: skip
    assert json.loads(HttpPeer().sink().build(material()).content)["reading"] is None
    assert str(what.source().PatientName) not in result.content.decode()


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    """Patient data goes to the host that was configured."""
    with HttpPeer() as peer, HttpPeer() as elsewhere:
        peer.redirect_to = elsewhere.url
        with pytest.raises(DeliveryError, match="307"):
            send(peer.sink(), tmp_path)
        assert not elsewhere.taken
        assert not elsewhere.asked


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that no authority has signed, and its key."""
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", pem],
        check=True, capture_output=True,
    )  # fmt: skip
    return pem, key


def test_https_needs_a_certificate_that_is_trusted(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    """By the system, or by the file that is named."""
    with HttpPeer(certificate) as peer:
        with pytest.raises(DeliveryError, match="certificate"):
            send(Webhook(peer.url, SECRET.encode(), 2.0, None), tmp_path)
        assert not peer.taken
        send(Webhook(peer.url, SECRET.encode(), 2.0, certificate[0]), tmp_path)
        assert len(peer.taken) == 1


@pytest.mark.parametrize("text", ["", "too brief", "whsec_c2hvcnQ=", "whsec_***"])
def test_a_poor_secret_is_refused_and_not_shown(text: str) -> None:
    """The message says where it stands."""
    with pytest.raises(ServiceError, match="the file") as caught:
        secret_of(text, "the file")
    assert not text or text not in str(caught.value)
