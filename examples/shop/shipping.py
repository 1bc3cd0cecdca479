"""Shipping: gets a label from the carrier, and cancels it while the parcel has not been picked up.

The carrier decides what is still possible, so it is always asked; the shipments table is what this service
has heard.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from examples.shop.messages import (
    CancelShipment,
    InventoryReserved,
    PaymentProcessed,
    ShipmentCancelled,
    ShipmentDelivered,
    ShipmentFailed,
    ShipmentHandedOver,
    ShipmentScheduled,
)
from examples.shop.providers.clients import Carrier
from examples.shop.settings import settings
from skald import Attempt, Done, Retry, Service, Transaction, Unknown

MIGRATIONS = Path(__file__).with_name("migrations") / "shipping"
LABEL = Retry(immediate=1, delays=settings.label_delays)
UNDO = Retry(immediate=1, delays=settings.undo_delays)
PUBLISHES = (ShipmentHandedOver, ShipmentDelivered)

shipping = Service(
    "shipping", team="shipping", on_call="shipping@example.com", publishes=PUBLISHES, migrations=MIGRATIONS
)


@shipping.provide
async def carrier() -> AsyncIterator[Carrier]:
    client = Carrier(settings.keyed_url, settings.patience)
    yield client
    await client.close()


def no_label(event: InventoryReserved | PaymentProcessed, error: Exception) -> ShipmentFailed:
    return ShipmentFailed(event.order_id, reason=f"no shipping label ({error})")


@shipping.on(InventoryReserved, retry=LABEL, exhausted=no_label)
async def schedule(
    event: InventoryReserved | PaymentProcessed, carrier: Carrier, attempt: Attempt
) -> ShipmentScheduled | ShipmentFailed:
    skus = [line.sku for line in event.order.items]
    answer = await carrier.label(event.order_id, skus, key=attempt.key)
    if answer.status != "done":
        return ShipmentFailed(event.order_id, reason=f"label {answer.status}: {answer.reason}")
    return ShipmentScheduled(event.order_id, answer.id)


@shipping.on(CancelShipment, ShipmentFailed, compensates=schedule, retry=UNDO)
async def withdraw(
    event: CancelShipment | ShipmentFailed,
    carrier: Carrier,
    attempt: Attempt,
    done: Done[ShipmentScheduled] | Unknown | None,
) -> ShipmentCancelled | ShipmentHandedOver | None:
    """The carrier decides whether it is too late. After a failure, too, a label that nobody heard of may exist; one
    that is on its way is refused from now on.
    """
    answer = await carrier.withdraw(event.order_id, event.reason, key=attempt.key)
    if isinstance(event, ShipmentFailed):
        return None
    if answer.status == "handed over":
        return ShipmentHandedOver(event.order_id, answer.original)
    return ShipmentCancelled(event.order_id, event.reason, answer.original)


@shipping.on(
    ShipmentScheduled,
    ShipmentFailed,
    ShipmentCancelled,
    ShipmentHandedOver,
    ShipmentDelivered,
    once_by="order_id",
)
async def keep_books(
    event: ShipmentScheduled | ShipmentFailed | ShipmentCancelled | ShipmentHandedOver | ShipmentDelivered,
    tx: Transaction,
) -> None:
    await tx.execute(
        "INSERT INTO shipments (order_id, status, label_id, reason) VALUES (:order_id, :status, :label_id, :reason)"
        " ON CONFLICT (order_id) DO UPDATE SET status = excluded.status, label_id = excluded.label_id,"
        " reason = excluded.reason",
        order_id=event.order_id,
        status=type(event).__name__.removeprefix("Shipment").upper(),
        label_id=getattr(event, "label_id", None),
        reason=getattr(event, "reason", None),
    )
