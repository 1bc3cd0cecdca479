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
from skald import Attempt, Retry, Service, Transaction

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
    """No attempt is left and nobody knows whether the card was charged; ``refund`` sees to that."""
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


@payments.on(InventoryRejected, InventoryReleased, PaymentFailed, retry=UNDO)
async def refund(
    event: InventoryRejected | InventoryReleased | PaymentFailed, gateway: CardGateway, attempt: Attempt
) -> PaymentRefunded | None:
    """Gives back what was charged, if anything was. The gateway then refuses any later charge for this order."""
    if isinstance(event, PaymentFailed) and not event.unknown:
        return None
    answer = await gateway.refund(event.order_id, event.reason, key=attempt.key)
    if answer.status != "done":
        return None
    return PaymentRefunded(event.order_id, event.reason, answer.original, answer.id, answer.amount)


@payments.on(PaymentProcessed, PaymentFailed, PaymentRefunded)
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
