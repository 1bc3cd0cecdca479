"""Signals, queries, updates, children, cancellation, pauses: on both stores, in memory and evicted at every wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import skald.sync
from skald import NEVER, App, Event, RuntimeSettings, Service, step, workflow, workflows
from skald.errors import (
    MapFailed,
    StoreUnavailable,
    UpdateFailed,
    WorkflowBusy,
    WorkflowEnded,
    WorkflowError,
    WorkflowExists,
    WorkflowFailed,
    WorkflowKeyTaken,
    WorkflowMismatch,
    WorkflowUnknown,
)
from skald.messaging.transaction import Transaction
from skald.store import Store
from skald.workflows import Query, Signal, Update, journal
from skald.workflows.executor import ExecutorSettings
from tests.simulation.stage import eventually


class Approval(msgspec.Struct, frozen=True):
    by: str


approval = Signal("approval", Approval)
status = Query("status", str)
rename = Update("rename", str, str)
done: list[str] = []


@step
async def note(text: str) -> str:
    done.append(text)
    return text.upper()


@step(retry=NEVER)
async def fail(text: str) -> str:
    if broken.is_set():
        raise ValueError(f"no {text}")
    return f"mended {text}"


@step
async def hang(text: str) -> None:
    done.append(f"{text} begun")
    try:
        await asyncio.Event().wait()
    finally:
        done.append(f"{text} interrupted")


broken = asyncio.Event()


@workflow
async def approve(order: str) -> list[str]:
    """Waits for two approvals."""
    names: list[str] = []

    @status.answered_by
    def _() -> str:
        return f"{order}: {len(names)} of 2"

    while len(names) < 2:
        names.append((await approval.receive()).by)
        await note(names[-1])
    return names


@workflow
async def named(order: str) -> str:
    name = order

    @status.answered_by
    def _() -> str:
        return name

    def check(new: str) -> None:
        if not new:
            raise ValueError("a name has letters")

    @rename.handled_by(validator=check)
    async def _(new: str) -> str:
        nonlocal name
        if new == "bad":
            raise LookupError("bad name")
        name = await note(new)
        return f"{order} is {name}"

    await approval.receive()
    return name


@workflow
async def cleaning(order: str) -> str:
    try:
        await hang(order)
    except asyncio.CancelledError:
        await note(f"clean {order}")
        raise
    return "never"


@workflow
async def child(name: str, waits: bool) -> str:
    if waits:
        await approval.receive()
    if name == "bad":
        await fail(name)
    return await note(name)


@workflow
async def parent(order: str) -> list[str]:
    first = child.child(f"{order} a", True, id=f"{order}/a")
    second = await child.run(f"{order} b", False)
    return [await first.result(), second]


@workflow
async def abandoning(order: str) -> str:
    child.child(f"{order} kept", True, id=f"{order}/kept", detached=True)
    child.child(f"{order} dropped", True, id=f"{order}/dropped")
    await note(order)
    return "done"


@workflow
async def failing_child(order: str) -> str:
    try:
        await child.run("bad", False, id=f"{order}/bad")
    except WorkflowFailed as error:
        return f"{error.id}: {error.type}: {error.message}"
    return "no error"


@workflow
async def counting(number: int) -> int:
    if number < 5:
        await note(str(number))
        workflows.continue_as_new(number + 1)
    return number


@workflow
async def collecting(seen: list[str]) -> list[str]:
    seen = [*seen, (await approval.receive()).by]
    if len(seen) < 3:
        workflows.continue_as_new(seen)
    return seen


@workflow
async def mapping(count: int, tolerated: int, enough: int | None) -> list[int]:
    mapped = await workflows.map(
        range(count), odd_fails, max_concurrency=3, tolerated_failures=tolerated, min_successful=enough
    )
    return sorted(mapped.results.values())


@step(retry=NEVER)
async def odd_fails(number: int) -> int:
    global most
    running.add(number)
    most = max(most, len(running))
    await asyncio.sleep(0)  # sleep: lets the others begin
    running.discard(number)
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number * 10


running: set[int] = set()
most = 0


@workflow
async def retried(order: str) -> list[str]:
    return [await note(order), await fail(order), await note(f"{order} after")]


@workflow(timeout=0.02)
async def bounded(order: str) -> str:
    await hang(order)
    return "never"


@workflow
async def sleeper(seconds: float) -> str:
    await asyncio.sleep(seconds)  # sleep: a durable timer
    return await note("woke")


@workflow
async def asking(order: str) -> str:
    @status.answered_by
    def _() -> str:
        return str(note(order))  # no awaiting, and still refused

    await approval.receive()
    return order


@workflow
async def misusing(how: str) -> list[str]:
    async def later(new: str = "") -> str:
        return new

    def at_once(new: str = "") -> str:
        return new

    refused = []
    for register in (
        lambda: status.answered_by(later),  # type: ignore[arg-type]
        lambda: rename.handled_by(at_once),
        lambda: rename.handled_by(later, validator=later),
    ):
        try:
            register()
        except WorkflowError as error:
            refused.append(str(error))
    return refused


class Ordered(Event, key="order"):
    order: str


WORKFLOWS = (
    approve, named, cleaning, child, parent, abandoning, failing_child, counting, collecting, mapping, retried, bounded,
    sleeper, asking, misusing,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh() -> None:
    global most
    done.clear()
    broken.clear()
    running.clear()
    most = 0


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


@pytest.fixture(params=["in memory", "evicted"])
def idle(request: pytest.FixtureRequest) -> float:
    """Seconds after which a waiting workflow leaves memory."""
    return 1000.0 if request.param == "in memory" else 0.0


Playing = Callable[..., Any]


@asynccontextmanager
async def playing(url: str, idle: float = 1000.0, *, work: bool = True) -> AsyncIterator[Service]:
    orders = Service("orders", workflows=(*WORKFLOWS, *MORE), publishes=[Ordered])

    @orders.on(Ordered)
    async def start_from_a_handler(ordered: Ordered, tx: Transaction) -> None:
        await tx.start(approve, ordered.order, id=f"handled {ordered.order}")

    settings = RuntimeSettings(workflows=ExecutorSettings(idle=idle, poll=0.02 if idle == 0 else 1.0))
    app = App(orders, store=url, settings=settings)
    await app.migrate()
    async with app.run() if work else app.connect():
        yield orders


async def gone(service: Service, id: str) -> None:
    """Until a workflow has left memory."""

    async def check() -> None:
        [row] = await service.fetch("SELECT owner, state FROM skald_workflows WHERE id = :id AND latest = 1", id=id)
        assert row["owner"] is None, row

    await eventually(check)


async def no_letters(service: Service) -> None:
    async def check() -> None:
        assert await service.fetch("SELECT * FROM skald_letters") == []

    await eventually(check)


async def test_signals_come_in_order_and_none_is_lost(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        # The first one before the start.
        await orders.signal(approval, Approval("ann"), id="o-1")
        handle = await approve.start("o-1", id="o-1")
        if not idle:
            await gone(orders, "o-1")
        await handle.signal(approval, Approval("ben"))
        assert await asyncio.wait_for(handle.result(), 30) == ["ann", "ben"]
        assert done == ["ann", "ben"]
        await no_letters(orders)
        with pytest.raises(WorkflowEnded, match="completed"):
            await handle.signal(approval, Approval("cid"))


async def test_signals_that_race_the_wait(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        handles = [await approve.start(f"{n}", id=f"{n}") for n in range(30)]
        await asyncio.gather(
            *(handle.signal(approval, Approval(f"{handle.id} {who}")) for handle in handles for who in ("a", "b"))
        )
        found = await asyncio.wait_for(asyncio.gather(*(handle.result() for handle in handles)), 60)
        assert [sorted(names) for names in found] == [[f"{n} a", f"{n} b"] for n in range(30)]
        await no_letters(orders)


async def test_a_signal_by_business_key(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        await orders.signal(approval, Approval("early"), key="customer 7")
        handle = await approve.start("o-1", id="o-1", key="customer 7")
        with pytest.raises(WorkflowKeyTaken, match="o-1"):
            await approve.start("o-2", id="o-2", key="customer 7")
        await orders.signal(approval, Approval("late"), key="customer 7")
        assert await asyncio.wait_for(handle.result(), 30) == ["early", "late"]
        again = await approve.start("o-3", id="o-3", key="customer 7")  # free again
        await again.cancel()
        with pytest.raises(WorkflowMismatch, match="id= or key="):
            await orders.signal(approval, Approval("nobody"))


async def test_what_cannot_be_awaited_or_may_not_be_is_refused_where_it_is_registered(url: str) -> None:
    async with playing(url):
        assert await misusing.run("all") == [
            "status.answered_by takes a plain function, and later is async: it may not wait",
            "rename.handled_by takes an async function, and at_once is none: write async def",
            "rename.handled_by takes a plain function as its validator: an async one would refuse nothing",
        ]


async def test_a_query_is_answered_from_memory_and_from_the_journal(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        handle = await approve.start("o-1", id="o-1")
        await handle.signal(approval, Approval("ann"))

        async def one_of_two() -> None:
            assert await handle.query(status) == "o-1: 1 of 2"

        await eventually(one_of_two)
        if not idle:
            await gone(orders, "o-1")
            assert await handle.query(status) == "o-1: 1 of 2"
        await handle.signal(approval, Approval("ben"))
        await handle.result()
        assert await approve.handle("o-1").query(status) == "o-1: 2 of 2"
        with pytest.raises(WorkflowError, match="it answers: status"):
            await handle.query(Query("other", str))
        with pytest.raises(WorkflowUnknown, match="o-9"):
            await approve.handle("o-9").query(status)
        asked = await asking.start("o-2", id="o-2")
        with pytest.raises(WorkflowError, match="they may only look"):
            await asked.query(status)
    async with playing(url, work=False):
        assert await approve.handle("o-1").query(status) == "o-1: 2 of 2"


async def test_an_update_changes_and_answers(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        handle = await named.start("o-1", id="o-1")
        if not idle:
            await gone(orders, "o-1")
        assert await asyncio.wait_for(handle.update(rename, "tea"), 30) == "o-1 is TEA"
        assert await handle.query(status) == "TEA"
        before = await orders.fetch("SELECT count(*) AS n FROM skald_journal")
        with pytest.raises(UpdateFailed, match="a name has letters"):
            await handle.update(rename, "")
        assert await orders.fetch("SELECT count(*) AS n FROM skald_journal") == before, "a refusal leaves no trace"
        with pytest.raises(UpdateFailed, match="LookupError: bad name"):
            await handle.update(rename, "bad")
        await handle.signal(approval, Approval("ann"))
        assert await handle.result() == "TEA"
        with pytest.raises(WorkflowEnded):
            await handle.update(rename, "late")
        await no_letters(orders)


async def test_cancelling_runs_the_clean_up(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        handle = await cleaning.start("o-1", id="o-1")
        await handle.cancel("customer asked")
        with pytest.raises(WorkflowFailed, match="CancelledError") as caught:
            await asyncio.wait_for(handle.result(), 30)
        assert caught.value.message == "customer asked"
        assert "clean o-1" in done
        [row] = await orders.fetch("SELECT state FROM skald_workflows")
        assert row["state"] == "cancelled"


async def test_terminating_runs_nothing_more(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        handle = await cleaning.start("o-1", id="o-1")
        await handle.terminate("enough")
        with pytest.raises(WorkflowFailed, match="Terminated: enough"):
            await asyncio.wait_for(handle.result(), 30)
        assert "clean o-1" not in done
        [row] = await orders.fetch("SELECT state, owner FROM skald_workflows")
        assert row == {"state": "terminated", "owner": None}


async def test_a_paused_one_does_nothing_until_it_is_resumed(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        handle = await approve.start("o-1", id="o-1")
        with pytest.raises(WorkflowBusy, match="running, and not paused"):
            await handle.resume()
        await handle.pause()
        await gone(orders, "o-1")
        await handle.signal(approval, Approval("ann"))
        other = await approve.start("o-2", id="o-2")
        for who in ("x", "y"):
            await other.signal(approval, Approval(who))
        await other.result()  # the executor has looked around since
        assert "ann" not in done
        await handle.resume()
        await handle.signal(approval, Approval("ben"))
        assert await asyncio.wait_for(handle.result(), 30) == ["ann", "ben"]
        paused = await approve.start("o-3", id="o-3")
        await paused.pause()
        await gone(orders, "o-3")
        await paused.terminate("for good")
        with pytest.raises(WorkflowFailed, match="for good"):
            await asyncio.wait_for(paused.result(), 30)


async def test_children(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        handle = await parent.start("o-1", id="o-1")
        await child.handle("o-1/a").signal(approval, Approval("ann"))
        assert await asyncio.wait_for(handle.result(), 30) == ["O-1 A", "O-1 B"]
        assert sorted(done) == ["o-1 a", "o-1 b"]
        assert await failing_child.run("o-2") == "no error"
        broken.set()
        assert await failing_child.run("o-3") == "o-3/bad: ValueError: no bad"
        await no_letters(orders)


async def test_children_end_with_their_parent_unless_detached(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        assert await abandoning.run("o-1") == "done"
        with pytest.raises(WorkflowFailed, match="its caller"):
            await asyncio.wait_for(child.handle("o-1/dropped").result(), 30)
        kept = child.handle("o-1/kept")
        await kept.signal(approval, Approval("ann"))
        assert await asyncio.wait_for(kept.result(), 30) == "O-1 KEPT"
        long = await parent.start("o-2", id="o-2")

        async def begun() -> None:
            assert len(await orders.fetch("SELECT id FROM skald_workflows WHERE id = 'o-2/a'")) == 1

        await eventually(begun)
        await long.cancel()
        with pytest.raises(WorkflowFailed, match="Cancelled"):
            await asyncio.wait_for(child.handle("o-2/a").result(), 30)


async def test_a_child_whose_id_is_somebody_elses_fails(url: str) -> None:
    async with playing(url):
        await approve.start("x", id="o-1/a")
        handle = await parent.start("o-1", id="o-1")
        with pytest.raises(WorkflowFailed, match="WorkflowExists"):
            await asyncio.wait_for(handle.result(), 30)


async def test_continue_as_new_keeps_the_id_and_the_signals(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        assert await asyncio.wait_for(counting.run(0, id="c"), 30) == 5
        assert done == ["0", "1", "2", "3", "4"]
        rows = await orders.fetch("SELECT state, latest FROM skald_workflows WHERE id = 'c' ORDER BY run")
        assert [row["state"] for row in rows] == ["continued"] * 5 + ["completed"]
        assert [row["latest"] for row in rows] == [0] * 5 + [1]
        handle = await collecting.start([], id="s")
        for who in ("a", "b", "c"):
            await handle.signal(approval, Approval(who))
        assert await asyncio.wait_for(handle.result(), 30) == ["a", "b", "c"]
        handle = await collecting.start([], id="t", key="customer 9")
        for who in ("a", "b", "c"):
            if not idle:
                await gone(orders, "t")
            await orders.signal(approval, Approval(who), key="customer 9")
        assert await asyncio.wait_for(handle.result(), 30) == ["a", "b", "c"]


async def test_what_starting_an_id_again_means(url: str) -> None:
    async with playing(url):
        assert await child.run("a", False, id="x") == "A"
        with pytest.raises(WorkflowExists):
            await child.start("a", False, id="x", existing="reject")
        assert await child.run("a", False, id="x") == "A"
        assert done == ["a"]
        assert await asyncio.wait_for(child.run("b", False, id="x", existing="restart"), 30) == "B"
        assert done == ["a", "b"]
        handle = await child.start("c", True, id="y")
        same = await child.start("c", True, id="y", existing="restart")
        with pytest.raises(WorkflowMismatch, match="other arguments"):
            await child.start("d", True, id="y", existing="restart")
        await same.signal(approval, Approval("ann"))
        assert await asyncio.wait_for(handle.result(), 30) == "C"


async def test_it_starts_from_a_handler_a_transaction_and_another_process(url: str) -> None:
    async with playing(url) as orders:
        await orders.publish(Ordered("o-1"), key="o-1")
        await orders.signal(approval, Approval("a"), id="handled o-1")
        await orders.signal(approval, Approval("b"), id="handled o-1")
        async with orders.transaction() as tx:
            assert await tx.start(child, "in tx", False, id="t-1") == "t-1"
            await tx.signal(approval, Approval("c"), id="t-2")

        async def fail() -> None:
            async with orders.transaction() as tx:
                await tx.start(child, "never", False, id="t-3")
                raise LookupError

        with pytest.raises(LookupError):
            await fail()
        assert await asyncio.wait_for(child.handle("t-1").result(), 30) == "IN TX"

        async def handled() -> None:
            assert await approve.handle("handled o-1").result() == ["a", "b"]

        await eventually(handled)
        with pytest.raises(WorkflowUnknown):
            await child.handle("t-3").result()
    async with playing(url, work=False):
        handle = await child.start("elsewhere", False, id="e-1")
        delayed = await child.start("later", False, id="e-2", delay=3600)
    assert "elsewhere" not in done
    async with playing(url) as orders:
        assert await asyncio.wait_for(child.handle(handle.id).result(), 30) == "ELSEWHERE"
        [row] = await orders.fetch("SELECT state FROM skald_workflows WHERE id = 'e-2'")
        assert row["state"] == "scheduled", delayed.id


async def test_a_start_with_a_delay(url: str) -> None:
    async with playing(url) as orders:
        handle = await child.start("later", False, id="d", delay=0.05)
        assert await asyncio.wait_for(handle.result(), 30) == "LATER"
        [row] = await orders.fetch("SELECT started_at, ended_at FROM skald_workflows")
        assert row["started_at"] <= row["ended_at"]


async def test_one_that_has_not_begun_is_cancelled_at_once(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        handle = await child.start("later", False, id="d", delay=3600)
        await handle.cancel("enough")
        with pytest.raises(WorkflowFailed, match="Cancelled"):
            await asyncio.wait_for(handle.result(), 30)
        await state_of(orders, "d", "cancelled")
        await no_letters(orders)
    assert not done


async def test_mapping(url: str) -> None:
    async with playing(url):
        assert await mapping.run(9, 4, None) == [0, 20, 40, 60, 80]
        assert most == 3
        with pytest.raises(WorkflowFailed, match=MapFailed.__name__):
            await mapping.run(9, 3, None)
        assert len(await mapping.run(100, 100, 4)) >= 4


async def test_a_failed_one_goes_on_before_its_failed_step(url: str, idle: float) -> None:
    async with playing(url, idle):
        broken.set()
        handle = await retried.start("o-1", id="o-1")
        with pytest.raises(WorkflowFailed, match="no o-1"):
            await handle.result()
        broken.clear()
        await retried.handle("o-1").retry()
        assert await asyncio.wait_for(retried.handle("o-1").result(), 30) == ["O-1", "mended o-1", "O-1 AFTER"]
        assert done == ["o-1", "o-1 after"]
        with pytest.raises(WorkflowBusy, match="completed, and not failed"):
            await retried.handle("o-1").retry()


async def test_a_workflow_has_a_timeout(url: str) -> None:
    async with playing(url):
        with pytest.raises(WorkflowFailed, match="TimeoutError"):
            await asyncio.wait_for(bounded.run("o-1"), 30)

        async def interrupted() -> None:
            # On a slow disk its time is over before the step may begin.
            assert done in ([], ["o-1 begun", "o-1 interrupted"])

        await eventually(interrupted)


async def test_evicted_sleepers_wake(url: str) -> None:
    async with playing(url, 0.0) as orders:
        handles = [await sleeper.start(0.05 + n / 1000, id=f"{n}") for n in range(50)]
        assert await asyncio.wait_for(asyncio.gather(*(h.result() for h in handles)), 60) == ["WOKE"] * 50
        assert len(done) == 50
        kinds = await orders.fetch("SELECT kind, count(*) AS n FROM skald_journal GROUP BY kind ORDER BY kind")
        assert [(row["kind"], row["n"]) for row in kinds] == [(0, 50), (2, 50)]


async def test_synchronous_code_starts_and_talks_too(url: str) -> None:
    elsewhere = Service("orders", workflows=[workflow(name="child")(child.function)])
    [same] = elsewhere.workflows

    def synchronous() -> tuple[str, str]:
        with skald.sync.connect(App(elsewhere, store=url), "orders") as orders:
            started = orders.start(same, "sync", True, id="s-1")
            orders.signal(approval, Approval("ann"), id=started)
            with orders.transaction() as tx:
                tx.start(same, "in tx", False, id="s-2")
                tx.signal(approval, Approval("ben"), id="s-3")
            assert orders.start(same, "sync", True, id="s-1") == "s-1"
            with pytest.raises(WorkflowMismatch):
                orders.start(same, "other", True, id="s-1")
            return orders.result(same, "s-1"), orders.result(same, "s-2")

    async with playing(url):
        assert await asyncio.to_thread(synchronous) == ("SYNC", "IN TX")


# --- what a review has found ------------------------------------------------------------------------------------------


@workflow
async def impatient(order: str) -> str:
    """A child that is given up by a timer."""
    try:
        async with asyncio.timeout(0.5):  # by then it has been started, also on a busy machine
            await child.run(f"{order} kid", True, id=f"{order}/kid")
    except TimeoutError:
        return "gave up"
    return "never"


@workflow
async def patching_later(order: str) -> str:
    await asyncio.sleep(0.05)  # sleep: a durable timer
    return "new" if workflows.patched("later") else "old"


@workflow
async def patching_first(round: int) -> str:
    way = "new" if workflows.patched("first") else "old"
    await note(way)
    if round:
        workflows.continue_as_new(round - 1)
    return way


@workflow
async def squares(count: int) -> list[list[int]]:
    async def one(n: int) -> list[int]:
        return [n, len(await child.run("x" * n, False))]

    return [await done for done in asyncio.as_completed([one(n) for n in range(1, count)])]


@workflow
async def failing_once(order: str) -> str:
    return await child.run("bad", False, id=f"{order}/bad")


@workflow
async def twice(order: str) -> list[str]:
    first = await child.run("a", False, id=f"{order}/same")
    try:
        return [first, await child.run("b", False, id=f"{order}/same")]
    except WorkflowFailed as failure:
        return [first, failure.type]


@workflow
async def leaving(order: str) -> str:
    raise SystemExit(3)


@workflow
async def for_ever(order: str) -> str:
    async with asyncio.timeout(float("inf")):
        await approval.receive()
    return order


@workflow
async def nosy(order: str) -> str:
    @status.answered_by
    def _() -> str:
        return str(workflows.patched("x") or workflows.uuid())

    await approval.receive()
    return await note(order)


@workflow
async def later_child(order: str) -> str:
    return await child.run(order, False, id=f"{order}/later", delay=0.2)


@workflow
async def continuing_elsewhere(order: str) -> str:
    try:
        await asyncio.gather(_continue())
    except WorkflowError as error:
        return str(error)
    return "never"


async def _continue() -> None:
    workflows.continue_as_new("other")


@workflow
async def in_groups(left: int) -> int:
    """The innermost has a task that is cancelled with it."""
    async with asyncio.TaskGroup(), asyncio.TaskGroup() as group:
        if left:
            group.create_task(for_ever.run("in a group"))
            await note(f"{left}")
            workflows.continue_as_new(left - 1)
    return left


@workflow
async def failing_in_a_group() -> None:
    async def fail_late() -> None:
        try:
            await approval.receive()
        finally:
            raise ValueError("late")

    async with asyncio.TaskGroup() as group:
        group.create_task(fail_late())
        await note("once")
        workflows.continue_as_new()


@workflow
async def first_of(count: int) -> list[int]:
    async def one(number: int) -> int:
        called.append(number)
        return await odd_fails(number)

    found = await workflows.map(range(count), one, max_concurrency=2, tolerated_failures=9, min_successful=2)
    return sorted(found.results)


called: list[int] = []


@workflow
async def handing_over(order: str, wait: bool) -> str:
    if wait:
        await note(order)
    child.child(f"{order} kept", True, id=f"{order}/kept", detached=True)
    return "done"


MORE = (
    impatient, patching_later, patching_first, squares, failing_once, twice, leaving, for_ever, nosy, later_child,
    continuing_elsewhere, handing_over, in_groups, failing_in_a_group, first_of,
)  # fmt: skip


async def state_of(service: Service, id: str, wanted: str) -> None:
    async def check() -> None:
        rows = await service.fetch("SELECT state FROM skald_workflows WHERE id = :id AND latest = 1", id=id)
        assert rows == [{"state": wanted}]

    await eventually(check)


async def test_what_a_timer_leads_to_happens_also_to_one_that_was_asleep(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        assert await asyncio.wait_for(impatient.run("o-1", id="o-1"), 30) == "gave up"
        await state_of(orders, "o-1/kid", "cancelled")
        assert await asyncio.wait_for(patching_later.run("o-2"), 30) == "new"


async def test_a_run_continues_as_new_out_of_task_groups_in_which_nothing_fails(url: str, idle: float) -> None:
    async with playing(url, idle):
        assert await asyncio.wait_for(in_groups.run(2, id="o-1"), 30) == 0
        assert done == ["2", "1"]
        with pytest.raises(WorkflowFailed, match="2 sub-exceptions"):
            await asyncio.wait_for(failing_in_a_group.run(), 30)


async def test_a_map_that_has_enough_calls_no_further_item(url: str, idle: float) -> None:
    async with playing(url, idle):
        called.clear()
        assert await asyncio.wait_for(first_of.run(9), 30) == [0, 2]
        assert set(called) <= {0, 1, 2, 3}, "with two at a time, which is seen again in a replay"


async def test_a_run_that_begins_elsewhere_has_its_patches(url: str, idle: float) -> None:
    async with playing(url, idle):
        assert await asyncio.wait_for(patching_first.run(2, delay=0.02), 30) == "new"
        assert done == ["new", "new", "new"]


async def test_children_are_not_mistaken_for_one_another(url: str, idle: float) -> None:
    async with playing(url, idle):
        found = await asyncio.wait_for(squares.run(9), 60)
        assert sorted(found) == [[n, n] for n in range(1, 9)]


async def test_a_child_that_has_ended_before_is_told_again(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        broken.set()
        handle = await failing_once.start("o-1", id="o-1")
        with pytest.raises(WorkflowFailed, match="no bad"):
            await asyncio.wait_for(handle.result(), 30)
        await failing_once.handle("o-1").retry()
        with pytest.raises(WorkflowFailed, match="no bad"):
            await asyncio.wait_for(failing_once.handle("o-1").result(), 30)
        broken.clear()
        assert await asyncio.wait_for(twice.run("o-2"), 30) == ["A", "WorkflowExists"]
        await no_letters(orders)


async def test_a_workflow_that_would_end_its_process_ends_itself(url: str) -> None:
    async with playing(url):
        with pytest.raises(WorkflowFailed, match="SystemExit"):
            await asyncio.wait_for(leaving.run("o-1"), 30)


async def test_a_timer_that_is_never_due_harms_nobody(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        handle = await for_ever.start("o-1", id="o-1")
        if not idle:
            await gone(orders, "o-1")
        await handle.signal(approval, Approval("ann"))
        assert await asyncio.wait_for(handle.result(), 30) == "o-1"


async def test_a_query_changes_nothing(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        handle = await nosy.start("o-1", id="o-1")
        with pytest.raises(WorkflowError, match="they may only look"):
            await handle.query(status)
        if not idle:
            await gone(orders, "o-1")
        await handle.signal(approval, Approval("ann"))
        assert await asyncio.wait_for(handle.result(), 30) == "O-1"


async def test_a_child_may_begin_later(url: str) -> None:
    async with playing(url) as orders:
        handle = await later_child.start("o-1", id="o-1")
        await state_of(orders, "o-1/later", "scheduled")
        assert await asyncio.wait_for(handle.result(), 30) == "O-1"


async def test_terminating_a_parent_that_is_asleep_cancels_its_children(url: str, idle: float) -> None:
    async with playing(url, idle) as orders:
        handle = await parent.start("o-1", id="o-1")
        await state_of(orders, "o-1/a", "running")
        if not idle:
            await gone(orders, "o-1")
        await handle.terminate("enough")
        await state_of(orders, "o-1/a", "cancelled")


async def test_one_that_was_continued_is_found_by_its_first_arguments(url: str) -> None:
    async with playing(url):
        assert await asyncio.wait_for(counting.run(3, id="c"), 30) == 5
        assert await counting.run(3, id="c") == 5
        with pytest.raises(WorkflowMismatch):
            await counting.run(9, id="c")


async def test_what_was_taken_and_not_brought_to_memory_is_found(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database goes away between the claim and the reading of what was claimed."""
    read, failed = journal.letters, []

    async def away(store: Store, owner: str) -> Any:
        if not failed:
            failed.append(owner)
            raise StoreUnavailable("away")
        return await read(store, owner)

    monkeypatch.setattr("skald.workflows.executor.PAUSE", 0.05)
    async with playing(url, work=False):
        handle = await child.start("a", False, id="x")
    monkeypatch.setattr("skald.workflows.journal.letters", away)
    async with playing(url):
        assert await asyncio.wait_for(child.handle(handle.id).result(), 30) == "A"
    assert failed


async def test_enough_is_not_what_is_left_over(url: str) -> None:
    async with playing(url):
        with pytest.raises(WorkflowFailed, match=MapFailed.__name__):
            await mapping.run(9, 9, 6)


async def test_only_the_workflow_itself_continues_as_new(url: str) -> None:
    async with playing(url):
        assert "for the workflow itself" in await asyncio.wait_for(continuing_elsewhere.run("o-1"), 30)


@pytest.mark.parametrize("wait", [False, True])
async def test_a_detached_child_that_was_called_last_is_started(url: str, wait: bool) -> None:
    async with playing(url):
        assert await handing_over.run("o-1", wait) == "done"
        kept = child.handle("o-1/kept")
        await kept.signal(approval, Approval("ann"))
        assert await asyncio.wait_for(kept.result(), 30) == "O-1 KEPT"
