"""A workflow of transactional and at-most-once steps, in a process that can be killed; its result is printed.

usage: python -m tests.simulation.crashing_steps FOLDER
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from skald import App, Event, RuntimeSettings, Service, step, workflow
from skald.errors import StepFailed
from skald.workflows import NOT_DONE, NotDone, attempt, blocking_transaction, transaction

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


class Paid(Event, key="order"):
    order: str


def ledger(line: str) -> None:
    """What the world outside remembers."""
    file = os.open(FOLDER / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, f"{line}\n".encode())
    os.close(file)


@step(transactional=True)
async def pay(order: str) -> int:
    await transaction().execute("INSERT INTO payments VALUES (:name)", name=f"pay {order}")
    transaction().publish(Paid(order))
    return len(await transaction().fetch("SELECT name FROM payments"))


@step(transactional=True)
def book(order: str) -> str:
    blocking_transaction().execute("INSERT INTO payments VALUES (:name)", name=f"book {order}")
    return "booked"


@step(at_most_once=True)
async def call_once(order: str) -> str:
    ledger("called once")
    return "called"


def look_up(order: str) -> str | NotDone:
    done = (FOLDER / "ledger").exists() and attempt().key in (FOLDER / "ledger").read_text()
    return "found" if done else NOT_DONE


@step(at_most_once=True, lookup=look_up)
async def call(order: str) -> str:
    ledger(attempt().key)
    return "called"


@step
async def count(order: str) -> int:
    done = attempt().progress or 0
    for n in range(done, 3):
        attempt().heartbeat(n + 1)
        await asyncio.sleep(0)
    return 3


@workflow
async def fulfil(order: str) -> list[bool | int | str]:
    paid, booked, counted = await asyncio.gather(pay(order), book(order), count(order))
    try:
        once = await call_once(order)
    except StepFailed as error:
        once = error.type
    return [paid > 0, booked, counted, once, await call(order)]


async def main() -> None:
    orders = Service("orders", workflows=[fulfil], publishes=[Paid])
    app = App(orders, store=f"sqlite:{FOLDER}", settings=RuntimeSettings(lease=2.0))
    await app.migrate()
    async with app.run():
        async with orders.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS payments (name TEXT)")
        print(msgspec.json.encode(await fulfil.run("o-1", id="o-1")).decode())


if __name__ == "__main__":
    asyncio.run(main())
