"""Handlers and workflows of one service in one process: what a handler starts begins, and what answers a call arrives,
without a look at the tables, which say the same to whoever takes over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

import pytest

from skald import App, Command, Event, RuntimeSettings, Service, Transaction, call, step, workflow, workflows
from skald.errors import StoreUnavailable, WorkflowExists
from skald.message import Record
from skald.messaging.consumer import ConsumerSettings
from skald.unit import WorkflowStart
from skald.workflows import Signal, journal
from skald.workflows.executor import ExecutorSettings
from skald.workflows.local import Local
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.flaky import Flaky, FlakyApp
from tests.simulation.stage import eventually, seed

CONSUMER = ConsumerSettings(patience=0.1, poll=0.05, checkpoint=0.05)
BLIND = RuntimeSettings(lease=5.0, consumer=CONSUMER, workflows=ExecutorSettings(poll=600.0))
"""Nobody looks at the tables of the workflows unless a bell rings."""
QUICK = RuntimeSettings(lease=1.0, consumer=CONSUMER, workflows=ExecutorSettings(poll=0.05))


class Placed(Event, key="order"):
    order: str
    how: str = ""


class Reserved(Event, key="order"):
    order: str


class Reserve(Command[Reserved], key="order"):
    order: str


go = Signal("go", str)


@workflow
async def fulfil(order: str) -> str:
    await call(Reserve(order))
    return (await call(Reserve(f"{order}, again"))).order


@workflow
async def waiting(order: str) -> str:
    return await go.receive()


@workflow
async def other(order: str) -> str:
    return order


class Wanted(Event, key="order"):
    order: str


class Noted(Event, key="order"):
    order: str


class Said(Event, key="order"):
    order: str


orders_of_this_test: ContextVar[Service] = ContextVar("orders_of_this_test")


@step(transactional=True)
async def note(order: str) -> None:
    workflows.transaction().publish(Noted(order))


@step
async def say(order: str) -> None:
    await orders_of_this_test.get().publish(Said(order))


@workflow
async def part(order: str) -> None:
    await call(Reserve(order))


@workflow
async def whole(order: str) -> str:
    if order.startswith("again "):
        await part.run(order.removeprefix("again "))
        await say(order)
        await note(order)
        return await go.receive()
    return workflows.continue_as_new(f"again {order}")


class Shop:
    """Orders whose handler does with the transaction what the message asks for, and a stock."""

    def __init__(self, url: str, settings: RuntimeSettings, app: Any = App, **options: Any) -> None:
        self.orders = orders = Service(
            "orders",
            publishes=[Placed, Wanted, Noted, Said],
            workflows=[fulfil, waiting, other, whole, part],
            calls=[Reserve],
            lanes=1,
        )
        self.stock = Service("stock", lanes=1)
        self.app = app(orders, self.stock, store=url, settings=settings, **options)
        self.refused: list[str] = []

        @orders.on(Placed)
        async def placed(event: Placed, tx: Transaction) -> None:
            await getattr(self, f"start_{event.how or 'fulfil'}")(event.order, tx)

        @orders.on(Wanted)
        async def wanted(event: Wanted) -> None:
            await whole.start(event.order, id=event.order)

        @self.stock.on(Reserve)
        async def reserve(command: Reserve) -> Reserved:
            return Reserved(command.order)

    async def start_fulfil(self, order: str, tx: Transaction) -> None:
        await tx.start(fulfil, order, id=order)

    async def start_waiting(self, order: str, tx: Transaction) -> None:
        await tx.start(waiting, order, id=order)

    async def start_whole(self, order: str, tx: Transaction) -> None:
        await tx.start(whole, order, id=order)

    async def start_told(self, order: str, tx: Transaction) -> None:
        await tx.start(waiting, order, id=order)
        await tx.signal(go, "told with its start", id=order)

    async def start_undone(self, order: str, tx: Transaction) -> None:
        await tx.start(other, order, id=f"{order}, before")
        try:
            async with tx.savepoint():
                await tx.start(other, order, id=f"{order}, within")
                raise LookupError
        except LookupError:
            await tx.start(other, order, id=f"{order}, after")

    async def start_twice(self, order: str, tx: Transaction) -> None:
        await tx.start(other, "first", id=order)
        await tx.start(other, "second", id=order)

    async def start_refused(self, order: str, tx: Transaction) -> None:
        await tx.start(other, "first", id=order)
        try:
            await tx.start(other, "second", id=order, existing="reject")
        except WorkflowExists as error:
            self.refused.append(error.id)

    async def start_raising(self, order: str, tx: Transaction) -> None:
        await tx.start(other, order, id=f"{order} {len(self.refused)}")
        if not self.refused:
            self.refused.append(order)
            raise LookupError(order)

    async def workflows(self) -> dict[str, str]:
        return {row["id"]: row["state"] for row in await self.orders.fetch("SELECT id, state FROM skald_workflows")}


async def test_nothing_is_claimed_and_no_letter_is_read(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    looks: list[str] = []

    def note(name: str) -> None:
        original = getattr(journal, name)

        async def noted(*given: Any) -> Any:
            looks.append(name)
            return await original(*given)

        monkeypatch.setattr(journal, name, noted)

    for name in ("claim", "letters", "mine"):
        note(name)
    it = Shop(store_url, BLIND)
    await it.app.migrate()
    async with it.app.run():
        await asyncio.gather(*(it.orders.publish(Placed(f"o{n}")) for n in range(70)))
        await eventually(lambda: _ended(it, 70))
        for n in range(70):
            assert await fulfil.handle(f"o{n}").result() == f"o{n}, again"
        assert looks == []
        assert await it.orders.fetch("SELECT id FROM skald_letters") == []


async def _ended(it: Shop, count: int) -> bool:
    states = await it.workflows()
    return len(states) == count and set(states.values()) == {"completed"}


async def test_a_signal_that_comes_with_the_start_is_heard(store_url: str) -> None:  # noqa: F811
    it = Shop(store_url, BLIND)
    await it.app.migrate()
    async with it.app.run():
        await it.orders.publish(Placed("o", "told"))
        await eventually(lambda: _ended(it, 1))
        assert await waiting.handle("o").result() == "told with its start"


async def test_a_signal_that_came_before_the_start_is_heard(store_url: str) -> None:  # noqa: F811
    it = Shop(store_url, BLIND)
    await it.app.migrate()
    async with it.app.run() as [running, _]:
        await it.orders.signal(go, "told before", id="o")
        assert running.executor is not None
        await running.executor.looked()
        await it.orders.publish(Placed("o", "waiting"))
        await eventually(lambda: _ended(it, 1))
        assert await waiting.handle("o").result() == "told before"


async def test_a_savepoint_undoes_what_was_started_in_it(store_url: str) -> None:  # noqa: F811
    it = Shop(store_url, BLIND)
    await it.app.migrate()
    async with it.app.run():
        await it.orders.publish(Placed("o", "undone"))
        await eventually(lambda: _ended(it, 2))
        assert set(await it.workflows()) == {"o, before", "o, after"}


async def test_the_first_of_an_id_runs(store_url: str) -> None:  # noqa: F811
    it = Shop(store_url, BLIND)
    await it.app.migrate()
    async with it.app.run():
        await it.orders.publish(Placed("a", "twice"), Placed("b", "refused"), Placed("a", "twice"), Placed("b"))
        await eventually(lambda: _ended(it, 2))
        assert it.refused == ["b"]
        assert [await other.handle(id).result() for id in "ab"] == ["first", "first"]


async def test_what_a_handler_starts_before_it_fails_never_runs(store_url: str) -> None:  # noqa: F811
    it = Shop(store_url, BLIND)
    await it.app.migrate()
    async with it.app.run():
        await it.orders.publish(Placed("o", "raising"), Placed("p", "twice"))
        await eventually(lambda: _ended(it, 2))
        assert set(await it.workflows()) == {"o 1", "p"}


async def test_each_runs_once_on_a_database_that_fails(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Also where a transaction was committed, and nobody was told."""
    for module in ("consumer.LONGEST_PAUSE", "deliverer.LONGEST_PAUSE"):
        monkeypatch.setattr(f"skald.messaging.{module}", 0.1)
    for module in ("turner", "executor"):
        monkeypatch.setattr(f"skald.workflows.{module}.PAUSE", 0.1)
    it = Shop(store_url, QUICK, FlakyApp, chance=random.Random(seed()), flaky=["orders"])
    await it.app.migrate()
    async with it.app.run() as [running, _]:
        executor = running.executor
        assert executor is not None
        it.app.fail(0.2)
        await asyncio.gather(*(_publish(it, n) for n in range(60)))
        await eventually(lambda: _many(it.app, 5))
        it.app.fail(0)
        await eventually(lambda: _ended(it, 60))
        assert len(await _commands(it)) == 120
        assert not executor.turner.live


async def test_one_that_was_committed_without_a_word_of_it_is_looked_for(
    store_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost: list[str] = []

    def lose_one(self: Flaky, what: str) -> None:
        if what == "after a transaction" and not lost:
            lost.append(what)
            raise StoreUnavailable(what)

    it = Shop(store_url, BLIND, FlakyApp, chance=random.Random(seed()), flaky=["orders"])
    await it.app.migrate()
    async with it.app.run("orders"):
        await it.orders.publish(Placed("first", "twice"))
        await eventually(lambda: _ended(it, 1))
        monkeypatch.setattr(Flaky, "_roll", lose_one)  # from now on handlers alone have transactions
        await it.orders.publish(Placed("second", "twice"))
        await eventually(lambda: _ended(it, 2))
    assert lost


async def _publish(it: Shop, n: int) -> None:
    """Perhaps twice: what has failed may have been committed."""
    while True:
        try:
            await it.orders.publish(Placed(f"o{n}"))
            return
        except StoreUnavailable:
            continue


async def _many(app: FlakyApp, count: int) -> bool:
    return app.failures >= count


async def _commands(it: Shop) -> list[Record]:
    return [record for record in await it.orders.store.log.read(0, 10_000) if record.type == "Reserve"]


async def test_who_leaves_memory_before_the_answer_is_told_is_brought_back(
    store_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[str | None] = []
    answer = Local.answer

    def leave_first(self: Local, events: Iterable[Record]) -> None:
        events = list(events)
        left.extend(event.causation_id for event in events)
        # In the moment between the commit of the answer and the news of it.
        asyncio.get_running_loop().call_soon(self._turner.evict, -1.0, context=self._turner.context)
        answer(self, events)

    monkeypatch.setattr(Local, "answer", leave_first)
    it = Shop(store_url, QUICK)
    await it.app.migrate()
    async with it.app.run():
        await asyncio.gather(*(it.orders.publish(Placed(f"o{n}")) for n in range(5)))
        await eventually(lambda: _ended(it, 5))
    assert len(left) == len(set(left)) > 0


async def test_what_was_committed_and_not_begun_is_begun_by_the_next_process(
    store_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[WorkflowStart] = []

    def forget(self: Local, starts: Iterable[WorkflowStart]) -> None:
        begun.extend(starts)

    it = Shop(store_url, QUICK)
    await it.app.migrate()
    with monkeypatch.context() as patch:
        patch.setattr(Local, "begin", forget)
        async with it.app.run() as [running, _]:
            await asyncio.gather(*(it.orders.publish(Placed(f"o{n}")) for n in range(5)))
            await eventually(lambda: _all_started(it, 5))
            assert {start.owner for start in begun} == {running.member.id}
            assert not await _commands(it)
    async with it.app.run():
        await eventually(lambda: _ended(it, 5))


async def _all_started(it: Shop, count: int) -> bool:
    return len(await it.workflows()) == count


async def test_one_that_has_no_room_leaves_it_to_whoever_has(
    store_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owned: list[str] = []
    begin = Local.begin

    def note(self: Local, starts: Iterable[WorkflowStart]) -> None:
        starts = list(starts)
        owned.extend(start.id for start in starts)
        begin(self, starts)

    monkeypatch.setattr(Local, "begin", note)
    full = RuntimeSettings(lease=1.0, consumer=CONSUMER, workflows=ExecutorSettings(poll=0.05, max_taken=1))
    it = Shop(store_url, full)
    await it.app.migrate()
    async with it.app.run():
        first = await waiting.start("w", id="w")
        await it.orders.publish(*(Placed(f"o{n}") for n in range(40)))
        await eventually(lambda: _ended_but(it, 40, "w"))
        await first.signal(go, "go")
        assert await first.result() == "go"
    assert owned == []


async def _ended_but(it: Shop, count: int, id: str) -> bool:
    states = await it.workflows()
    return states.pop(id) == "running" and len(states) == count and set(states.values()) == {"completed"}


@pytest.mark.parametrize("first", [Placed("o", "whole"), Wanted("o")])
async def test_all_that_follows_has_the_correlation_of_what_it_was_started_for(
    store_url: str,  # noqa: F811
    first: Placed | Wanted,
) -> None:
    """With what it calls, what its child calls, what it publishes, after it has begun anew, and in another process."""
    it = Shop(store_url, QUICK)
    await it.app.migrate()

    orders_of_this_test.set(it.orders)

    async def records() -> dict[str, Record]:
        logs = [service.store.log for service in (it.orders, it.stock)]
        return {record.type: record for log in logs for record in await log.read(0, 100)}

    async def are_noted() -> bool:
        return "Noted" in await records()

    async with it.app.run():
        await it.orders.publish(first)
        await eventually(are_noted)
    async with it.app.run():
        found = await records()
        name = type(first).__name__
        assert set(found) == {name, "Reserve", "Reserved", "Said", "Noted"}
        assert {record.correlation_id for record in found.values()} == {found[name].id}
        assert len({(record.traceparent or "")[:35] for record in found.values()}) == 1
        rows = await it.orders.fetch("SELECT DISTINCT correlation FROM skald_workflows")
        assert rows == [{"correlation": found[name].id}]
        await whole.handle("o").signal(go, "end")
        assert await whole.handle("o").result() == "end"
