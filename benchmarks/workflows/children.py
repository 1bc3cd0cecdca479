"""The processes that run the library."""

from __future__ import annotations

import asyncio

from benchmarks.harness.child import Channel
from benchmarks.workflows import order
from benchmarks.workflows.load import serve
from benchmarks.workflows.order import application, count_up, place_order, service

FEW, MANY = 4, 24
"""Steps of the two workflows whose difference is the cost of a step."""


async def run(channel: Channel, url: str) -> None:
    """Starts and runs workflows as it is told."""
    app = application(url)
    await app.migrate()
    async with app.run():
        await serve(
            channel,
            {
                "order": lambda n: place_order.run(order.order(n), id=f"order-{n:08}"),
                "few": lambda n: count_up.run(order.order(n), FEW, id=f"few-{n:08}"),
                "many": lambda n: count_up.run(order.order(n), MANY, id=f"many-{n:08}"),
            },
        )


async def park(channel: Channel, url: str, workflows: int) -> None:
    """Starts workflows whose last step does not end, and says when all have come to it."""
    order.held = asyncio.Event()
    app = application(url)
    await app.migrate()
    async with app.run():
        await asyncio.gather(*(place_order.start(order.order(n), id=f"order-{n:08}") for n in range(workflows)))
        while order.waiting < workflows:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)
        channel.say(parked=order.waiting)
        await order.held.wait()


async def resume(channel: Channel, url: str) -> None:
    """Ends what another process has left, and says when nothing is open any more."""
    async with application(url).run():
        open_ones = "SELECT count(*) AS n FROM skald_workflows WHERE ended_at IS NULL"
        while (await service.fetch(open_ones))[0]["n"]:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.005)
        rows = await service.fetch("SELECT count(*) AS n FROM skald_workflows WHERE state = 'completed'")
        channel.say(completed=rows[0]["n"])
