"""Rows of any table as values: read by key, compared by hash, and put where they belong."""

import datetime as dt
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    Table,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)

from triage.worklist.tables import Base

BATCH = 2_000
"""Rows of one transaction."""

TABLES: Sequence[Table] = Base.metadata.sorted_tables
"""What is moved: each table after those that its rows refer to."""

Key = tuple[Any, ...]
Values = tuple[Any, ...]
"""A row's values in the order of its table's columns."""


def key_columns(table: Table) -> list[Column[Any]]:
    """The columns of a table's key."""
    return list(table.primary_key.columns)


_POSITIONS = {
    table: tuple(list(table.columns).index(column) for column in table.primary_key.columns)
    for table in TABLES
}


def key_of(table: Table, row: Values) -> Key:
    """A row's key."""
    return tuple(row[position] for position in _POSITIONS[table])


def among(table: Table, keys: Sequence[Key]) -> ColumnElement[bool]:
    """Whether a row has one of some keys."""
    columns = key_columns(table)
    if len(columns) == 1:
        return columns[0].in_([key[0] for key in keys])
    return tuple_(*columns).in_(keys)


def after(connection: Connection, table: Table, last: Key | None, limit: int) -> list[Values]:
    """The next rows in the order of keys."""
    columns = key_columns(table)
    query = select(table).order_by(*columns).limit(limit)
    if last is not None:
        bounds = [literal(value, column.type) for value, column in zip(last, columns, strict=True)]
        query = query.where(
            columns[0] > bounds[0] if len(columns) == 1 else tuple_(*columns) > tuple_(*bounds)
        )
    return [tuple(row) for row in connection.execute(query)]


def at(connection: Connection, table: Table, keys: Sequence[Key]) -> dict[Key, Values]:
    """The rows that have certain keys, as far as they are there, in the order of keys."""
    if not keys:
        return {}
    query = select(table).where(among(table, keys)).order_by(*key_columns(table))
    rows = [tuple(row) for row in connection.execute(query)]
    return {key_of(table, row): row for row in rows}


def add(connection: Connection, table: Table, rows: Collection[Values]) -> None:
    """Let rows be there that are not."""
    names = [column.name for column in table.columns]
    if rows:
        connection.execute(insert(table), [dict(zip(names, row, strict=True)) for row in rows])


def put(connection: Connection, table: Table, rows: Mapping[Key, Values]) -> None:
    """Let rows be there as they are given, whatever is there now."""
    there = at(connection, table, list(rows))
    add(connection, table, [row for key, row in rows.items() if key not in there])
    names = [column.name for column in table.columns]
    for key, row in rows.items():
        if key in there and digest(there[key]) != digest(row):
            values = dict(zip(names, row, strict=True))
            connection.execute(update(table).where(among(table, [key])).values(**values))


def digest(row: Values) -> bytes:
    """SHA-256 of a row's values, which tells types apart, too."""
    return hashlib.sha256(json.dumps(row, default=_plain, sort_keys=True).encode()).digest()


def _plain(value: object) -> str:
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(type(value).__name__)


def named(key: Key) -> str:
    """A key as a person may see it."""
    return ", ".join(map(repr, key))


def any_of(table: Table) -> Select[int]:
    """Asks whether a table has a row."""
    return select(literal(1)).select_from(table).limit(1)


def count_of(table: Table) -> Select[int]:
    """Asks how many rows a table has."""
    return select(func.count()).select_from(table)
