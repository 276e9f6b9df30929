"""Is this installation healthy, part by part? Behind ``triage check``."""

import datetime as dt
import http.client
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triage.config import Config, DicomDestination, without_password
from triage.errors import ModelError, ServiceError, SignInError, TriageError, WorklistError
from triage.network import Network
from triage.pixels import SIDE
from triage.registry import Registry
from triage.send import Destination, echo
from triage.spool import Spool
from triage.worklist import State, Worklist
from triage.worklist.commitments import CommitmentState
from triage.worklist.schema import revision

LEAST_FREE_BYTES = 1_000_000_000
LONGEST_WAIT = dt.timedelta(minutes=5)
LONGEST_REPORT = dt.timedelta(hours=1)
CERTIFICATE_NOTICE = dt.timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Check:
    """One part's health.

    Attributes
    ----------
    part : str
    healthy : bool
    finding : str
        One line: what was found, and what to do if it is not healthy.
    """

    part: str
    healthy: bool
    finding: str


def check(config: Config, registry: Registry, spool: Spool) -> Iterator[Check]:
    """Look at each part; one that is broken keeps none of the others from being looked at.

    Parameters
    ----------
    config : Config
    registry : Registry
    spool : Spool
        The installation's.

    Yields
    ------
    Check
    """
    parts: dict[str, Callable[[Config], str]] = {
        "home": _home,
        "store": lambda _: _store(config, spool),
        "worklist": _worklist,
        "queue": _queue,
        "model": lambda _: _model(registry),
        "receiver": _receiver,
        "tls": _tls,
        "page": _page,
        "sign-in": _sign_in,
        "commitments": _commitments,
        "deliveries": _deliveries,
        "destinations": _destinations,
    }
    for part, look in parts.items():
        try:
            yield Check(part, healthy=True, finding=look(config))
        except TriageError as error:
            yield Check(part, healthy=False, finding=str(error))


def _home(config: Config) -> str:
    if not config.home.is_dir():
        raise ServiceError(f"{config.home} is not there: start `triage serve`, or set TRIAGE_HOME")
    if not os.access(config.home, os.W_OK | os.X_OK):
        raise ServiceError(f"{config.home} cannot be written: make it writable for this user")
    free = shutil.disk_usage(config.home).free
    if free < LEAST_FREE_BYTES:
        raise ServiceError(f"{config.home} has {free // 1_000_000} MB left: free some space")
    return f"{config.home}, {free // 1_000_000_000} GB free"


def _store(config: Config, spool: Spool) -> str:
    if not config.spool_url:
        return "instance files are in the home"
    spool.reachable()
    return f"{config.spool_url} answers"


def _worklist(config: Config) -> str:
    worklist = Worklist(config.worklist_url)
    try:
        counts = worklist.counts()
        found = revision(worklist.engine())
    finally:
        worklist.close()
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"{without_password(config.worklist_url)}, schema {found}, {shown or 'no items'}"


def _queue(config: Config) -> str:
    worklist = Worklist(config.worklist_url)
    try:
        oldest = worklist.oldest_received()
        failed = worklist.counts([State.FAILED])[State.FAILED]
    finally:
        worklist.close()
    if oldest is not None and dt.datetime.now(dt.UTC) - oldest > LONGEST_WAIT:
        raise WorklistError(
            f"an item has waited for its score since {oldest:%Y-%m-%d %H:%M} UTC: see whether "
            "`triage serve` runs its `score` part, and its log"
        )
    if failed:
        raise WorklistError(
            f"{failed} items are FAILED: `triage worklist --state FAILED` shows why; read them "
            "in the PACS"
        )
    return "nothing waits long, nothing has failed"


def _model(registry: Registry) -> str:
    registry.history()
    model = registry.champion()
    network = Network(model)
    began = time.perf_counter()
    try:
        network.score(np.zeros((SIDE, SIDE), np.float32))
    except ValueError as error:
        raise ModelError(f"model {model.version} gives no probability: {error}") from error
    return f"{model.version} scores in {(time.perf_counter() - began) * 1000:.0f} ms"


def _local(host: str) -> str:
    """Where this machine reaches what listens on an address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def _receiver(config: Config) -> str:
    if not config.dicom_port:
        return "listens with TLS only (TRIAGE_DICOM_PORT is 0)"
    destination = Destination(_local(config.dicom_host), config.dicom_port, config.ae_title)
    echo(destination, timeout=5.0)
    return f"{destination} answers C-ECHO"


def _tls(config: Config) -> str:
    if config.tls_certificate is None:
        return "off: TRIAGE_TLS_CERTIFICATE is not set"
    address = (_local(config.dicom_host), config.tls_port)
    left = _certificate_days(config.tls_certificate, address, "receive")
    clients = "consoles need certificates" if config.tls_ca else "consoles need no certificate"
    return (
        f"port {config.tls_port} shows a certificate that is valid for {left} more days; {clients}"
    )


def _certificate_days(certificate: Path, address: tuple[str, int], part: str) -> int:
    """For how many days the certificate that is shown there is valid."""
    place = f"port {address[1]}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Not whom the world trusts: what is shown must be the certificate that is configured.
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(certificate)
        with (
            socket.create_connection(address, timeout=5.0) as connection,
            context.wrap_socket(connection) as shown,
        ):
            until = ssl.cert_time_to_seconds(str((shown.getpeercert() or {})["notAfter"]))
    except ssl.SSLCertVerificationError as error:
        raise ServiceError(
            f"the certificate on {place} is not valid ({error.verify_message}): renew "
            f"{certificate}, then start `triage serve` anew"
        ) from error
    except OSError as error:
        raise ServiceError(
            f"no TLS on {place} ({type(error).__name__}): see whether `triage serve` runs its "
            f"`{part}` part, and its log"
        ) from error
    left = dt.timedelta(seconds=until - time.time())
    if left < CERTIFICATE_NOTICE:
        raise ServiceError(
            f"the certificate on {place} is valid for {left.days} more days: renew "
            f"{certificate}, then start `triage serve` anew"
        )
    return left.days


def _page(config: Config) -> str:
    if not config.web_port:
        return f"on any free port (TRIAGE_WEB_PORT is 0), as {config.web_origin}"
    address = (_local(config.web_host), config.web_port)
    certificate = ""
    connection = http.client.HTTPConnection(*address, timeout=5.0)
    if config.web_tls_certificate is not None:
        left = _certificate_days(config.web_tls_certificate, address, "web")
        certificate = f", with a certificate that is valid for {left} more days"
        # It was compared just now with the one that is configured.
        context = ssl._create_unverified_context()  # noqa: S323, SLF001
        connection = http.client.HTTPSConnection(*address, timeout=5.0, context=context)
    try:
        connection.request("GET", "/sign-in")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise ServiceError(
            f"no page on {address[0]} port {address[1]} ({type(error).__name__}): see whether "
            "`triage serve` runs its `web` part, and its log"
        ) from error
    finally:
        connection.close()
    if status == 403 and config.web_behind_proxy:
        return f"{config.web_origin}, which only its proxy reaches"
    if status != 200:
        raise ServiceError(
            f"the page on {address[0]} port {address[1]} answers {status}: see the log of the "
            "part `web`"
        )
    return f"{config.web_origin} answers{certificate}"


def _sign_in(config: Config) -> str:
    from triage.web.provider import Provider

    worklist = Worklist(config.worklist_url)
    try:
        records = [each for each in worklist.accounts.records() if not each.disabled]
    finally:
        worklist.close()
    shown = f"{len(records)} accounts"
    if config.oidc_issuer:
        try:
            Provider(config).depart("/")
        except SignInError as error:
            raise ServiceError(str(error)) from error
        return f"{shown}, and {config.oidc_issuer} answers"
    if records and not any("operator" in each.roles for each in records):
        raise ServiceError(
            "no account is an operator: `triage users roles NAME operator` makes one"
        )
    return f"{shown}, no identity provider"


def _commitments(config: Config) -> str:
    worklist = Worklist(config.worklist_url)
    try:
        counts = worklist.commitments.counts()
        oldest = worklist.commitments.oldest_pending()
    finally:
        worklist.close()
    parked = counts[CommitmentState.PARKED]
    if parked:
        raise ServiceError(
            f"{parked} reports of Storage Commitment are PARKED: `triage commitments list --state "
            "PARKED` shows why; mend it, then `triage commitments retry --all`"
        )
    if oldest is not None and dt.datetime.now(dt.UTC) - oldest > LONGEST_REPORT:
        raise ServiceError(
            f"a report of Storage Commitment waits since {oldest:%Y-%m-%d %H:%M} UTC: `triage "
            "commitments list --state PENDING` shows why"
        )
    return f"{counts[CommitmentState.REPORTED]} reported, {counts[CommitmentState.PENDING]} pending"


def _deliveries(config: Config) -> str:
    worklist = Worklist(config.worklist_url)
    try:
        backlogs = worklist.deliveries.backlogs()
    finally:
        worklist.close()
    names = {destination.name for destination in config.destinations}
    for backlog in backlogs:
        why = f": {backlog.error}" if backlog.error else ""
        if backlog.parked:
            raise ServiceError(
                f"{backlog.parked} deliveries to {backlog.destination} are PARKED{why}: see "
                "`triage deliveries list --state PARKED`, mend it, then `triage deliveries retry "
                "--all`"
            )
        if backlog.pending and backlog.destination not in names:
            raise ServiceError(
                f"{backlog.pending} deliveries wait for {backlog.destination}, which is no "
                "longer among the destinations of triage.toml"
            )
        late = backlog.oldest is not None and dt.datetime.now(dt.UTC) - backlog.oldest
        if late and late > LONGEST_WAIT:
            raise ServiceError(
                f"{backlog.pending} deliveries wait for {backlog.destination}, the oldest since "
                f"{backlog.oldest:%Y-%m-%d %H:%M} UTC{why}: see whether `triage serve` runs its "
                "`deliver` part, and its log"
            )
    return "nothing waits long, nothing is parked"


def _destinations(config: Config) -> str:
    asked = [there for there in config.destinations if isinstance(there, DicomDestination)]
    for there in asked:
        peer = Destination(there.host, there.port, there.ae_title)
        echo(peer, timeout=5.0, calling_ae_title=config.ae_title)
    if not config.destinations:
        return "none: results stay here"
    answer = f"; {len(asked)} PACS answer C-ECHO" if asked else ""
    return "; ".join(map(str, config.destinations)) + answer
