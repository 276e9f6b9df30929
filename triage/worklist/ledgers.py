"""The history of the models of a cluster, as rows: all its nodes write one, and read it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from sqlalchemy import Engine, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from triage.errors import WorklistError
from triage.ledger import Entry, Pen, parsed
from triage.worklist.schema import WRITE, open_engine, unavailable
from triage.worklist.tables import ModelHistory

FRESH_SECONDS = 1.0
"""So long what was read is taken for what is there: a new champion scores everywhere soon after."""

_WRITE_LOCK = 0x7472_6961_6D6F
"""PostgreSQL's advisory lock of whoever writes; SQLite's writers exclude each other anyway."""


class History:
    """A :class:`triage.ledger.Ledger` in the worklist's database.

    Parameters
    ----------
    url : str
        Of a database with this program's schema; opened when it is first asked. That is seldom, and
        done by many, so that no connection is held.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._known: list[Entry] = []
        self._read_at = float("-inf")

    @cached_property
    def _engine(self) -> Engine:
        return open_engine(self._url, create=False, pooled=False)

    def __str__(self) -> str:
        """The table."""
        return f"the table {ModelHistory.__tablename__}"

    def entries(self) -> list[Entry]:
        """All lines, at most a second old.

        Raises
        ------
        WorklistError
            The database cannot be read.
        ModelError
            A line is not as it was written.
        """
        if time.monotonic() - self._read_at >= FRESH_SECONDS:
            known = self._known  # lines are never changed: only those behind them are read
            query = (
                select(ModelHistory.line)
                .where(ModelHistory.number > len(known))
                .order_by(ModelHistory.number)
            )
            try:
                with self._engine.connect() as connection:
                    lines = [line.encode("utf-8") for line in connection.scalars(query)]
            except SQLAlchemyError as error:
                raise WorklistError(unavailable(error)) from error
            self._known = parsed(lines, str(self), known)
            self._read_at = time.monotonic()
        return list(self._known)

    @contextmanager
    def writing(self) -> Iterator[Pen]:
        """Be the only one who writes, in one transaction.

        Raises
        ------
        WorklistError
            The database cannot be written; nothing was.
        """
        try:
            with self._engine.execution_options(**{WRITE: True}).begin() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(_WRITE_LOCK)))
                query = select(ModelHistory.line).order_by(ModelHistory.number)
                lines = [line.encode("utf-8") for line in connection.scalars(query)]
                pen = Pen(
                    lambda line: connection.execute(
                        insert(ModelHistory).values(
                            number=len(pen.entries) + 1, line=line.decode("utf-8")
                        )
                    ),
                    parsed(lines, str(self), []),
                )
                yield pen
        except SQLAlchemyError as error:
            raise WorklistError(unavailable(error)) from error
        finally:
            self._read_at = float("-inf")
