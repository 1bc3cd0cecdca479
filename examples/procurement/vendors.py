"""The vendors team: asks vendors, and says what they answer.

What the vendor does comes from outside: ``answer`` and ``ship`` are what his portal calls. To cancel an order is to
undo the asking: who has not shipped is told not to, who has is told to take it back, and an order that comes after its
cancellation is not even asked for.
"""

from __future__ import annotations

from pathlib import Path

from examples.procurement.messages import (
    GoodsReceived,
    GoodsReturned,
    GoodsShipped,
    PurchaseOrderCancelled,
    PurchaseOrderCreated,
    VendorAcknowledged,
    VendorDeclined,
)
from skald import Service, Transaction

MIGRATIONS = Path(__file__).with_name("migrations") / "vendors"

vendors = Service(
    "vendors",
    team="vendors",
    publishes=[VendorAcknowledged, VendorDeclined, GoodsShipped],
    migrations=MIGRATIONS,
)


class TooLate(Exception):
    """The order does not wait for this, or not any more."""


@vendors.on(PurchaseOrderCreated)
async def ask(event: PurchaseOrderCreated, tx: Transaction) -> None:
    await tx.execute(
        "INSERT INTO sales (order_id, vendor, goods, state) VALUES (:order_id, :vendor, :goods, 'asked')",
        order_id=event.order_id, vendor=event.vendor, goods=event.goods,
    )  # fmt: skip


@vendors.on(PurchaseOrderCancelled, compensates=ask)
async def withdraw(event: PurchaseOrderCancelled, tx: Transaction) -> None:
    await tx.execute(
        "UPDATE sales SET state = CASE state WHEN 'shipped' THEN 'recalled' ELSE 'withdrawn' END"
        " WHERE order_id = :order_id AND state IN ('asked', 'acknowledged', 'shipped')",
        order_id=event.order_id,
    )


# A number that grows is no row that can only be there once: these need to know the fact.


@vendors.on(GoodsReceived, once_by="order_id")
async def count_delivery(event: GoodsReceived, tx: Transaction) -> None:
    await _count(tx, event.vendor, delivered=1, returned=0)


@vendors.on(GoodsReturned, once_by="order_id")
async def count_return(event: GoodsReturned, tx: Transaction) -> None:
    await _count(tx, event.vendor, delivered=0, returned=1)


async def _count(tx: Transaction, vendor: str, delivered: int, returned: int) -> None:
    await tx.execute(
        "INSERT INTO scores (vendor, delivered, returned) VALUES (:vendor, :delivered, :returned)"
        " ON CONFLICT (vendor) DO UPDATE SET"
        " delivered = scores.delivered + excluded.delivered, returned = scores.returned + excluded.returned",
        vendor=vendor, delivered=delivered, returned=returned,
    )  # fmt: skip


# --- the vendors' portal ----------------------------------------------------------------------------------------------


async def answer(order_id: str, yes: bool, reason: str = "") -> None:
    async with vendors.transaction() as tx:
        vendor, _ = await _move(tx, order_id, "asked", "acknowledged" if yes else "declined")
        tx.publish(VendorAcknowledged(order_id, vendor) if yes else VendorDeclined(order_id, vendor, reason))


async def ship(order_id: str) -> None:
    async with vendors.transaction() as tx:
        vendor, goods = await _move(tx, order_id, "acknowledged", "shipped")
        tx.publish(GoodsShipped(order_id, vendor, goods))


async def _move(tx: Transaction, order_id: str, before: str, after: str) -> tuple[str, str]:
    """Vendor and goods."""
    moved = await tx.execute(
        "UPDATE sales SET state = :after WHERE order_id = :order_id AND state = :before",
        order_id=order_id, before=before, after=after,
    )  # fmt: skip
    found = await tx.fetch_one("SELECT vendor, goods, state FROM sales WHERE order_id = :order_id", order_id=order_id)
    if not moved or found is None:
        raise TooLate(f"{order_id} is {found['state'] if found else 'not known'}, and not {before}")
    return found["vendor"], found["goods"]
