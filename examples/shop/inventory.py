"""Inventory: the articles, how many there are, and who has reserved them.

Everything happens in its own tables, so its handlers take the transaction. A reservation's id is its order's,
and its row is the guard: RESERVED or REJECTED once, then RELEASED or SHIPPED once; RELEASED at once for an order that
was cancelled before it came here.
"""

from __future__ import annotations

from pathlib import Path

from examples.shop.messages import (
    CatalogueItemChanged,
    InventoryRejected,
    InventoryReleased,
    InventoryReserved,
    Line,
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    ShipmentCancelled,
    ShipmentFailed,
    ShipmentHandedOver,
)
from skald import Done, Service, Transaction

MIGRATIONS = Path(__file__).with_name("migrations") / "inventory"

inventory = Service(
    "inventory",
    team="warehouse",
    on_call="warehouse@example.com",
    publishes=[CatalogueItemChanged],
    migrations=MIGRATIONS,
)


class OutOfStock(Exception):
    def __init__(self, sku: str) -> None:
        super().__init__(f"{sku} is out of stock")
        self.sku = sku


@inventory.on(PaymentProcessed)
async def reserve(
    event: PaymentProcessed | OrderPlaced, tx: Transaction
) -> InventoryReserved | InventoryRejected | None:
    """All articles of the order or none of them."""
    new = await tx.execute(
        "INSERT INTO reservations (order_id, status) VALUES (:order_id, 'RESERVED') ON CONFLICT DO NOTHING",
        order_id=event.order_id,
    )
    if not new:
        return None
    try:
        async with tx.savepoint():
            # By SKU, so that two orders never wait for each other's articles.
            for line in sorted(event.order.items, key=lambda line: line.sku):
                await take(tx, event.order_id, line)
    except OutOfStock as error:
        await move(tx, event.order_id, "RESERVED", "REJECTED")
        return InventoryRejected(event.order_id, str(error), error.sku)
    return InventoryReserved(event.order_id, event.order)


async def take(tx: Transaction, order_id: str, line: Line) -> None:
    values = {"sku": line.sku, "quantity": line.quantity}
    taken = await tx.execute(
        "UPDATE items SET available = available - :quantity WHERE sku = :sku AND available >= :quantity",
        **values,
    )
    if not taken:
        raise OutOfStock(line.sku)
    await tx.execute(
        "INSERT INTO reserved_items (order_id, sku, quantity) VALUES (:order_id, :sku, :quantity)",
        order_id=order_id,
        **values,
    )


@inventory.on(ShipmentFailed, ShipmentCancelled, compensates=reserve)
async def release(
    event: ShipmentFailed | ShipmentCancelled | PaymentFailed, tx: Transaction, done: Done[InventoryReserved] | None
) -> InventoryReleased | None:
    """Where nothing is reserved nothing will be, and those who come after this hear of that; of a rejection they have
    heard already.
    """
    if done is None:
        released = await tx.execute(
            "INSERT INTO reservations (order_id, status) VALUES (:order_id, 'RELEASED') ON CONFLICT DO NOTHING",
            order_id=event.order_id,
        )
        return InventoryReleased(event.order_id, event.reason) if released else None
    return await free(event, tx)


async def free(event: ShipmentFailed | ShipmentCancelled | PaymentFailed, tx: Transaction) -> InventoryReleased | None:
    if not await move(tx, event.order_id, "RESERVED", "RELEASED"):
        return None
    await tx.execute(
        "UPDATE items SET available = available + (SELECT quantity FROM reserved_items"
        " WHERE order_id = :order_id AND reserved_items.sku = items.sku)"
        " WHERE sku IN (SELECT sku FROM reserved_items WHERE order_id = :order_id)",
        order_id=event.order_id,
    )
    return InventoryReleased(event.order_id, event.reason)


@inventory.on(ShipmentHandedOver)
async def ship(event: ShipmentHandedOver, tx: Transaction) -> None:
    await move(tx, event.order_id, "RESERVED", "SHIPPED")


async def move(tx: Transaction, order_id: str, before: str, after: str) -> bool:
    changed = await tx.execute(
        "UPDATE reservations SET status = :after WHERE order_id = :order_id AND status = :before",
        order_id=order_id,
        before=before,
        after=after,
    )
    return changed == 1


# --- the catalogue ------------------------------------------------------------------------------------------


async def offer(tx: Transaction, sku: str, name: str, price: int, note: str = "", received: int = 0) -> None:
    """Puts an article on sale or changes it, adds what the warehouse received, and says that it changed."""
    await tx.execute(
        "INSERT INTO items (sku, name, price, note, version, received, available)"
        " VALUES (:sku, :name, :price, :note, 1, :received, :received)"
        " ON CONFLICT (sku) DO UPDATE SET name = excluded.name, price = excluded.price, note = excluded.note,"
        " version = items.version + 1, received = items.received + excluded.received,"
        " available = items.available + excluded.received",
        sku=sku,
        name=name,
        price=price,
        note=note,
        received=received,
    )
    tx.publish(CatalogueItemChanged(sku))
