"""Storage Commitment Push Model SCP (PS3.4 annex J): what is asked for, and what is answered.

The receiver keeps a request before it answers it. The report goes out later, on an
association of our own, from a process of its own: it reads every file that it vouches for.
"""

import datetime as dt
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import structlog
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from triage.errors import DicomError, SpoolOutage, WorklistError
from triage.identity import items, valid_uid, value_of
from triage.peers import Requester
from triage.spool import Spool
from triage.worklist.commitments import CommitmentClaim, Commitments, Reference

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
NO_SUCH_ARGUMENT = 0x0114
INVALID_ARGUMENT = 0x0115
CLASS_INSTANCE_CONFLICT = 0x0119
NO_SUCH_ACTION = 0x0123
DUPLICATE_TRANSACTION = 0x0131
"""PS3.3 C.14.1.1; the others are PS3.7 annex C, too."""

REQUEST_COMMITMENT = 1
"""Action Type ID (PS3.4 J.3.2)."""
ALL_COMMITTED, SOME_FAILED = 1, 2
"""Event Type ID (PS3.4 J.3.3)."""

POLL_SECONDS = 0.5
OUTAGE_SECONDS = 2.0
STOP_SECONDS = 10.0

ATTEMPTS = 60
"""With the pauses below, two days and more: a weekend."""
FIRST_PAUSE = dt.timedelta(seconds=5)
LONGEST_PAUSE = dt.timedelta(hours=1)
TIMEOUT_SECONDS = 30.0


class Refused(Exception):
    """An N-ACTION that is not answered with Success.

    Parameters
    ----------
    status : int
        PS3.7 10.1.4.1.10.
    advice : str
        What the requester is to correct.
    """

    def __init__(self, status: int, advice: str) -> None:
        super().__init__(advice)
        self.status, self.advice = status, advice


@dataclass(frozen=True, slots=True)
class Request:
    """What an N-ACTION asks us to vouch for.

    Attributes
    ----------
    transaction_uid : str
    references : tuple of (str, str)
        SOP Class UID and SOP Instance UID; at least one.
    """

    transaction_uid: str
    references: tuple[Reference, ...]


def requested(instance_uid: str, action: int, information: Dataset) -> Request:
    """Read a request for commitment (PS3.4 table J.3-1).

    Raises
    ------
    Refused
        It is none.
    """
    if instance_uid != StorageCommitmentPushModelInstance:
        raise Refused(NO_SUCH_INSTANCE, "it names another SOP instance than the well-known one")
    if action != REQUEST_COMMITMENT:
        raise Refused(NO_SUCH_ACTION, "it asks for another action than type 1")
    transaction_uid = _uid(information, "TransactionUID")
    references = tuple(
        (_uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID"))
        for item in items(information, "ReferencedSOPSequence")
    )
    if not transaction_uid or not references:
        raise Refused(NO_SUCH_ARGUMENT, "Transaction UID or Referenced SOP Sequence is missing")
    if not all(map(valid_uid, [transaction_uid, *(uid for each in references for uid in each)])):
        raise Refused(INVALID_ARGUMENT, "a UID in it is missing or malformed (PS3.5 9.1)")
    return Request(transaction_uid, tuple(dict.fromkeys(references)))


def _uid(dataset: Dataset, keyword: str) -> str:
    value = value_of(dataset, keyword)
    return "" if value is None else str(value).strip("\0 ")


class Committer:
    """The process that reports, one thread for each requester.

    Parameters
    ----------
    name : str
        Unique among live ones; a successor of the same name inherits its claims.
    ae_title : str
        Ours.
    commitments : Commitments
    spool : Spool
    requesters : sequence of Requester
    """

    def __init__(
        self,
        name: str,
        ae_title: str,
        commitments: Commitments,
        spool: Spool,
        requesters: Sequence[Requester],
    ) -> None:
        self._name, self._ae_title = name, ae_title
        self._commitments, self._spool, self._requesters = commitments, spool, requesters
        self._log = structlog.get_logger("commit").bind(worker=name)

    def run(self, stop: threading.Event) -> None:
        """Report until told to stop."""
        while not stop.is_set():
            try:
                returned = self._commitments.abandon(self._name)
                break
            except WorklistError as error:
                self._outage(error, stop)
        else:
            return
        if returned:
            self._log.warning("returned", action="claims_returned", count=returned)
        # Daemons: a requester that keeps us waiting cannot keep the process.
        threads = [
            threading.Thread(
                target=self._serve, args=[there, stop], name=f"commit-{there.ae_title}", daemon=True
            )
            for there in self._requesters
        ]
        for thread in threads:
            thread.start()
        self._log.info("ready", action="committer_ready", requesters=len(threads))
        stop.wait()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _serve(self, there: Requester, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                claim = self._commitments.claim(self._name, there.ae_title, ATTEMPTS)
                if claim is None:
                    stop.wait(POLL_SECONDS)
                else:
                    self._attempt(there, claim)
            except WorklistError as error:
                self._outage(error, stop)

    def _outage(self, error: WorklistError, stop: threading.Event) -> None:
        self._log.error("outage", action="worklist_unavailable", error=str(error))
        stop.wait(OUTAGE_SECONDS)

    def _attempt(self, there: Requester, claim: CommitmentClaim) -> None:
        try:
            failures = self._verify(claim)
            self._report(there, claim, failures)
        except (DicomError, SpoolOutage) as error:
            self._failed(claim, str(error))
        except WorklistError:
            raise
        # A boundary: what a peer does to us fails its report, not the service.
        except Exception as error:  # noqa: BLE001
            self._failed(claim, f"{type(error).__name__} while reporting to {there}: report it")
        else:
            if self._commitments.reported(claim):
                self._log.info(
                    "reported",
                    action="commitment_reported",
                    transaction_uid=claim.transaction_uid,
                    requester=claim.requester,
                    committed=len(claim.references) - len(failures),
                    failed=len(failures),
                )

    def _verify(self, claim: CommitmentClaim) -> dict[Reference, int]:
        """Why we do not vouch for an instance, by its reference (PS3.3 C.14.1.1)."""
        if claim.duplicate:
            return dict.fromkeys(claim.references, DUPLICATE_TRANSACTION)
        kept = self._commitments.kept([instance for _, instance in claim.references])
        failures: dict[Reference, int] = {}
        for sop_class, instance in claim.references:
            known_class, digest = kept.get(instance, ("", ""))
            if not digest:
                failures[sop_class, instance] = NO_SUCH_INSTANCE
            elif sop_class != known_class:
                failures[sop_class, instance] = CLASS_INSTANCE_CONFLICT
            elif not self._spool.intact(digest):
                self._log.error(
                    "damaged",
                    action="instance_damaged",
                    sop_instance_uid=instance,
                    advice="its file is missing or is not what was received: restore the spool "
                    "from backup",
                )
                failures[sop_class, instance] = PROCESSING_FAILURE
        return failures

    def _report(
        self, there: Requester, claim: CommitmentClaim, failures: dict[Reference, int]
    ) -> None:
        """N-EVENT-REPORT on an association of its own, in which we are the SCP."""
        association = _associate(self._ae_title, there)
        try:
            status, _ = association.send_n_event_report(
                _information(claim, failures),
                SOME_FAILED if failures else ALL_COMMITTED,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
        except (ValueError, RuntimeError) as error:
            raise DicomError(f"{there} takes no Storage Commitment report") from error
        finally:
            if association.is_established:
                association.release()
        answer = status.get("Status")
        if answer is None:
            raise DicomError(f"{there} did not answer the report")
        if answer != SUCCESS:
            raise DicomError(f"{there} answered the report with 0x{answer:04X}: see its log")

    def _failed(self, claim: CommitmentClaim, error: str) -> None:
        pause = min(FIRST_PAUSE * (1 << min(claim.attempt - 1, 30)), LONGEST_PAUSE)
        parked = claim.attempt >= ATTEMPTS
        due = None if parked else dt.datetime.now(dt.UTC) + pause
        if self._commitments.not_reported(claim, error[:500], due):
            self._log.warning(
                "parked" if parked else "not reported",
                action="commitment_parked" if parked else "commitment_not_reported",
                transaction_uid=claim.transaction_uid,
                requester=claim.requester,
                attempt=claim.attempt,
                error=error[:500],
                next_attempt_in=None if parked else pause.total_seconds(),
            )


def _information(claim: CommitmentClaim, failures: dict[Reference, int]) -> Dataset:
    """Event Information (PS3.4 table J.3-2)."""
    information = Dataset()
    information.TransactionUID = claim.transaction_uid
    committed = [_item(each) for each in claim.references if each not in failures]
    if committed:
        information.ReferencedSOPSequence = committed
    if failures:
        information.FailedSOPSequence = [_item(each, why) for each, why in failures.items()]
    return information


def _item(reference: Reference, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
    if reason is not None:
        item.FailureReason = reason
    return item


def _associate(ae_title: str, there: Requester) -> Any:
    ae = AE(ae_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = TIMEOUT_SECONDS
    ae.connection_timeout = TIMEOUT_SECONDS
    ae.add_requested_context(
        StorageCommitmentPushModel, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    )
    try:
        # Whether anybody is there at all: the library leaves the socket of a refused
        # connection open, and cannot say why it was refused.
        socket.create_connection((there.host, there.port), TIMEOUT_SECONDS).close()
    except OSError as error:
        raise DicomError(f"no answer from {there} ({type(error).__name__})") from error
    association = ae.associate(
        there.host,
        there.port,
        ae_title=there.ae_title,
        ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
    )
    if association.is_established:
        return association
    if association.is_rejected:
        reason = cast("Any", association.acceptor.primitive).reason_str
        raise DicomError(
            f"{there} rejected the association ({reason}): does it know our AE title {ae_title} "
            "and this machine's address?"
        )
    if association.rejected_contexts:
        raise DicomError(f"{there} takes no Storage Commitment report")
    raise DicomError(f"{there} does not answer as a DICOM node")
