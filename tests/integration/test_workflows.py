"""Workflows as users write them, on SQLite: results, failures, ids, and the process that dies and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest

from skald import App, Retry, Service, step, workflow
from skald.errors import (
    ConfigurationError,
    NotInWorkflow,
    StepFailed,
    Stopped,
    WorkflowFailed,
    WorkflowMismatch,
    WorkflowUnknown,
)
from skald.workflows import context
from skald.workflows.client import outside
from skald.workflows.executor import Executor, ExecutorSettings
from skald.workflows.starting import Options


class Order(msgspec.Struct, frozen=True):
    id: str
    items: tuple[str, ...]
    total: int


class Shipment(msgspec.Struct, frozen=True):
    order: str
    payment: str
    stock: list[str]


calls: list[str] = []


@step
async def charge(order: Order) -> str:
    calls.append(f"charge {order.id}")
    return f"paid {order.total}"


@step
def reserve(order: Order) -> list[str]:
    calls.append(f"reserve {order.id}")
    return [f"{item} reserved" for item in order.items]


@step
async def ship(order: Order, payment: str, *, stock: list[str]) -> Shipment:
    calls.append(f"ship {order.id}")
    return Shipment(order.id, payment, stock)


@workflow
async def fulfil(order: Order) -> Shipment:
    payment, stock = await asyncio.gather(charge(order), reserve(order))
    return await ship(order, payment, stock=stock)


class Declined(Exception):
    pass


@step(retry=Retry(immediate=3, delays=()))
async def decline(order: Order) -> None:
    number = context.attempt().number
    calls.append(f"decline {order.id} {number}")
    raise Declined(f"no money at attempt {number}")


@workflow
async def refused(order: Order) -> str:
    try:
        await decline(order)
    except StepFailed as error:
        return f"{error.step}: {error.type}: {error.message}"
    return "accepted"


@workflow
async def failing(order: Order) -> str:
    await decline(order)
    return "never"


@workflow
async def patient(order: Order, seconds: float) -> list[str]:
    seen = []
    began = context.now()
    await asyncio.sleep(seconds)  # sleep: a durable timer
    seen.append("slept" if (context.now() - began).total_seconds() >= seconds else "early")
    try:
        async with asyncio.timeout(0.01):
            await hang(order)
    except TimeoutError:
        seen.append("timed out")
    seen.append(await charge(order))
    return seen


@step
async def hang(order: Order) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        calls.append(f"hung {order.id}")


@workflow
async def threading(order: Order) -> None:
    await asyncio.to_thread(print, order)


@workflow
async def drawing(order: Order) -> list[str]:
    drawn = [str(context.uuid()), str(context.random().random())]
    await charge(order)
    return [*drawn, str(context.uuid())]


ORDER = Order("o-1", ("tea", "pot"), 4200)
SHIPPED = Shipment("o-1", "paid 4200", ["tea reserved", "pot reserved"])
WORKFLOWS = (fulfil, refused, failing, patient, threading, drawing)


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@asynccontextmanager
async def playing(folder: Path) -> AsyncIterator[Service]:
    orders = Service("orders", workflows=WORKFLOWS)
    app = App(orders, store=f"sqlite:{folder}")
    await app.migrate()
    async with app.run():
        yield orders


async def journal(service: Service) -> list[str]:
    return [row["name"] for row in await service.fetch("SELECT name FROM skald_journal ORDER BY run, position")]


async def test_a_workflow_runs_its_steps_and_has_a_result(tmp_path: Path) -> None:
    async with playing(tmp_path) as orders:
        handle = await fulfil.start(ORDER, id="first")
        assert await handle.result() == SHIPPED
        assert sorted(await journal(orders)) == ["charge", "reserve", "ship"]
        assert sorted(calls) == ["charge o-1", "reserve o-1", "ship o-1"]
        [row] = await orders.fetch("SELECT state, owner, ended_at IS NULL AS open FROM skald_workflows")
        assert row == {"state": "completed", "owner": None, "open": 0}


async def test_the_result_of_one_that_has_ended_is_kept(tmp_path: Path) -> None:
    async with playing(tmp_path):
        await fulfil.run(ORDER, id="first")
    async with playing(tmp_path):
        assert await fulfil.handle("first").result() == SHIPPED
        assert await fulfil.run(ORDER, id="first") == SHIPPED
        with pytest.raises(WorkflowUnknown, match="second"):
            await fulfil.handle("second").result()
    assert len(calls) == 3


async def test_the_same_id_is_the_same_workflow(tmp_path: Path) -> None:
    async with playing(tmp_path) as orders:
        results = await asyncio.gather(*(fulfil.run(ORDER, id="one") for _ in range(20)))
        assert results == [SHIPPED] * 20
        assert len(await journal(orders)) == 3
        with pytest.raises(WorkflowMismatch, match="other arguments"):
            await fulfil.start(Order("o-2", (), 0), id="one")
        with pytest.raises(WorkflowMismatch, match="fulfil"):
            await refused.start(ORDER, id="one")


async def test_many_workflows_at_once(tmp_path: Path) -> None:
    async with playing(tmp_path) as orders:
        wanted = [Order(f"o-{n}", ("tea",), n) for n in range(300)]
        shipped = await asyncio.gather(*(fulfil.run(order) for order in wanted))
        assert [one.payment for one in shipped] == [f"paid {n}" for n in range(300)]
        assert len(await journal(orders)) == 900


async def test_a_step_is_tried_again_and_its_failure_is_an_exception_of_the_workflow(tmp_path: Path) -> None:
    async with playing(tmp_path) as orders:
        assert await refused.run(ORDER) == "decline: Declined: no money at attempt 3"
        assert calls == [f"decline o-1 {n}" for n in (1, 2, 3)]
        with pytest.raises(WorkflowFailed) as caught:
            await failing.run(ORDER, id="bad")
        assert (caught.value.type, caught.value.message) == ("Declined", "no money at attempt 3")
        with pytest.raises(WorkflowFailed, match="Declined"):
            await failing.handle("bad").result()
        assert await journal(orders) == ["decline", "decline"]


async def test_timers_and_timeouts_are_journalled_when_they_fire(tmp_path: Path) -> None:
    async with playing(tmp_path) as orders:
        assert await patient.run(ORDER, 0.01) == ["slept", "timed out", "paid 4200"]
        assert calls == ["hung o-1", "charge o-1"]
        kinds = [row["kind"] for row in await orders.fetch("SELECT kind FROM skald_journal ORDER BY position")]
        assert kinds == [2, 2, 0]


async def test_what_cannot_work_fails_with_the_line_and_the_remedy(tmp_path: Path) -> None:
    async with playing(tmp_path):
        with pytest.raises(WorkflowFailed, match=r"test_workflows\.py:\d+: asyncio\.to_thread .*@step") as caught:
            await threading.run(ORDER)
        assert caught.value.type == NotInWorkflow.__name__


async def test_drawn_ids_differ_between_workflows(tmp_path: Path) -> None:
    async with playing(tmp_path):
        drawn = [value for n in range(3) for value in await drawing.run(ORDER, id=f"{n}")]
        assert len(set(drawn)) == 9


async def test_a_step_outside_of_a_workflow_is_the_plain_function() -> None:
    assert await charge(ORDER) == "paid 4200"
    assert await reserve(ORDER) == ["tea reserved", "pot reserved"]
    assert await fulfil(ORDER) == SHIPPED


async def test_a_workflow_is_not_started_where_its_service_does_not_run() -> None:
    with pytest.raises(Stopped, match="fulfil"):
        await fulfil.start(ORDER)


async def test_a_process_that_stops_hands_its_workflows_over(tmp_path: Path) -> None:
    async with playing(tmp_path) as orders:
        await patient.start(ORDER, 3600.0, id="long")
        handle = await fulfil.start(ORDER, id="short")
        await handle.result()
    assert calls == ["charge o-1", "reserve o-1", "ship o-1"] or len(calls) == 3
    async with playing(tmp_path) as orders:
        [row] = await orders.fetch("SELECT state, owner FROM skald_workflows WHERE id = 'long'")
        assert row["state"] == "running"


async def test_one_whose_step_was_cut_off_by_the_stop_is_not_taken_for_idle(tmp_path: Path) -> None:
    """It has nothing to do then, and nobody would wake it."""
    begun, waits = asyncio.Event(), True

    @step
    async def work(name: str) -> str:
        begun.set()
        if waits:
            await asyncio.Event().wait()
        return name

    @workflow
    async def working(name: str) -> str:
        return await work(name)

    works = Service("works", workflows=[working])
    app = App(works, store=f"sqlite:{tmp_path}")
    await app.migrate()
    async with app.run():
        await working.start("a", id="a")
        await begun.wait()
        executor = works.connection.workflows.local
        assert isinstance(executor, Executor)
        turner, quiet = executor.turner, executor.turner.recorder.quiet

        async def looked() -> None:
            """A look around that had begun comes to its end."""
            await outside(partial(turner.evict, 0.0))
            await quiet()

        turner.recorder.quiet = looked  # type: ignore[method-assign]
    waits = False
    async with app.run():
        assert await asyncio.wait_for(working.handle("a").result(), 30) == "a"


async def _nothing() -> None: ...


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: workflow(name="a,b")(_nothing), r"test_workflows\.py:\d+: _nothing: the name 'a,b' has a comma"),
        (lambda: workflow(name="a\n")(_nothing), "cannot be printed"),
        (lambda: workflow(timeout=0)(_nothing), "timeout=0 must be more than 0 seconds"),
        (lambda: Options(existing="again"), "existing='again': use one of return, reject, restart"),
        (lambda: ExecutorSettings(batch=0), "batch=0 must be at least 1"),
        (lambda: ExecutorSettings(poll=float("nan")), "poll=nan must be at least"),
        (lambda: ExecutorSettings(retention=-1), "or None for ever"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_remedy(make: Callable[[], object], said: str) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=said):
        make()
