"""Transactions in the user's own sessions: a SQLAlchemy sessionmaker or a psycopg pool, sync or async.

The handler's rows go through the session it knows (``tx.connection``), the library's units through the same one, by the
SQL function ``skald_apply_1``. Neither package is imported: what was handed in is recognised by what it can do.
Synchronous sessions run in threads, one call at a time.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from skald.errors import (
    Busy,
    ConfigurationError,
    SkaldError,
    StoreError,
    StoreUnavailable,
    TransactionConflict,
)
from skald.store import Row
from skald.stores.postgres.group import applied
from skald.stores.postgres.parameters import bound, renamed
from skald.stores.postgres.statements import quoted
from skald.unit import Committed, Unit, calls_somebody

_NOW = "SELECT CAST(floor(extract(epoch FROM clock_timestamp()) * 1000000) AS bigint) AS now"


class Carrier(Protocol):
    """One open session, as far as a transaction needs it."""

    session: Any

    async def run(self, sql: str, values: Mapping[str, Any]) -> tuple[list[Row], int]:
        """Rows (if the statement returns any) and the number of rows changed."""
        ...


Opener = Callable[[], AbstractAsyncContextManager[Carrier]]


def opener_for(source: Any) -> Opener:
    """How to open a transaction on what the user handed in; it commits at the end of the block."""
    package = type(source).__module__.partition(".")[0]
    if package == "sqlalchemy" and callable(source):
        return lambda: _sqlalchemy(source)
    if package == "psycopg_pool" and hasattr(source, "connection"):
        return lambda: _psycopg(source)
    raise ConfigurationError(
        f"transactions={source!r}: hand in a SQLAlchemy sessionmaker or async_sessionmaker, or a psycopg_pool pool"
    )


class SessionTransaction:
    """The portable surface on a user's session. ``schema`` is where the library's tables are."""

    def __init__(self, carrier: Carrier, schema: str) -> None:
        self._carrier, self._schema = carrier, schema
        self._savepoints = 0
        self.appended = self.calls_somebody = False

    @property
    def connection(self) -> Any:
        """The user's own session or connection."""
        return self._carrier.session

    async def begin(self) -> None:
        # For this transaction the library's tables are found as well; the user's own come first, as they are used to.
        path = f"current_setting('search_path') || ', ' || {_literal(quoted(self._schema))}"
        await self._run(f"SELECT set_config('search_path', {path}, true)", {})

    async def execute(self, sql: str, /, **values: Any) -> int:
        return (await self._run(sql, values))[1]

    async def fetch(self, sql: str, /, **values: Any) -> list[Row]:
        return (await self._run(sql, values))[0]

    async def apply(self, unit: Unit) -> Committed:
        return (await self.apply_all([unit]))[0]

    async def apply_all(self, units: Sequence[Unit]) -> list[Committed]:
        committed = await applied(units, self._apply)
        self.appended = self.appended or any(one.positions for one in committed)
        self.calls_somebody = self.calls_somebody or any(calls_somebody(unit) for unit in units)
        return committed

    async def _apply(self, units: str) -> str:
        sql = f"SELECT CAST({quoted(self._schema)}.skald_apply_1(CAST(:units AS jsonb)) AS text) AS answer"
        rows, _ = await self._run(sql, {"units": units})
        return str(rows[0]["answer"])

    async def now(self) -> int:
        return int((await self._run(_NOW, {}))[0][0]["now"])

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        self._savepoints += 1
        name = f"skald_{self._savepoints}"
        await self._run(f"SAVEPOINT {name}", {})
        try:
            yield
        except BaseException:
            await self._run(f"ROLLBACK TO SAVEPOINT {name}", {})
            raise
        await self._run(f"RELEASE SAVEPOINT {name}", {})

    async def _run(self, sql: str, values: Mapping[str, Any]) -> tuple[list[Row], int]:
        bound(sql, values)  # the same complaints about missing and unused values as everywhere
        plain = {name: json.dumps(v) if isinstance(v, dict | list) else v for name, v in values.items()}
        try:
            return await self._carrier.run(sql, plain)
        except SkaldError:
            raise
        except Exception as error:
            raise _translated(error) from error


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _translated(error: Exception) -> Exception:
    """By the SQLSTATE that every driver carries somewhere; what has none is the user's own error."""
    inner = getattr(error, "orig", error)
    cause = getattr(inner, "__cause__", None)
    state = next((s for e in (inner, cause) if (s := getattr(e, "sqlstate", None))), None)
    if state is None:
        return StoreUnavailable(f"the session is lost: {error}") if isinstance(inner, OSError) else error
    if state in ("40001", "40P01"):
        return TransactionConflict(f"{inner}: the transaction was rolled back and can be run again")
    if state == "55P03":
        return Busy("a row")
    if str(state).startswith(("08", "53", "57P0", "58")):
        return StoreUnavailable(f"PostgreSQL cannot serve now: {inner}")
    return StoreError(f"{state}: {inner}")


# --- SQLAlchemy -------------------------------------------------------------------------------------------------------


class _Alchemy:
    def __init__(self, session: Any, text: Callable[[str], Any], in_thread: bool) -> None:
        self.session, self._text, self._in_thread = session, text, in_thread

    async def run(self, sql: str, values: Mapping[str, Any]) -> tuple[list[Row], int]:
        statement = self._text(sql)
        if self._in_thread:
            return await asyncio.to_thread(lambda: _rows(self.session.execute(statement, dict(values))))
        return _rows(await self.session.execute(statement, dict(values)))


def _rows(result: Any) -> tuple[list[Row], int]:
    rows = [dict(row) for row in result.mappings()] if result.returns_rows else []
    return rows, result.rowcount


@asynccontextmanager
async def _sqlalchemy(maker: Any) -> AsyncIterator[Carrier]:
    # The user has imported it, or there would be no sessionmaker; we do not depend on it.
    text = sys.modules["sqlalchemy"].text
    session = maker()
    if inspect.iscoroutinefunction(type(session).commit):
        async with session, session.begin():
            yield _Alchemy(session, text, in_thread=False)
        return
    try:
        yield _Alchemy(session, text, in_thread=True)
        await asyncio.to_thread(session.commit)
    except BaseException:
        await asyncio.to_thread(session.rollback)
        raise
    finally:
        await asyncio.to_thread(session.close)


# --- psycopg ----------------------------------------------------------------------------------------------------------


class _Psycopg:
    def __init__(self, connection: Any, in_thread: bool) -> None:
        self.session, self._in_thread = connection, in_thread

    async def run(self, sql: str, values: Mapping[str, Any]) -> tuple[list[Row], int]:
        text = renamed(sql) if values else sql
        arguments = dict(values) or None
        if self._in_thread:
            return await asyncio.to_thread(lambda: _fetched(self.session.execute(text, arguments)))
        cursor = await self.session.execute(text, arguments)
        if cursor.description is None:
            return [], cursor.rowcount
        return _named(cursor.description, await cursor.fetchall()), cursor.rowcount


def _fetched(cursor: Any) -> tuple[list[Row], int]:
    if cursor.description is None:
        return [], cursor.rowcount
    return _named(cursor.description, cursor.fetchall()), cursor.rowcount


def _named(description: Any, rows: Any) -> list[Row]:
    names = [column.name for column in description]
    return [dict(row) if isinstance(row, Mapping) else dict(zip(names, row, strict=True)) for row in rows]


@asynccontextmanager
async def _psycopg(pool: Any) -> AsyncIterator[Carrier]:
    block = pool.connection()
    if hasattr(block, "__aenter__"):
        async with block as connection, connection.transaction():
            yield _Psycopg(connection, in_thread=False)
        return
    connection = await asyncio.to_thread(block.__enter__)
    try:
        yield _Psycopg(connection, in_thread=True)
    except BaseException as error:
        await asyncio.to_thread(block.__exit__, type(error), error, error.__traceback__)
        raise
    # Leaving the pool's block commits.
    await asyncio.to_thread(block.__exit__, None, None, None)
