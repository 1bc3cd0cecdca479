"""So many callers at once, each starting the next workflow as soon as its last one has ended; the bare and the real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import uvloop

from benchmarks.harness.child import Channel
from benchmarks.harness.rounds import percentiles
from benchmarks.spine.limits.group import Group
from benchmarks.spine.limits.rows import Row
from benchmarks.spine.messages import now
from benchmarks.workflows.order import charge_card, create_shipment, order, reserve_stock, send_email
from skald.message import new_id
from skald.runtime.memory import calm_collector

# As `skald run` does, for the bare ones too.
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
calm_collector()


async def callers(run: Callable[[int], Awaitable[Any]], at_once: int, seconds: float, numbers: count[int]) -> Any:
    """Rate, latencies and CPU of ``run`` by so many callers for some seconds."""
    micros: list[int] = []
    began, cpu = time.perf_counter(), time.process_time()

    async def caller() -> None:
        while (start := time.perf_counter()) < began + seconds:
            await run(next(numbers))
            micros.append(round((time.perf_counter() - start) * 1e6))

    await asyncio.gather(*(caller() for _ in range(at_once)))
    took = time.perf_counter() - began
    spent = time.process_time() - cpu
    return {"rate": len(micros) / took, "cpu": 1e6 * spent / len(micros), **percentiles(micros)}


async def serve(channel: Channel, runs: dict[str, Callable[[int], Awaitable[Any]]]) -> None:
    """Does what it is told, by name, as often as it is told."""
    numbers = count()
    channel.say(ready=True)
    while True:
        told = await channel.heard()
        channel.say(**await callers(runs[told["run"]], told["at_once"], told["seconds"], numbers))


@contextmanager
def bare_group(write: Callable[[Sequence[Row]], Awaitable[None]]) -> Iterator[Group]:
    """A group commit that runs as long as the block."""
    group = Group(write)
    committer = asyncio.create_task(group.run())
    try:
        yield group
    finally:
        committer.cancel()


Encode = Callable[[Any], bytes]
ByHand = Callable[[Group, int], Awaitable[str]]
_DIGEST = b"12345678"


def by_hand(encode: Encode) -> tuple[ByHand, ByHand]:
    """The same four steps without an engine: with the library's rows, and with plain ones. The first record carries
    the input, the last one the result."""

    async def full(group: Group, number: int) -> str:
        made, run = order(number), new_id()
        await group.submit((run, f"order-{number:08}", "place_order", encode(made), now()))
        stock = await reserve_stock.function(made)
        await group.submit((run, 1, "reserve_stock", _DIGEST, now(), encode(stock)))
        payment = await charge_card.function(made, stock)
        await group.submit((run, 2, "charge_card", _DIGEST, now(), encode(payment)))
        shipment = await create_shipment.function(made, payment)
        await group.submit((run, 3, "create_shipment", _DIGEST, now(), encode(shipment)))
        email: str = await send_email.function(made, shipment)
        result = encode(email)
        await group.submit((run, 4, "send_email", _DIGEST, now(), result, result, now(), run))
        return email

    async def plain(group: Group, number: int) -> str:
        made = order(number)
        await group.submit((made.id, 0, "start", encode(made)))
        result = ""
        for position in range(1, 5):
            result = f"step-{position}-{made.id}"
            await group.submit((made.id, position, "step", encode(result)))
        return result

    return full, plain
