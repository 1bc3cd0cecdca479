"""Orders: takes them, follows what becomes of them, and tells how they end.

PENDING → CONFIRMED | CANCELLED, CONFIRMED → CANCELLED | COMPLETED. What cannot be undone without a person is
NEEDS_ATTENTION until it is. Messages about one order come from four origins, in order from each and in any order
between them, so every change of state names the states it may start from, and a message that comes too late or
twice changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from examples.shop.messages import (
    CancelOrder,
    CancelShipment,
    CatalogueItemChanged,
    InventoryRejected,
    InventoryReleased,
    InventoryReserved,
    Line,
    Order,
    OrderCancelled,
    OrderCompleted,
    OrderConfirmed,
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    PriceChanged,
    ShipmentCancelled,
    ShipmentDelivered,
    ShipmentFailed,
    ShipmentHandedOver,
    ShipmentScheduled,
)
from examples.shop.providers.clients import Catalogue
from examples.shop.settings import settings
from skald import CompensationFailed, Service, Transaction
from skald.message import new_id

MIGRATIONS = Path(__file__).with_name("migrations") / "orders"

orders = Service(
    "orders",
    team="shop",
    on_call="orders@example.com",
    publishes=[OrderPlaced, CancelOrder],
    migrations=MIGRATIONS,
)


class UnknownArticle(Exception):
    def __init__(self, sku: str) -> None:
        super().__init__(f"there is no article {sku!r}")
        self.sku = sku


# --- taking an order ----------------------------------------------------------------------------------------


async def place(tx: Transaction, customer: str, card: str, quantities: Mapping[str, int]) -> OrderPlaced:
    """Writes the order at today's prices and publishes OrderPlaced, in the caller's transaction."""
    lines = [await _line(tx, sku, quantity) for sku, quantity in quantities.items()]
    total = sum(line.price * line.quantity for line in lines)
    placed = OrderPlaced(new_id(), Order(customer, card, tuple(lines), total))
    await tx.execute(
        "INSERT INTO orders (order_id, customer, total, status, placed_at)"
        " VALUES (:order_id, :customer, :total, 'PENDING', :now)",
        order_id=placed.order_id,
        customer=customer,
        total=total,
        now=await tx.now(),
    )
    tx.publish(placed)
    return placed


async def _line(tx: Transaction, sku: str, quantity: int) -> Line:
    row = await tx.fetch_one("SELECT price FROM prices WHERE sku = :sku", sku=sku)
    if row is None:
        raise UnknownArticle(sku)
    return Line(sku, quantity, row["price"])


async def ask_to_cancel(tx: Transaction, order: Mapping[str, Any], reason: str) -> str | None:
    """Begins the cancellation of an order (its row), or returns what the customer is told instead.

    Asking twice begins it once, at whatever point the order is. Whether it succeeds is for the carrier to say: the
    parcel may be leaving just now.
    """
    if order["status"] == "CANCELLED":
        return "the order is already cancelled"
    if order["status"] == "NEEDS_ATTENTION":
        return "somebody is looking into the order"
    if order["handed_over"] or order["status"] == "COMPLETED":
        return "the parcel is already with the carrier"
    begun = await tx.execute(
        "UPDATE orders SET cancelling = 1, revision = revision + 1"
        " WHERE order_id = :order_id AND status IN ('PENDING', 'CONFIRMED') AND cancelling = 0 AND handed_over = 0",
        order_id=order["order_id"],
    )
    if begun:
        tx.publish(CancelOrder(order["order_id"], reason))
    return None


# --- following it -------------------------------------------------------------------------------------------

Fact = (
    PaymentProcessed
    | PaymentFailed
    | PaymentRefunded
    | InventoryReserved
    | InventoryRejected
    | InventoryReleased
    | ShipmentScheduled
    | ShipmentFailed
    | ShipmentCancelled
)

STEPS: dict[type, tuple[str, str]] = {
    PaymentProcessed: ("payment", "done"),
    PaymentFailed: ("payment", "failed"),
    PaymentRefunded: ("payment", "undone"),
    InventoryReserved: ("inventory", "done"),
    InventoryRejected: ("inventory", "failed"),
    InventoryReleased: ("inventory", "undone"),
    ShipmentScheduled: ("shipping", "done"),
    ShipmentFailed: ("shipping", "failed"),
    ShipmentCancelled: ("shipping", "undone"),
}


@orders.on(*STEPS)
async def follow(event: Fact, tx: Transaction) -> None:
    """The steps that the customer sees. A step goes from pending to done or failed, and to undone, which it stays."""
    step, state = STEPS[type(event)]
    before = "<> 'undone'" if state == "undone" else "= 'pending'"
    await tx.execute(
        f"UPDATE orders SET {step} = :state, {step}_at = :now, revision = revision + 1"
        f" WHERE order_id = :order_id AND {step} {before}",
        state=state,
        now=await tx.now(),
        order_id=event.order_id,
    )


@orders.on(ShipmentScheduled)
async def confirm(event: ShipmentScheduled, tx: Transaction) -> OrderConfirmed | None:
    row = await tx.fetch_one(
        "UPDATE orders SET status = 'CONFIRMED', confirmed_at = :now, label_id = :label_id, revision = revision + 1"
        " WHERE order_id = :order_id AND status = 'PENDING' RETURNING customer, total",
        now=await tx.now(),
        label_id=event.label_id,
        order_id=event.order_id,
    )
    return OrderConfirmed(event.order_id, row["customer"], row["total"]) if row else None


@orders.on(PaymentFailed, PaymentRefunded)
async def close(event: PaymentFailed | PaymentRefunded | InventoryRejected, tx: Transaction) -> OrderCancelled | None:
    """The last thing undone is the payment, so the order ends with it, once it is known what became of it."""
    if isinstance(event, PaymentFailed) and event.unknown:
        return None
    row = await tx.fetch_one(
        "UPDATE orders SET status = 'CANCELLED', reason = :reason, cancelling = 0, revision = revision + 1"
        " WHERE order_id = :order_id AND status IN ('PENDING', 'CONFIRMED', 'NEEDS_ATTENTION')"
        " RETURNING customer, total, confirmed_at",
        reason=event.reason,
        order_id=event.order_id,
    )
    if row is None:
        return None
    return OrderCancelled(
        event.order_id,
        customer=row["customer"],
        total=row["total"],
        reason=event.reason,
        refunded=event.amount if isinstance(event, PaymentRefunded) else 0,
        was_confirmed=row["confirmed_at"] is not None,
    )


# --- the customer's second thoughts, and the parcel's way ---------------------------------------------------


@orders.on(CancelOrder)
async def cancel(event: CancelOrder, tx: Transaction) -> CancelShipment | None:
    """Begins with the shipment, because the carrier decides whether it is too late. Each service undoes what it did,
    or refuses what comes later, and says so to the next one.
    """
    row = await tx.fetch_one(
        "SELECT label_id FROM orders WHERE order_id = :order_id AND cancelling = 1", order_id=event.order_id
    )
    return CancelShipment(event.order_id, row["label_id"] or "", event.reason) if row else None


@orders.on(ShipmentHandedOver)
async def hand_over(event: ShipmentHandedOver, tx: Transaction) -> None:
    """From here on nothing is cancelled; a cancellation under way is refused, with the reason."""
    await tx.execute(
        "UPDATE orders SET handed_over = 1, cancelling = 0, revision = revision + 1,"
        " status = CASE status WHEN 'NEEDS_ATTENTION' THEN 'CONFIRMED' ELSE status END,"
        " reason = CASE cancelling WHEN 1 THEN 'not cancelled: the parcel is already with the carrier' ELSE reason END"
        " WHERE order_id = :order_id AND handed_over = 0",
        order_id=event.order_id,
    )


@orders.on(CompensationFailed)
async def needs_attention(event: CompensationFailed, tx: Transaction) -> None:
    """Something could not be undone. The order goes on by itself when a person has seen to it."""
    await tx.execute(
        "UPDATE orders SET status = 'NEEDS_ATTENTION', cancelling = 0, reason = :reason, revision = revision + 1"
        " WHERE order_id = :order_id AND status IN ('PENDING', 'CONFIRMED')",
        reason=f"{event.handler} of {event.compensates} has failed in {event.service}",
        order_id=event.key,
    )


@orders.on(ShipmentDelivered)
async def complete(event: ShipmentDelivered, tx: Transaction) -> OrderCompleted | None:
    row = await tx.fetch_one(
        "UPDATE orders SET status = 'COMPLETED', revision = revision + 1"
        " WHERE order_id = :order_id AND status = 'CONFIRMED' RETURNING customer, total",
        order_id=event.order_id,
    )
    return OrderCompleted(event.order_id, row["customer"], row["total"]) if row else None


# --- the price table ----------------------------------------------------------------------------------------


@orders.provide
async def catalogue() -> AsyncIterator[Catalogue]:
    client = Catalogue(settings.catalogue_url, settings.patience)
    yield client
    await client.close()


@orders.on(CatalogueItemChanged)
async def fetch_price(event: CatalogueItemChanged, catalogue: Catalogue) -> PriceChanged:
    """The notification is bare, so the article is looked up: without a transaction, because this takes a
    while.
    """
    item = await catalogue.item(event.sku)
    return PriceChanged(item.sku, item.name, item.price, item.note, item.version)


@orders.on(PriceChanged)
async def note_price(event: PriceChanged, tx: Transaction) -> None:
    """Of two look-ups that overtook each other the newer version stays."""
    await tx.execute(
        "INSERT INTO prices (sku, name, price, note, version) VALUES (:sku, :name, :price, :note, :version)"
        " ON CONFLICT (sku) DO UPDATE SET name = excluded.name, price = excluded.price, note = excluded.note,"
        " version = excluded.version WHERE prices.version < excluded.version",
        sku=event.sku,
        name=event.name,
        price=event.price,
        note=event.note,
        version=event.version,
    )
