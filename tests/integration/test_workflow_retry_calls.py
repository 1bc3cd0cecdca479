"""A failed workflow is retried: what others have done for it meanwhile is not asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from skald import NEVER, App, Command, Event, RuntimeSettings, Service, call, step, workflow
from skald.errors import WorkflowFailed
from skald.messaging.consumer import ConsumerSettings
from skald.operations import workflows as operations
from skald.workflows import Signal, journal, transaction
from skald.workflows.executor import Executor, ExecutorSettings
from skald.workflows.steps import StepRunner
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.stage import eventually

DAY = 86_400_000_000
go = Signal("go", str)
done: list[str] = []
broken = False


class Reserved(Event, key="order"):
    order: str


class Reserve(Command[Reserved], key="order"):
    order: str


@step(retry=NEVER)
async def fragile() -> str:
    if broken:
        raise OSError("fragile is broken")
    return "mended"


@step
async def work(name: str) -> str:
    done.append(name)
    return name


@step(transactional=True)
async def book() -> str:
    done.append("book")
    await transaction().execute("INSERT INTO bookings (name) VALUES ('booked')")
    return "booked"


async def failing() -> str:
    await go.receive()
    return await fragile()


@workflow
async def gathered(order: str) -> str:
    reserved, _ = await asyncio.gather(call(Reserve(order)), failing())
    return reserved.order


@workflow
async def grouped(order: str) -> str:
    """What is called is given up before it has failed."""
    async with asyncio.TaskGroup() as group:
        reserved = group.create_task(call(Reserve(order)))
        group.create_task(failing())
    return reserved.result().order


@workflow
async def behind(order: str) -> str:
    """Can fail before it calls, and while it waits."""
    await failing()
    reserved, _ = await asyncio.gather(call(Reserve(order)), failing())
    return reserved.order


@workflow
async def impatient(order: str) -> str:
    return (await call(Reserve(order), timeout=0.05)).order


@workflow
async def tidy(order: str) -> list[str]:
    """In time or not: another branch has a timer that is due in the same moment."""

    async def reserving() -> str:
        try:
            return (await call(Reserve(order), timeout=0.05)).order
        except TimeoutError:
            await work("clean up")
            raise

    async def other() -> str:
        await asyncio.sleep(0.05)  # sleep: a durable timer
        return await work("other")

    found = await asyncio.gather(reserving(), other(), return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [str(one) for one in found]


@workflow
async def careless(order: str) -> str:
    """Does not wait for what it has called."""
    asking = asyncio.create_task(call(Reserve(order)))  # noqa: F841, RUF006
    return await go.receive()


@workflow
async def hasty(order: str) -> str:
    """Gives up what it has called before that is written."""

    async def reserving() -> str:
        await work("first")
        return (await call(Reserve(order))).order

    async def giving_up() -> None:
        await work("second")
        reserved.cancel()

    reserved, giving = asyncio.ensure_future(reserving()), asyncio.ensure_future(giving_up())
    await asyncio.wait([reserved, giving])
    return await go.receive()


@workflow
async def booking() -> str:
    booked, _ = await asyncio.gather(book(), fragile())
    return booked


class Shop:
    """Orders that call, and a stock that answers once it is open."""

    def __init__(self, url: str, idle: float) -> None:
        flows = [gathered, grouped, behind, impatient, tidy, careless, hasty, booking]
        self.orders = Service("orders", workflows=flows, calls=[Reserve])
        self.stock = Service("stock")
        consumer = ConsumerSettings(patience=0.1, poll=0.05, checkpoint=0.05)
        settings = RuntimeSettings(consumer=consumer, workflows=ExecutorSettings(poll=0.05, idle=idle))
        self.app = App(self.orders, self.stock, store=url, settings=settings)
        self.open, self.came = asyncio.Event(), asyncio.Event()
        self.handled: list[str] = []
        self.executors: list[Executor] = []

        @self.stock.on(Reserve, retry=NEVER)
        async def reserve(command: Reserve) -> Reserved:
            self.handled.append(command.order)
            self.came.set()
            await self.open.wait()
            return Reserved(command.order)

    def waiting(self) -> list[str]:
        """What this process knows of calls that have no answer yet."""
        return [command for executor in self.executors for command in executor.turner.asked]

    async def letters(self) -> list[tuple[int, int]]:
        rows = await self.orders.fetch("SELECT kind, taken FROM skald_letters ORDER BY kind")
        return [(row["kind"], row["taken"]) for row in rows]

    async def answer(self) -> None:
        """Returns when the answer is there."""
        self.open.set()

        async def check() -> bool:
            return await self.letters() == [(9, 0)]

        await eventually(check)

    async def prune_letters(self) -> None:
        now = await self.orders.store.now()
        await journal.prune_letters(self.orders.store, now + DAY, now + DAY)


@asynccontextmanager
async def shop(url: str, idle: float = 1000.0) -> AsyncIterator[Shop]:
    global broken
    done.clear()
    broken = True
    found = Shop(url, idle)
    await found.app.migrate()
    async with found.app.run() as running:
        found.executors = [one.executor for one in running if one.executor is not None]
        yield found


async def check_replay(it: Shop, outcome: Any) -> None:
    """The history comes to the same."""
    history = await operations.workflow_history(it.app, "x", "orders")
    assert operations.replay_history(it.app, history, service="orders", tell=lambda entry: None).outcome == outcome


def mend(is_mended: bool = True) -> None:
    global broken
    broken = not is_mended


async def fail(it: Shop, flow: Any) -> Any:
    """With a call that has no answer yet."""
    handle = await flow.start("o", id="x")
    await it.came.wait()
    await handle.signal(go, "now")
    with pytest.raises(WorkflowFailed):
        await handle.result()
    return handle


@pytest.mark.parametrize("flow", [gathered, grouped], ids=["pending", "given up"])
@pytest.mark.parametrize("answered", [True, False])
async def test_a_call_that_had_no_answer_yet_is_not_made_again(
    store_url: str,  # noqa: F811
    flow: Any,
    answered: bool,
) -> None:
    async with shop(store_url) as it:
        handle = await fail(it, flow)
        if answered:
            await it.answer()
        else:
            assert await it.letters() == [(8, 2)]
        mend()
        await handle.retry()
        it.open.set()
        assert await handle.result() == "o"
        assert it.handled == ["o"]
        assert await it.letters() == []


async def test_nothing_stays_in_memory_of_a_call_that_was_answered_after_a_retry(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        handle = await fail(it, gathered)
        mend()
        await handle.retry()

        async def check() -> bool:
            return len(it.waiting()) == 1

        await eventually(check)
        it.open.set()
        assert await handle.result() == "o"
        assert it.waiting() == []


async def test_nothing_stays_in_memory_of_a_call_that_was_given_up_before_it_was_written(
    store_url: str,  # noqa: F811
) -> None:
    async with shop(store_url) as it:
        it.open.set()
        handle = await hasty.start("o", id="x")
        await it.came.wait()
        await handle.signal(go, "now")
        assert await handle.result() == "now"
        assert it.waiting() == []


async def test_a_call_that_was_made_between_two_retries_is_not_made_again(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        handle = await behind.start("o", id="x")
        await handle.signal(go, "now")
        with pytest.raises(WorkflowFailed, match="fragile"):
            await handle.result()
        mend()
        await handle.retry()
        await it.came.wait()
        mend(False)
        await handle.signal(go, "now")
        for _ in range(2):
            with pytest.raises(WorkflowFailed, match="fragile"):
                await handle.result()
            await handle.retry()
        with pytest.raises(WorkflowFailed, match="fragile"):
            await handle.result()
        mend()
        await handle.retry()
        it.open.set()
        assert await handle.result() == "o"
        assert it.handled == ["o"]
        assert await it.letters() == []


@pytest.mark.parametrize("answered", [True, False])
async def test_what_is_kept_for_a_retry_goes_with_the_workflow(store_url: str, answered: bool) -> None:  # noqa: F811
    async with shop(store_url) as it:
        await fail(it, gathered)
        if answered:
            await it.answer()
        kept = await it.letters()
        await it.prune_letters()
        assert await it.letters() == kept == [(9, 0) if answered else (8, 2)]
        _, has_letters, _, _ = await journal.poll(it.orders.store)
        assert not has_letters  # which nobody can be told now
        now = await it.orders.store.now()
        assert await journal.prune(it.orders.store, now, now + 1, 10) == 1
        assert await it.letters() == []
        it.open.set()


async def test_what_is_kept_for_a_retry_goes_when_a_later_run_has_taken_its_place(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        await fail(it, gathered)
        await it.answer()
        later = await careless.start("p", id="x", existing="restart")
        await it.prune_letters()
        assert (9, 0) not in await it.letters()
        await later.terminate("x")


@pytest.mark.parametrize("end", ["completed", "cancelled", "terminated"])
async def test_at_any_other_end_nothing_is_kept(store_url: str, end: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        handle = await careless.start("o", id="x")
        await it.came.wait()
        match end:
            case "completed":
                await handle.signal(go, "now")
                assert await handle.result() == "now"
            case "cancelled":
                await handle.cancel("no need")
            case _:
                await handle.terminate("no need")

        async def check() -> bool:
            known = await journal.by_id(it.orders.store, "x")
            assert known is not None
            return known.state == end

        await eventually(check)
        assert await it.letters() == []
        it.open.set()


@pytest.mark.parametrize("idle", [1000.0, 0.0], ids=["stays in memory", "leaves it whenever it waits"])
@pytest.mark.parametrize("answered", [True, False])
async def test_what_had_no_answer_in_time_is_waited_for_anew(
    store_url: str,  # noqa: F811
    answered: bool,
    idle: float,
) -> None:
    async with shop(store_url, idle) as it:
        handle = await impatient.start("o", id="x")
        await it.came.wait()
        with pytest.raises(WorkflowFailed, match=r"no answer within 0\.05 s"):
            await handle.result()
        if answered:
            await it.answer()
        else:
            for _ in range(2):  # nobody answers, and so it fails once more
                await handle.retry()
                with pytest.raises(WorkflowFailed, match=r"no answer within 0\.05 s"):
                    await handle.result()
            await it.answer()
        await handle.retry()
        assert await handle.result() == "o"
        assert it.handled == ["o"]
        assert await it.letters() == []
        await check_replay(it, "o")
        rows = await it.orders.fetch("SELECT name FROM skald_journal WHERE kind = 14")
        assert [row["name"] for row in rows] == ["Reserve"] * (1 if answered else 3)


async def test_what_the_same_timer_led_to_elsewhere_stays_done(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        handle = await tidy.start("o", id="x")
        with pytest.raises(WorkflowFailed, match="no answer"):
            await handle.result()
        assert sorted(done) == ["clean up", "other"]

        it.open.set()
        assert await retried(tidy) == ["o", "other"]
        assert done.count("other") == 1
        await check_replay(it, ["o", "other"])


async def retried(flow: Any) -> Any:
    """Until the answer is in time."""
    while True:
        await flow.handle("x").retry()
        try:
            return await flow.handle("x").result()
        except WorkflowFailed as failed:
            if failed.type != "TimeoutError":
                raise


async def test_a_transactional_step_whose_result_was_not_journalled_is_not_done_again(
    store_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transact, committed, failed = StepRunner.transact, asyncio.Event(), asyncio.Event()

    async def slow(self: Any, *args: Any) -> Any:
        found = await transact(self, *args)
        committed.set()
        await failed.wait()  # its result is told too late
        return found

    async def late() -> str:
        await committed.wait()
        return await function()

    monkeypatch.setattr(StepRunner, "transact", slow)
    function = fragile.function
    monkeypatch.setattr(fragile, "function", late)
    async with shop(store_url) as it:
        async with it.orders.transaction() as tx:
            await tx.execute("CREATE TABLE bookings (name TEXT)")
        handle = await booking.start(id="x")
        with pytest.raises(WorkflowFailed, match="fragile is broken"):
            await handle.result()
        failed.set()
        await it.prune_letters()
        mend()
        await handle.retry()
        assert await handle.result() == "booked"
        assert done == ["book"]
        assert len(await it.orders.fetch("SELECT name FROM bookings")) == 1
        assert await it.letters() == []
