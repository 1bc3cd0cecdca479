"""A child that outlives its caller is started once, whatever befalls the process between the two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from skald import App, RuntimeSettings, Service, step, workflow, workflows
from skald.errors import StoreUnavailable
from skald.testing.workflows import Crashed, Lab, _crash, crash_everywhere
from skald.workflows import children, executor, journal
from skald.workflows.executor import ExecutorSettings
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.stage import eventually

go = workflows.Signal("go", str)
done: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    done.clear()


@step
async def note(text: str) -> str:
    done.append(text)
    return text


@workflow
async def kid(name: str) -> str:
    return await note(name)


@workflow
async def handing_over(order: str, first: str | None) -> str:
    """To a child that it calls last."""
    if first is not None:
        await note(first)
    kid.child(f"{order} kept", id=f"{order}/kept", detached=True)
    return "done"


@workflow
async def handing_over_later(order: str) -> str:
    """To a child that begins only then."""
    await note(order)
    kid.child(f"{order} kept", id=f"{order}/kept", detached=True, delay=0.05)
    return "done"


@workflow
async def handing_over_first(order: str) -> str:
    """To a child, and hears something before it ends."""
    kid.child(f"{order} kept", id=f"{order}/kept", detached=True)
    return await go.receive()


FLOWS = (kid, handing_over, handing_over_later, handing_over_first)


@asynccontextmanager
async def playing(url: str) -> AsyncIterator[tuple[App, Any]]:
    """The app, and what runs its workflows."""
    settings = RuntimeSettings(workflows=ExecutorSettings(poll=0.05))
    app = App(Service("jobs", workflows=FLOWS), store=url, settings=settings)
    await app.migrate()
    async with app.run() as [running]:
        yield app, running.executor


async def is_done(app: App, id: str) -> bool:
    known = await journal.by_id(app.service("jobs").store, id)
    return known is not None and known.end is not None


async def runs_of(app: App) -> list[tuple[str, str]]:
    rows = await app.service("jobs").fetch("SELECT id, state FROM skald_workflows ORDER BY id")
    return [(row["id"], row["state"]) for row in rows]


@pytest.mark.parametrize("first", ["a step first", None])
async def test_it_is_started_whichever_commit_fails(first: str | None) -> None:
    async def scenario(lab: Lab) -> str:
        await lab.result(await handing_over.start("o", first, id="o"))
        await lab.settle()
        return await lab.result(kid.handle("o/kept"))

    jobs = Service("jobs", workflows=FLOWS)
    assert set(await crash_everywhere(scenario, jobs)) == {"o kept"}


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
async def test_it_is_started_once_on_either_store(
    store_url: str,  # noqa: F811
    written: bool,
    later: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Order by order another commit of it fails."""
    for module in (children, executor):
        monkeypatch.setattr(module, "PAUSE", 0.01)
    failed, fail = True, 0
    async with playing(store_url) as (app, running):
        plain = running.committer
        while failed:
            fail += 1
            order = f"o-{fail}"
            running.committer = plain
            counter = _crash(running, fail, written)
            for _ in range(2):
                try:
                    if later:
                        await handing_over_later.start(order, id=order)
                    else:
                        await handing_over.start(order, order, id=order)
                    break
                except Crashed:
                    pass

            async def are_over(order: str = order) -> bool:
                return await is_done(app, order) and await is_done(app, f"{order}/kept")

            await eventually(are_over)
            failed = counter.count >= fail
            assert await runs_of(app) == sorted(
                (id, "completed") for n in range(1, fail + 1) for id in (f"o-{n}", f"o-{n}/kept")
            )
    assert fail > 3
    assert {text for text in done if "kept" in text} == {f"o-{n} kept" for n in range(1, fail + 1)}


def hold_back(patch: pytest.MonkeyPatch, *, is_away: bool = False) -> asyncio.Event:
    """No child's start comes to an end; says when one is tried."""
    entered = asyncio.Event()

    async def not_yet(self: Any, parent: Any, child: Any) -> None:
        entered.set()
        if is_away:
            raise StoreUnavailable("away")
        await asyncio.Event().wait()

    patch.setattr(children.Children, "_insert", not_yet)
    return entered


@pytest.mark.parametrize("how", ["the process stops", "the store is away"])
async def test_it_is_started_by_the_next_process(
    store_url: str,  # noqa: F811
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        entered = hold_back(patch, is_away=how == "the store is away")
        async with playing(store_url) as (app, _):
            await handing_over.start("o", "first", id="o")
            await asyncio.wait_for(entered.wait(), 30)
            assert await runs_of(app) == [("o", "running")]
    async with playing(store_url) as (app, _):
        assert await asyncio.wait_for(handing_over.handle("o").result(), 30) == "done"
        assert await asyncio.wait_for(kid.handle("o/kept").result(), 30) == "o kept"
        assert await runs_of(app) == [("o", "completed"), ("o/kept", "completed")]
    assert done == ["first", "o kept"]


@pytest.mark.parametrize("how", ["it returns", "it is terminated"])
async def test_it_is_started_before_its_caller_hears_what_ends_it(
    store_url: str,  # noqa: F811
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        entered = hold_back(patch)
        async with playing(store_url) as (app, _):
            await handing_over_first.start("o", id="o")
            await asyncio.wait_for(entered.wait(), 30)
    app = App(Service("jobs", workflows=FLOWS), store=store_url)
    async with app.connect():
        handle = handing_over_first.handle("o")
        await (handle.signal(go, "now") if how == "it returns" else handle.terminate())
    async with playing(store_url) as (app, _):

        async def are_over() -> bool:
            return await is_done(app, "o") and await is_done(app, "o/kept")

        await eventually(are_over)
        end = "completed" if how == "it returns" else "terminated"
        assert await runs_of(app) == [("o", end), ("o/kept", "completed")]
