"""The processes that run the library: each one is started by the benchmark and told what to do."""

from __future__ import annotations

import asyncio
import time
from itertools import count as numbers

from benchmarks.harness.child import Channel
from benchmarks.harness.rounds import percentiles
from benchmarks.spine.messages import OrderPlaced, order
from benchmarks.spine.services import ObservedApp, answered, application, consuming
from skald import App, Service
from skald.codec import codec_for
from skald.message import new_id
from skald.unit import NEW


async def append(channel: Channel, callers: int, streams: bool, name: str = "order") -> None:
    """Concurrent callers, each with one event after another, for some seconds; as often as asked, at any URL."""
    while True:
        told = await channel.heard()
        app = application(told["url"])
        async with app.connect("orders"):
            channel.say(ready=True)
            told = await channel.heard()
            await asyncio.sleep(told["at"] - time.monotonic())
            began = time.monotonic()
            appended = await _append_for(app.service("orders"), told["seconds"], callers, streams, name)
            channel.say(appended=appended, began=began, ended=time.monotonic())


async def _append_for(orders: Service, seconds: float, callers: int, streams: bool, name: str) -> int:
    end, number, appended = time.monotonic() + seconds, numbers(), 0

    async def caller() -> None:
        nonlocal appended
        while time.monotonic() < end:
            event = order(next(number), name)
            if streams:
                await orders.append(f"order-{new_id()}", [event], expected=NEW)
            else:
                await orders.publish(event)
            appended += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return appended


async def produce(channel: Channel, url: str, count: int, per_second: float | None = None) -> None:
    """100 callers publish so many orders; or one caller at a fixed rate."""
    app = application(url)
    async with app.connect("orders"):
        channel.say(ready=True)
        await channel.heard()
        began = time.monotonic()
        orders = app.service("orders")
        await (_steadily(orders, count, per_second) if per_second else _hundred_callers(orders, count))
        channel.say(began=began, ended=time.monotonic())
        await channel.heard()


async def _hundred_callers(orders: Service, count: int) -> None:
    number = iter(range(count))

    async def caller() -> None:
        for n in number:
            await orders.publish(order(n))

    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(caller())


async def _steadily(orders: Service, count: int, per_second: float) -> None:
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for n in range(count):
            await asyncio.sleep(began + n / per_second - time.monotonic())
            group.create_task(orders.publish(order(n)))


async def consume(channel: Channel, url: str, count: int, with_tx: bool = False) -> None:
    """Runs payments until so many answers are durable, and then until told to end."""
    app, began = application(url, with_tx), time.monotonic()
    async with app.run("payments"):
        await consuming(app)
        channel.say(ready=True)
        await answered(app, count)
        channel.say(began=began, ended=time.monotonic())
        await channel.heard()


async def consume_observed(channel: Channel, url: str, count: int) -> None:
    """The same, and tells how long each message took from the call to the commit of its answer."""
    latencies: list[int] = []
    app = ObservedApp(url, latencies.append)
    async with app.run("payments"):
        await consuming(app)
        channel.say(ready=True)
        await answered(app, count, every=0.2)
        channel.say(ended=time.monotonic(), **percentiles(latencies))
        await channel.heard()


async def read(channel: Channel, url: str) -> None:
    """The whole log through a cursor, 500 records at a time, each payload decoded; as often as asked."""
    log, decode = App(*application(url).services.values(), store=url).log("orders"), codec_for(OrderPlaced).decode
    await log.open()
    while True:
        await channel.heard()
        position, count, began = 1, 0, time.monotonic()
        while records := await log.read(position, 500):
            for record in records:
                decode(record.payload or b"")
            position, count = records[-1].position + 1, count + len(records)
        channel.say(rate=count / (time.monotonic() - began))
