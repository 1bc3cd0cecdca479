"""The whole shop in one process: its six services, with their read models, notifications and all that the four of
``services`` leave out. What it asks of the world outside is answered in the same process, at once."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from benchmarks.harness.child import Channel, Children
from benchmarks.harness.figures import Figure, plain
from benchmarks.harness.places import Place
from benchmarks.harness.rounds import interleave
from benchmarks.sagas.services import STYLES
from benchmarks.sagas.sizes import Sizes
from examples.shop.inventory import offer
from examples.shop.orders import place as place_order
from examples.shop.providers.clients import Answer, CardGateway, Carrier, Catalogue, Item, Messenger
from examples.shop.styles import application
from skald import App, Service

ARTICLE, PLENTY = "KETTLE", 10_000_000
PLACING = 20
"""Customers at once."""
PATIENCE = 300.0
"""Seconds for all orders of a run to be confirmed."""


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    found = interleave(sizes.shop_rounds, {style: partial(_run, place, style, sizes) for style in STYLES})
    figures = []
    for style in STYLES:
        runs = sorted(found[style], key=lambda run: float(run["rate"]))
        run = runs[len(runs) // 2]
        text = f"{style}, the whole shop {place.name}"
        figures += [
            plain(f"{text}: {sizes.whole:,} orders", run["rate"], "orders/s"),
            plain(f"{text}: CPU of an order in its process", run["cpu"], "µs"),
        ]
    return figures


def _run(place: Place, style: str, sizes: Sizes) -> dict[str, Any]:
    url = place.fresh()
    try:
        with Children() as start:
            child = start("benchmarks.sagas.whole:serve", url=url, style=style)
            child.hear()
            child.ask(count=sizes.whole // 10)  # warm
            return child.ask(count=sizes.whole)
    finally:
        place.drop(url)


# --- the child ------------------------------------------------------------------------------------------------------


async def serve(channel: Channel, url: str, style: str) -> None:
    """Places orders when it is told to, and says how many a second were confirmed."""
    _stub_the_world()
    app = App(*application(style).services.values(), store=url)
    await app.migrate()
    async with app.run():
        orders, inventory = app.service("orders"), app.service("inventory")
        async with inventory.transaction() as tx:
            await offer(tx, ARTICLE, "Kettle", 49_00, "", PLENTY)
        await _until(orders, "SELECT count(*) AS n FROM prices", 1)
        channel.say(ready=True)
        total = 0
        while True:
            count = (await channel.heard())["count"]
            total += count
            began, used = time.perf_counter(), time.process_time()
            left = iter(range(count))
            await asyncio.gather(*(_customer(orders, left) for _ in range(PLACING)))
            await _until(orders, "SELECT count(*) AS n FROM orders WHERE status = 'CONFIRMED'", total)
            took = time.perf_counter() - began
            channel.say(rate=count / took, cpu=(time.process_time() - used) / count * 1e6)


async def _customer(orders: Service, left: Any) -> None:
    for _ in left:
        async with orders.transaction() as tx:
            await place_order(tx, "ada@example.com", "4242", {ARTICLE: 1})


async def _until(service: Service, sql: str, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            [row] = await service.fetch(sql)
            if row["n"] >= count:
                return
            await asyncio.sleep(0.02)


def _stub_the_world() -> None:
    async def charge(self: CardGateway, order_id: str, card: str, amount: int, *, key: str) -> Answer:
        return Answer(f"charge-{order_id}", "done", amount=amount)

    async def effect(self: Any, path: str, key: str, **body: Any) -> Answer:
        return Answer(f"{path[1:]}-{key}", "done")

    async def item(self: Catalogue, sku: str) -> Item:
        return Item(sku, "Kettle", 49_00, "", 1)

    async def sent(self: Messenger, reference: str) -> bool:
        return False

    async def send(self: Messenger, channel: str, order_id: str, to: str, text: str, *, reference: str) -> None:
        return None

    CardGateway.charge, Catalogue.item = charge, item  # type: ignore[method-assign]
    CardGateway._effect = Carrier._effect = effect  # type: ignore[method-assign]
    Messenger.sent, Messenger.send = sent, send  # type: ignore[method-assign]
