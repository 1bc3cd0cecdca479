"""The leases of processes, from a heartbeat's thread: a small event loop and a connection of each thread's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from skald.store import Member
from skald.stores.postgres.connecting import Connection, close, connect
from skald.stores.postgres.failures import boundary, is_gone
from skald.stores.postgres.statements import statements


class _Local(threading.local):
    runner: asyncio.Runner | None = None
    connection: Connection | None = None


class PostgresMembership:
    """Statements are bounded by half a lease, so that a beat that cannot be sent is noticed in time."""

    def __init__(self, url: str, service: str, schema: str, lease: float) -> None:
        self._url, self._service, self._timeout = url, service, max(0.5, lease / 2)
        self._sql = statements("members", schema)
        self._local = _Local()

    def join(self, member: Member, lease: float) -> None:
        self._run(
            "join",
            member.id,
            member.group,
            member.boot_id,
            member.pid_namespace,
            member.pid,
            member.start_time,
            round(lease * 1e6),
        )

    def beat(self, id: str, lease: float) -> bool:
        status, _ = self._run("beat", id, round(lease * 1e6))
        return bool(status != "UPDATE 0")

    def members(self, group: str) -> tuple[int, list[Member]]:
        _, rows = self._run("members", group)
        return rows[0][0], [Member(*row[1:]) for row in rows if row[1] is not None]

    def remove(self, id: str) -> None:
        self._run("remove", id)

    def close(self) -> None:
        """Closes this thread's connection."""
        runner, connection = self._local.runner, self._local.connection
        self._local.runner = self._local.connection = None
        if runner is not None:
            try:
                runner.run(close(connection))
            finally:
                runner.close()

    def _run(self, name: str, *values: Any) -> tuple[str, list[Any]]:
        if self._local.runner is None:
            self._local.runner = asyncio.Runner()
        work: Coroutine[Any, Any, tuple[str, list[Any]]] = self._ask(self._sql[name], *values)
        with boundary():
            return self._local.runner.run(work)

    async def _ask(self, sql: str, *values: Any) -> tuple[str, list[Any]]:
        """On the connection at hand; all of these statements may be repeated, so a dead one is replaced once."""
        local = self._local
        if local.connection is not None and not local.connection.is_closed():
            try:
                return await self._send(local.connection, sql, values)
            except Exception as error:
                if not is_gone(error):
                    raise
                local.connection.terminate()
        settings = {"statement_timeout": f"{self._timeout * 1000:.0f}"}
        local.connection = await connect(
            self._url, f"{self._service}:lease", settings=settings, timeout=self._timeout + 1
        )
        return await self._send(local.connection, sql, values)

    async def _send(self, connection: Connection, sql: str, values: tuple[Any, ...]) -> tuple[str, list[Any]]:
        statement = await connection.prepare(sql)
        rows = await statement.fetch(*values)
        return statement.get_statusmsg(), rows
