"""The processes of those workflows: a worker, and those that start them and send signals without running any."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from itertools import count

from benchmarks.harness.child import Channel
from benchmarks.spine.messages import now
from benchmarks.workflows import load as load  # for its event loop
from benchmarks.workflows import waits
from benchmarks.workflows.order import application as orders
from benchmarks.workflows.order import order, place_order
from benchmarks.workflows.waits import application, go, nap, ride, told, touched
from skald.runtime.service import RunningService

SLOWLY = 0.02
"""Seconds between two talks, on average: one at a time, and not in step with anything that is polled."""
DRIVE = 1.0
"""Seconds from a ride's start to its signal."""
AT_ONCE = 100


async def work(channel: Channel, url: str, idle: float = 10.0) -> None:
    """Runs what it finds, and says what it has seen when it is asked: ``began`` asks for a new span of time."""
    async with application(url, idle).run() as [running]:
        channel.say(ready=True)
        await asyncio.gather(answer(channel), tell_if_lost(channel, running))


async def answer(channel: Channel) -> None:
    while True:
        asked = await channel.heard()
        if "began" in asked:
            waits.begin(asked["began"], asked["seconds"])
            continue
        while len(waits.tally.micros) < asked["counted"]:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.05)
        channel.say(**waits.tally.found())


async def tell_if_lost(channel: Channel, running: RunningService) -> None:
    """Instead of leaving everybody to wait for it."""
    await running.lost.wait()
    channel.say(error="the worker has lost its work")


async def start(channel: Channel, url: str, talks: int) -> None:
    """Starts workflows that another process runs."""
    async with application(url).connect():
        await one_at_a_time(talks, lambda n: touched.start(now(), id=f"touched-{n:08}"))
        channel.say(done=True)
        await channel.heard()


async def signal(channel: Channel, url: str, talks: int) -> None:
    """Starts workflows that another process runs, and signals each when it is told to."""
    async with application(url).connect():
        for n in range(talks):
            await told.start(n, id=f"told-{n:08}")
        channel.say(started=True)
        await channel.heard()
        await one_at_a_time(talks, lambda n: told.handle(f"told-{n:08}").signal(go, now()))
        channel.say(done=True)
        await channel.heard()


async def one_at_a_time(talks: int, talk: Callable[[int], Awaitable[object]]) -> None:
    for n in range(talks):
        await talk(n)
        await asyncio.sleep(random.uniform(0.5, 1.5) * SLOWLY)


async def drive(channel: Channel, url: str, per_second: float) -> None:
    """Creates rides at a steady rate, whether or not the earlier ones are ready, and signals each a second later."""
    async with application(url).connect():
        channel.say(ready=True)
        asked = await channel.heard()
        creating = waits.Tally(asked["began"], asked["seconds"])
        first, end = time.monotonic(), asked["began"] + asked["seconds"]
        driven: set[asyncio.Task[None]] = set()
        """Those under way, and those that have failed."""

        async def drive_one(number: int) -> None:
            sent = now()
            handle = await ride.start(number, id=f"ride-{number:08}")
            creating.took(sent)
            await asyncio.sleep(DRIVE)
            await handle.signal(go, now())

        for number in count():
            await asyncio.sleep(max(0.0, first + number / per_second - time.monotonic()))
            if time.monotonic() >= end:
                break
            driven.add(task := asyncio.create_task(drive_one(number)))
            task.add_done_callback(lambda task: None if task.exception() else driven.discard(task))
        await asyncio.gather(*driven)
        channel.say(created=number, **creating.found())
        await channel.heard()


async def first(channel: Channel, url: str) -> None:
    """Says when its first new workflow has completed."""
    app = orders(url)
    async with app.run():
        await place_order.run(order(0), id="the first")
        channel.say(completed=True)
        await channel.heard()


async def start_naps(channel: Channel, url: str, naps: int, seconds: float) -> None:
    numbers = iter(range(naps))

    async def caller() -> None:
        for n in numbers:
            await nap.start(seconds, id=f"nap-{n:08}")

    async with application(url).run():
        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        channel.say(started=naps)
        await channel.heard()
