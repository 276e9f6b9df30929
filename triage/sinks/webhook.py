"""A webhook: JSON by HTTP POST, signed as Standard Webhooks has it.

The receiver checks ``webhook-signature``, an HMAC-SHA256 over ``webhook-id``,
``webhook-timestamp`` and the body; refuses an old timestamp; and knows by ``webhook-id``
what it has seen before.
"""

import base64
import binascii
import hashlib
import hmac
import json
import ssl
import time
from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from triage import __version__
from triage.errors import DeliveryError, ServiceError
from triage.results import result_uid
from triage.sinks import Material, Result

LEAST_SECRET = 24
"""Bytes, as Standard Webhooks asks for."""

PREFIX = "whsec_"
"""What follows is the secret in Base64; without it, the text is the secret."""

TRY_AGAIN = frozenset({408, 425, 429})
"""Statuses below 500 that do not speak of the request (RFC 9110, 8470, 6585)."""


def signature(secret: bytes, uid: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    signed = f"{uid}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def secret_of(text: str, where: str) -> bytes:
    """The secret in the text of a file or a variable.

    Raises
    ------
    ServiceError
        It is too short, or no Base64; the message says where it stands, not what it is.
    """
    stripped = text.strip()
    try:
        secret = (
            base64.b64decode(stripped.removeprefix(PREFIX), validate=True)
            if stripped.startswith(PREFIX)
            else stripped.encode()
        )
    except binascii.Error:
        raise ServiceError(f"the secret in {where} is no Base64 after {PREFIX}") from None
    if len(secret) < LEAST_SECRET:
        raise ServiceError(f"the secret in {where} is shorter than {LEAST_SECRET} bytes")
    return secret


class Webhook:
    """A receiver of signed JSON.

    Parameters
    ----------
    url : str
    secret : bytes
    timeout : float
        Seconds to connect, and seconds without an answer after which there is none.
    ca_file : Path or None
        Whom to trust instead of the system's certificate authorities.

    Raises
    ------
    ServiceError
        The certificates cannot be read.
    """

    def __init__(self, url: str, secret: bytes, timeout: float, ca_file: Path | None) -> None:
        self._url, self._secret = url, secret
        self._host = str(urlsplit(url).hostname)
        try:
            trusted = ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one, too
            raise ServiceError(f"no certificates can be read from {ca_file}") from error
        # No redirects: the answer of a receiver is no place to send patient data to.
        self._pool = urllib3.PoolManager(
            ssl_context=trusted,
            timeout=urllib3.Timeout(connect=timeout, read=timeout),
            retries=False,
        )

    def build(self, material: Material) -> Result:
        """A JSON object; ``docs/connect-a-pacs.md`` describes it."""
        subject, score = material.subject, material.subject.score
        read = [
            {"verdict": r.verdict, "reader": r.reader, "read_at": r.read_at.isoformat()}
            for r in subject.readings
        ][-1:]
        uid = result_uid(
            subject.sop_instance_uid,
            score.model_version,
            "event",
            *(part for reading in read for part in reading.values()),
        )
        content = {
            "id": str(uid),
            "type": f"cxr-triage.{material.kind.lower()}",
            "disclaimer": "A triage aid, not a diagnosis.",
            "radiograph": {
                "sop_instance_uid": subject.sop_instance_uid,
                "series_instance_uid": subject.series_instance_uid,
                "study_instance_uid": subject.study_instance_uid,
                "accession_number": subject.accession_number,
                "patient_id": subject.patient_id,
                "received_at": subject.received_at.isoformat(),
                "notes": list(subject.notes),
            },
            "finding": {
                "name": "pneumonia",
                "probability": score.probability,
                "threshold": score.threshold,
                "flagged": score.flagged,
                "model_version": score.model_version,
                "scored_at": subject.scored_at.isoformat(),
            },
            "reading": read[0] if read else None,
        }
        return Result(str(uid), json.dumps(content, ensure_ascii=False).encode())

    def send(self, uid: str, file: Path) -> None:
        """POST; any status from 200 to 299 has taken it."""
        body, timestamp = file.read_bytes(), int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": f"cxr-triage/{__version__}",
            "webhook-id": uid,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._secret, uid, timestamp, body),
        }
        try:
            answer = self._pool.request(
                "POST", self._url, body=body, headers=headers, redirect=False, preload_content=False
            )
        except urllib3.exceptions.SSLError as error:
            raise DeliveryError(
                f"{self._host} has no certificate that we trust: see ca_file in triage.toml"
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise DeliveryError(f"no answer from {self._host} ({type(error).__name__})") from error
        # Whatever else it says is not for us, and might never end.
        answer.close()
        if 200 <= answer.status <= 299:
            return
        raise DeliveryError(
            f"{self._host} answered {answer.status}"
            + (": redirects are not followed" if 300 <= answer.status <= 399 else ""),
            refused=300 <= answer.status <= 499 and answer.status not in TRY_AGAIN,
        )

    def rest(self) -> None:
        """Close idle connections."""
        self._pool.clear()
