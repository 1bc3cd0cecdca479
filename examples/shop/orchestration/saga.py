"""The saga: CREATED, PAYMENT_PENDING, INVENTORY_PENDING, SHIPPING_PENDING, PICKUP_PENDING, COMPLETED.

An order is confirmed once it has its label, and can be called off until the parcel is picked up: so long its saga is
open. Calls have no timeout, because a service that is down for long answers when it is back; each of them gives up by
itself, and says so.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from examples.shop.messages import (
    CancelShipment,
    InventoryRejected,
    OrderCancelled,
    OrderPlaced,
    PaymentFailed,
    ShipmentFailed,
    ShipmentHandedOver,
    ShipmentScheduled,
)
from examples.shop.orchestration.messages import (
    ChargePayment,
    RefundPayment,
    ReleaseInventory,
    ReserveInventory,
    ScheduleShipment,
)
from examples.shop.orders import confirm
from skald import CallRejected, FailedExecution, call, compensation, saga, step, workflows
from skald.workflows import Signal


class News(msgspec.Struct, frozen=True):
    """What a saga hears while it waits for nobody's answer."""

    what: Literal["cancel", "handed over"]
    reason: str = ""


news = Signal("news", News)


class NotFulfilled(Exception):
    """The order comes to nothing; the message is what the customer is told."""


# --- the order's own steps: the first is undone last --------------------------------------------------------


@compensation(transactional=True, guarantee="exactly_once")
async def close(order_id: str, failed: FailedExecution) -> None:
    """All else is undone. The order knows whether it was refunded: that was noted with the answer of payments."""
    tx = workflows.transaction()
    row = await tx.fetch_one(
        "UPDATE orders SET status = 'CANCELLED', reason = :reason, cancelling = 0, revision = revision + 1"
        " WHERE order_id = :order_id AND status IN ('PENDING', 'CONFIRMED', 'NEEDS_ATTENTION')"
        " RETURNING customer, total, confirmed_at, payment",
        reason=failed.message,
        order_id=order_id,
    )
    if row is not None:
        refunded = row["total"] if row["payment"] == "undone" else 0
        was_confirmed = row["confirmed_at"] is not None
        tx.publish(OrderCancelled(order_id, row["customer"], row["total"], failed.message, refunded, was_confirmed))


@step(name="CREATED", compensate=close)
async def created(order_id: str) -> None:
    """It was when its saga was started: here it gets what closes it."""


@step(transactional=True)
async def confirmed(shipment: ShipmentScheduled) -> None:
    tx = workflows.transaction()
    if (event := await confirm(shipment, tx)) is not None:
        tx.publish(event)


# --- what the others are told -------------------------------------------------------------------------------


async def begin(stage: str) -> None:
    workflows.stage(stage)
    await unless_called_off()


async def unless_called_off() -> None:
    """As long as nothing can be handed over, the only news is that the customer has thought again."""
    if news.received():
        raise NotFulfilled((await news.receive()).reason)


async def pay(placed: OrderPlaced) -> None:
    await begin("PAYMENT_PENDING")
    id = placed.order_id
    paid = await call(ChargePayment(id, placed.order), compensate=lambda failed: RefundPayment(id, failed.message))
    if isinstance(paid, PaymentFailed):
        raise NotFulfilled(paid.reason)


async def reserve(placed: OrderPlaced) -> None:
    await begin("INVENTORY_PENDING")
    id = placed.order_id
    try:
        await call(ReserveInventory(id, placed.order), compensate=lambda failed: ReleaseInventory(id, failed.message))
    except CallRejected as rejected:
        said = rejected.reply
        raise NotFulfilled(said.reason if isinstance(said, InventoryRejected) else str(rejected)) from rejected


async def ship(placed: OrderPlaced) -> ShipmentScheduled:
    await begin("SHIPPING_PENDING")
    id = placed.order_id
    shipment = await call(
        ScheduleShipment(id, placed.order),
        compensate=lambda failed: CancelShipment(id, label_of(failed), failed.message),
    )
    if isinstance(shipment, ShipmentFailed):
        raise NotFulfilled(shipment.reason)
    return shipment


def label_of(failed: FailedExecution) -> str:
    """Empty where nobody knows of one."""
    results = [one.result or {} for one in failed.executions if one.step == "ScheduleShipment"]
    return str(results[0].get("label_id", ""))


async def leave(shipment: ShipmentScheduled) -> None:
    """Waits until the parcel is picked up, and raises if the customer thinks again before."""
    workflows.stage("PICKUP_PENDING")
    heard = await news.receive()
    if heard.what == "cancel" and not await has_left(shipment, heard.reason):
        raise NotFulfilled(heard.reason)
    workflows.stage("COMPLETED")


async def has_left(shipment: ShipmentScheduled, reason: str) -> bool:
    """The carrier knows. Otherwise the shipment is cancelled now, and all else is undone after it."""
    try:
        await call(CancelShipment(shipment.order_id, shipment.label_id, reason))
    except CallRejected as rejected:
        return isinstance(rejected.reply, ShipmentHandedOver)
    return False


# --- the saga -----------------------------------------------------------------------------------------------


@saga
async def fulfil(placed: OrderPlaced) -> None:
    await created(placed.order_id)
    await pay(placed)
    await reserve(placed)
    await finish(placed)


@saga
async def fulfil_stock_first(placed: OrderPlaced) -> None:
    """In another order of steps. What was done is undone from the last to the first all the same."""
    await created(placed.order_id)
    await reserve(placed)
    await pay(placed)
    await finish(placed)


async def finish(placed: OrderPlaced) -> None:
    shipment = await ship(placed)
    await unless_called_off()
    await confirmed(shipment)
    await leave(shipment)
