"""Two services: ``baskets`` tells, ``greetings`` listens. The two programs beside this file publish for the first one.

skald migrate examples.publishing.baskets:app
skald run examples.publishing.baskets:app
"""

from __future__ import annotations

from pathlib import Path

from skald import App, Event, Service, Transaction

MIGRATIONS = Path(__file__).parent / "migrations"


class BasketOpened(Event, key="basket_id"):
    basket_id: str
    customer: str


class CustomerGreeted(Event, key="basket_id"):
    basket_id: str
    text: str


baskets = Service("baskets", publishes=[BasketOpened], migrations=MIGRATIONS / "baskets")
greetings = Service("greetings")


@greetings.on(BasketOpened)
async def greet(event: BasketOpened) -> CustomerGreeted:
    return CustomerGreeted(event.basket_id, f"Welcome, {event.customer}!")


@baskets.on(CustomerGreeted)
async def note(event: CustomerGreeted, tx: Transaction) -> None:
    await tx.execute("UPDATE baskets SET greeting = :text WHERE id = :id", text=event.text, id=event.basket_id)


app = App(baskets, greetings)
