"""Transactions of user code, and the small pool they run on.

Rows are dicts of portable types. PostgreSQL's own come as: date, time, timestamp and timestamptz as ISO text (in UTC),
json and jsonb as what they hold, numeric as int if it has no fraction and else as float, uuid as text. Where the type
of a parameter cannot be inferred, write ``CAST(:n AS bigint)``. Everything else is on ``connection``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

from skald.errors import StoreError, StoreUnavailable, TransactionTooLong
from skald.stores.postgres.connecting import Connection, close, connect_patiently
from skald.stores.postgres.failures import boundary, is_gone, translated
from skald.stores.postgres.group import applied
from skald.stores.postgres.parameters import bound
from skald.stores.postgres.statements import quoted, statements
from skald.unit import Committed, Unit, calls_somebody

Row = dict[str, Any]
POOL = 4


def _iso(text: str) -> str:
    text = text.replace(" ", "T", 1)
    return text + ":00" if text[-3:-2] in ("+", "-") and ":" in text else text


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _as_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


_DECODERS: dict[str, Any] = {
    "date": str,
    "time": str,
    "timetz": _iso,
    "timestamp": _iso,
    "timestamptz": _iso,
    "numeric": _number,
    "uuid": str,
}


async def _prepare(connection: Connection) -> None:
    for name, decoder in _DECODERS.items():
        await connection.set_type_codec(name, schema="pg_catalog", encoder=_as_text, decoder=decoder, format="text")
    for name in ("json", "jsonb"):
        await connection.set_type_codec(name, schema="pg_catalog", encoder=_as_json, decoder=json.loads, format="text")


class Pool:
    """At most four connections, opened when they are needed. The next use of a lost one opens another."""

    def __init__(self, url: str, service: str, schema: str, lease: float) -> None:
        self._url, self._service, self._schema, self._lease = url, service, schema, lease
        self._free: list[Connection] = []
        self._permits = asyncio.Semaphore(POOL)
        self._closed = True

    def open(self) -> None:
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        while self._free:
            await close(self._free.pop())

    @asynccontextmanager
    async def connection(self, *, reset: bool) -> AsyncIterator[Connection]:
        """``reset`` after use by other people's code, which may have changed settings or left locks behind."""
        async with self._permits:
            connection = await self._take()
            try:
                yield connection
            finally:
                await self._put_back(connection, reset)

    async def _take(self) -> Connection:
        if self._closed:
            raise StoreUnavailable("the store is not open")
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection
        return await self._connect()

    async def _put_back(self, connection: Connection, reset: bool) -> None:
        try:
            if connection.is_in_transaction():
                connection.terminate()
            elif reset and not connection.is_closed():
                await connection.reset(timeout=2)
        except Exception:
            # Whatever it was used for is done, and must not seem to have failed: only the connection is dropped.
            connection.terminate()
        except BaseException:
            connection.terminate()
            raise
        if self._closed:
            await close(connection)
        elif not connection.is_closed():
            self._free.append(connection)

    async def _connect(self) -> Connection:
        settings = {
            # The user's own tables first in the service's schema, then where extensions live.
            "search_path": f"{quoted(self._schema)}, public",
            "idle_in_transaction_session_timeout": f"{self._lease * 1000:.0f}",
            "TimeZone": "UTC",
            "DateStyle": "ISO, MDY",
        }
        connection = await connect_patiently(
            self._url, f"{self._service}:tx", self._lease, settings=settings, timeout=60.0
        )
        await _prepare(connection)
        return connection


class _Statement:
    """Translates what leaves the block. No generator, because every statement passes it."""

    def __init__(self, patience: float) -> None:
        self._patience, self._active, self._idle = patience, monotonic(), 0.0

    def __enter__(self) -> None:
        self._idle = monotonic() - self._active

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._active = monotonic()
        if not isinstance(error, Exception):
            return
        ours = translated(error)
        if isinstance(ours or error, StoreUnavailable) and self._idle >= self._patience:
            raise TransactionTooLong(
                f"this transaction was open for {self._idle:.1f} s without a statement, and was rolled back: do slow "
                "work before it, or in a handler without tx"
            ) from error
        if ours is not None:
            raise ours from error


class PostgresTransaction:
    """``patience`` (seconds): the server ends a transaction that has not been given a statement for so long."""

    def __init__(self, connection: Connection, schema: str, patience: float) -> None:
        self._connection, self._statement = connection, _Statement(patience)
        self._sql = statements("commit", schema)
        self.appended = self.calls_somebody = False
        self.is_open = True

    @property
    def connection(self) -> Connection:
        """asyncpg's own."""
        if not self.is_open:
            raise StoreError("this transaction has ended")
        return self._connection

    async def execute(self, sql: str, /, **values: Any) -> int:
        text, arguments = bound(sql, values)
        with self._statement:
            status = await self.connection.execute(text, *arguments)
        last = status.rsplit(" ", 1)[-1]
        return int(last) if last.isdigit() else 0

    async def fetch(self, sql: str, /, **values: Any) -> list[Row]:
        text, arguments = bound(sql, values)
        with self._statement:
            return [dict(row) for row in await self.connection.fetch(text, *arguments)]

    async def apply(self, unit: Unit) -> Committed:
        return (await self.apply_all([unit]))[0]

    async def apply_all(self, units: Sequence[Unit]) -> list[Committed]:
        committed = await applied(units, self._apply)
        self.appended = self.appended or any(one.positions for one in committed)
        self.calls_somebody = self.calls_somebody or any(calls_somebody(unit) for unit in units)
        return committed

    async def _apply(self, units: str) -> str:
        with self._statement:
            return str(await self.connection.fetchval(self._sql["apply"], units))

    async def now(self) -> int:
        with self._statement:
            return int(await self.connection.fetchval(self._sql["now"]))

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        with self._statement:
            nested = self.connection.transaction()
            await nested.start()
        try:
            yield
        except BaseException:
            await roll_back(nested, self._connection)
            raise
        with self._statement:
            await nested.commit()


async def roll_back(block: Any, connection: Connection) -> None:
    """Never hides the error that made it necessary: a connection that cannot roll back is dropped."""
    try:
        await block.rollback()
    except BaseException:
        connection.terminate()


async def fetch(pool: Pool, sql: str, values: dict[str, Any]) -> list[Row]:
    """Outside of a transaction; a connection that turns out to be dead is replaced once."""
    text, arguments = bound(sql, values)
    with boundary():
        try:
            return await _fetch(pool, text, arguments)
        except Exception as error:
            if not is_gone(error):
                raise
        return await _fetch(pool, text, arguments)


async def _fetch(pool: Pool, text: str, arguments: Sequence[Any]) -> list[Row]:
    async with pool.connection(reset=False) as connection:
        return [dict(row) for row in await connection.fetch(text, *arguments)]
