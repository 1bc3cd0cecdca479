"""Processes whose events come at once from three services, to two owners, on a database that fails: each moves on
once per event, and ends once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from skald import Event, Process, Retry, RuntimeSettings, Service, Transaction
from skald.messaging.consumer import ConsumerSettings
from tests.simulation.flaky import FlakyApp
from tests.simulation.stage import MIGRATIONS, caught_up, deliveries, effect, effects, eventually, seed

SETTINGS = RuntimeSettings(lease=3.0, consumer=ConsumerSettings(patience=0.05, poll=0.05, checkpoint=0.05))
KEYS = [f"o{n}" for n in range(30)]


class Placed(Event, key="order"):
    order: str


class Paid(Event, key="order"):
    order: str
    n: int


class Reserved(Event, key="reservation"):
    reservation: str
    order: str
    n: int


class Ended(Event, key="order"):
    order: str
    paid: int
    reserved: int
    how: str


class Counting(Process):
    order: str
    paid: int = 0
    reserved: int = 0


WANTED = 3
"""Payments, and as many reservations. Those of the last five orders never come in full."""
RETRY = Retry(immediate=2, delays=(0.02,) * 200)


def build(url: str, chance: random.Random) -> tuple[FlakyApp, list[Service]]:
    shop, bank = Service("shop", publishes=[Placed]), Service("bank", publishes=[Paid])
    stock = Service("stock", publishes=[Reserved])
    orders = Service("orders", migrations=MIGRATIONS, lanes=4)
    counting = orders.process(Counting, by="order", not_found="park")

    @counting.starts(Placed, retry=RETRY)
    def placed(state: Counting, event: Placed) -> None:
        state.timeout(0.5 if event.order in KEYS[-5:] else 3600, "patience")

    @counting.on(Paid, retry=RETRY)
    async def paid(state: Counting, event: Paid, tx: Transaction) -> Ended | None:
        await effect(tx, "paid", f"{event.order}{event.n}", event.order, event.n)
        state.paid += 1
        return ended(state)

    @counting.on(Reserved, retry=RETRY)
    async def reserved(state: Counting, event: Reserved) -> Ended | None:
        state.reserved += 1
        return ended(state)

    @counting.on_timeout("patience", retry=RETRY)
    async def over(state: Counting) -> Ended:
        state.end()
        return Ended(state.order, state.paid, state.reserved, "late")

    services = [shop, bank, stock, orders]
    return FlakyApp(*services, store=url, settings=SETTINGS, chance=chance, flaky=["orders"]), services


def ended(state: Counting) -> Ended | None:
    if state.paid < WANTED or state.reserved < WANTED:
        return None
    state.end()
    return Ended(state.order, state.paid, state.reserved, "whole")


@pytest.mark.parametrize("rate", [0.0, 0.05])
async def test_each_moves_on_once_per_event(store_url: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skald.messaging.consumer.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("skald.messaging.deliverer.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("skald.messaging.worker.AGAIN", 0.1)
    monkeypatch.setattr("skald.messaging.redelivery.PAUSE", 50_000)
    chance = random.Random(seed())
    app, (shop, bank, stock, orders) = build(store_url, chance)
    second, _ = build(store_url, chance)
    await app.migrate()
    async with app.run(), second.run("orders"):
        for one in (app, second):
            one.fail(rate)
        await asyncio.gather(
            shop.publish(*(Placed(key) for key in KEYS)),
            *(bank.publish(*(Paid(key, n) for key in KEYS[:-5])) for n in range(WANTED)),
            *(stock.publish(*(Reserved(f"{key}{n}", key, n) for key in KEYS)) for n in range(WANTED)),
        )
        if rate:
            await eventually(lambda: _has_failed(app))
        for one in (app, second):
            one.fail(0)
        await eventually(lambda: _all_over(orders, [shop, bank, stock]))
        log = [record for record in await orders.store.log.read(0, 1_000) if record.type == "Ended"]
        assert Counter(record.key for record in log) == Counter(KEYS)
        for record in log:
            body = (record.payload or b"").decode()
            assert f'"how":"{"late" if record.key in KEYS[-5:] else "whole"}"' in body, body
            assert record.key in KEYS[-5:] or f'"paid":{WANTED},"reserved":{WANTED}' in body, body
        times = Counter(row["key"] for row in await effects(orders, "paid"))
        assert times == dict.fromkeys(KEYS[:-5], WANTED)


async def _has_failed(app: FlakyApp) -> bool:
    return app.failures > 20


async def _all_over(orders: Service, origins: list[Service]) -> bool:
    for origin in origins:
        assert await caught_up(orders, origin), f"{origin.name} is not read to its end"
    # A reservation for one that has waited too long finds no process, and is tried again and parked.
    late = {f"{key}{n}" for key in KEYS[-5:] for n in range(WANTED)}
    left = [row for row in await deliveries(orders) if row["key"] not in late]
    states = await orders.fetch("SELECT key, state, version, payload FROM skald_marks WHERE kind = 'process'")
    running = [row for row in states if row["state"] != "ended"]
    assert not left, f"left are {left}, and {running} run"
    assert not running, running
    return len(states) == len(KEYS)
