"""Code that changes under running workflows: patches, histories that no longer fit, retention, code that is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skald import App, RuntimeSettings, Service, step, workflow, workflows
from skald.errors import (
    ConfigurationError,
    Diverged,
    WorkflowBusy,
    WorkflowFailed,
    WorkflowMismatch,
    WorkflowUnknown,
)
from skald.testing.workflows import laboratory
from skald.workflows import journal
from skald.workflows.executor import ExecutorSettings
from tests.simulation.stage import eventually

go = workflows.Signal("go", str)
done: list[str] = []


@step
async def note(text: str) -> str:
    done.append(text)
    return text


@workflow(name="job")
async def first_version(id: str) -> str:
    await note("a")
    await go.receive()
    await note("b")
    return "first"


@workflow(name="job")
async def patched_version(id: str) -> str:
    if workflows.patched("begin with z"):
        await note("z")
    await note("a")
    await go.receive()
    if workflows.patched("end with c"):
        await note("c")
    else:
        await note("b")
    return "patched"


@workflow(name="job")
async def cleaned_version(id: str) -> str:
    workflows.deprecate_patch("begin with z")
    await note("z")
    await note("a")
    await go.receive()
    workflows.deprecate_patch("end with c")
    await note("c")
    return "cleaned"


@workflow(name="job")
async def careless_version(id: str) -> str:
    await note("z")
    await note("a")
    await go.receive()
    return "careless"


@pytest.fixture(autouse=True)
def _fresh() -> None:
    done.clear()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


@asynccontextmanager
async def playing(url: str, *found: Any, idle: float = 1000.0, **options: Any) -> AsyncIterator[Service]:
    service = Service("jobs", workflows=found)
    settings = RuntimeSettings(workflows=ExecutorSettings(idle=idle, poll=0.05, **options))
    app = App(service, store=url, settings=settings)
    await app.migrate()
    async with app.run():
        yield service


async def state(service: Service, id: str, wanted: str) -> Any:
    async def check() -> Any:
        known = await journal.by_id(service.store, id)
        assert known is not None
        assert known.state == wanted, known
        return known

    return await eventually(check)


async def at_signal(service: Service, id: str) -> None:
    async def check() -> None:
        rows = await service.fetch(
            "SELECT 1 AS one FROM skald_journal j JOIN skald_workflows w ON w.run = j.run "
            "WHERE w.id = :id AND j.name = 'note' AND j.payload IS NOT NULL",
            id=id,
        )
        assert rows

    await eventually(check)


async def test_old_runs_keep_the_old_way_and_new_ones_have_the_patch(url: str) -> None:
    async with playing(url, first_version) as jobs:
        await first_version.start("old", id="old")
        await at_signal(jobs, "old")
    async with playing(url, patched_version) as jobs:
        await patched_version.start("new", id="new")
        for id in ("old", "new"):
            await jobs.signal(go, "go", id=id)
            assert await asyncio.wait_for(patched_version.handle(id).result(), 30) == "patched"
    assert done.count("z") == 1
    # The old one had not come to the second patch when the code changed: it has it.
    assert (done.count("b"), done.count("c")) == (0, 2)


async def test_a_patch_is_the_same_at_every_replay() -> None:
    """In the lab, which replays at every wait, and with eviction at each of them."""
    async with laboratory(Service("jobs", workflows=[patched_version]), idle=0.0) as lab:
        handle = await patched_version.start("x", id="x")
        await lab.settle()
        await handle.signal(go, "go")
        assert await lab.result(handle) == "patched"
        assert done == ["z", "a", "c"]
        kinds = [entry.kind for entry in (await lab.history("x")).entries]
        assert kinds == ["patch", "step_done", "step_done", "signal", "patch", "step_done"]


async def test_a_deprecated_patch_keeps_its_histories(url: str) -> None:
    async with playing(url, patched_version) as jobs:
        await patched_version.start("x", id="x")
        await at_signal(jobs, "x")
    async with playing(url, cleaned_version) as jobs:
        await jobs.signal(go, "go", id="x")
        assert await asyncio.wait_for(cleaned_version.handle("x").result(), 30) == "cleaned"
    assert done == ["z", "a", "c"]


async def test_a_patch_that_the_code_forgot_is_named(url: str) -> None:
    async with playing(url, patched_version) as jobs:
        await patched_version.start("x", id="x")
        await at_signal(jobs, "x")
    async with playing(url, careless_version) as jobs:
        await jobs.signal(go, "go", id="x")
        known = await state(jobs, "x", "paused")
        assert b"deprecate_patch('begin with z')" in known.outcome


async def test_history_and_code_apart_stop_one_workflow_which_goes_on_after_a_fix(url: str) -> None:
    async with playing(url, first_version) as jobs:
        await first_version.start("x", id="x")
        await at_signal(jobs, "x")
    async with playing(url, careless_version) as jobs:
        known = await state(jobs, "x", "paused")
        assert b"Diverged" in known.outcome
        assert b"at position 1 the history has the end of note#1" in known.outcome
        assert b"and the code waits for note#1" in known.outcome
        other = await careless_version.start("y", id="y")
        await other.signal(go, "go")
        assert await other.result() == "careless", "the others go on"
        with pytest.raises(WorkflowBusy, match="paused, and not failed"):
            await careless_version.handle("x").retry()
    async with playing(url, first_version) as jobs:
        await state(jobs, "x", "paused")
        await first_version.handle("x").resume()
        await jobs.signal(go, "go", id="x")
        assert await asyncio.wait_for(first_version.handle("x").result(), 30) == "first"


async def test_a_query_of_one_that_diverges_says_so(url: str) -> None:
    async with playing(url, first_version) as jobs:
        await first_version.start("x", id="x")
        await at_signal(jobs, "x")
    async with playing(url, careless_version) as jobs:
        await state(jobs, "x", "paused")
        with pytest.raises(Diverged, match="position 1"):
            await careless_version.handle("x").query(workflows.Query("status", str))


async def test_code_that_is_missing_waits_for_a_program_that_has_it(url: str) -> None:
    @workflow
    async def other(id: str) -> str:
        return id

    async with playing(url, first_version) as jobs:
        for id in ("x", "y"):
            await first_version.start(id, id=id)
            await at_signal(jobs, id)
    async with playing(url, other) as jobs:
        assert await other.run("z") == "z"
        await jobs.connection.workflows.handle(first_version, "y").terminate("no longer needed")
        known = await state(jobs, "y", "terminated")
        assert b"no longer needed" in known.outcome
        assert await jobs.fetch("SELECT id FROM skald_letters") == []
        known = await state(jobs, "x", "running")
        assert known.owner is None, "it is left to a program that has its code"
    async with playing(url, first_version) as jobs:
        await jobs.signal(go, "go", id="x")
        assert await asyncio.wait_for(first_version.handle("x").result(), 30) == "first"


async def test_workflows_that_have_ended_are_deleted_after_a_while(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skald.workflows.executor.PRUNE_EVERY", 0.0)
    monkeypatch.setattr("skald.workflows.executor.PRUNE_BATCH", 2)

    @workflow
    async def brief(n: int) -> int:
        await note(f"{n}")
        return n

    async with playing(url, brief, first_version, retention=None) as jobs:
        for n in range(7):
            await brief.run(n, id=f"{n}")
        open_one = await first_version.start("open", id="open")
        await at_signal(jobs, "open")
    async with playing(url, brief, first_version, retention=0.0) as jobs:

        async def gone() -> None:
            assert [row["id"] for row in await jobs.fetch("SELECT id FROM skald_workflows")] == ["open"]

        await eventually(gone)
        runs = {str(row["run"]) for row in await jobs.fetch("SELECT run FROM skald_journal")}
        assert len(runs) == 1, "and their journals"
        with pytest.raises(WorkflowUnknown):
            await brief.handle("3").result()
        await jobs.signal(go, "go", id=open_one.id)
        assert await first_version.handle("open").result() == "first"


@workflow
async def chained(first: str, rounds: int = 3) -> str:
    if rounds:
        workflows.continue_as_new(f"{first}+", rounds - 1)
    await note(first)
    return await go.receive()


@workflow
async def waiting_for_it(id: str) -> str:
    return await chained.run(id, id=f"{id}.kid")


@pytest.mark.parametrize("batch", [1, 2, 100])
async def test_with_what_an_id_was_started_is_known_as_long_as_its_last_run(
    url: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skald.workflows.executor.PRUNE_EVERY", 0.0)
    monkeypatch.setattr("skald.workflows.executor.PRUNE_BATCH", batch)

    async def left(service: Service) -> list[str]:
        rows = await service.fetch("SELECT id, state FROM skald_workflows")
        return sorted(f"{row['id']} {row['state']}" for row in rows)

    async def only(*wanted: str) -> None:
        assert await left(jobs) == sorted(wanted)

    async with playing(url, chained, waiting_for_it, retention=None) as jobs:
        # A chain before, whose end is forgotten with its beginning.
        await chained.start("before", id="x")
        await at_signal(jobs, "x")
        await jobs.signal(go, "go", id="x")
        await chained.handle("x").result()
        await chained.start("x", id="x", existing="restart")
        await waiting_for_it.start("p", id="p")
        for id in ("x", "p.kid"):
            await at_signal(jobs, id)
        assert len(await left(jobs)) == 13
    open_ones = ["p running", "p.kid continued", "p.kid running", "x continued", "x running"]
    async with playing(url, chained, waiting_for_it, retention=0.0) as jobs:
        await eventually(lambda: only(*open_ones))
        runs = {str(row["run"]) for row in await jobs.fetch("SELECT run FROM skald_journal")}
        assert len(runs) == 2, "of the first runs only the rows are left"
        assert (await chained.start("x", id="x")).id == "x"
        for other in ("before", "y"):
            with pytest.raises(WorkflowMismatch):
                await chained.start(other, id="x")
    async with playing(url, chained, waiting_for_it, retention=None) as jobs:
        for id in ("x", "p.kid"):
            await jobs.signal(go, "went", id=id)
        assert await asyncio.wait_for(chained.handle("x").result(), 30) == "went"
        assert await asyncio.wait_for(waiting_for_it.handle("p").result(), 30) == "went"
    async with playing(url, chained, waiting_for_it, retention=0.0) as jobs:
        await eventually(lambda: only())


async def test_a_payload_over_the_limit_is_refused_by_name(url: str) -> None:
    @workflow
    async def large(text: str) -> str:
        return await grow(text)

    @step
    async def grow(text: str) -> str:
        return text * 3

    async with playing(url, large):
        with pytest.raises(Exception, match=r"large: .*the limit is 1048576"):
            await large.start("x" * (1 << 20))
        with pytest.raises(WorkflowFailed, match="the result of grow"):
            await large.run("x" * (1 << 19))


@workflow
async def waiting(number: int) -> int:
    await go.receive()
    return 2 * number


async def test_more_than_memory_is_meant_for_do_not_stay_in_it(url: str) -> None:
    """Those that wait leave it, the oldest first, although they may be idle for long; each gets what it waits for."""
    async with playing(url, waiting, max_taken=20) as service:
        await asyncio.gather(*(waiting.start(n, id=str(n)) for n in range(100)))

        async def left() -> None:
            await waiting.start(-1)  # a start is what makes room
            owned = "SELECT id FROM skald_workflows WHERE owner IS NOT NULL AND length(id) < 3"
            assert len(await service.fetch(owned)) <= 20

        await eventually(left)
        for n in range(100):
            await service.signal(go, "on", id=str(n))
        async with asyncio.timeout(30):
            found = await asyncio.gather(*(waiting.handle(str(n)).result() for n in range(100)))
        assert found == [2 * n for n in range(100)]


# --- parameters with defaults -----------------------------------------------------------------------------------------


@workflow(name="order")
async def order(id: str, express: bool = False) -> str:
    await go.receive()
    return f"{id} {express}"


@workflow(name="order")
async def faster_order(id: str, express: bool = True, note: str = "none") -> str:
    await go.receive()
    return f"{id} {express} {note}"


@workflow
async def customer(id: str, rounds: int = 1) -> str:
    first = await order.run(id, id=f"{id}.child")
    if rounds:
        workflows.continue_as_new(id, rounds - 1)
    return first


@workflow(name="customer")
async def other_customer(id: str, rounds: int = 1) -> str:
    return await faster_order.run(id, id=f"{id}.child")


@step
async def arrive(id: str) -> None:
    done.append(id)


@workflow
async def patient(id: str, rounds: int = 1) -> str:
    if rounds:
        workflows.continue_as_new(id, rounds - 1)
    await arrive(id)
    return await go.receive()


async def stored(service: Service, id: str) -> Any:
    rows = await service.fetch("SELECT input FROM skald_workflows WHERE id = :id ORDER BY started_at", id=id)
    return [msgspec.json.decode(row["input"]) for row in rows]


async def test_a_default_is_that_of_the_start_whatever_the_code_says_later(url: str) -> None:
    async with playing(url, order) as jobs:
        await order.start("o-1", id="o-1")
        await order.start("o-2", delay=0.001, id="o-2")
        async with jobs.transaction() as tx:
            await tx.start(order, "o-3", id="o-3")
            with pytest.raises(ConfigurationError, match=r"test_workflow_changes\.py:\d+: .* is no workflow"):
                await tx.start(stored, jobs, "o-3")
        for id in ("o-1", "o-2", "o-3"):
            assert await stored(jobs, id) == [{"id": id, "express": False}]
    async with playing(url, faster_order) as jobs:
        for id in ("o-1", "o-2", "o-3"):
            await jobs.signal(go, "", id=id)
            assert await faster_order.handle(id).result() == f"{id} False none"


async def test_the_same_start_by_code_with_a_further_parameter_is_the_same_workflow(url: str) -> None:
    async with playing(url, order):
        await order.start("o-1", id="o-1")
        await order.start("o-1", False, id="o-1")
    async with playing(url, faster_order) as jobs:
        for ended in (False, True):
            await faster_order.start("o-1", False, id="o-1")
            with pytest.raises(WorkflowMismatch, match="other arguments"):
                await faster_order.start("o-1", False, "urgent", id="o-1")
            with pytest.raises(WorkflowMismatch, match="other arguments"):
                await faster_order.start("o-1", id="o-1")  # which is another order today
            if not ended:
                await jobs.signal(go, "", id="o-1")
            assert await faster_order.handle("o-1").result() == "o-1 False none"


async def test_a_caller_that_waits_for_a_child_goes_on_when_the_defaults_of_the_child_have_changed(url: str) -> None:
    async with playing(url, customer, order) as jobs:
        await customer.start("c-1", id="c-1")
        await state(jobs, "c-1.child", "running")
        assert await stored(jobs, "c-1.child") == [{"id": "c-1", "express": False}]
    async with playing(url, other_customer, faster_order) as jobs:
        await jobs.signal(go, "", id="c-1.child")
        assert await other_customer.handle("c-1").result() == "c-1 False none"


async def test_what_is_continued_has_its_defaults_too(url: str) -> None:
    async with playing(url, customer, order) as jobs:
        await customer.start("c-1", id="c-1")
        await jobs.signal(go, "", id="c-1.child")
        await state(jobs, "c-1.child", "completed")

        async def check() -> None:
            assert await stored(jobs, "c-1") == [{"id": "c-1", "rounds": 1}, {"id": "c-1", "rounds": 0}]

        await eventually(check)
        await customer.start("c-1", id="c-1")  # by its first run


async def test_a_run_that_goes_on_was_started_as_its_first_one(url: str) -> None:
    async with playing(url, patient) as jobs:
        await patient.start("c-1", id="c-1")

        async def goes_on() -> None:
            assert "c-1" in done

        await eventually(goes_on)
        handle = await patient.start("c-1", id="c-1")
        with pytest.raises(WorkflowMismatch, match="with other arguments"):
            await patient.start("c-2", id="c-1")
        await jobs.signal(go, "there", id="c-1")
        assert await handle.result() == "there"


async def test_what_is_no_option_of_a_start_is_refused_at_its_line(url: str) -> None:
    async with playing(url, order):
        with pytest.raises(ConfigurationError, match=r"changes\.py:\d+: there is no option 'express'.*by position"):
            await order.start("o-1", express=True)  # type: ignore[call-overload]
