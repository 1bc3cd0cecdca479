"""Counts every statement of a process: through apsw's trace on SQLite, and on the wire to PostgreSQL.

The process runs payments, which reads the log of orders, and has nothing to do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

import apsw

from benchmarks.harness.child import Channel
from benchmarks.spine.services import application, consuming

_SIMPLE, _EXECUTE = b"Q"[0], b"E"[0]


async def idle_sqlite(channel: Channel, url: str, settle: float, seconds: float) -> None:
    count = 0

    def traced(event: dict[str, object]) -> None:
        nonlocal count
        count += not event["trigger"]

    apsw.connection_hooks.append(lambda connection: connection.trace_v2(apsw.SQLITE_TRACE_STMT, traced))
    await _idle(channel, url, settle, seconds, lambda: count)


async def idle_postgres(channel: Channel, url: str, settle: float, seconds: float) -> None:
    wire = Wire(url)
    async with await wire.serve():
        await _idle(channel, wire.url, settle, seconds, lambda: wire.statements)


async def _idle(channel: Channel, url: str, settle: float, seconds: float, count: Callable[[], int]) -> None:
    app = application(url)
    async with app.run("payments"):
        await consuming(app)
        await asyncio.sleep(settle)
        before = count()
        await asyncio.sleep(seconds)
        channel.say(statements=count() - before)


class Wire:
    """Passes everything on to a server, and counts the messages that make it execute something."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self.url = ""
        self.statements = 0

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        user = self._parts.netloc.rpartition("@")[0]
        # Without TLS, so that the messages can be read.
        self.url = urlunsplit(self._parts._replace(netloc=f"{user}@127.0.0.1:{port}", query="sslmode=disable"))
        return server

    async def _connected(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        server, requests = await asyncio.open_connection(self._parts.hostname, self._parts.port or 5432)
        back = asyncio.create_task(_pass(server, answers))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._forward(client, requests)
        requests.close()
        await back

    async def _forward(self, client: asyncio.StreamReader, requests: asyncio.StreamWriter) -> None:
        """The first message has no type; each other one is a type, its length, and its body."""
        length = await client.readexactly(4)
        requests.write(length + await client.readexactly(int.from_bytes(length, "big") - 4))
        while True:
            head = await client.readexactly(5)
            body = await client.readexactly(int.from_bytes(head[1:], "big") - 4)
            self.statements += head[0] in (_SIMPLE, _EXECUTE)
            requests.write(head + body)
            await requests.drain()


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    target.close()
