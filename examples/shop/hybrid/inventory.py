"""Inventory: reserves line by line, then writes the pick list.

Each step is a transaction of its own, so a large order holds nobody up; what was reserved of one that cannot be
fulfilled is put back line by line.
"""

from __future__ import annotations

from examples.shop import inventory as stock
from examples.shop.inventory import OutOfStock
from examples.shop.messages import (
    CatalogueItemChanged,
    InventoryRejected,
    InventoryReleased,
    InventoryReserved,
    Line,
    PaymentProcessed,
    ShipmentCancelled,
    ShipmentFailed,
    ShipmentHandedOver,
)
from examples.shop.settings import settings
from skald import (
    NEVER,
    Done,
    FailedExecution,
    Retry,
    Service,
    Transaction,
    compensation,
    saga,
    step,
    workflows,
)

UNDO = Retry(immediate=1, delays=settings.undo_delays)


class StillReserving(Exception):
    """Tried again in a moment: what is not reserved yet cannot be released."""


# --- the saga -----------------------------------------------------------------------------------------------


@compensation(transactional=True, guarantee="exactly_once")
async def tell_rejection(paid: PaymentProcessed, failed: FailedExecution) -> None:
    """Undone last, when all lines are back."""
    tx = workflows.transaction()
    await stock.move(tx, paid.order_id, "RESERVING", "REJECTED")
    lines = [each.arguments["line"] for each in failed.executions if each.step == failed.step == "reserve_line"]
    tx.publish(InventoryRejected(paid.order_id, failed.message, lines[-1]["sku"] if lines else ""))


@step(compensate=tell_rejection)
async def begun(paid: PaymentProcessed) -> None:
    """Nothing is reserved yet; here is what there is to tell if nothing comes of it."""


@compensation(transactional=True, guarantee="exactly_once")
async def put_back(order_id: str, line: Line) -> None:
    tx = workflows.transaction()
    values = {"order_id": order_id, "sku": line.sku}
    await tx.execute("DELETE FROM reserved_items WHERE order_id = :order_id AND sku = :sku", **values)
    await tx.execute(
        "UPDATE items SET available = available + :quantity WHERE sku = :sku", quantity=line.quantity, sku=line.sku
    )


@step(transactional=True, retry={OutOfStock: NEVER, "*": Retry()}, compensate=put_back)
async def reserve_line(order_id: str, line: Line) -> None:
    await stock.take(workflows.transaction(), order_id, line)


@step(transactional=True)
async def write_pick_list(paid: PaymentProcessed) -> None:
    tx = workflows.transaction()
    lines = ", ".join(f"{line.quantity} x {line.sku}" for line in sorted(paid.order.items, key=lambda line: line.sku))
    await tx.execute(
        "INSERT INTO pick_lists (order_id, lines) VALUES (:order_id, :lines)", order_id=paid.order_id, lines=lines
    )
    await stock.move(tx, paid.order_id, "RESERVING", "RESERVED")
    tx.publish(InventoryReserved(paid.order_id, paid.order))


@saga
async def reserve(paid: PaymentProcessed) -> None:
    await begun(paid)
    for line in paid.order.items:
        await reserve_line(paid.order_id, line)
    await write_pick_list(paid)


# --- between the domains ------------------------------------------------------------------------------------

inventory = Service(
    "inventory",
    team="warehouse",
    on_call="warehouse@example.com",
    publishes=[CatalogueItemChanged, InventoryReserved, InventoryRejected],
    workflows=[reserve],
    migrations=stock.MIGRATIONS,
)


@inventory.on(PaymentProcessed)
async def begin(event: PaymentProcessed, tx: Transaction) -> None:
    await tx.execute(
        "INSERT INTO reservations (order_id, status) VALUES (:order_id, 'RESERVING')", order_id=event.order_id
    )
    await tx.start(reserve, event, id=event.order_id)


@inventory.on(ShipmentFailed, ShipmentCancelled, compensates=begin, retry=UNDO)
async def release(
    event: ShipmentFailed | ShipmentCancelled, tx: Transaction, done: Done[None] | None
) -> InventoryReleased | None:
    row = await tx.fetch_one("SELECT status FROM reservations WHERE order_id = :id", id=event.order_id)
    if row is not None and row["status"] == "RESERVING":
        raise StillReserving(event.order_id)
    await tx.execute("DELETE FROM pick_lists WHERE order_id = :order_id", order_id=event.order_id)
    return await (stock.release(event, tx, None) if done is None else stock.free(event, tx))


inventory.on(ShipmentHandedOver)(stock.ship)
