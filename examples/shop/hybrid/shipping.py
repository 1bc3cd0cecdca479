"""Shipping: who carries it, the label, and a place in the next pick-up.

Whether a label without an answer was made is not for the saga to find out: what withdraws it asks the carrier.
"""

from __future__ import annotations

from examples.shop import shipping as dispatch
from examples.shop.hybrid.ended import PATIENCE, ended
from examples.shop.messages import (
    CancelShipment,
    InventoryReserved,
    ShipmentCancelled,
    ShipmentDelivered,
    ShipmentFailed,
    ShipmentHandedOver,
    ShipmentScheduled,
)
from examples.shop.providers.clients import Carrier
from examples.shop.settings import settings
from skald import (
    NEVER,
    Attempt,
    Done,
    FailedExecution,
    Service,
    Transaction,
    Unknown,
    compensation,
    saga,
    step,
    workflows,
)

HEAVY = {"ANVIL", "KETTLE"}
VAN = 20
"""Parcels of one pick-up."""

carriers = Carrier(settings.keyed_url, settings.patience)


class Refused(Exception):
    """The carrier says no."""


# --- the saga -----------------------------------------------------------------------------------------------


@compensation(transactional=True, guarantee="exactly_once")
async def tell_failure(reserved: InventoryReserved, failed: FailedExecution) -> None:
    """Undone last, when nothing is left of the shipment, or nobody knows whether there is."""
    workflows.transaction().publish(ShipmentFailed(reserved.order_id, f"no shipping label ({failed.message})"))


@step(compensate=tell_failure)
async def begun(reserved: InventoryReserved) -> None:
    """Nothing is done yet; here is what there is to tell if nothing comes of it."""


@step
async def choose_carrier(reserved: InventoryReserved) -> str:
    """The one with a van takes what the one with a bicycle cannot."""
    pieces = sum(line.quantity for line in reserved.order.items)
    return "van" if pieces > 10 or any(line.sku in HEAVY for line in reserved.order.items) else "bicycle"


@compensation(retry=dispatch.UNDO, guarantee="exactly_once")
async def withdraw_label(reserved: InventoryReserved, failed: FailedExecution) -> None:
    """There is a label, and no pick-up for it."""
    await carriers.withdraw(reserved.order_id, failed.message, key=workflows.attempt().key)


@step(retry={Refused: NEVER, "*": dispatch.LABEL}, compensate=withdraw_label)
async def label(reserved: InventoryReserved) -> str:
    skus = [line.sku for line in reserved.order.items]
    answer = await carriers.label(reserved.order_id, skus, key=workflows.attempt().key)
    if answer.status != "done":
        raise Refused(f"label {answer.status}: {answer.reason}")
    return answer.id


@step(transactional=True)
async def book_pickup(order_id: str, carrier: str, label_id: str) -> None:
    """In the next pick-up of the carrier that has a place."""
    tx = workflows.transaction()
    await tx.execute(
        "INSERT INTO pickups (order_id, carrier, round)"
        " SELECT :order_id, CAST(:carrier AS TEXT), COUNT(*) / CAST(:van AS BIGINT) FROM pickups"
        " WHERE carrier = CAST(:carrier AS TEXT)",
        order_id=order_id,
        carrier=carrier,
        van=VAN,
    )
    tx.publish(ShipmentScheduled(order_id, label_id))


@saga
async def send(reserved: InventoryReserved) -> None:
    await begun(reserved)
    carrier = await choose_carrier(reserved)
    label_id = await label(reserved)
    await book_pickup(reserved.order_id, carrier, label_id)


# --- between the domains ------------------------------------------------------------------------------------

shipping = Service(
    "shipping",
    team="shipping",
    on_call="shipping@example.com",
    publishes=[*dispatch.PUBLISHES, ShipmentScheduled, ShipmentFailed],
    workflows=[send],
    migrations=dispatch.MIGRATIONS,
)
shipping.provide(dispatch.carrier)


@shipping.on(InventoryReserved)
async def begin(event: InventoryReserved, tx: Transaction) -> None:
    await tx.start(send, event, id=event.order_id)


@shipping.on(CancelShipment, ShipmentFailed, compensates=begin, retry=dispatch.UNDO, timeout=PATIENCE)
async def withdraw(
    event: CancelShipment | ShipmentFailed, carrier: Carrier, attempt: Attempt, done: Done[None] | None
) -> ShipmentCancelled | ShipmentHandedOver | None:
    """What the saga came to is looked up at the carrier."""
    if done is not None:
        await ended(send, event.order_id)
    return await dispatch.withdraw(event, carrier, attempt, Unknown(done.attempt) if done is not None else None)


@shipping.on(ShipmentCancelled)
async def leave_the_pickup(event: ShipmentCancelled, tx: Transaction) -> None:
    await tx.execute("DELETE FROM pickups WHERE order_id = :order_id", order_id=event.order_id)


shipping.on(
    ShipmentScheduled,
    ShipmentFailed,
    ShipmentCancelled,
    ShipmentHandedOver,
    ShipmentDelivered,
    once_by="order_id",
)(dispatch.keep_books)
