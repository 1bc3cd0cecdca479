"""What a type checker must accept of compensations and processes."""

from __future__ import annotations

from typing import assert_type

from skald import Attempt, CompensationFailed, Done, Event, Process, Service, Transaction, Unknown


class Placed(Event, key="order"):
    order: str


class Cancelled(Event, key="order"):
    order: str


class Charged(Event, key="order"):
    order: str
    amount: int


class Refunded(Event, key="order"):
    order: str
    amount: int


class Checkout(Process):
    order: str
    paid: bool = False
    step: str = "waiting"


payments = Service("payments", publishes=[Placed, Cancelled])


@payments.on(Placed, once_by="order", remember=30)
async def charge(event: Placed, attempt: Attempt) -> Charged:
    return Charged(event.order, 1)


@payments.on(Cancelled, compensates=charge)
async def refund(event: Cancelled, tx: Transaction, done: Done[Charged] | Unknown) -> Refunded | None:
    if isinstance(done, Unknown):
        assert_type(done.attempt, str)
        return None
    assert_type(done.message, Charged)
    assert_type(done.messages, tuple[Charged, ...])
    return Refunded(event.order, done.message.amount)


@payments.on(CompensationFailed)
async def attend(event: CompensationFailed) -> None:
    assert_type(event.handler, str)


def unknown_order(event: Charged) -> Refunded:
    return Refunded(event.order, event.amount)


checkout = payments.process(Checkout, by="order", not_found="park", remember=30)


@checkout.starts(Placed)
def placed(state: Checkout, event: Placed) -> None:
    state.timeout(60, "patience")


@checkout.on(Charged, not_found=unknown_order)
async def charged(state: Checkout, event: Charged, tx: Transaction) -> Refunded | None:
    state.paid = True
    state.cancel("patience")
    return None


@checkout.on_timeout("patience")
def too_late(state: Checkout) -> Cancelled:
    state.end()
    return Cancelled(state.order)


payments.process(int, by="order")  # type: ignore[type-var]
