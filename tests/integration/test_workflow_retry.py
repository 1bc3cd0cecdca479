"""A failed workflow is retried: what failed runs again, what others did meanwhile stays done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from skald import NEVER, App, RuntimeSettings, Service, step, workflow, workflows
from skald.errors import StepFailed, WorkflowBusy, WorkflowFailed, WorkflowKeyTaken
from skald.operations import workflows as operations
from skald.workflows import journal
from skald.workflows.executor import ExecutorSettings
from tests.simulation.stage import eventually

go = workflows.Signal("go", str)
note = workflows.Update("note", str, list[str])
broken: set[str] = set()
done: list[str] = []


@step(retry=NEVER)
async def fragile(name: str) -> str:
    done.append(name)
    if name in broken:
        raise OSError(f"{name} is broken")
    return name


@step
async def work(name: str) -> str:
    done.append(name)
    return name


@workflow
async def branches(failing: list[str]) -> list[str]:
    notes: list[str] = []

    @note.handled_by
    async def _(new: str) -> list[str]:
        notes.append(await work(new))
        return notes

    async def careful(name: str) -> str:
        try:
            return await fragile(name)
        except StepFailed:
            await work(f"clean up {name}")
            raise

    async def patient() -> str:
        first = await work("first")
        said = await go.receive()
        await asyncio.sleep(0.001)  # sleep: a durable timer
        if workflows.patched("second"):
            await work("second")
        return f"{first} {said}"

    found = await asyncio.gather(patient(), *(careful(name) for name in failing), return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [str(one) for one in found] + notes


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    done.clear()
    broken.clear()
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


@asynccontextmanager
async def playing(url: str, idle: float) -> AsyncIterator[App]:
    app = App(
        Service("jobs", workflows=[branches]),
        store=url,
        settings=RuntimeSettings(workflows=ExecutorSettings(idle=idle, poll=0.05)),
    )
    await app.migrate()
    async with app.run():
        yield app


async def has_failed(app: App, name: str) -> bool:
    service = app.service("jobs")
    rows = await service.fetch("SELECT 1 AS one FROM skald_journal WHERE kind = 1 AND payload IS NOT NULL")
    return bool(rows) and f"clean up {name}" in done


@pytest.mark.parametrize("idle", [1000.0, 0.0], ids=["stays in memory", "leaves it whenever it waits"])
async def test_what_other_branches_did_and_took_meanwhile_stays(url: str, idle: float) -> None:
    broken.add("a")
    async with playing(url, idle) as app:
        handle = await branches.start(["a"], id="x")
        await eventually(lambda: has_failed(app, "a"))
        assert await handle.update(note, "noted") == ["noted"]
        await handle.signal(go, "now")
        with pytest.raises(WorkflowFailed, match="a is broken"):
            await handle.result()
        assert sorted(done) == ["a", "clean up a", "first", "noted", "second"]
        broken.clear()
        await handle.retry()
        assert await branches.handle("x").result() == ["first now", "a", "noted"]
        assert sorted(done) == ["a", "a", "clean up a", "first", "noted", "second"]
        # For people the failure is still there.
        found = [entry for entry in (await operations.show_workflow(app, "x")).journal if entry.kind == "forgotten"]
        assert [(entry.name, entry.payload["type"]) for entry in found] == [("fragile", "OSError")]
        assert (await operations.check_workflows(app)).broken == []
        replayed = operations.replay_history(
            app, await operations.workflow_history(app, "x"), service=None, tell=lambda entry: None
        )
        assert replayed.outcome == ["first now", "a", "noted"]


async def test_what_fails_again_is_cleaned_up_again_and_can_be_retried_again(url: str) -> None:
    broken.update("ab")
    async with playing(url, 1000.0):
        handle = await branches.start(["a", "b"], id="x")
        await handle.signal(go, "now")
        with pytest.raises(WorkflowFailed, match="is broken"):
            await handle.result()
        for _ in range(2):  # nothing is mended
            await branches.handle("x").retry()
            with pytest.raises(WorkflowFailed, match="is broken"):
                await branches.handle("x").result()
        broken.clear()
        for left in (1, 0):  # one failure at a time
            await branches.handle("x").retry()
            if left:
                with pytest.raises(WorkflowFailed, match="is broken"):
                    await branches.handle("x").result()
        assert await branches.handle("x").result() == ["first now", "a", "b"]
        assert [done.count(name) for name in ("first", "second")] == [1, 1]
        assert done.count("a") + done.count("b") == 2 + 2 + 2
        assert done.count("clean up a") + done.count("clean up b") == 2 + 2


async def test_positions_have_no_holes_and_a_process_that_takes_over_agrees(url: str) -> None:
    broken.add("a")
    async with playing(url, 1000.0):
        handle = await branches.start(["a"], id="x")
        await handle.signal(go, "now")
        with pytest.raises(WorkflowFailed):
            await handle.result()
    broken.clear()
    async with playing(url, 1000.0) as app:
        await branches.handle("x").retry()
        assert await branches.handle("x").result() == ["first now", "a"]
        store = app.service("jobs").store
        known = await journal.by_id(store, "x")
        assert known is not None
        history = await journal.history(store, known.run)
        assert [entry.position for entry in history] == list(range(1, len(history) + 1))
        assert sorted(done) == ["a", "a", "clean up a", "first", "second"]


async def test_a_key_that_somebody_else_has_by_now_refuses_the_retry(url: str) -> None:
    broken.add("a")
    async with playing(url, 1000.0) as app:
        handle = await branches.start(["a"], id="x", key="k")
        await handle.signal(go, "now")
        with pytest.raises(WorkflowFailed):
            await handle.result()
        other = await branches.start([], id="y", key="k")
        broken.clear()
        with pytest.raises(WorkflowKeyTaken, match="'k' belongs to workflow 'y'"):
            await branches.handle("x").retry()
        assert (await operations.show_workflow(app, "x")).workflow.state == "failed"
        await other.signal(go, "now")
        await other.result()
        await branches.handle("x").retry()
        assert await branches.handle("x").result() == ["first now", "a"]
        await branches.start([], id="z", key="k")
        with pytest.raises(WorkflowBusy, match="'x' is completed, and not failed"):
            await branches.handle("x").retry()


async def test_a_key_that_somebody_takes_in_the_same_moment_refuses_the_retry(postgres_url: str) -> None:
    broken.add("a")
    async with playing(postgres_url, 1000.0) as app:
        jobs = app.service("jobs")
        handle = await branches.start(["a"], id="x", key="k")
        await handle.signal(go, "now")
        with pytest.raises(WorkflowFailed):
            await handle.result()

        async def waits() -> bool:
            sql = "SELECT 1 AS one FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = :name"
            return bool(await jobs.fetch(sql, name=postgres_url.rsplit("/", 1)[-1]))

        async with jobs.transaction() as tx:
            await tx.start(branches, [], id="y", key="k")
            retrying = asyncio.create_task(branches.handle("x").retry())
            await eventually(waits)
        with pytest.raises(WorkflowKeyTaken, match="'k' belongs to workflow 'y'"):
            await retrying
