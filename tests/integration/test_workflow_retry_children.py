"""A failed workflow is retried, and has children: those that had ended in vain are brought back, once each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from skald import NEVER, App, RuntimeSettings, Service, compensation, saga, step, workflow, workflows
from skald.errors import WorkflowEnded, WorkflowFailed
from skald.operations import workflows as operations
from skald.workflows import journal
from skald.workflows.children import Children
from skald.workflows.executor import ExecutorSettings
from tests.simulation.stage import eventually

go = workflows.Signal("go", str)
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


@compensation
async def unbook(name: str) -> None:
    done.append(f"unbook {name}")


@step(compensate=unbook)
async def book(name: str) -> str:
    done.append(f"book {name}")
    return name


@workflow
async def kid(name: str, waits: bool) -> str:
    first = await work(f"{name} first")
    if waits:
        await go.receive()
    return f"{first} and {await fragile(name)}"


@saga
async def booking(name: str, waits: bool) -> str:
    room = await book(name)
    await go.receive()
    return room


@workflow
async def middle(name: str, waits: bool) -> str:
    """Its own child has an id that does not change with the run."""
    return await kid.run(name, waits, id="grandchild")


KINDS = {"workflow": kid, "saga": booking, "with a child of its own": middle}
FIRST = {"workflow": "patient first", "saga": "book patient", "with a child of its own": "patient first"}


@workflow
async def parallel(kind: str) -> list[str]:
    async with asyncio.TaskGroup() as group:
        patient = group.create_task(KINDS[kind].run("patient", True, id="patient"))
        await work("in parallel")
        await go.receive()
        other = group.create_task(fragile("other"))
    return [patient.result(), other.result()]


@workflow
async def later() -> list[str]:
    async with asyncio.TaskGroup() as group:
        patient = group.create_task(kid.run("patient", False, id="patient", delay=3600))
        await go.receive()
        other = group.create_task(fragile("other"))
    return [patient.result(), other.result()]


@workflow
async def careless(lets_go: bool) -> list[str]:
    """Fails by its own code."""
    async with asyncio.TaskGroup() as group:
        if lets_go:
            kid.child("patient", True, id="patient", detached=True)
        else:
            patient = group.create_task(kid.run("patient", True, id="patient"))
        said = await go.receive()
        if "code" in broken:
            raise ValueError(said)
    return [said] if lets_go else [patient.result()]


@workflow
async def reminding(delay: float) -> str:
    return await kid.run("patient", True, id="patient", delay=delay)


@workflow
async def one(waits: bool) -> str:
    return (await kid.run("weak", waits, id="weak")).upper()


@workflow
async def many(names: list[str]) -> list[str]:
    return await asyncio.gather(*(kid.run(name, False, id=name) for name in names))


@workflow
async def twice() -> list[str]:
    return await asyncio.gather(*(kid.run("weak", False, id="weak") for _ in range(2)))


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    done.clear()
    broken.clear()
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


@pytest.fixture(params=[1000.0, 0.0], ids=["stays in memory", "leaves it whenever it waits"])
def idle(request: pytest.FixtureRequest) -> float:
    """Seconds after which a waiting workflow leaves memory."""
    return float(request.param)


@asynccontextmanager
async def playing(url: str, idle: float = 1000.0) -> AsyncIterator[App]:
    jobs = Service("jobs", workflows=[kid, booking, middle, parallel, later, careless, reminding, one, many, twice])
    settings = RuntimeSettings(workflows=ExecutorSettings(idle=idle, poll=0.05))
    app = App(jobs, store=url, settings=settings)
    await app.migrate()
    async with app.run():
        yield app


async def fails(handle: workflows.WorkflowHandle[Any]) -> None:
    with pytest.raises(WorkflowFailed):
        async with asyncio.timeout(30):
            await handle.result()


async def ends(handle: workflows.WorkflowHandle[Any]) -> Any:
    async with asyncio.timeout(30):
        return await handle.result()


async def was_done(name: str, times: int) -> bool:
    return done.count(name) == times


async def state_of(app: App, id: str) -> str:
    return (await operations.show_workflow(app, id)).workflow.state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_over", [True, False], ids=["cancelled", "being cancelled"])
async def test_one_that_was_cancelled_with_its_parent_goes_on_or_is_run_anew(
    url: str, idle: float, kind: str, is_over: bool
) -> None:
    """Whatever of it is to be cancelled when its parent is retried."""
    broken.add("other")
    async with playing(url, idle) as app:
        handle = await parallel.start(kind, id="x")
        await eventually(lambda: was_done(FIRST[kind], 1))
        await handle.signal(go, "now")
        await fails(handle)

        async def is_cancelled() -> bool:
            return await state_of(app, "patient") == "cancelled"

        async def has_its_child() -> bool:
            return kind != "with a child of its own" or await state_of(app, "grandchild") == "cancelled"

        if is_over:
            await eventually(is_cancelled)
            await eventually(has_its_child)
        broken.clear()
        begun = done.count(FIRST[kind])
        await parallel.handle("x").retry()
        waiting = "grandchild" if kind == "with a child of its own" else "patient"
        if is_over:
            await eventually(lambda: was_done(FIRST[kind], begun + 1))

        async def hears() -> bool:
            if await state_of(app, waiting) == "running":
                with suppress(WorkflowEnded):
                    await KINDS["workflow"].handle(waiting).signal(go, "now")
            return await state_of(app, "x") == "completed"

        await eventually(hears)
        [patient, other] = await ends(parallel.handle("x"))
        assert (patient, other) == ("patient" if kind == "saga" else "patient first and patient", "other")
        assert done.count("in parallel") == 1
        assert done.count(FIRST[kind]) <= begun + 1 <= 2
        assert (await operations.check_workflows(app)).broken == []


async def test_one_that_has_failed_goes_on_from_where_it_has_failed(url: str, idle: float) -> None:
    broken.add("weak")
    async with playing(url, idle):
        await fails(await one.start(False, id="x"))
        await one.handle("x").retry()
        await fails(one.handle("x"))
        broken.clear()
    async with playing(url, idle):
        await one.handle("x").retry()
        assert await ends(one.handle("x")) == "WEAK FIRST AND WEAK"
    assert done == ["weak first", "weak", "weak", "weak"]


async def test_many_that_have_failed_go_on_at_once(url: str, idle: float) -> None:
    names = ["a", "b", "c", "d"]
    broken.update(names)
    async with playing(url, idle) as app:
        await fails(await many.start(names, id="x"))

        async def are_over() -> bool:
            return {await state_of(app, name) for name in names} <= {"failed", "cancelled"}

        await eventually(are_over)
        broken.clear()
        await many.handle("x").retry()
        assert await ends(many.handle("x")) == [f"{name} first and {name}" for name in names]


async def test_one_that_somebody_has_retried_has_its_result(url: str) -> None:
    broken.add("weak")
    async with playing(url):
        await fails(await one.start(False, id="x"))
        for _ in range(2):  # in vain
            await kid.handle("weak").retry()
            await fails(kid.handle("weak"))
        broken.clear()
        await kid.handle("weak").retry()
        assert await ends(kid.handle("weak")) == "weak first and weak"
        await one.handle("x").retry()
        assert await ends(one.handle("x")) == "WEAK FIRST AND WEAK"
    assert done == ["weak first", *["weak"] * 4]


async def test_what_was_told_of_one_before_the_retry_is_not_told_after_it(url: str) -> None:
    broken.add("weak")
    async with playing(url):
        await fails(await one.start(False, id="x"))
        for _ in range(2):
            await kid.handle("weak").retry()
            await fails(kid.handle("weak"))
        broken.clear()
        await one.handle("x").retry()
        assert await ends(one.handle("x")) == "WEAK FIRST AND WEAK"
    assert done == ["weak first", *["weak"] * 4]


async def test_one_that_somebody_retries_in_the_same_moment_is_not_run_twice(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken.add("weak")
    bring_back = Children._bring_back

    async def too_late(self: Children, parent: Any, child: Any, known: journal.Known) -> None:
        await kid.handle("weak").retry()
        await ends(kid.handle("weak"))
        await bring_back(self, parent, child, known)

    monkeypatch.setattr(Children, "_bring_back", too_late)
    async with playing(url):
        await fails(await one.start(False, id="x"))
        broken.clear()
        await one.handle("x").retry()
        assert await ends(one.handle("x")) == "WEAK FIRST AND WEAK"
    assert done == ["weak first", "weak", "weak"]


@pytest.mark.parametrize("how", ["cancel", "terminate"])
async def test_one_that_somebody_has_ended_is_run_anew(url: str, how: str) -> None:
    async with playing(url):
        handle = await one.start(True, id="x")
        await eventually(lambda: was_done("weak first", 1))
        await getattr(kid.handle("weak"), how)()
        await fails(handle)
        await one.handle("x").retry()
        await eventually(lambda: was_done("weak first", 2))
        await kid.handle("weak").signal(go, "now")
        assert await ends(one.handle("x")) == "WEAK FIRST AND WEAK"
    assert done == ["weak first", "weak first", "weak"]


async def test_one_that_had_not_begun_is_not_cancelled(url: str, idle: float) -> None:
    broken.add("other")
    async with playing(url, idle) as app:
        handle = await later.start(id="x")

        async def is_scheduled() -> bool:
            return bool(await app.service("jobs").fetch("SELECT 1 AS one FROM skald_workflows WHERE id = 'patient'"))

        await eventually(is_scheduled)
        await handle.signal(go, "now")
        await fails(handle)
        before = await operations.show_workflow(app, "patient")
        assert before.letters
        broken.clear()
        await later.handle("x").retry()

        async def is_kept() -> bool:
            return not (await operations.show_workflow(app, "patient")).letters

        await eventually(is_kept)
        await eventually(lambda: was_done("other", 2))
        after = await operations.show_workflow(app, "patient")
        assert (after.workflow.state, after.workflow.run) == ("scheduled", before.workflow.run)


@pytest.mark.parametrize("is_over", [True, False], ids=["cancelled", "being cancelled"])
async def test_a_retry_of_code_that_was_mended_brings_them_back_too(url: str, idle: float, is_over: bool) -> None:
    broken.add("code")
    async with playing(url, idle) as app:
        handle = await careless.start(False, id="x")
        await eventually(lambda: was_done("patient first", 1))
        await handle.signal(go, "wrong")
        await fails(handle)

        async def is_cancelled() -> bool:
            return await state_of(app, "patient") == "cancelled"

        if is_over:
            await eventually(is_cancelled)
        for mended in (False, True):
            if mended:
                broken.clear()
            await careless.handle("x").retry()
            if not mended:
                await fails(careless.handle("x"))

        async def hears() -> bool:
            if await state_of(app, "patient") == "running":
                with suppress(WorkflowEnded):
                    await kid.handle("patient").signal(go, "now")
            return await state_of(app, "x") == "completed"

        await eventually(hears)
        assert await ends(careless.handle("x")) == ["patient first and patient"]
        shown = (await operations.show_workflow(app, "x")).journal
        assert [entry.kind for entry in shown].count("forgotten") >= 2
        assert (await operations.check_workflows(app)).broken == []


async def test_one_that_was_let_go_is_left_alone(url: str, idle: float) -> None:
    broken.add("code")
    async with playing(url, idle) as app:
        handle = await careless.start(True, id="x")
        await eventually(lambda: was_done("patient first", 1))
        await kid.handle("patient").terminate()
        await fails(kid.handle("patient"))
        await handle.signal(go, "wrong")
        await fails(handle)
        broken.clear()
        await careless.handle("x").retry()
        assert await ends(careless.handle("x")) == ["wrong"]
        assert await state_of(app, "patient") == "terminated"
    assert done == ["patient first"]


async def test_a_later_run_brings_back_what_an_earlier_one_has_left_in_vain(url: str, idle: float) -> None:
    """At the time that it says."""
    async with playing(url, idle) as app:
        handle = await reminding.start(0.0, id="x")
        await eventually(lambda: was_done("patient first", 1))
        await handle.cancel()
        await fails(handle)
        await reminding.start(3600.0, id="x", existing="restart")

        async def is_scheduled() -> bool:
            return await state_of(app, "patient") == "scheduled"

        await eventually(is_scheduled)
    assert done == ["patient first"]


async def test_a_later_run_does_not_wait_for_one_that_an_earlier_one_has_put_off(url: str, idle: float) -> None:
    async with playing(url, idle) as app:
        handle = await reminding.start(3600.0, id="x")

        async def is_scheduled() -> bool:
            return await state_of(app, "patient") == "scheduled"

        await eventually(is_scheduled)
        await handle.cancel()
        await fails(handle)
        later = await reminding.start(0.0, id="x", existing="restart")
        await eventually(lambda: was_done("patient first", 1))
        await kid.handle("patient").signal(go, "now")
        assert await ends(later) == "patient first and patient"
    assert done == ["patient first", "patient"]


async def test_two_calls_with_one_id_have_one_result(url: str) -> None:
    broken.add("weak")
    async with playing(url):
        await fails(await twice.start(id="x"))
        broken.clear()
        await twice.handle("x").retry()
        assert await ends(twice.handle("x")) == ["weak first and weak"] * 2
    assert done == ["weak first", "weak", "weak"]
