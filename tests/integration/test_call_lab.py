"""Calls in the laboratory: the services that are called run in it, and every commit of the caller fails in turn."""

from __future__ import annotations

import pytest

from skald import NEVER, Command, Done, Event, Retry, SagaCompensated, Service, call, saga, step
from skald.messaging.calls import is_called
from skald.testing.workflows import Lab, crash_everywhere, laboratory
from skald.workflows import Signal


class Reserved(Event, key="order"):
    order: str


class Reserve(Command[Reserved], key="order"):
    order: str


class Release(Command[None], key="order"):
    order: str


class Pay(Command[None], key="order"):
    order: str


go = Signal("go", str)


@step
async def prepare(order: str) -> str:
    return order


@saga
async def fulfil(order: str) -> str:
    await prepare(order)
    await call(Reserve(order), timeout=60, compensate=Release(order))
    await prepare(order)
    await call(Pay(order), timeout=60)
    if order.startswith("last"):
        raise ValueError("at last")
    return order


class Stock:
    def __init__(self) -> None:
        self.orders = Service("orders", workflows=[fulfil], calls=[Reserve, Release, Pay])
        self.stock = Service("stock")
        self.done: list[str] = []
        self.fails = 0

        @self.stock.on(Reserve, retry=Retry(immediate=1, delays=(90,)))
        def reserve(command: Reserve) -> Reserved:
            if self.fails:
                self.fails -= 1
                raise OSError("not now")
            self.done.append(f"reserve {command.order}")
            return Reserved(command.order)

        @self.stock.on(Release, compensates=reserve, retry=NEVER)
        def release(command: Release, done: Done[Reserved]) -> None:
            self.done.append(f"release {command.order}")

        @self.stock.on(Pay, retry=NEVER)
        def pay(command: Pay) -> None:
            if command.order.startswith("never"):
                raise OSError("never")
            self.done.append(f"pay {command.order}")


@pytest.fixture
def it() -> Stock:
    return Stock()


async def sent(it: Stock) -> int:
    found = [record.id for record in await it.orders.store.log.read(0, 1_000) if is_called(record.id)]
    assert len(set(found)) == len(found)
    return len(found)


@pytest.mark.parametrize("idle", [3_600.0, 0.0])
async def test_answers_need_no_clock(it: Stock, idle: float) -> None:
    async with laboratory(it.orders, it.stock, idle=idle) as lab:
        began = lab.clock.now()
        handle = await fulfil.start("o-1", id="o-1")
        assert await lab.result(handle) == "o-1"
        assert lab.clock.now() - began < 60_000_000
        assert it.done == ["reserve o-1", "pay o-1"]


async def test_an_answer_that_is_late(it: Stock) -> None:
    """It is tried again after 90 seconds, but its compensation has discarded it by then."""
    it.fails = 1
    async with laboratory(it.orders, it.stock) as lab:
        handle = await fulfil.start("o-1", id="o-1")
        with pytest.raises(SagaCompensated, match="Reserve has failed: TimeoutError: no answer within 60 s"):
            await lab.result(handle)
        await lab.advance(600)
        assert it.done == []


async def test_an_answer_that_never_comes(it: Stock) -> None:
    async with laboratory(it.orders, it.stock) as lab:
        handle = await fulfil.start("never", id="never")
        with pytest.raises(SagaCompensated, match="Pay has failed: TimeoutError"):
            await lab.result(handle)
        assert it.done == ["reserve never", "release never"]


@pytest.mark.parametrize("order", ["o-1", "last-1"])
async def test_every_command_is_sent_once_whichever_commit_fails(order: str) -> None:
    it = Stock()

    async def scenario(lab: Lab) -> list[str]:
        handle = await fulfil.start(order, id=order)
        try:
            await lab.result(handle)
        except SagaCompensated:
            assert order == "last-1"
        assert await sent(it) == (2 if order == "o-1" else 3)
        assert await it.orders.fetch("SELECT id FROM skald_letters") == []
        done, it.done = it.done, []
        return done

    played = await crash_everywhere(scenario, it.orders, it.stock)
    assert len(played) > 8
    expected = [f"reserve {order}", f"pay {order}", *([f"release {order}"] if order == "last-1" else [])]
    assert all(done == expected for done in played)
