"""Payment: is the order plausible, then the charge.

Whether a charge without an answer was made is not for the saga to find out: it tells that nobody knows, and what gives
the money back asks the gateway, is tried for long, and is parked for a person if that does not help.
"""

from __future__ import annotations

from examples.shop import payments as till
from examples.shop.hybrid.ended import PATIENCE, ended
from examples.shop.messages import (
    InventoryRejected,
    InventoryReleased,
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
)
from examples.shop.providers.clients import CardGateway, Unavailable
from examples.shop.settings import settings
from skald import (
    NEVER,
    Attempt,
    CompensationFailed,
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

STOLEN = {"card-stolen"}
MOST = 50_000_00
"""Cents of one order that nobody has to look at."""

bank = CardGateway(settings.keyed_url, settings.patience)


class Suspicious(Exception):
    """No card is charged for this order."""


class Declined(Exception):
    """The card gateway says no."""


# --- the saga -----------------------------------------------------------------------------------------------


@compensation(transactional=True, guarantee="exactly_once")
async def tell_failure(placed: OrderPlaced, failed: FailedExecution) -> None:
    """Undone last, when nothing is left of the payment, or nobody knows whether there is."""
    unknown = failed.type == Unavailable.__name__
    reason = f"the card gateway does not answer ({failed.message})" if unknown else failed.message
    workflows.transaction().publish(PaymentFailed(placed.order_id, reason, unknown))


@step(compensate=tell_failure)
async def begun(placed: OrderPlaced) -> None:
    """Nothing is done yet; here is what there is to tell if nothing comes of it."""


@step(retry=NEVER)
async def check_fraud(placed: OrderPlaced) -> None:
    if placed.order.card in STOLEN:
        raise Suspicious("card declined: reported as stolen")
    if placed.order.total > MOST:
        raise Suspicious("card declined: the amount has to be agreed with the bank")


@compensation(retry=till.UNDO, guarantee="exactly_once")
async def give_back(placed: OrderPlaced, failed: FailedExecution) -> None:
    """Charged, and then the saga was cancelled or cut off."""
    await bank.refund(placed.order_id, failed.message, key=workflows.attempt().key)


@step(retry={Declined: NEVER, "*": till.CHARGE}, compensate=give_back)
async def charge(placed: OrderPlaced) -> str:
    order = placed.order
    answer = await bank.charge(placed.order_id, order.card, order.total, key=workflows.attempt().key)
    if answer.status != "done":
        raise Declined(f"card {answer.status}: {answer.reason}")
    return answer.id


@step(transactional=True)
async def tell_charged(placed: OrderPlaced, charge_id: str) -> None:
    workflows.transaction().publish(PaymentProcessed(placed.order_id, placed.order, charge_id))


@saga
async def pay(placed: OrderPlaced) -> None:
    await begun(placed)
    await check_fraud(placed)
    await tell_charged(placed, await charge(placed))


# --- between the domains ------------------------------------------------------------------------------------

payments = Service(
    "payments",
    team="payments",
    on_call="payments@example.com",
    publishes=[PaymentProcessed, PaymentFailed],
    workflows=[pay],
    migrations=till.MIGRATIONS,
)
payments.provide(till.card_gateway)


@payments.on(OrderPlaced)
async def begin(event: OrderPlaced, tx: Transaction) -> None:
    await tx.start(pay, event, id=event.order_id)


@payments.on(InventoryRejected, InventoryReleased, PaymentFailed, compensates=begin, retry=till.UNDO, timeout=PATIENCE)
async def refund(
    event: InventoryRejected | InventoryReleased | PaymentFailed,
    gateway: CardGateway,
    attempt: Attempt,
    done: Done[None] | None,
) -> PaymentRefunded | PaymentFailed | None:
    """What the saga came to is looked up at the gateway, unless the saga itself has told that nothing is left of it."""
    if isinstance(event, PaymentFailed) and not event.unknown:
        return None
    if done is not None:
        await ended(pay, event.order_id)
    return await till.refund(event, gateway, attempt, Unknown(done.attempt) if done is not None else None)


payments.on(PaymentProcessed, PaymentFailed, PaymentRefunded, once_by="order_id")(till.keep_books)
payments.on(CompensationFailed, PaymentFailed, PaymentRefunded)(till.keep_tasks)
