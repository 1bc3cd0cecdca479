"""What is told to an id is for the run that was open then, or for what continues it; never for a later one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from skald import App, Handle, RuntimeSettings, Service, workflow, workflows
from skald.errors import WorkflowBusy, WorkflowEnded, WorkflowFailed
from skald.unit import WorkflowState
from skald.workflows import journal
from skald.workflows.executor import ExecutorSettings
from tests.simulation.stage import eventually

ROUNDS = 12
go = workflows.Signal("go", str)
rename = workflows.Update("rename", str, str)


@workflow
async def waits(number: int) -> int:
    @rename.handled_by
    async def _(new: str) -> str:
        return f"{number}: {new}"

    await go.receive()
    return number


@workflow
async def goes_on(left: int) -> str:
    await go.receive()
    if left:
        workflows.continue_as_new(left - 1)
    return "done"


broken = True


@workflow
async def fails_first() -> str:
    await go.receive()
    if broken:
        raise ValueError("not yet")
    await go.receive()
    return "mended"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


@asynccontextmanager
async def playing(url: str) -> AsyncIterator[Service]:
    service = Service("jobs", workflows=[waits, goes_on, fails_first])
    app = App(service, store=url, settings=RuntimeSettings(workflows=ExecutorSettings(poll=0.05)))
    await app.migrate()
    async with app.run():
        yield service


async def later(call: Coroutine[Any, Any, None], turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    with suppress(WorkflowEnded):
        await call


async def told(handle: Handle[int], what: str, number: int) -> None:
    match what:
        case "cancel":
            await handle.cancel(f"round {number}")
        case "terminate":
            await handle.terminate(f"round {number}")
        case "pause":
            await handle.pause()
        case _:
            assert await handle.update(rename, "new") == f"{number}: new"


async def ended(service: Service, number: int, what: str) -> journal.Known:
    async def check() -> journal.Known:
        known = await journal.by_id(service.store, "x")
        assert known is not None
        if known.state == WorkflowState.PAUSED:
            assert what == "pause"
            with suppress(WorkflowBusy):
                await journal.resume(service.store, "x")
            service.store.workflows.ring()
        assert known.end is not None, known
        return known

    return await eventually(check)


@pytest.mark.parametrize("seed", range(3))
async def test_what_ends_or_pauses_a_run_reaches_no_later_run_of_its_id(url: str, seed: int) -> None:
    chance, hit = random.Random(seed), 0
    async with playing(url) as jobs:
        for number in range(ROUNDS):
            what = chance.choice(["cancel", "terminate", "pause", "update"])
            handle = await waits.start(number, id="x", existing="restart")

            # Both are on their way when it ends by one of them. Nothing of it is, when the next one is started.
            calls = [handle.signal(go, ""), told(handle, what, number)]
            await asyncio.gather(*(later(call, chance.randrange(4)) for call in calls))
            known = await ended(jobs, number, what)
            if known.state == WorkflowState.COMPLETED:
                assert known.outcome == b"%d" % number
            else:
                assert known.state.value == {"cancel": "cancelled", "terminate": "terminated"}[what]
                assert f"round {number}".encode() in (known.outcome or b"")
            rows = await jobs.fetch("SELECT 1 AS one FROM skald_letters WHERE kind BETWEEN 1 AND 4 AND taken = 0")
            hit += len(rows)  # of this run alone: those of the last one are gone
    assert hit, "no run has left a letter"


async def left_a_letter(jobs: Service, handle: Handle[int] | Handle[str]) -> None:
    """Tells it to cancel itself behind the signal that ends it: nobody takes that."""
    async with jobs.transaction() as tx:
        await tx.signal(go, "", id=handle.id)
        await tx.execute(
            "INSERT INTO skald_letters (id, kind, to_id, name, payload, time) "
            "SELECT 'stale', 2, to_id, '', payload, time + 1 FROM skald_letters WHERE to_id = :id",
            id=handle.id,
        )
    jobs.store.workflows.ring()


async def test_a_letter_that_nobody_took_before_the_end_is_gone_with_the_next_start(url: str) -> None:
    async with playing(url) as jobs:
        handle = await waits.start(1, id="x")
        await left_a_letter(jobs, handle)
        assert await handle.result() == 1
        assert len(await jobs.fetch("SELECT id FROM skald_letters")) == 1
        again = await waits.start(2, id="x", existing="restart")
        assert await jobs.fetch("SELECT id FROM skald_letters") == []
        await again.signal(go, "")
        assert await again.result() == 2


async def test_a_letter_that_nobody_took_before_the_failure_does_not_reach_what_is_retried(url: str) -> None:
    global broken
    broken = True
    async with playing(url) as jobs:
        handle = await fails_first.start(id="x")
        await left_a_letter(jobs, handle)
        with pytest.raises(WorkflowFailed, match="not yet"):
            await handle.result()
        broken = False
        await handle.retry()
        await jobs.signal(go, "", id="x")
        assert await fails_first.handle("x").result() == "mended"


async def test_a_cancellation_follows_the_id_to_what_continues_it(url: str) -> None:
    async with playing(url) as jobs:
        handle = await goes_on.start(1, id="x")
        await left_a_letter(jobs, handle)
        with pytest.raises(WorkflowFailed, match="CancelledError"):
            await handle.result()
