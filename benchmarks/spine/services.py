"""The two services that are measured, and the application made of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.spine.messages import OrderPlaced, PaymentTaken, now, payment
from skald import App, Service, Transaction
from skald.store import Store

_TABLES = Path(__file__).parent / "tables"
_INSERT = "INSERT INTO charges (order_id, amount) VALUES (:order_id, :amount)"


def application(url: str, with_tx: bool = False) -> App:
    """Orders publishes; payments answers each order with one message, and ``with_tx`` also with one row."""
    return App(orders(), payments(with_tx), store=url)


def orders() -> Service:
    return Service("orders", publishes=[OrderPlaced])


def payments(with_tx: bool) -> Service:
    service = Service("payments", migrations=_TABLES)
    service.on(name="charge")(charge_with_tx if with_tx else charge)
    return service


async def charge(event: OrderPlaced) -> PaymentTaken:
    return payment(event)


async def charge_with_tx(event: OrderPlaced, tx: Transaction) -> PaymentTaken:
    await tx.execute(_INSERT, order_id=event.order_id, amount=event.total)
    return payment(event)


def migrate(url: str) -> None:
    asyncio.run(application(url).migrate())


class ObservedApp(App):
    """Tells the time from the call at the producer to the commit of its answer, in microseconds."""

    def __init__(self, url: str, seen: Callable[[int], None]) -> None:
        super().__init__(orders(), payments(False), store=url)
        self._seen = seen

    def store(self, service: str) -> Store:
        store = super().store(service)
        commit, decode = store.commit, msgspec.json.Decoder(PaymentTaken).decode

        async def observed(units: Any, **options: Any) -> Any:
            outcomes = await commit(units, **options)
            committed = now()
            for unit in units:
                for record in unit.events:
                    self._seen(committed - decode(record.payload).sent)
            return outcomes

        if service == "payments":
            store.commit = observed  # type: ignore[method-assign]
        return store


async def consuming(app: App) -> None:
    """Returns when payments owns all its lanes."""
    service = app.service("payments")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        rows = await service.fetch("SELECT count(*) AS owned FROM skald_cursors WHERE owner IS NOT NULL")
        if rows[0]["owned"] == service.lanes:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError("payments has not claimed its lanes within 30 s")


async def answered(app: App, count: int, every: float = 0.01) -> None:
    """Returns when so many answers are durable."""
    service = app.service("payments")
    while True:
        position, _ = await service.store.log.end()
        if position >= count:
            rows = await service.fetch("SELECT count(*) AS answers FROM skald_events")
            if rows[0]["answers"] >= count:
                return
        await asyncio.sleep(every)
