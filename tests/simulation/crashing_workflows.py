"""A workflow in a process that can be killed: started (or found again) by its id, run, and its result printed.

usage: python -m tests.simulation.crashing_workflows FOLDER

Every step writes a line into ``FOLDER/ledger`` before it returns, as the world outside would remember it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from skald import App, Retry, RuntimeSettings, Service, step, workflow
from skald.errors import StepFailed
from skald.workflows import context

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
MANY = 30


class Order(msgspec.Struct, frozen=True):
    id: str
    items: list[str]


def ledger(line: str) -> None:
    file = os.open(FOLDER / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, f"{line}\n".encode())
    os.close(file)


@step
async def charge(order: Order) -> str:
    ledger(f"charge {order.id} {context.attempt().key}")
    return f"{order.id} paid"


@step
def reserve(order: Order, item: str) -> str:
    ledger(f"reserve {order.id} {item}")
    return f"{item} reserved"


@step(retry=Retry(immediate=2, delays=()))
async def insure(order: Order) -> str:
    ledger(f"insure {order.id}")
    raise LookupError(f"no insurer for {order.id}")


@step
async def draw(order: Order) -> str:
    number = os.urandom(8).hex()
    ledger(f"draw {order.id} {number}")
    return number


@step
async def ship(order: Order, parts: list[str], number: str) -> list[str]:
    ledger(f"ship {order.id} {number}")
    return [*parts, f"{order.id} shipped", number]


@workflow
async def fulfil(order: Order) -> list[str]:
    async with asyncio.TaskGroup() as group:
        parts = [group.create_task(reserve(order, item)) for item in order.items]
        paid = group.create_task(charge(order))
    try:
        await insure(order)
    except StepFailed as error:
        note = error.message
    await asyncio.sleep(0.01)  # sleep: a durable timer
    number = await draw(order)
    return await ship(order, [paid.result(), *(part.result() for part in parts), note], number)


def expected(order: Order) -> list[str]:
    """The result, but for the number that was drawn."""
    items = [f"{item} reserved" for item in order.items]
    return [f"{order.id} paid", *items, f"no insurer for {order.id}", f"{order.id} shipped"]


STEPS = ["charge", "draw", "insure", "reserve", "reserve", "ship"]
"""Journalled, by name."""
ORDERS = [Order(f"order-{n}", ["tea", "pot"]) for n in range(MANY)]


async def main(count: int) -> None:
    orders = Service("orders", workflows=[fulfil])
    app = App(orders, store=f"sqlite:{FOLDER}", settings=RuntimeSettings(lease=2.0))
    await app.migrate()
    async with app.run():
        results = await asyncio.gather(*(fulfil.run(order, id=order.id) for order in ORDERS[:count]))
    print(msgspec.json.encode(results).decode())


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[2])))
