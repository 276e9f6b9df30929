"""Every error that this project raises on purpose, as one tree.

    TriageError                     something a person must be told, in one line
    |-- ConfigError                 a setting is unknown or has a bad value
    |-- PixelsError                 a picture cannot become an array; carries a reason code
    |-- ModelError                  a model version is missing, damaged or does not fit
    |   |-- BundleError             a bundle of a version from elsewhere is not to be believed
    |   `-- FleetError              the fleet's repository is not to be believed, or out of reach
    |-- SpoolError                  an instance file cannot be kept or read
    |   `-- SpoolOutage             where they are cannot be reached now
    |-- WorklistError               the database cannot do what was asked
    |   |-- SchemaError             the database's schema is not this program's
    |   |-- SiteMoved               the database takes nothing any more, or not yet: a site moves
    |   |-- MoveError               a site cannot be moved to another database so
    |   |-- UnknownItem             no worklist item has that SOP Instance UID
    |   |-- NotReadable             the item has no score for a verdict to be about
    |   |-- Changed                 the item is no longer what the reader was shown
    |   |-- NoRevision              a reading does not say what the reader was shown
    |   |-- TooLate                 the minute in which a reading can be withdrawn is over
    |   |-- NoDisagreement          there is nothing to adjudicate
    |   |-- UnknownReading          the item has no such reading
    |   |-- KeyReused               an idempotency key came with another request
    |   |-- BadCursor               a page is asked for by what is no place in the list
    |   |-- BadImport               a file of readings has lines that cannot be taken
    |   |-- UnknownPatient          no worklist item has that Patient ID
    |   |-- UnknownDelivery         no delivery has that number
    |   |-- UnknownCommitment       no request for Storage Commitment has that number
    |   |-- AccountError            an account cannot be made or changed so
    |   `-- AuditBroken             the audit trail is not as it was written
    |-- SignInError                 who asks is not known, or may not
    |   |-- NotSignedIn             there is no valid session
    |   |-- Forbidden               the account lacks the role
    |   |-- SignInRefused           name, password or identity provider say no
    |   |-- TooManyAttempts         too many refused sign-ins; try later
    |   `-- ProviderFailed          the identity provider cannot be asked, or talks nonsense
    |-- TooLarge                    a request brings more than is taken at once
    |-- TooSlow                     a request does not come whole
    |-- DicomError                  a data set or an association is not what it should be
    |-- ArchiveError                an archive cannot be read, or not be reached
    |-- LostImageError              one image of an archive cannot be had; the others may
    |-- DeliveryError               a destination has not taken a result; refused, or could not
    |-- ServiceError                a part of the service cannot start or go on
    `-- DataError                   training data is missing, unreadable or not enough

Each is translated once, at a boundary: into a DIMSE status (``triage.scp``), a worklist
state with a reason (``triage.worker``), or a line on standard error and an exit status
(``triage.cli``, ``training.__main__``). The text says what is wrong, where, and what to
do, and never holds patient data.
"""

from collections.abc import Sequence


class TriageError(Exception):
    """Something a person must be told, in one line.

    Parameters
    ----------
    message : str
        What is wrong, where, and what to do. No patient data.
    """


class ConfigError(TriageError):
    """A setting is unknown or has a bad value; the message names it."""


class PixelsError(TriageError):
    """A picture cannot become an array.

    Parameters
    ----------
    reason : str
        A code from ``docs/reasons.md``, such as ``PIXEL_DATA_ABSENT``.
    message : str
        The explanation for a person.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ModelError(TriageError):
    """A model version is missing, damaged, or made for other arrays than ours."""


class BundleError(ModelError):
    """A model version that came from elsewhere is not believed, or cannot be sent there."""


class FleetError(ModelError):
    """The fleet's repository cannot be reached, or what it says is not to be believed."""


class SpoolError(TriageError):
    """An instance file cannot be kept or read."""


class SpoolOutage(SpoolError):
    """The store of instance files cannot be reached now; they may well be there."""


class WorklistError(TriageError):
    """The worklist database cannot do what was asked."""


class SchemaError(WorklistError):
    """The database's schema is older or newer than this program's."""


class SiteMoved(WorklistError):
    """The database takes nothing any more, or not yet; the message says where the site is."""


class MoveError(WorklistError):
    """A site cannot be moved to another database so, or what arrived there is not what left."""


class UnknownItem(WorklistError):
    """No worklist item has the SOP Instance UID that was asked for."""


class NotReadable(WorklistError):
    """The item has no score, so there is no finding to confirm or reject."""


class Changed(WorklistError):
    """The item is no longer what the reader was shown."""


class NoRevision(WorklistError):
    """A reading does not say which revision of the item the reader was shown."""


class TooLate(WorklistError):
    """The minute in which a reading can be withdrawn is over, or it is another's."""


class NoDisagreement(WorklistError):
    """There is nothing to adjudicate."""


class UnknownReading(WorklistError):
    """The item has no reading of that number."""


class KeyReused(WorklistError):
    """An idempotency key came with another request than the first time."""


class BadCursor(WorklistError):
    """A page is asked for by what is no place in the list."""


class BadImport(WorklistError):
    """A file of readings has lines that cannot be taken; nothing of it was.

    Parameters
    ----------
    message : str
    lines : sequence of pair of int and str
        The numbers of the lines that cannot be taken, with why not; empty if it is no table.
    """

    def __init__(self, message: str, lines: Sequence[tuple[int, str]] = ()) -> None:
        super().__init__(message)
        self.lines = tuple(lines)


class UnknownPatient(WorklistError):
    """No worklist item has the Patient ID that was asked for."""


class UnknownDelivery(WorklistError):
    """No delivery has the number that was asked for."""


class UnknownCommitment(WorklistError):
    """No request for Storage Commitment has the number that was asked for."""


class AccountError(WorklistError):
    """An account cannot be made or changed as was asked."""


class AuditBroken(WorklistError):
    """The audit trail is not as it was written; the message names the first broken row."""


class SignInError(TriageError):
    """Who asks is not known, or may not."""


class NotSignedIn(SignInError):
    """There is no valid session."""


class Forbidden(SignInError):
    """The account lacks the role, or the request does not come from our own page."""


class SignInRefused(SignInError):
    """Name, password or identity provider say no; the message does not tell which."""


class ProviderFailed(SignInError):
    """The identity provider cannot be asked, or what it publishes cannot be used."""


class TooManyAttempts(SignInError):
    """Too many refused sign-ins.

    Parameters
    ----------
    message : str
    retry_seconds : int
        After so long it may be tried again.
    """

    def __init__(self, message: str, retry_seconds: int) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class TooSlow(TriageError):
    """A request does not come whole."""


class TooLarge(TriageError):
    """A request brings more than is taken at once."""


class DicomError(TriageError):
    """A data set or an association is not what it should be."""


class ArchiveError(TriageError):
    """An archive cannot be read or reached: nothing of it can be now."""


class LostImageError(TriageError):
    """One image of an archive cannot be had; the others may."""


class DeliveryError(TriageError):
    """A destination has not taken a result.

    Parameters
    ----------
    message : str
        Why, for an operator. Nothing of what the peer said in words: it may name a patient.
    refused : bool
        The peer said no to this result, which time alone will hardly change; otherwise it
        could not be reached or could not take anything now.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class ServiceError(TriageError):
    """A part of the service cannot start or go on."""


class DataError(TriageError):
    """Training data is missing, unreadable or not enough."""
