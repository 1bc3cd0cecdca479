"""Services that are called by a saga, for processes that are killed. Run by ``skald run``, or connected by a test.

What becomes of an order is said by its key: ``none…`` is sold out, ``poor…`` cannot be paid, ``hasty…`` does not wait
long for the stock, ``last…`` fails when everything is done.
"""

from __future__ import annotations

from skald import App, Command, Done, Event, Retry, RuntimeSettings, Service, Transaction, call, saga
from skald.messaging.consumer import ConsumerSettings
from skald.workflows.executor import ExecutorSettings
from tests.simulation.pipeline import OPTIONS, Options
from tests.simulation.stage import MIGRATIONS, effect


class Reserved(Event, key="order"):
    order: str


class SoldOut(Event, key="order"):
    order: str


class Released(Event, key="order"):
    order: str


class Paid(Event, key="order"):
    order: str


class Declined(Event, key="order"):
    order: str


class Reserve(Command[Reserved], key="order"):
    order: str


class Release(Command[Released], key="order"):
    order: str


class Pay(Command[Paid], key="order"):
    order: str


class Refund(Command[None], key="order"):
    order: str


@saga
async def fulfil(order: str) -> str:
    hasty = 0.2 if order.startswith("hasty") else None
    await call(Reserve(order), timeout=hasty, compensate=Release(order))
    await call(Pay(order), compensate=Refund(order))
    if order.startswith("last"):
        raise ValueError("at last")
    return order


def build(url: str | None = None, options: Options = OPTIONS) -> App:
    retry = Retry(immediate=2, delays=(0.05,) * options.delayed)
    orders = Service("orders", lanes=options.lanes, workflows=[fulfil], calls=[Reserve, Release, Pay, Refund])
    stock = Service("stock", migrations=MIGRATIONS, lanes=options.lanes)
    bank = Service("bank", migrations=MIGRATIONS, lanes=options.lanes)

    @stock.on(Reserve, retry=retry)
    async def reserve(command: Reserve, tx: Transaction) -> Reserved | SoldOut:
        if command.order.startswith("none"):
            return SoldOut(command.order)
        await effect(tx, "reserve", f"reserve {command.order}", command.order, 0)
        return Reserved(command.order)

    @stock.on(Release, retry=retry, compensates=reserve)
    async def release(command: Release, tx: Transaction, done: Done[Reserved]) -> Released:
        await effect(tx, "release", f"release {command.order}", command.order, 0)
        return Released(done.message.order)

    @bank.on(Pay, retry=retry, once_by="order")
    async def pay(command: Pay, tx: Transaction) -> Paid | Declined:
        if command.order.startswith("poor"):
            return Declined(command.order)
        await effect(tx, "pay", f"pay {command.order}", command.order, 0)
        return Paid(command.order)

    @bank.on(Refund, retry=retry, once_by="order")
    async def refund(command: Refund, tx: Transaction) -> None:
        await effect(tx, "refund", f"refund {command.order}", command.order, 0)

    consumer = ConsumerSettings(
        run=options.run, patience=options.patience, poll=options.poll, checkpoint=options.checkpoint
    )
    # So short that they leave memory while they wait, now and then.
    executor = ExecutorSettings(idle=0.02, poll=0.02)
    settings = RuntimeSettings(lease=options.lease, consumer=consumer, workflows=executor)
    return App(orders, stock, bank, store=url, settings=settings)


app = build()
