"""Commands that workflows call: sent once, and answered by the event that the handler publishes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from skald import NEVER, App, CallRejected, Command, Event, RuntimeSettings, Service, Transaction, call, step, workflow
from skald.errors import ConfigurationError, WorkflowFailed
from skald.messaging.calls import Handled, is_called
from skald.messaging.consumer import ConsumerSettings
from skald.operations.workflows import show_workflow
from skald.runtime.service import RunningService
from skald.workflows import Signal
from skald.workflows.executor import ExecutorSettings
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.stage import MIGRATIONS, effect, effects, eventually

SETTINGS = RuntimeSettings(
    lease=1.0,
    consumer=ConsumerSettings(patience=0.1, poll=0.05, checkpoint=0.05),
    workflows=ExecutorSettings(poll=0.05),
)


class Reserved(Event, key="order"):
    order: str
    shelf: int


class Rejected(Event, key="order"):
    order: str
    reason: str


class Reserve(Command[Reserved], key="order"):
    order: str
    items: int = 1


class Note(Command[None], key="order"):
    order: str


class Ask(Command, key="order"):
    order: str


go = Signal("go", str)


@step
async def prepare(order: str) -> str:
    return order


@workflow
async def fulfil(order: str, timeout: float | None = None) -> str:
    """A step, and a call behind it."""
    await prepare(order)
    try:
        reserved = await call(Reserve(order), timeout=timeout)
    except CallRejected as rejected:
        return f"{rejected.type}: {rejected.reply.reason}"
    return f"shelf {reserved.shelf}"


@workflow
async def at_once(order: str, items: int = 1) -> int:
    return (await call(Reserve(order, items))).shelf


@workflow
async def later(order: str) -> int:
    await asyncio.sleep(0.2)  # sleep: a durable timer
    return (await call(Reserve(order))).shelf


@workflow
async def impatient(order: str) -> str:
    try:
        await call(Reserve(order), timeout=0.05)
    except TimeoutError as error:
        return f"{await go.receive()}: {error}"
    return "in time"


@workflow
async def many(order: str) -> list[int]:
    calls = [call(Reserve(f"{order}-{n}", n)) for n in range(20)]
    return [reserved.shelf for reserved in await asyncio.gather(*calls)]


@workflow
async def twice(order: str) -> list[int]:
    first, second = await asyncio.gather(call(Reserve(order)), call(Reserve(order)))
    return [first.shelf, second.shelf, (await call(Reserve(order))).shelf]


@workflow
async def noting(order: str) -> list[Any]:
    return [await call(Note(order)), (await call(Ask(order))).reason]


@workflow
async def asking(order: str) -> list[Any]:
    reason = (await call(Ask(order))).reason
    return [reason, await call(Note(order)), (await call(Reserve(order))).shelf]


@workflow
async def refused(order: str) -> str:
    try:
        await call(Reserve(order, 0))
    except CallRejected as rejected:
        return f"{rejected.reply}: {rejected.message}"
    return "?"


@workflow
async def undeclared(order: str) -> None:
    await call(Other(order))


class Other(Command, key="order"):
    order: str


WORKFLOWS = [fulfil, at_once, later, impatient, many, twice, noting, refused, undeclared]


class Shop:
    """Orders that call, and a stock that answers."""

    def __init__(self, url: str, settings: RuntimeSettings = SETTINGS) -> None:
        self.orders = Service("orders", workflows=WORKFLOWS, calls=[Reserve, Note, Ask])
        self.stock = Service("stock", migrations=MIGRATIONS)
        self.app = App(self.orders, self.stock, store=url, settings=settings)
        self.open = asyncio.Event()
        self.open.set()
        self.came = asyncio.Event()
        self.generous = False

        @self.stock.on(Reserve, retry=NEVER)
        async def reserve(command: Reserve) -> Reserved | Rejected | None:
            self.came.set()
            await self.open.wait()
            if not command.items:
                return Reserved(command.order, 7) if self.generous else None
            if command.order.startswith("bad"):
                return Rejected(command.order, "sold out")
            return Reserved(command.order, command.items)

        @self.stock.on(Note, once_by="order")
        async def note(command: Note, tx: Transaction) -> None:
            await effect(tx, "note", command.order, command.order, 0)

        @self.stock.on(Ask)
        def ask(command: Ask) -> Rejected:
            return Rejected(command.order, "who knows")

    async def commands(self) -> list[tuple[str, str, str | None]]:
        """What was sent: type, correlation and cause."""
        found = [r for r in await self.orders.store.log.read(0, 10_000) if is_called(r.id)]
        assert len({r.id for r in found}) == len(found)
        assert {r.topic for r in found} <= {"stock.calls"}
        return [(r.type, r.correlation_id, r.causation_id) for r in found]

    async def letters(self) -> list[dict[str, Any]]:
        return await self.orders.fetch("SELECT id, kind, taken FROM skald_letters")

    async def answers(self) -> list[str]:
        return [r.type for r in await self.stock.store.log.read(0, 10_000)]

    async def read_again(self, reader: Service, origin: Service) -> None:
        """From the beginning of a log, as after a reset."""
        async with reader.transaction() as tx:
            await tx.execute(
                "UPDATE skald_cursors SET position = 0, message_id = NULL, version = version + 1 "
                "WHERE origin = :origin",
                origin=origin.name,
            )

    async def caught_up(self) -> None:
        async def check() -> bool:
            ends = {s.name: (await s.store.log.end())[0] for s in (self.orders, self.stock)}
            rows = [row for s in (self.orders, self.stock) for row in await s.fetch("SELECT * FROM skald_cursors")]
            return all(row["position"] == ends[row["origin"]] for row in rows)

        await eventually(check)


@asynccontextmanager
async def shop(url: str, settings: RuntimeSettings = SETTINGS) -> AsyncIterator[Shop]:
    found = Shop(url, settings)
    await found.app.migrate()
    async with found.app.run():
        yield found


async def test_a_call_is_answered_by_what_its_handler_publishes(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        assert await fulfil.run("o1", id="w1") == "shelf 1"
        assert await at_once.run("o2", id="w2") == 1
        [first, second] = await it.commands()
        runs = {row["id"]: str(row["run"]) for row in await it.orders.fetch("SELECT id, run FROM skald_workflows")}
        assert first == ("Reserve", "w1", runs["w1"])
        assert second == ("Reserve", "w2", runs["w2"])
        assert await it.letters() == []
        journal = await it.orders.fetch("SELECT kind, name FROM skald_journal WHERE run = :run", run=runs["w1"])
        assert [(row["kind"], row["name"]) for row in journal] == [(0, "prepare"), (11, "Reserve")]
        assert await it.answers() == ["Reserved", "Reserved"]


async def test_another_answer_is_a_rejection(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        assert await fulfil.run("bad", id="w1") == "Rejected: sold out"
        with pytest.raises(WorkflowFailed, match="sold out"):
            await at_once.run("bad", id="w2")
        assert await it.letters() == []


async def test_a_handler_that_publishes_nothing_answers_all_the_same(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        assert await noting.run("o1", id="w1") == [None, "who knows"]
        assert [row["id"] for row in await effects(it.stock, "note")] == ["o1"]
        assert await it.answers() == ["skald.Handled", "Rejected"]
        assert await refused.run("o2", id="w2") == "None: its handler has published nothing"


async def test_who_answers_may_be_slow_or_a_queue_or_give_up(store_url: str) -> None:  # noqa: F811
    orders, stock = Service("orders", workflows=[asking], calls=[Ask, Note, Reserve]), Service("stock")
    slow = asyncio.Event()

    @stock.on(Ask)
    async def ask(command: Ask) -> Rejected:
        await slow.wait()
        return Rejected(command.order, "slowly")

    @stock.queue(Note)
    def note(command: Note) -> None: ...

    @stock.on(Reserve, retry=NEVER, exhausted=lambda command, error: Reserved(command.order, 9))
    def reserve(command: Reserve) -> Reserved:
        raise ValueError("no")

    app = App(orders, stock, store=store_url, settings=SETTINGS)
    await app.migrate()
    async with app.run():
        handle = await asking.start("o1", id="w1")

        async def is_slow() -> bool:
            return bool(await stock.fetch("SELECT state FROM skald_deliveries WHERE handler = 'ask'"))

        await eventually(is_slow)
        slow.set()
        assert await handle.result() == ["slowly", None, 9]


async def test_what_is_published_and_not_called_is_not_answered(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        await it.orders.publish(Note("o1"), Reserve("o2"))
        await it.caught_up()
        assert await it.answers() == ["Reserved"]
        [record] = [r for r in await it.orders.store.log.read(0, 10) if r.type == "Reserve"]
        assert record.topic == "stock.commands"


async def test_an_answer_that_comes_late_changes_nothing(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        it.open.clear()
        handle = await impatient.start("o1", id="w1")
        await it.came.wait()

        async def gave_up() -> bool:
            return not await it.letters()

        await eventually(gave_up)
        it.open.set()
        await it.caught_up()
        assert await it.answers() == ["Reserved"]
        await handle.signal(go, "late")
        assert await handle.result() == "late: Reserve: TimeoutError: no answer within 0.05 s"
        assert await it.letters() == []


async def test_an_answer_that_comes_twice_counts_once(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        assert await fulfil.run("o1", id="w1") == "shelf 1"
        await noting.run("o3", id="w3")
        await it.read_again(it.orders, it.stock)
        await it.read_again(it.stock, it.orders)
        await it.caught_up()
        assert await fulfil.run("o2", id="w2") == "shelf 1"
        await it.caught_up()
        assert (await it.answers()).count("Reserved") == 3
        assert (await it.answers()).count("skald.Handled") == 1  # what was handled once has been answered then
        assert len(await it.commands()) == 4
        rows = await it.orders.fetch("SELECT run FROM skald_journal WHERE kind = 11")
        assert len(rows) == 4
        assert await it.letters() == []


async def test_calls_at_once_and_the_same_call_again(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        with pytest.raises(WorkflowFailed, match="published nothing"):
            await many.run("o1", id="w1")  # the first one reserves nothing
        assert await twice.run("o2", id="w2") == [1, 1, 1]
        assert [sent for sent in await it.commands() if sent[1] == "w2"] == [(await it.commands())[-1]] * 3


async def test_a_participant_that_is_away_for_a_while(store_url: str) -> None:  # noqa: F811
    it = Shop(store_url)
    await it.app.migrate()
    async with it.app.run("orders"):
        handles = [await fulfil.start(f"o{n}", id=f"w{n}") for n in range(30)]

        async def sent() -> bool:
            return len(await it.letters()) == 30

        await eventually(sent)
        assert {(row["kind"], row["taken"]) for row in await it.letters()} == {(8, 2)}
        shown = await show_workflow(it.app, "w3", "orders")
        assert [(letter.kind, letter.name) for letter in shown.letters] == [("call", "Reserve#1")]
        async with it.app.run("stock"):
            assert await asyncio.gather(*(handle.result() for handle in handles)) == ["shelf 1"] * 30


async def test_a_workflow_that_waits_leaves_memory_and_is_taken_over(store_url: str) -> None:  # noqa: F811
    settings = RuntimeSettings(lease=1.0, consumer=SETTINGS.consumer, workflows=ExecutorSettings(poll=0.05, idle=0.0))
    it = Shop(store_url, settings)
    await it.app.migrate()
    async with it.app.run("orders") as [running]:
        await fulfil.start("o1", id="w1")
        await at_once.start("o2", id="w2")
        await left(running)
    async with it.app.run() as [running, _]:  # another process
        assert await fulfil.handle("w1").result() == "shelf 1"
        assert await at_once.handle("w2").result() == 1
        assert len(await it.commands()) == 2
        await it.caught_up()
        assert await it.letters() == []


async def test_a_timer_that_nobody_was_there_to_see_leads_to_one_command(store_url: str) -> None:  # noqa: F811
    """It is journalled without its workflow, so that the command has no entry of its own to be sent with."""
    settings = RuntimeSettings(lease=1.0, consumer=SETTINGS.consumer, workflows=ExecutorSettings(poll=0.05, idle=0.0))
    it = Shop(store_url, settings)
    await it.app.migrate()
    async with it.app.run("orders") as [running]:
        for n in range(20):
            await later.start(f"o{n}", id=f"w{n}")
        await left(running)

        async def sent() -> bool:
            return len(await it.commands()) == 20

        await eventually(sent)
        await left(running)
    async with it.app.run("orders") as [running]:
        for n in range(20):  # each is brought back, and waits as it did
            await later.handle(f"w{n}").pause()

        async def paused() -> bool:
            rows = await it.orders.fetch("SELECT id FROM skald_workflows WHERE state = 'paused'")
            return len(rows) == 20

        await eventually(paused)
        for n in range(20):
            await later.handle(f"w{n}").resume()

        async def waits() -> bool:
            sql = "SELECT id FROM skald_workflows WHERE state = 'running' AND owner IS NULL AND wake_at IS NULL"
            return len(await it.orders.fetch(sql)) == 20

        await eventually(waits)
    async with it.app.run():
        assert await asyncio.gather(*(later.handle(f"w{n}").result() for n in range(20))) == [1] * 20
        assert len(await it.commands()) == 20


async def left(running: RunningService) -> None:
    executor = running.executor
    assert executor is not None

    async def check() -> bool:
        return not executor.turner.live

    await eventually(check)


async def test_what_was_started_elsewhere_is_sent_once(store_url: str) -> None:  # noqa: F811
    it = Shop(store_url)
    await it.app.migrate()
    async with it.app.connect("orders"):
        await at_once.start("o1", id="w1")
        async with it.orders.transaction() as tx:
            await tx.start(at_once, "o2", id="w2")
    async with it.app.run("orders"):

        async def sent() -> bool:
            return len(await it.commands()) == 2

        await eventually(sent)
    async with it.app.run():
        assert await at_once.handle("w1").result() == 1
        assert await at_once.handle("w2").result() == 1
        assert len(await it.commands()) == 2


async def test_one_that_is_cancelled_waits_for_no_answer(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        it.open.clear()
        handle = await at_once.start("o1", id="w1")
        await it.came.wait()
        await handle.cancel("no need")
        with pytest.raises(WorkflowFailed, match="no need"):
            await handle.result()
        assert await it.letters() == []
        it.open.set()
        await it.caught_up()
        assert await it.answers() == ["Reserved"]
        assert await it.letters() == []


async def test_a_failed_one_calls_again_what_was_rejected(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        handle = await at_once.start("o1", 0, id="w1")
        with pytest.raises(WorkflowFailed, match="published nothing"):
            await handle.result()
        it.generous = True
        await handle.retry()
        assert await handle.result() == 7
        assert await it.letters() == []
        assert [type for type, *_ in await it.commands()] == ["Reserve", "Reserve"]


async def test_who_remembers_what_was_called_answers_when_it_is_called_again(store_url: str) -> None:  # noqa: F811
    orders, stock = Service("orders", workflows=[at_once], calls=[Reserve]), Service("stock")

    @stock.on(Reserve, once_by="order")
    async def reserve(command: Reserve) -> Reserved | Rejected:
        return Rejected(command.order, "sold out")

    app = App(orders, stock, store=store_url, settings=SETTINGS)
    await app.migrate()
    async with app.run(), asyncio.timeout(20):
        handle = await at_once.start("o1", id="w1")
        with pytest.raises(WorkflowFailed, match="sold out"):
            await handle.result()
        await handle.retry()
        with pytest.raises(WorkflowFailed, match="published nothing"):
            await handle.result()


async def test_a_command_that_is_not_declared_is_refused_at_its_line(store_url: str) -> None:  # noqa: F811
    async with shop(store_url):
        with pytest.raises(
            WorkflowFailed, match=r"test_calls\.py:\d+: orders does not declare to call Other: name it in"
        ):
            await undeclared.run("o1", id="w1")


def topology_of(build: Callable[[Service, Service], None], *calls: type) -> None:
    orders, stock = Service("orders", calls=calls), Service("stock")
    build(orders, stock)
    _ = App(orders, stock).topology


def test_what_does_not_fit_is_said_before_anything_runs() -> None:
    def nobody(orders: Service, stock: Service) -> None: ...

    with pytest.raises(ConfigurationError, match="Reserve is handled by no service"):
        topology_of(nobody, Reserve)

    def two(orders: Service, stock: Service) -> None:
        @stock.on(Ask)
        def one(command: Ask) -> None: ...

        @stock.on(Ask)
        def other(command: Ask) -> None: ...

    with pytest.raises(ConfigurationError, match="Ask is called, and stock handles it in one and other"):
        topology_of(two, Ask)

    def wrong(orders: Service, stock: Service) -> None:
        @stock.on(Reserve)
        def reserve(command: Reserve) -> Rejected: ...

    with pytest.raises(ConfigurationError, match=r"test_calls\.py:\d+: reserve answers Reserve, whose class says"):
        topology_of(wrong, Reserve)
    with pytest.raises(ConfigurationError, match="name classes of Command"):
        Service("orders", calls=[Reserved])

    def always(orders: Service, stock: Service) -> None:
        @stock.on(Note)
        def note(command: Note) -> Reserved | Rejected: ...

    with pytest.raises(ConfigurationError, match=r"test_calls\.py:\d+: note answers Note with an event, which rejects"):
        topology_of(always, Note)

    def sometimes(orders: Service, stock: Service) -> None:
        @stock.on(Note)
        def note(command: Note) -> Rejected | None: ...

    topology_of(sometimes, Note)


def test_handled_is_an_event_of_the_library() -> None:
    def build(orders: Service, stock: Service) -> None:
        @stock.on(Ask)
        def ask(command: Ask) -> None: ...

    orders, stock = Service("orders", calls=[Ask]), Service("stock")
    build(orders, stock)
    topology = App(orders, stock).topology
    assert topology.topics[Handled] == "skald"
    [subscription] = topology.subscriptions["orders"]
    assert (subscription.origin, set(subscription.handlers)) == ("stock", {"skald.Handled"})
    [subscription] = topology.subscriptions["stock"]
    assert subscription.topics == {"stock.commands", "stock.calls"}
