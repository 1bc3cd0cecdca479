"""Workflows beside such that this program has no code for, that panic, or that other code has begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from skald import NEVER, App, RuntimeSettings, Service, step, workflow, workflows
from skald.errors import WorkflowFailed
from skald.operations import workflows as operations
from skald.workflows.executor import ExecutorSettings
from skald.workflows.handle import WorkflowHandle
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.stage import eventually

go = workflows.Signal("go", str)
finish = workflows.Update("finish", str, str)


@asynccontextmanager
async def playing(url: str, *flows: Any, idle: float = 1000.0) -> AsyncIterator[App]:
    settings = RuntimeSettings(workflows=ExecutorSettings(idle=idle, poll=0.05))
    app = App(Service("jobs", workflows=flows), store=url, settings=settings)
    await app.migrate()
    async with app.run():
        yield app


async def ends(handle: WorkflowHandle[Any]) -> Any:
    return await asyncio.wait_for(handle.result(), 30)


class Panic(BaseException):
    """As some extensions raise it, and cancellations of other libraries."""


@step(retry=NEVER)
async def panic() -> None:
    raise Panic("boom")


@step(retry=NEVER)
def panic_in_a_thread() -> None:
    raise Panic("boom")


@workflow
async def bad(in_a_thread: bool) -> None:
    await (panic_in_a_thread() if in_a_thread else panic())


@step
async def note(text: str) -> str:
    return text


@workflow
async def good(text: str) -> str:
    return await note(text)


@workflow
async def legacy() -> str:
    return await go.receive()


@workflow
async def sleeper(seconds: float) -> str:
    await asyncio.sleep(seconds)  # sleep: a durable timer
    return await note("woke")


@workflow
async def finishing() -> str:
    over = asyncio.Event()

    @finish.handled_by
    async def _(text: str) -> str:
        over.set()
        return f"finished: {text}"

    await over.wait()
    return "over"


@pytest.mark.parametrize("in_a_thread", [False, True])
async def test_a_step_that_panics_fails_alone(store_url: str, in_a_thread: bool) -> None:  # noqa: F811
    async with playing(store_url, bad, good):
        failing = asyncio.create_task(bad.run(in_a_thread, id="bad"))
        others = [asyncio.create_task(good.run(str(n), id=f"good {n}")) for n in range(5)]
        async with asyncio.timeout(30):
            assert await asyncio.gather(*others) == ["0", "1", "2", "3", "4"]
            with pytest.raises(WorkflowFailed, match="Panic: boom, which is no Exception"):
                await failing


async def test_timers_do_not_wait_for_one_that_nobody_here_can_run(store_url: str) -> None:  # noqa: F811
    async with playing(store_url, legacy, sleeper):
        await legacy.start(id="l")
    async with playing(store_url, sleeper, idle=0.0):
        assert await ends(await sleeper.start(0.2, id="s")) == "woke"


async def test_an_attempt_that_the_code_does_not_know_is_a_divergence(store_url: str) -> None:  # noqa: F811
    begun, done = asyncio.Event(), list[int]()

    @step(at_most_once=True)
    async def pay(amount: int) -> None:
        done.append(amount)
        begun.set()
        await go_on.wait()

    @workflow(name="job")
    async def old() -> None:
        await pay(100)

    @workflow(name="job")
    async def new() -> None:
        await pay(101)

    go_on = asyncio.Event()
    async with playing(store_url, old):
        await old.start(id="x")
        await asyncio.wait_for(begun.wait(), 30)
    go_on.set()
    async with playing(store_url, new) as app:

        async def is_paused() -> bool:
            return (await operations.show_workflow(app, "x")).workflow.state == "paused"

        await eventually(is_paused)
        [broken] = (await operations.check_workflows(app)).broken
        assert "an attempt at pay#1" in broken.reason
    assert done == [100]


@pytest.mark.parametrize("idle", [1000.0, 0.0], ids=["in memory", "evicted"])
async def test_what_a_timer_has_led_to_is_looked_up_too(store_url: str, idle: float) -> None:  # noqa: F811
    begun, calls = asyncio.Event(), list[str]()

    async def look() -> str:
        calls.append("look up")
        return "found"

    @step(lookup=look)
    async def charge() -> str:
        calls.append(f"charge {workflows.attempt().unknown}")
        begun.set()
        return await asyncio.Event().wait() and "never"

    @workflow
    async def flow() -> str:
        await asyncio.sleep(0.2)  # sleep: a durable timer
        return await charge()

    async with playing(store_url, flow, idle=idle):
        await flow.start(id="x")
        await asyncio.wait_for(begun.wait(), 30)
    async with playing(store_url, flow, idle=idle):
        assert await ends(flow.handle("x")) == "found"
    assert calls == ["charge False", "look up"]


async def test_an_update_that_ends_its_workflow_is_answered(
    store_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetched = WorkflowHandle._is_open

    async def ends_first(self: WorkflowHandle[Any]) -> bool:
        await ends(self)  # it was answered by then
        return await fetched(self)

    monkeypatch.setattr(WorkflowHandle, "_is_open", ends_first)
    async with playing(store_url, finishing):
        handle = await finishing.start(id="x")
        assert await asyncio.wait_for(handle.update(finish, "a"), 30) == "finished: a"


@workflow
async def handing_over() -> str:
    good.child("kept", id="kept", detached=True)
    return "done"


async def test_one_that_is_terminated_before_it_begins_does_nothing(store_url: str) -> None:  # noqa: F811
    async with playing(store_url, handing_over, good) as app:
        handle = await handing_over.start(id="x", delay=3600)
        await handle.terminate("enough")
        with pytest.raises(WorkflowFailed, match="Terminated"):
            await ends(handle)
        rows = await app.service("jobs").fetch("SELECT id, state FROM skald_workflows")
        assert rows == [{"id": "x", "state": "terminated"}]


@workflow
async def waiting_for_a_child() -> str:
    return await legacy.run(id="kid")


async def test_one_that_is_terminated_before_it_was_told_anything_gives_up_its_children(
    store_url: str,  # noqa: F811
) -> None:
    async with playing(store_url, waiting_for_a_child, legacy, idle=0.0) as app:
        handle = await waiting_for_a_child.start(id="x")

        async def is_kid(state: str, owner: str) -> bool:
            sql = f"SELECT 1 AS one FROM skald_workflows WHERE id = 'kid' AND state = :state AND owner IS {owner}"
            return bool(await app.service("jobs").fetch(sql, state=state))

        await eventually(lambda: is_kid("running", "NULL"))
        await handle.terminate("enough")
        await eventually(lambda: is_kid("cancelled", "NULL"))


@workflow
async def middle() -> str:
    return await legacy.run(id="grandchild")


@workflow
async def family() -> None:
    await asyncio.gather(middle.run(id="kid"), legacy.run(id="later kid", delay=3600), good.run("done", id="done kid"))


@pytest.mark.parametrize("has_code", [True, False], ids=["by a program that has its code", "by one that has not"])
async def test_one_that_is_terminated_gives_up_its_children(
    store_url: str,  # noqa: F811
    has_code: bool,
) -> None:
    async def states(app: App) -> dict[str, str]:
        rows = await app.service("jobs").fetch("SELECT id, state FROM skald_workflows")
        return {row["id"]: row["state"] for row in rows}

    begun = {"x": "running", "other": "running", "kid": "running", "grandchild": "running"}
    begun |= {"later kid": "scheduled", "done kid": "completed"}
    over = begun | {"x": "terminated", "kid": "cancelled", "grandchild": "cancelled"}
    async with playing(store_url, family, middle, legacy, good) as app:
        await family.start(id="x")
        await legacy.start(id="other")

        async def is_begun() -> bool:
            return await states(app) == begun

        await eventually(is_begun)
    rest = (middle, legacy, good)
    async with playing(store_url, *((family, *rest) if has_code else rest)) as app:
        await operations.terminate_workflow(app, "x", reason="enough")

        async def is_over() -> bool:
            return await states(app) == over

        await eventually(is_over)
        # Which it hears when it begins.
        assert [letter.kind for letter in (await operations.show_workflow(app, "later kid")).letters] == ["cancel"]


async def test_an_update_may_come_before_the_start(store_url: str) -> None:  # noqa: F811
    async with playing(store_url, finishing):
        update = asyncio.create_task(finishing.handle("x").update(finish, "a"))
        await finishing.start(id="x", delay=0.05)
        assert await asyncio.wait_for(update, 30) == "finished: a"


async def test_a_run_of_older_code_that_has_written_nothing_is_not_patched(store_url: str) -> None:  # noqa: F811
    begun, go_on = asyncio.Event(), asyncio.Event()

    @step
    async def reserve() -> str:
        begun.set()
        await go_on.wait()
        return "reserved"

    @workflow(name="job")
    async def old() -> str:
        return await reserve()

    @workflow(name="job")
    async def new() -> str:
        return await note("charged") if workflows.patched("charge first") else await reserve()

    async with playing(store_url, old):
        await old.start(id="x")
        await asyncio.wait_for(begun.wait(), 30)
    go_on.set()
    async with playing(store_url, new):
        assert await ends(new.handle("x")) == "reserved"
