"""What all logs of one address share within a process and event loop: one reading and one listening connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from skald.errors import StoreError, StoreUnavailable
from skald.stores.postgres.connecting import Connection, close, connect, connect_patiently
from skald.stores.postgres.failures import is_gone
from skald.stores.postgres.statements import quoted

log = logging.getLogger("skald.postgres")

LAST_RING = 1.0
"""Seconds that closing waits for what was rung to be sent."""


class Reader:
    """One connection, one statement at a time; opened at first use, and again after it was lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = asyncio.Lock()
        self._connection: Connection | None = None
        self.session = 0
        """Rises with each connection: behind the next one there may be another server, or restored data."""

    async def fetch(self, sql: str, *values: Any) -> list[Any]:
        async with self._lock:
            fresh = self._connection is None or self._connection.is_closed()
            if fresh:
                # Sequential scans off: a plan made while the log was empty must stay right when it is full.
                settings = {"jit": "off", "enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"}
                self._connection = await connect(self._url, "reader", settings=settings, timeout=30)
                self.session += 1
            assert self._connection is not None
            try:
                return await self._connection.fetch(sql, *values)  # type: ignore[no-any-return]
            except Exception as error:
                if fresh or not is_gone(error):
                    raise
                await close(self._connection)
                self._connection = None
        # Reading again is harmless; it fails for good if the server is still away.
        return await self.fetch(sql, *values)

    async def close(self) -> None:
        await close(self._connection)
        self._connection = None


class Doorbell:
    """LISTEN and NOTIFY on a connection of its own. Hints only: they may be lost or doubled, readers also poll."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._heard: dict[str, list[Callable[[], None]]] = {}
        self._rung: set[str] = set()
        self._changed = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()
        self._task: asyncio.Task[None] | None = None

    def listen(self, channel: str, heard: Callable[[], None]) -> Callable[[], None]:
        self._heard.setdefault(channel, []).append(heard)
        self._wake()

        def stop() -> None:
            with contextlib.suppress(KeyError, ValueError):
                self._heard[channel].remove(heard)

        return stop

    def ring(self, channel: str) -> None:
        # One in flight: what is rung meanwhile goes out together, once.
        self._rung.add(channel)
        self._sent.clear()
        self._wake()

    async def close(self) -> None:
        if self._task is not None and not self._sent.is_set():
            # A program that publishes and ends at once would otherwise be heard at the readers' next poll only.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sent.wait(), LAST_RING)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _wake(self) -> None:
        self._changed.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="skald postgres doorbell")

    async def _run(self) -> None:
        while True:
            connection: Connection | None = None
            try:
                connection = await connect_patiently(self._url, "doorbell", 3600.0)
                await self._serve(connection)
            except (StoreError, OSError) as error:
                log.warning("the doorbell is out of order, readers poll: %s", error)
                await asyncio.sleep(1)
            finally:
                if connection is not None:
                    connection.terminate()

    async def _serve(self, connection: Connection) -> None:
        """Until the connection is lost: subscribes to new channels, sends what was rung."""
        connection.add_termination_listener(lambda _: self._changed.set())
        listening: set[str] = set()
        while not connection.is_closed():
            self._changed.clear()
            try:
                for channel in set(self._heard) - listening:
                    await connection.execute(f"LISTEN {quoted(channel)}")
                    await connection.add_listener(channel, self._hear)
                    listening.add(channel)
                    self._call(channel)  # what was rung before we listened
                while self._rung:
                    await connection.execute(f"NOTIFY {quoted(self._rung.pop())}")
                self._sent.set()
            except Exception as error:
                if not is_gone(error) and not connection.is_closed():
                    raise StoreError(f"the doorbell failed: {error}") from error
                return
            await self._changed.wait()
        raise StoreUnavailable("the doorbell's connection was lost")

    def _hear(self, connection: Connection, pid: int, channel: str, payload: str) -> None:
        self._call(channel)

    def _call(self, channel: str) -> None:
        for heard in list(self._heard.get(channel, ())):
            heard()


class Shared:
    def __init__(self, url: str) -> None:
        self.url = url
        self.users = 0
        self.reader = Reader(url)
        self.doorbell = Doorbell(url)


_SHARED: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Shared]] = WeakKeyDictionary()


def shared(url: str) -> Shared:
    """The running loop's connections to this address; ``release`` each as often as asked for."""
    of_loop = _SHARED.setdefault(asyncio.get_running_loop(), {})
    if url not in of_loop:
        of_loop[url] = Shared(url)
    of_loop[url].users += 1
    return of_loop[url]


async def release(one: Shared) -> None:
    one.users -= 1
    if one.users == 0:
        _SHARED.get(asyncio.get_running_loop(), {}).pop(one.url, None)
        await one.doorbell.close()
        await one.reader.close()
