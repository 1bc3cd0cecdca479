"""The warehouse team: expects what was shipped, and receives what it expects.

What comes for a cancelled order is turned away, and what had been received is sent back. The shipment may become known
after the cancellation, because the two are told by different teams; it is refused then.
"""

from __future__ import annotations

from pathlib import Path

from examples.procurement.messages import GoodsReceived, GoodsReturned, GoodsShipped, PurchaseOrderCancelled
from skald import Service, Transaction

MIGRATIONS = Path(__file__).with_name("migrations") / "warehouse"

warehouse = Service("warehouse", team="warehouse", publishes=[GoodsReceived], migrations=MIGRATIONS)


class NotExpected(Exception):
    """The goods stay on the lorry."""


@warehouse.on(GoodsShipped)
async def expect(event: GoodsShipped, tx: Transaction) -> None:
    await tx.execute(
        "INSERT INTO arrivals (order_id, vendor, goods, state) VALUES (:order_id, :vendor, :goods, 'expected')",
        order_id=event.order_id, vendor=event.vendor, goods=event.goods,
    )  # fmt: skip


@warehouse.on(PurchaseOrderCancelled, compensates=expect)
async def turn_away(event: PurchaseOrderCancelled, tx: Transaction) -> GoodsReturned | None:
    values = {"order_id": event.order_id}
    moved = "UPDATE arrivals SET state = :after WHERE order_id = :order_id AND state = :before"
    await tx.execute(moved, **values, before="expected", after="turned away")
    if not await tx.execute(moved, **values, before="received", after="returned"):
        return None
    [arrival] = await tx.fetch("SELECT vendor FROM arrivals WHERE order_id = :order_id", **values)
    return GoodsReturned(event.order_id, arrival["vendor"], event.reason)


# --- the gate ---------------------------------------------------------------------------------------------------------


async def arrive(order_id: str) -> None:
    """A lorry is here."""
    async with warehouse.transaction() as tx:
        received = await tx.execute(
            "UPDATE arrivals SET state = 'received' WHERE order_id = :order_id AND state = 'expected'",
            order_id=order_id,
        )
        found = await tx.fetch_one("SELECT vendor, state FROM arrivals WHERE order_id = :order_id", order_id=order_id)
        if not received or found is None:
            raise NotExpected(f"{order_id} is {found['state'] if found else 'not known'}")
        tx.publish(GoodsReceived(order_id, found["vendor"]))
