"""The test kit for workflows, tested: a clock that only the test moves, mocks, crashes, replays, orders."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from random import random

import pytest

from skald import Retry, Service, step, workflow, workflows
from skald.errors import Diverged, StepFailed, WorkflowBusy, WorkflowFailed
from skald.testing.workflows import Lab, crash_everywhere, replay_saved
from skald.workflows import saved

pytest_plugins = ["skald.testing.plugin"]
NewLab = Callable[..., AbstractAsyncContextManager[Lab]]

answer = workflows.Signal("answer", str)
done: list[str] = []


@step(retry=Retry(immediate=1, delays=(60, 3600)))
async def charge(order: str) -> str:
    done.append(f"charge {order}")
    return "paid"


@step
async def tell(order: str, text: str) -> None:
    done.append(f"{order}: {text}")


@workflow
async def patient(order: str) -> str:
    paid = await charge(order)
    for day in range(40):
        try:
            async with asyncio.timeout(86_400):
                return f"{paid}, {await answer.receive()} on day {day}"
        except TimeoutError:
            await tell(order, f"day {day}")
    return "nobody answered"


@workflow
async def racing(order: str) -> list[str]:
    names: list[str] = []

    async def one(name: str) -> None:
        await tell(order, name)
        names.append(name)

    async with asyncio.TaskGroup() as group:
        for name in "abcde":
            group.create_task(one(name))
    return names


@workflow
async def careless(order: str) -> str:
    if random() < 0.5:
        await tell(order, "heads")
    await tell(order, "tails")
    await answer.receive()
    return order


def service() -> Service:
    return Service("orders", workflows=[patient, racing, careless])


@pytest.fixture(autouse=True)
def _fresh() -> None:
    done.clear()


async def test_forty_days_in_milliseconds(workflow_lab: NewLab) -> None:
    began = time.perf_counter()
    async with workflow_lab(service()) as lab:
        handle = await patient.start("o-1", id="o-1")
        assert await lab.result(handle) == "nobody answered"
        assert len(done) == 41
        took = timedelta(microseconds=lab.clock.now() - (await lab.history("o-1")).started_at)
        assert timedelta(days=40) <= took < timedelta(days=40, seconds=1)
    print(f"{time.perf_counter() - began:.3f} s")


@pytest.mark.parametrize("idle", [0.0, 3600.0])
async def test_time_stands_still_unless_it_is_moved(workflow_lab: NewLab, idle: float) -> None:
    async with workflow_lab(service(), idle=idle) as lab:
        handle = await patient.start("o-1", id="o-1")
        await lab.advance(timedelta(days=3, hours=1))
        assert done == ["charge o-1", "o-1: day 0", "o-1: day 1", "o-1: day 2"]
        await handle.signal(answer, "yes")
        assert await lab.result(handle) == "paid, yes on day 3"


async def test_mocks_attempt_by_attempt(workflow_lab: NewLab) -> None:
    async with workflow_lab(service()) as lab:
        lab.mock(charge, OSError("away"), OSError("still away"), lambda order: f"{order} is paid")
        handle = await patient.start("o-1", id="o-1")
        await lab.settle()
        assert lab.calls["charge"] == [("o-1",)]
        await lab.advance(60)
        assert len(lab.calls["charge"]) == 2
        await lab.advance(3600)
        await handle.signal(answer, "yes")
        assert await lab.result(handle) == "o-1 is paid, yes on day 0"
        lab.mock(charge, OSError("for good"))
        with pytest.raises(WorkflowFailed, match="for good"):
            await lab.result(await patient.start("o-2", id="o-2"))
    assert await charge("plain") == "paid"


async def test_a_workflow_that_waits_for_a_person_is_named(workflow_lab: NewLab) -> None:
    async with workflow_lab(service()) as lab:
        lab.mock(tell, None)
        handle = await careless.start("o-1", id="o-1")
        with pytest.raises((TimeoutError, Diverged)):
            await lab.result(handle)


async def test_seeds_end_steps_in_different_orders(workflow_lab: NewLab) -> None:
    found = set()
    for seed in (*range(6), 0):
        async with workflow_lab(service(), seed=seed) as lab:
            names = await lab.result(await racing.start("o-1", id="o-1"))
            assert sorted(names) == list("abcde")
            found.add("".join(names))
    assert 2 <= len(found) <= 6


async def test_code_that_goes_round_the_loop_is_found(workflow_lab: NewLab) -> None:
    found = 0
    for n in range(12):
        try:
            async with workflow_lab(service()) as lab:
                await careless.start(f"o-{n}", id=f"o-{n}")
                await lab.settle()
        except Diverged:
            found += 1
    assert found, "six of twelve, mostly"


async def test_crashes_at_every_commit(workflow_lab: NewLab) -> None:
    async def scenario(lab: Lab) -> str:
        handle = await patient.start("o-1", id="o-1")
        await lab.advance(timedelta(days=1, hours=1))
        await handle.signal(answer, "yes")
        return await lab.result(handle)

    results = await crash_everywhere(scenario, service())
    assert len(results) >= 9, "start, charge, timer, tell, signal: each before and after, and once undisturbed"
    assert set(results) == {"paid, yes on day 1"}


async def test_a_saved_history_is_replayed(workflow_lab: NewLab, tmp_path: Path) -> None:
    async with workflow_lab(service()) as lab:
        await lab.result(await patient.start("o-1", id="o-1"))
        saved.write(await lab.history("o-1"), tmp_path / "patient.json")
    await replay_saved(tmp_path / "patient.json", service())

    @workflow(name="patient")
    async def hasty(order: str) -> str:
        await tell(order, "first")
        return "changed"

    with pytest.raises(Diverged, match="charge"):
        await replay_saved(tmp_path / "patient.json", Service("orders", workflows=[hasty]))


async def test_a_failed_step_reaches_the_workflow(workflow_lab: NewLab) -> None:
    @step(retry=Retry(immediate=1, delays=()))
    async def once() -> None: ...

    @workflow
    async def catching() -> str:
        try:
            await once()
        except StepFailed as failure:
            return failure.type
        return "fine"

    async with workflow_lab(Service("orders", workflows=[catching])) as lab:
        lab.mock(once, KeyError("x"))
        assert await lab.result(await catching.start()) == "KeyError"


async def test_progress_that_is_reported_does_not_keep_the_lab_busy(workflow_lab: NewLab) -> None:
    going = asyncio.Event()

    @step
    async def long(text: str) -> str:
        workflows.attempt().heartbeat({"done": 1})
        await going.wait()
        return text

    @workflow
    async def calling(text: str) -> str:
        return await long(text)

    async with workflow_lab(Service("orders", workflows=[calling])) as lab:
        handle = await calling.start("x", id="x")
        await asyncio.wait_for(lab.settle(), 30)
        going.set()
        assert await asyncio.wait_for(lab.result(handle), 30) == "x"


async def test_a_workflow_that_paused_itself_is_named(workflow_lab: NewLab) -> None:
    @step(retry=Retry(immediate=1, delays=()), pause=True)
    async def picky(text: str) -> str:
        return text

    @workflow
    async def pausing(text: str) -> str:
        return await picky(text)

    async with workflow_lab(Service("orders", workflows=[pausing])) as lab:
        lab.mock(picky, ValueError("not today"), "mended")
        handle = await pausing.start("x", id="x")
        with pytest.raises(WorkflowBusy, match="not today"):
            await lab.result(handle)
        await handle.resume()
        assert await lab.result(pausing.handle("x")) == "mended"


async def test_a_timer_is_due_after_exactly_its_time(workflow_lab: NewLab) -> None:
    @workflow
    async def napping(seconds: float) -> str:
        await asyncio.sleep(seconds)  # sleep: a durable timer
        await tell("x", "awake")
        return "awake"

    async with workflow_lab(Service("orders", workflows=[napping])) as lab:
        for days in (1, 3, 400):
            done.clear()
            await napping.start(days * 86_400.0, id=f"{days}")
            await lab.advance(timedelta(days=days) - timedelta(milliseconds=1))
            assert done == []
            await lab.advance(timedelta(milliseconds=1))
            assert done == ["x: awake"]


async def test_crashes_at_the_commits_of_transactional_steps(workflow_lab: NewLab, tmp_path: Path) -> None:
    (tmp_path / "0001_rows.sql").write_text("CREATE TABLE rows (n INTEGER NOT NULL)")

    @step(transactional=True)
    async def write(n: int) -> int:
        await workflows.transaction().execute("INSERT INTO rows (n) VALUES (:n)", n=n)
        return n

    @workflow
    async def writing() -> list[int]:
        return [await write(n) for n in range(2)]

    service = Service("orders", workflows=[writing], migrations=tmp_path)

    async def scenario(lab: Lab) -> list[int]:
        assert await lab.result(await writing.start(id="w")) == [0, 1]
        return [row["n"] for row in await service.fetch("SELECT n FROM rows ORDER BY n")]

    results = await crash_everywhere(scenario, service)
    assert len(results) >= 11, "the start, two steps and what they journal, before and after; and once undisturbed"
    assert all(rows == [0, 1] for rows in results)
