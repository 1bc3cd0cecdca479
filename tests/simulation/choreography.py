"""Services that charge, refund and wait, for processes that are killed. Run by ``skald run``, or connected by a test.

``charge`` and ``refund`` write rows; ``hold`` and ``release`` ask somebody outside, who writes every request down in
the file that LEDGER names. A patient process waits for a moment, and says so.
"""

from __future__ import annotations

import os
from pathlib import Path

from skald import App, Attempt, Done, Event, Process, Retry, Service, Transaction, Unknown
from tests.simulation.pipeline import OPTIONS, Options, settings
from tests.simulation.stage import MIGRATIONS, effect


class Placed(Event, key="order"):
    order: str


class Cancelled(Event, key="order"):
    order: str


class Charged(Event, key="order"):
    order: str


class Refunded(Event, key="order"):
    order: str


class Held(Event, key="order"):
    order: str


class Released(Event, key="order"):
    order: str


class Waited(Event, key="order"):
    order: str


class Patience(Process):
    order: str


class Ledger:
    """The world outside: every request, in order."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def ask(self, key: str) -> None:
        with self._file.open("a") as file:
            file.write(f"{key}\n")

    def asked(self) -> list[str]:
        return self._file.read_text().split() if self._file.exists() else []


def build(url: str | None = None, options: Options = OPTIONS, ledger: str = os.environ.get("LEDGER", "")) -> App:
    retry = Retry(immediate=2, delays=(0.05,) * options.delayed)
    orders = Service("orders", publishes=[Placed])
    stock = Service("stock", publishes=[Cancelled])
    payments = Service("payments", migrations=MIGRATIONS, lanes=options.lanes)
    world = Ledger(ledger)

    @payments.on(Placed, retry=retry, once_by="order")
    async def charge(event: Placed, tx: Transaction) -> Charged:
        await effect(tx, "charge", f"charge {event.order}", event.order, 0)
        return Charged(event.order)

    @payments.on(Cancelled, retry=retry, compensates=charge)
    async def refund(event: Cancelled, tx: Transaction, done: Done[Charged]) -> Refunded:
        await effect(tx, "refund", f"refund {event.order}", event.order, 0)
        return Refunded(done.message.order)

    @payments.on(Placed, retry=retry)
    def hold(event: Placed, attempt: Attempt) -> Held:
        world.ask(attempt.key)
        return Held(event.order)

    @payments.on(Cancelled, retry=retry, compensates=hold)
    def release(event: Cancelled, attempt: Attempt, done: Done[Held] | Unknown) -> Released | None:
        if done.attempt not in world.asked():
            return None
        world.ask(attempt.key)
        return Released(event.order)

    patience = payments.process(Patience, by="order")

    @patience.starts(Placed)
    def begins(state: Patience, event: Placed) -> None:
        state.timeout(0.3, "patience")

    @patience.on_timeout("patience")
    def over(state: Patience) -> Waited:
        state.end()
        return Waited(state.order)

    return App(orders, stock, payments, store=url, settings=settings(options))


app = build()
