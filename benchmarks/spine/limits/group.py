"""Bare group commit: what gathers while one commit is under way shares the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from benchmarks.spine.limits.rows import Row


class Group:
    def __init__(self, write: Callable[[Sequence[Row]], Awaitable[None]], most: int = 500) -> None:
        self._write, self._most = write, most
        self._waiting: list[tuple[Row, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()

    def submit(self, row: Row) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((row, future))
        self._wake.set()
        return future

    async def run(self) -> None:
        while True:
            while self._waiting:
                group, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                await self._commit(group)
            self._wake.clear()
            await self._wake.wait()

    async def _commit(self, group: Sequence[tuple[Row, asyncio.Future[None]]]) -> None:
        try:
            await self._write([row for row, _ in group])
        except Exception as error:
            for _, future in group:
                future.set_exception(error)
            return
        for _, future in group:
            future.set_result(None)


async def hundred_callers(group: Group, rows: Iterator[Row]) -> None:
    """Each takes the next row as soon as its last one is durable."""

    async def caller() -> None:
        for row in rows:
            await group.submit(row)

    async with asyncio.TaskGroup() as callers:
        for _ in range(100):
            callers.create_task(caller())


async def steadily(group: Group, rows: Iterator[Row], per_second: float) -> None:
    """One row after another at fixed times, whether or not the earlier ones are durable."""
    loop = asyncio.get_running_loop()
    began, futures = loop.time(), []
    for number in range(1 << 60):
        await asyncio.sleep(began + number / per_second - loop.time())
        row = next(rows, None)
        if row is None:
            break
        futures.append(group.submit(row))
    await asyncio.gather(*futures)
