"""Which processes of the service run, on all nodes: each says so again and again.

What a process says ends with it: a clean end takes its row away. A row that has fallen silent
is of a process that was killed, hangs, or cannot reach the database; it stays for a day where
an operator sees it, unless the node itself knows that the process is gone.
"""

import datetime as dt
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from triage.worklist.journal import now
from triage.worklist.tables import Part

EVERY = dt.timedelta(seconds=10)
"""So often a process says that it runs."""

SILENT = 4 * EVERY
"""Who has said nothing for so long does not run, or not well."""

KEPT = dt.timedelta(days=1)
"""So long a silent row stays."""


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A process of the service.

    Attributes
    ----------
    role, node : str
    process : int
        Its number on the node.
    version : str
        Of the program.
    began_at, seen_at : datetime
        Aware, UTC.
    runs : bool
        Whether it was heard of lately.
    """

    role: str
    node: str
    process: int
    version: str
    began_at: dt.datetime
    seen_at: dt.datetime
    runs: bool


class Parts:
    """The processes in a worklist's database.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    """

    def __init__(self, transaction: Callable[..., AbstractContextManager[Session]]) -> None:
        self._transaction = transaction

    def begin(
        self, node: str, role: str, process: int, version: str, alive: Callable[[int], bool]
    ) -> None:
        """A process runs from now on.

        Parameters
        ----------
        node, role : str
        process : int
        version : str
        alive : callable
            Whether a process of this node is there; rows of those that are not are removed.
        """
        at = now()
        with self._transaction(write=True) as session:
            session.execute(delete(Part).where(Part.seen_at < at - KEPT))
            for other in session.scalars(select(Part).where(Part.node == node[:96])):
                if other.process == process or not alive(other.process):
                    session.delete(other)
            session.flush()
            session.add(
                Part(
                    name=_name(node, role, process),
                    node=node[:96],
                    role=role,
                    process=process,
                    version=version,
                    began_at=at,
                    seen_at=at,
                )
            )

    def beat(self, node: str, role: str, process: int) -> bool:
        """A process still runs; False if its row was removed, so that it has to begin anew."""
        with self._transaction(write=True) as session:
            part = session.get(Part, _name(node, role, process))
            if part is None:
                return False
            part.seen_at = now()
            return True

    def end(self, node: str, role: str, process: int) -> None:
        """A process ends by itself."""
        with self._transaction(write=True) as session:
            session.execute(delete(Part).where(Part.name == _name(node, role, process)))

    def records(self) -> list[PartRecord]:
        """All of them, by role, node and age."""
        at = now()
        with self._transaction() as session:
            rows = session.scalars(select(Part).order_by(Part.role, Part.node, Part.began_at))
            return [
                PartRecord(
                    row.role,
                    row.node,
                    row.process,
                    row.version,
                    row.began_at,
                    row.seen_at,
                    # Seen in what is the future now: the clock was set back; it was heard of.
                    runs=at - row.seen_at < SILENT,
                )
                for row in rows
            ]


def _name(node: str, role: str, process: int) -> str:
    return f"{node[:96]}/{role}/{process}"
