"""Portable values: what users bind as ``:name``, and how columns come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import apsw
import msgspec

from skald.errors import StoreError
from skald.store import Row

_decode = msgspec.json.decode
_TYPES: dict[str, Callable[[Any], Any]] = {"BOOLEAN": bool, "BOOL": bool, "JSON": _decode, "JSONB": _decode}


def bind(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON becomes text, booleans 0 and 1; what else is no type of SQLite's is refused by apsw."""
    return {name: _bound(value) for name, value in values.items()}


def _bound(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        return msgspec.json.encode(value).decode()
    return int(value) if isinstance(value, bool) else value


def run(connection: apsw.Connection, sql: str, values: Mapping[str, Any]) -> apsw.Cursor:
    """Executes a statement with named parameters."""
    try:
        return connection.execute(sql, bind(values))
    except KeyError as error:
        raise StoreError(f"the statement has a parameter :{error.args[0]} that was not given: {sql}") from error


def fetch_rows(connection: apsw.Connection, sql: str, values: Mapping[str, Any]) -> list[Row]:
    """Runs the statement to its end, so that no read transaction stays open.

    Columns declared ``BOOLEAN`` or ``JSON`` come back as such; an expression has no declared type and stays
    as it is.
    """
    cursor = run(connection, sql, values)
    try:
        columns = [(name, _TYPES.get((declared or "").upper())) for name, declared in cursor.get_description()]
    except apsw.ExecutionCompleteError:
        return []  # not one row
    names = [name for name, _ in columns]
    rows = [dict(zip(names, row, strict=True)) for row in cursor]
    for name, type_ in columns:
        if type_ is not None:
            for row in rows:
                row[name] = None if row[name] is None else type_(row[name])
    return rows
