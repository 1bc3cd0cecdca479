"""Notifications: tells the customer by e-mail, SMS and push. Nobody waits for it, and nothing fails with it.

The provider honours no idempotency keys but can be asked: before anything is sent a second time, it is. A
message that cannot be delivered is tried again and then parked for a person; later ones to the same customer
about the same order wait behind it, those of other orders do not. A fact that comes once more as another message is
told once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from examples.shop.messages import (
    OrderCancelled,
    OrderCompleted,
    OrderConfirmed,
    OrderPlaced,
    PaymentProcessed,
)
from examples.shop.providers.clients import Messenger
from examples.shop.settings import settings
from skald import Attempt, Retry, Service

MIGRATIONS = Path(__file__).with_name("migrations") / "notifications"
AGAIN = Retry(immediate=1, delays=settings.notify_delays)

notifications = Service("notifications", team="shop", on_call="shop@example.com", migrations=MIGRATIONS)

Told = OrderPlaced | PaymentProcessed | OrderConfirmed | OrderCancelled | OrderCompleted


@notifications.provide
async def messenger() -> AsyncIterator[Messenger]:
    client = Messenger(settings.keyless_url, settings.patience)
    yield client
    await client.close()


@notifications.on(
    OrderPlaced, PaymentProcessed, OrderConfirmed, OrderCancelled, OrderCompleted, once_by="order_id", retry=AGAIN
)
async def email(event: Told, messenger: Messenger, attempt: Attempt) -> None:
    await _tell("email", event, messenger, attempt)


@notifications.on(OrderCancelled, once_by="order_id", retry=AGAIN)
async def sms(event: OrderCancelled, messenger: Messenger, attempt: Attempt) -> None:
    await _tell("sms", event, messenger, attempt)


@notifications.on(OrderConfirmed, OrderCompleted, once_by="order_id", retry=AGAIN)
async def push(event: OrderConfirmed | OrderCompleted, messenger: Messenger, attempt: Attempt) -> None:
    await _tell("push", event, messenger, attempt)


async def _tell(channel: str, event: Told, messenger: Messenger, attempt: Attempt) -> None:
    again = attempt.number > 1 or attempt.unknown
    if not (again and await messenger.sent(attempt.key)):
        customer = event.order.customer if isinstance(event, OrderPlaced | PaymentProcessed) else event.customer
        await messenger.send(channel, event.order_id, customer, text_for(event), reference=attempt.key)
    async with notifications.transaction() as tx:
        await tx.execute(
            "INSERT INTO sent (reference, order_id, channel, text)"
            " VALUES (:reference, :order_id, :channel, :text) ON CONFLICT DO NOTHING",
            reference=attempt.key,
            order_id=event.order_id,
            channel=channel,
            text=text_for(event),
        )


def text_for(event: Told) -> str:
    match event:
        case OrderPlaced():
            return f"We have your order and are working on it: {euros(event.order.total)}."
        case PaymentProcessed():
            return f"We have charged {euros(event.order.total)} to your card."
        case OrderConfirmed():
            return "Your order is confirmed and will be on its way soon."
        case OrderCancelled(refunded=refunded):
            back = f" {euros(refunded)} are on the way back to your card." if refunded else ""
            sorry = "We said that your order was confirmed. " if event.was_confirmed else ""
            return f"{sorry}Your order is cancelled: {event.reason}.{back}"
        case OrderCompleted():
            return "Your order was delivered. Thank you."


def euros(cents: int) -> str:
    return f"€{cents // 100}.{cents % 100:02}"
