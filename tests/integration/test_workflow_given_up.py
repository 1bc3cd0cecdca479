"""A cancellation of a child reaches that child, and no other workflow that has its id before or after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from skald import NEVER, App, RuntimeSettings, Service, step, workflow, workflows
from skald.errors import WorkflowFailed
from skald.workflows import children, journal
from skald.workflows.executor import ExecutorSettings
from skald.workflows.failure import BY_CALLER
from skald.workflows.handle import WorkflowHandle
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.stage import eventually

go = workflows.Signal("go", str)
broken: set[str] = set()
done: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    broken.clear()
    done.clear()


@step(retry=NEVER)
async def note(text: str) -> str:
    done.append(text)
    if text in broken:
        raise OSError(f"{text} is broken")
    return text


@workflow
async def kid(name: str) -> str:
    return await note(name)


@workflow
async def patient(name: str) -> str:
    await note(name)
    return await go.receive()


@workflow
async def first_of(count: int) -> list[str]:
    found = await workflows.map(
        range(count), lambda n: kid.run(f"k{n}", id=f"k{n}"), max_concurrency=1, min_successful=1
    )
    return list(found.results.values())


@workflow
async def careless() -> str:
    await note("first")
    kid.child("k1", id="k1")
    return "done"


@workflow
async def waiting() -> str:
    return await patient.run("k1", id="k1")


@workflow
async def impatient(delay: float) -> str:
    """Gives a child up, and calls it once more, behind a step that may fail."""
    await note("weak")
    first = asyncio.ensure_future(patient.run("k1", id="k1", delay=delay))
    await go.receive()
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    return await patient.run("k1", id="k1", delay=delay)


@asynccontextmanager
async def playing(url: str) -> AsyncIterator[tuple[Service, Any]]:
    """The service, and what runs its workflows."""
    jobs = Service("jobs", workflows=[kid, patient, first_of, careless, waiting, impatient])
    app = App(jobs, store=url, settings=RuntimeSettings(workflows=ExecutorSettings(poll=0.05)))
    await app.migrate()
    async with app.run() as [running]:
        yield jobs, running.executor


async def ends(handle: WorkflowHandle[Any]) -> Any:
    return await asyncio.wait_for(handle.result(), 30)


async def cancellations(jobs: Service) -> list[str]:
    rows = await jobs.fetch("SELECT to_id FROM skald_letters WHERE kind = 2 AND taken = 0")
    return [row["to_id"] for row in rows]


async def state_of(jobs: Service, id: str) -> str | None:
    known = await journal.by_id(jobs.store, id)
    return None if known is None else known.state.value


@pytest.mark.parametrize("caller", [first_of, careless], ids=["a map that has enough", "one that has returned"])
async def test_one_that_was_never_started_is_not_cancelled(store_url: str, caller: Any) -> None:  # noqa: F811
    async with playing(store_url) as (jobs, _):
        await ends(await caller.start(*((3,) if caller is first_of else ()), id="x"))
        assert await state_of(jobs, "k1") is None
        assert await cancellations(jobs) == []
        assert await ends(await kid.start("k1", id="k1")) == "k1"


@asynccontextmanager
async def cancelled_before_the_start(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Service, Any]]:
    """What its caller has told it is there, and it is not."""
    entered = asyncio.Event()

    async def not_yet(self: Any, parent: Any, child: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    async with playing(url) as (jobs, executor):
        with monkeypatch.context() as patch:
            patch.setattr(children.Children, "_insert", not_yet)
            handle = await waiting.start(id="x")
            await asyncio.wait_for(entered.wait(), 30)
            await handle.cancel()
            with pytest.raises(WorkflowFailed):
                await ends(handle)
        assert await state_of(jobs, "k1") is None
        yield jobs, executor


async def test_a_cancellation_that_came_first_reaches_nobody_elses_workflow(
    store_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cancelled_before_the_start(store_url, monkeypatch) as (jobs, _):
        handle = await patient.start("k1", id="k1")
        await handle.signal(go, "well")
        assert await ends(handle) == "well"
        assert await cancellations(jobs) == []


async def test_a_cancellation_that_came_first_begins_no_delayed_one_early(
    store_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cancelled_before_the_start(store_url, monkeypatch) as (jobs, executor):
        await patient.start("k1", id="k1", delay=3600)
        for _ in range(3):
            await executor.looked()
        assert await state_of(jobs, "k1") == "scheduled"
        await patient.handle("k1").cancel()
        with pytest.raises(WorkflowFailed, match="Cancelled"):
            await ends(patient.handle("k1"))
        assert done == []


async def test_a_cancellation_that_came_first_does_not_reach_the_child_of_a_later_run(
    store_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cancelled_before_the_start(store_url, monkeypatch) as (jobs, _):
        handle = await waiting.start(id="x", existing="restart")
        await jobs.signal(go, "well", id="k1")  # behind the cancellation
        assert await ends(handle) == "well"


@pytest.mark.parametrize("delay", [0.0, 3600.0], ids=["it runs", "it has not begun"])
async def test_a_retried_caller_may_still_give_a_child_up(
    store_url: str,  # noqa: F811
    delay: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And has what became of it if it calls it once more, as one that was never retried."""
    start, seen_to = children.Children._start_once, list[int]()

    async def noted(self: Any, parent: Any, child: Any) -> Any:
        end = await start(self, parent, child)
        seen_to.append(child.occurrence)
        return end

    monkeypatch.setattr(children.Children, "_start_once", noted)
    broken.add("weak")
    async with playing(store_url) as (jobs, _):
        handle = await impatient.start(delay, id="x")
        with pytest.raises(WorkflowFailed):
            await ends(handle)
        broken.clear()
        await impatient.handle("x").retry()

        async def is_child(state: str) -> bool:
            return await state_of(jobs, "k1") == state

        await eventually(lambda: is_child("scheduled" if delay else "running"))
        await jobs.signal(go, "enough", id="x")
        if delay:

            async def is_called_again() -> bool:
                return 2 in seen_to

            await eventually(is_called_again)
            assert await cancellations(jobs) == ["k1"]
            return
        with pytest.raises(WorkflowFailed, match="its caller"):
            await ends(impatient.handle("x"))
        assert done == ["weak", "weak", "k1"]


async def test_a_retry_withdraws_what_was_asked_for_before_it_and_nothing_else(store_url: str) -> None:  # noqa: F811
    """A call that was there before the retry may be given up while the child's cancellations are looked for."""
    async with playing(store_url) as (jobs, _):
        retried_at = await jobs.store.now()
        async with jobs.transaction() as tx:
            for time in (-1, 0, 1):
                await tx.execute(
                    "INSERT INTO skald_letters (id, kind, to_id, name, payload, time) "
                    "VALUES (:id, 2, 'k1', '', :reason, :time)",
                    id=f"letter {time}", reason=BY_CALLER.encode(), time=retried_at + time,
                )  # fmt: skip
        await journal.keep(jobs.store, "k1", retried_at)
        assert await jobs.fetch("SELECT id FROM skald_letters") == [{"id": "letter 1"}]
