"""The purchasing team: budgets, orders, and one process per order, which ends when the goods are here or it gives up.

The process is started by whatever comes first. The vendor's answer and the arrival of the goods come from other
services than the order itself, and may overtake it when this service was away for long. One that has ended does not
start again, so what comes after a cancellation changes nothing here.
"""

from __future__ import annotations

import os
from pathlib import Path

from examples.procurement.messages import (
    CancelPurchaseOrder,
    GoodsReceived,
    PurchaseOrderCancelled,
    PurchaseOrderCreated,
    VendorAcknowledged,
    VendorDeclined,
)
from skald import Process, Service, Transaction

MIGRATIONS = Path(__file__).with_name("migrations") / "purchasing"

purchasing = Service(
    "purchasing",
    team="purchasing",
    publishes=[PurchaseOrderCreated, CancelPurchaseOrder],
    migrations=MIGRATIONS,
)

patience = float(os.environ.get("PROCUREMENT_PATIENCE", 3 * 86_400))
"""Seconds within which a vendor answers."""


class OverBudget(Exception):
    """The team has not so much left."""


class NoSuchOrder(Exception):
    """There is nothing to cancel."""


# --- the desk of the buyers -------------------------------------------------------------------------------------------


async def order(order_id: str, team: str, vendor: str, goods: str, amount: int) -> None:
    """Commits the money and publishes the order; nothing if there is one of this id."""
    async with purchasing.transaction() as tx:
        new = await tx.execute(
            "INSERT INTO orders (id, team, vendor, goods, amount, state)"
            " VALUES (:id, :team, :vendor, :goods, :amount, 'OPEN') ON CONFLICT DO NOTHING",
            id=order_id, team=team, vendor=vendor, goods=goods, amount=amount,
        )  # fmt: skip
        if not new:
            return
        committed = await tx.execute(
            "UPDATE budgets SET free = free - :amount, committed = committed + :amount"
            " WHERE team = :team AND free >= :amount",
            team=team, amount=amount,
        )  # fmt: skip
        if not committed:
            raise OverBudget(f"{team} has no {amount} left for {goods}")
        tx.publish(PurchaseOrderCreated(order_id, vendor, goods, amount))


async def cancel(order_id: str, reason: str) -> None:
    """Heeded until the goods are here."""
    if not await purchasing.fetch("SELECT id FROM orders WHERE id = :id", id=order_id):
        raise NoSuchOrder(f"{order_id!r} was never ordered")
    await purchasing.publish(CancelPurchaseOrder(order_id, reason))


# --- one process per order --------------------------------------------------------------------------------------------


class Purchase(Process):
    order_id: str
    step: str = "new"


purchase = purchasing.process(Purchase, by="order_id")


@purchase.starts(PurchaseOrderCreated)
def created(state: Purchase, event: PurchaseOrderCreated) -> None:
    if state.step == "new":
        state.step = "waits for the vendor"
        state.timeout(patience, "silent")


@purchase.starts(VendorAcknowledged)
def acknowledged(state: Purchase, event: VendorAcknowledged) -> None:
    state.step = "waits for the goods"
    state.cancel("silent")


@purchase.starts(VendorDeclined)
async def declined(state: Purchase, event: VendorDeclined, tx: Transaction) -> PurchaseOrderCancelled:
    return await give_up(state, tx, f"{event.vendor} has declined: {event.reason}")


@purchase.on_timeout("silent")
async def silent(state: Purchase, tx: Transaction) -> PurchaseOrderCancelled:
    return await give_up(state, tx, "the vendor is silent")


@purchase.starts(CancelPurchaseOrder)
async def cancelled(state: Purchase, command: CancelPurchaseOrder, tx: Transaction) -> PurchaseOrderCancelled:
    return await give_up(state, tx, command.reason)


@purchase.starts(GoodsReceived)
async def received(state: Purchase, event: GoodsReceived, tx: Transaction) -> None:
    state.step = "received"
    state.end()
    await _close(tx, state.order_id, "RECEIVED", "the goods are here", "spent")


async def give_up(state: Purchase, tx: Transaction, reason: str) -> PurchaseOrderCancelled:
    state.step = "cancelled"
    state.end()
    await _close(tx, state.order_id, "CANCELLED", reason, "free")
    return PurchaseOrderCancelled(state.order_id, reason)


async def _close(tx: Transaction, order_id: str, state: str, reason: str, column: str) -> None:
    """Moves the money that was committed to where it belongs now."""
    await tx.execute(
        "UPDATE orders SET state = :state, reason = :reason WHERE id = :id", id=order_id, state=state, reason=reason
    )
    [order] = await tx.fetch("SELECT team, amount FROM orders WHERE id = :id", id=order_id)
    await tx.execute(
        f"UPDATE budgets SET committed = committed - :amount, {column} = {column} + :amount WHERE team = :team", **order
    )
