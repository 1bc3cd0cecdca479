"""A process that counts what it reads of its store."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.harness.child import Channel
from benchmarks.workflows import load as load  # for its event loop
from benchmarks.workflows.order import order, place_order, service
from skald import App
from skald.store import Store
from skald.workflows import journal

AT_ONCE = 100
OURS = ("skald_workflows", "skald_journal", "skald_letters")
"""The tables of workflows; those of lanes are read now and then all the same."""


class CountingApp(App):
    """Counts statements that read, and transactions beside the commits of units, which may have read."""

    def __init__(self, url: str) -> None:
        super().__init__(service, store=url)
        self.reads = 0

    def store(self, service: str) -> Store:
        store = super().store(service)
        fetch, transaction = store.fetch, store.transaction

        async def counted(sql: str, /, **values: Any) -> Any:
            self.reads += sql != journal.SQL["poll"] and any(table in sql for table in OURS)
            return await fetch(sql, **values)

        def begun() -> Any:
            self.reads += 1
            return transaction()

        store.fetch, store.transaction = counted, begun  # type: ignore[method-assign]
        return store


async def run(channel: Channel, url: str) -> None:
    """So many orders, a hundred at once."""
    app, numbers = CountingApp(url), iter(range(10**9))
    async with app.run():
        channel.say(ready=True)
        while True:
            left = iter(range((await channel.heard())["orders"]))
            before = app.reads

            async def caller(left: Any = left) -> None:
                for _ in left:
                    n = next(numbers)
                    await place_order.run(order(n), id=f"order-{n:08}")

            await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
            channel.say(reads=app.reads - before)
