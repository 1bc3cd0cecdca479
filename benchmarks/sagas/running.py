"""What the processes of the benchmark over messages do."""

from __future__ import annotations

import asyncio
import time

import uvloop

from benchmarks.harness.child import Channel
from benchmarks.harness.rounds import percentiles
from benchmarks.sagas.services import NAMES, application, placed
from skald import Service
from skald.runtime.memory import calm_collector

# As `skald run` does.
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
calm_collector()

CALLERS = 100
"""Who place orders at once."""
PATIENCE = 120.0
"""Seconds for all orders of a run to be confirmed."""
_CONFIRMED = "SELECT count(*) AS n FROM skald_events WHERE type = 'OrderConfirmed'"
_TIMES = (
    "SELECT c.time - p.time AS took FROM skald_events c JOIN skald_events p ON p.aggregateid = c.aggregateid"
    " AND p.type = 'OrderPlaced' WHERE c.type = 'OrderConfirmed' AND c.aggregateid > :after"
)


async def serve(channel: Channel, url: str, style: str, names: list[str]) -> None:
    """Runs some of the services, and says how much CPU they have used so far (µs) when it is asked; with orders among
    them, places orders when it is told to, and says how long it took until all of them were confirmed."""
    app = application(url, style)
    async with app.run(*names):
        channel.say(ready=True)
        total = 0
        while True:
            told = await channel.heard()
            if "count" not in told:
                channel.say(used=time.process_time() * 1e6)
                continue
            orders = app.service("orders")
            first, total = total, total + told["count"]
            began = time.perf_counter()
            if told.get("rate"):
                await _steadily(orders, first, total, told["rate"])
            else:
                await _at_once(orders, first, total)
            await _confirmed(orders, total)
            took = time.perf_counter() - began
            rows = await orders.fetch(_TIMES, after=placed(first - 1).order_id if first else "")
            channel.say(took=took, **percentiles([row["took"] for row in rows]))


async def _at_once(orders: Service, first: int, total: int) -> None:
    numbers = iter(range(first, total))

    async def caller() -> None:
        for number in numbers:
            await orders.publish(placed(number))

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


async def _steadily(orders: Service, first: int, total: int, rate: float) -> None:
    began = time.perf_counter()
    for number in range(first, total):
        await asyncio.sleep(began + (number - first) / rate - time.perf_counter())
        await orders.publish(placed(number))


async def _confirmed(orders: Service, total: int) -> None:
    [row] = await orders.fetch(_CONFIRMED)
    began, before = time.perf_counter(), row["n"]
    async with asyncio.timeout(PATIENCE):
        while True:
            [row] = await orders.fetch(_CONFIRMED)
            now, done = time.perf_counter(), row["n"]
            if done >= total:
                return
            # Counting is work, too: often only towards the end.
            rest = (total - done) * (now - began) / (done - before) if done > before else 0.0
            await asyncio.sleep(min(0.2, max(0.02, rest / 2)))


async def counted(url: str, style: str) -> int:
    """Messages that the services have written."""
    app = application(url, style)
    async with app.connect():
        found = 0
        for name in NAMES:
            for table in ("skald_events", "skald_messages"):
                [row] = await app.service(name).fetch(f"SELECT count(*) AS n FROM {table}")
                found += row["n"]
        return found
