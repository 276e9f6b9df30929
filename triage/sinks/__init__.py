"""Where results go. A sink knows how one kind of destination wants a result, and hands it over.

Building and sending are apart, so that what is sent can be kept in between: every attempt
sends the bytes that the first one built. Sending twice is harmless in every sink, because a
result carries an identifier that never changes: a SOP Instance UID, a message control ID or
a ``webhook-id``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydicom import Dataset

from triage.explanation import HeatMap
from triage.pixels import Array
from triage.results import Finding
from triage.worklist.deliveries import ResultKind, Subject


@dataclass(frozen=True, slots=True)
class Material:
    """What a result is built from; what costs something is made only when it is asked for.

    Attributes
    ----------
    kind : ResultKind
    subject : Subject
    source : callable
        Gives the radiograph.
    finding : callable
        Gives the finding with what is known of its model version.
    heat_map : callable
        Gives the array that was scored and its heat map.
    """

    kind: ResultKind
    subject: Subject
    source: Callable[[], Dataset]
    finding: Callable[[], Finding]
    heat_map: Callable[[], tuple[Array, HeatMap]]


@dataclass(frozen=True, slots=True)
class Result:
    """A result as a destination wants it.

    Attributes
    ----------
    uid : str
        What the destination knows it by; the same whenever it is built.
    content : bytes
    """

    uid: str
    content: bytes


class Sink(Protocol):
    """One destination. Used by one thread at a time."""

    def build(self, material: Material) -> Result:
        """Put a result into the destination's form; no network.

        Raises
        ------
        TriageError
            It cannot be built.
        """
        ...

    def send(self, uid: str, file: Path) -> None:
        """Hand a built result over; returns once the destination has said that it took it.

        Parameters
        ----------
        uid : str
        file : Path
            Holds the result's content.

        Raises
        ------
        DeliveryError
            It has not said so.
        """
        ...

    def rest(self) -> None:
        """Give connections back; the next send opens its own."""
        ...
