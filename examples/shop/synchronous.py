"""The same work done by synchronous calls: one function calls one service after another, and the customer
waits.

It uses the very same functions, which shows that handlers are plain functions. What is lost is not speed but
what the messages give: a process that dies here in the middle leaves a charged card and no order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from examples.shop.analytics import analytics
from examples.shop.inventory import inventory, reserve
from examples.shop.load import Plan
from examples.shop.messages import InventoryReserved, OrderPlaced, PaymentProcessed, ShipmentScheduled
from examples.shop.notifications import email, notifications, push
from examples.shop.orders import confirm, orders, place
from examples.shop.payments import charge, payments
from examples.shop.payments import keep_books as keep_payments
from examples.shop.providers.clients import CardGateway, Carrier, Messenger
from examples.shop.seed import ARTICLES, stock_up
from examples.shop.settings import Settings
from examples.shop.shipping import keep_books as keep_shipments
from examples.shop.shipping import schedule, shipping
from skald import App, Attempt

SERVICES = (orders, payments, inventory, shipping, notifications, analytics)


class Shop:
    """Everything in one place, and everything in one breath."""

    def __init__(self, settings: Settings) -> None:
        self.gateway = CardGateway(settings.keyed_url, settings.patience)
        self.carrier = Carrier(settings.keyed_url, settings.patience)
        self.messenger = Messenger(settings.keyless_url, settings.patience)

    async def order(self, plan: Plan) -> None:
        async with orders.transaction() as tx:
            placed = await place(tx, plan.customer, plan.card, plan.items)
        paid = await charge(placed, self.gateway, self._attempt("charge", placed))
        assert isinstance(paid, PaymentProcessed)
        async with payments.transaction() as tx:
            await keep_payments(paid, tx)
        async with inventory.transaction() as tx:
            reserved = await reserve(paid, tx)
        assert isinstance(reserved, InventoryReserved)
        shipment = await schedule(reserved, self.carrier, self._attempt("label", placed))
        assert isinstance(shipment, ShipmentScheduled)
        async with shipping.transaction() as tx:
            await keep_shipments(shipment, tx)
        async with orders.transaction() as tx:
            confirmed = await confirm(shipment, tx)
        assert confirmed is not None
        await email(placed, self.messenger, self._attempt("placed", placed))
        await email(paid, self.messenger, self._attempt("paid", placed))
        await email(confirmed, self.messenger, self._attempt("confirmed", placed))
        await push(confirmed, self.messenger, self._attempt("push", placed))

    def _attempt(self, what: str, placed: OrderPlaced) -> Attempt:
        return Attempt(1, f"{what}:{placed.order_id}")

    async def close(self) -> None:
        for client in (self.gateway, self.carrier, self.messenger):
            await client.close()


async def measure(store: str, settings: Settings, todo: Iterable[Plan], customers: int) -> list[float]:
    """Seconds per order, with so many customers at a time, on a store of its own."""
    application = App(*SERVICES, stores={service.name: store for service in SERVICES})
    await application.migrate()
    async with application.connect():
        await stock_up(inventory)
        async with orders.transaction() as tx:
            for sku, name, price, note, _ in ARTICLES:
                await tx.execute(
                    "INSERT INTO prices (sku, name, price, note, version) VALUES (:sku, :name, :price, :note, 1)",
                    **{"sku": sku, "name": name, "price": price, "note": note},
                )
        shop, queue, seconds = Shop(settings), iter(todo), list[float]()

        async def customer() -> None:
            for plan in queue:
                started = time.perf_counter()
                await shop.order(plan)
                seconds.append(time.perf_counter() - started)

        async with asyncio.TaskGroup() as group:
            for _ in range(customers):
                group.create_task(customer())
        await shop.close()
    return seconds
