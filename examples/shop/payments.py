"""Payments: charges the card when an order was placed, and gives the money back when the order comes to
nothing.

A handler that calls the card gateway holds no transaction. Its attempt's key makes the repeat of a call
harmless, what it returns is published, and the service reads its own events to keep its books.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from examples.shop.messages import (
    InventoryRejected,
    InventoryReleased,
    InventoryReserved,
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
)
from examples.shop.providers.clients import CardGateway
from examples.shop.settings import settings
from skald import Attempt, CompensationFailed, Done, Retry, Service, Transaction, Unknown

MIGRATIONS = Path(__file__).with_name("migrations") / "payments"
CHARGE = Retry(immediate=1, delays=settings.charge_delays)
UNDO = Retry(immediate=1, delays=settings.undo_delays)

payments = Service("payments", team="payments", on_call="payments@example.com", migrations=MIGRATIONS)


@payments.provide
async def card_gateway() -> AsyncIterator[CardGateway]:
    client = CardGateway(settings.keyed_url, settings.patience)
    yield client
    await client.close()


def unreachable(event: OrderPlaced | InventoryReserved, error: Exception) -> PaymentFailed:
    """No attempt is left and nobody knows whether the card was charged; ``refund`` asks."""
    return PaymentFailed(event.order_id, reason=f"the card gateway does not answer ({error})", unknown=True)


@payments.on(OrderPlaced, retry=CHARGE, exhausted=unreachable)
async def charge(
    event: OrderPlaced | InventoryReserved, gateway: CardGateway, attempt: Attempt
) -> PaymentProcessed | PaymentFailed:
    order = event.order
    answer = await gateway.charge(event.order_id, order.card, order.total, key=attempt.key)
    if answer.status != "done":
        return PaymentFailed(event.order_id, reason=f"card {answer.status}: {answer.reason}")
    return PaymentProcessed(event.order_id, order, answer.id)


@payments.on(InventoryRejected, InventoryReleased, PaymentFailed, compensates=charge, retry=UNDO)
async def refund(
    event: InventoryRejected | InventoryReleased | PaymentFailed,
    gateway: CardGateway,
    attempt: Attempt,
    done: Done[PaymentProcessed] | Unknown | None,
) -> PaymentRefunded | PaymentFailed | None:
    """Gives back what was charged. Where nobody knows, the gateway looks it up, and refuses any later charge for this
    order. Where nothing was charged nothing will be, and the order hears of that.
    """
    nothing = PaymentFailed(event.order_id, event.reason)
    if done is None:
        return None if isinstance(event, PaymentFailed) else nothing
    answer = await gateway.refund(event.order_id, event.reason, key=attempt.key)
    if answer.status != "done":
        return nothing
    return PaymentRefunded(event.order_id, event.reason, answer.original, answer.id, answer.amount)


@payments.on(PaymentProcessed, PaymentFailed, PaymentRefunded, once_by="order_id")
async def keep_books(event: PaymentProcessed | PaymentFailed | PaymentRefunded, tx: Transaction) -> None:
    match event:
        case PaymentProcessed():
            row = {"status": "CHARGED", "amount": event.order.total, "charge_id": event.charge_id}
        case PaymentFailed():
            row = {"status": "FAILED", "amount": 0, "reason": event.reason}
        case PaymentRefunded():
            row = {"status": "REFUNDED", "amount": event.amount, "charge_id": event.charge_id}
            row |= {"refund_id": event.refund_id, "reason": event.reason}
    await tx.execute(
        "INSERT INTO payments (order_id, status, amount, charge_id, refund_id, reason)"
        " VALUES (:order_id, :status, :amount, :charge_id, :refund_id, :reason)"
        " ON CONFLICT (order_id) DO UPDATE SET status = excluded.status, amount = excluded.amount,"
        " charge_id = excluded.charge_id, refund_id = excluded.refund_id, reason = excluded.reason",
        **{"order_id": event.order_id, "charge_id": None, "refund_id": None, "reason": None, **row},
    )


@payments.on(CompensationFailed, PaymentFailed, PaymentRefunded)
async def keep_tasks(event: CompensationFailed | PaymentFailed | PaymentRefunded, tx: Transaction) -> None:
    """What the team has to do by hand: a refund that was given up. It is parked here; ``skald parked`` shows and
    redrives it, and what comes of that closes the task.
    """
    if not isinstance(event, CompensationFailed):
        await tx.execute("UPDATE tasks SET status = 'DONE' WHERE order_id = :order_id", order_id=event.order_id)
    elif event.service == "payments":
        await tx.execute(
            "INSERT INTO tasks (order_id, status, what, error, message_id, opened_at)"
            " VALUES (:order_id, 'OPEN', :what, :error, :message_id, :now)"
            " ON CONFLICT (order_id) DO UPDATE SET status = 'OPEN', error = excluded.error",
            order_id=event.key,
            what=f"{event.handler} of {event.compensates}",
            error=event.error,
            message_id=event.message_id,
            now=await tx.now(),
        )
