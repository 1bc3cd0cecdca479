"""The processes that run the library: each one is started by the benchmark and told what to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import count

from benchmarks.harness.child import Channel
from benchmarks.harness.rounds import percentiles
from benchmarks.spine.messages import OrderPlaced, order
from benchmarks.spine.services import ObservedApp, answered, application, consuming
from skald import App, Service
from skald.codec import codec_for
from skald.message import Record, new_id
from skald.messaging.publisher import Publisher
from skald.unit import NEW, Append, Unit

PREPARED = 20_000
_records: dict[str, list[Record]] = {}


async def append(channel: Channel, callers: int, kind: str, name: str = "order") -> None:
    """Concurrent callers, each with one event after another, for some seconds; as often as asked, at any URL."""
    while True:
        told = await channel.heard()
        app = application(told["url"])
        async with app.connect("orders"):
            act = _acts(app.service("orders"), name)[kind]
            channel.say(ready=True)
            told = await channel.heard()
            await asyncio.sleep(told["at"] - time.monotonic())
            began = time.monotonic()
            appended = await _call_for(act, told["seconds"], callers)
            channel.say(appended=appended, began=began, ended=time.monotonic())


def _acts(orders: Service, name: str) -> dict[str, Callable[[int], Awaitable[object]]]:
    """What a caller does: hand in a unit whose record is made (as the bare rows are), or publish a message."""
    submit, records, run = orders.connection.submit, _prepared(orders.connection.publisher, name), new_id()

    def append(number: int) -> Awaitable[object]:
        return submit(Unit(events=(records[number % PREPARED],)))

    def append_to_stream(number: int) -> Awaitable[object]:
        return submit(Unit(appends=(Append(f"{name}-{run}-{number}", (records[number % PREPARED],), NEW),)))

    def publish(number: int) -> Awaitable[object]:
        return orders.publish(order(number, name))

    return {"append": append, "streams": append_to_stream, "publish": publish}


def _prepared(publisher: Publisher, name: str) -> list[Record]:
    """As many different records as the bare code has rows."""
    if name not in _records:
        _records[name] = [publisher.unit([order(number, name)]).events[0] for number in range(PREPARED)]
    return _records[name]


async def _call_for(act: Callable[[int], Awaitable[object]], seconds: float, callers: int) -> int:
    loop, numbers, running = asyncio.get_running_loop(), count(), True

    def stop() -> None:
        nonlocal running
        running = False

    async def caller() -> None:
        while running:
            await act(next(numbers))

    loop.call_later(seconds, stop)
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return next(numbers)


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


async def append_beside_held(channel: Channel, url: str, seconds: float, per_second: float) -> None:
    """Appends to one stream after another while somebody's transaction holds a key for which a unit waits."""
    app, latencies = application(url), list[int]()
    async with app.connect("orders"):
        orders = app.service("orders")
        submit, records = orders.connection.submit, _prepared(orders.connection.publisher, "order")

        async def timed(number: int) -> None:
            called = time.perf_counter_ns()
            await submit(_to_stream(f"free-{number}", records[number % PREPARED]))
            latencies.append((time.perf_counter_ns() - called) // 1000)

        async with asyncio.TaskGroup() as group, orders.transaction() as tx:
            await tx.apply(_to_stream("held", records[0]))
            group.create_task(_end_of(submit(_to_stream("held", records[1]))))
            began = time.monotonic()
            for number in range(round(seconds * per_second)):
                await asyncio.sleep(began + number / per_second - time.monotonic())
                group.create_task(timed(number))
        channel.say(count=len(latencies), **percentiles(latencies))
        await channel.heard()


def _to_stream(stream: str, record: Record) -> Unit:
    return Unit(appends=(Append(stream, (record,), None),))


async def _end_of(unit: Awaitable[object]) -> None:
    await unit


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
