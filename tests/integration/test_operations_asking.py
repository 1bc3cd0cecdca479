"""Workflows asked by an operator: while they run elsewhere, while nobody runs them, after their end, on other code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skald import App, Service, step, workflow
from skald.errors import (
    ConfigurationError,
    Diverged,
    UpdateFailed,
    WorkflowBusy,
    WorkflowEnded,
    WorkflowError,
)
from skald.operations import NotFound, OperationRefused, UnknownName, asking
from skald.operations import workflows as operations
from skald.workflows import Query, Signal, Update
from tests.simulation.stage import QUICK, eventually


class Address(msgspec.Struct, frozen=True):
    city: str


done: list[str] = []
go = Signal("go", str)
status = Query("status", dict[str, int])
move = Update("move", Address, list[str])


@step
async def count(n: int) -> int:
    done.append(f"count {n}")
    return n


@workflow
async def parcel(start: int) -> str:
    seen, cities = 0, list[str]()

    @status.answered_by
    def _() -> dict[str, int]:
        return {"seen": seen}

    def known(new: Address) -> None:
        if new.city == "Atlantis":
            raise LookupError("no such city")

    @move.handled_by(validator=known)
    async def _(new: Address) -> list[str]:
        cities.append(new.city)
        await count(10)
        return cities

    seen = await count(start)
    await go.receive()
    seen = await count(seen + 1)
    return "there"


@workflow(name="parcel")
async def other_parcel(start: int) -> str:
    await count(start + 5)
    return "elsewhere"


@workflow
async def silent() -> None:
    await go.receive()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    done.clear()
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


def app_of(url: str, *workflows: Any) -> App:
    return App(Service("parcels", workflows=workflows or (parcel, silent)), store=url, settings=QUICK)


@asynccontextmanager
async def running(url: str) -> AsyncIterator[App]:
    """The service with a parcel that waits, and an operator beside it."""
    app, operator = app_of(url), app_of(url)
    await app.migrate()
    async with app.run():
        await parcel.start(1, id="p")
        await eventually(lambda: _has(operator, "p", 1))
        yield operator


async def _has(operator: App, id: str, entries: int) -> bool:
    return len((await operations.show_workflow(operator, id)).journal) >= entries


async def test_a_query_is_answered_whether_it_runs_sleeps_or_has_ended(url: str) -> None:
    async with running(url) as operator:
        found = await asking.query_workflow(operator, "p", "status")
        assert (found.service, found.workflow, found.state, found.answer) == (
            "parcels",
            "parcel",
            "running",
            {"seen": 1},
        )
    assert (await asking.query_workflow(operator, "p", "status")).answer == {"seen": 1}
    app = app_of(url)
    async with app.run():
        await operations.signal_workflow(operator, "go", '"now"', id="p")
        await parcel.handle("p").result()
    found = await asking.query_workflow(operator, "p", "status")
    assert (found.state, found.answer) == ("completed", {"seen": 2})
    assert done == ["count 1", "count 2"], "a query has called a step"


async def test_what_a_query_cannot_answer_is_said(url: str) -> None:
    async with running(url) as operator:
        with pytest.raises(WorkflowError, match=r"answers no query 'states'; it answers: status"):
            await asking.query_workflow(operator, "p", "states")
        with pytest.raises(NotFound, match="no workflow with the id 'q'"):
            await asking.query_workflow(operator, "q", "status")
        with pytest.raises(Diverged, match="count"):
            await asking.query_workflow(app_of(url, other_parcel), "p", "status")
        with pytest.raises(UnknownName, match="there is no workflow 'parcel'"):
            await asking.query_workflow(app_of(url, silent), "p", "status")


async def test_an_update_changes_the_running_workflow_and_returns_its_answer(url: str) -> None:
    async with running(url) as operator:
        first = await asking.update_workflow(operator, "p", "move", '{"city": "Ulm"}', timeout=30)
        second = await asking.update_workflow(operator, "p", "move", '{"city": "Bonn"}', timeout=30)
        assert (first.answer, second.answer) == (["Ulm"], ["Ulm", "Bonn"])
        with pytest.raises(UpdateFailed, match="LookupError: no such city"):
            await asking.update_workflow(operator, "p", "move", '{"city": "Atlantis"}', timeout=30)
        with pytest.raises(UpdateFailed, match="city"):
            await asking.update_workflow(operator, "p", "move", '{"town": "Ulm"}', timeout=30)
        with pytest.raises(ConfigurationError, match="the update: 'Ulm' is no JSON"):
            await asking.update_workflow(operator, "p", "move", "Ulm", timeout=30)


async def test_an_update_that_nobody_could_answer_is_refused_before_it_is_sent(url: str) -> None:
    async with running(url) as operator:
        await operations.pause_workflow(operator, "p")

        async def paused() -> bool:
            return (await operations.show_workflow(operator, "p")).workflow.state == "paused"

        await eventually(paused)
        with pytest.raises(WorkflowBusy, match="is paused, and answers nothing before it is resumed"):
            await asking.update_workflow(operator, "p", "move", '{"city": "Ulm"}', timeout=30)
        await operations.resume_workflow(operator, "p")
    with pytest.raises(OperationRefused, match="no process of parcels is running that could answer; nothing was sent"):
        await asking.update_workflow(operator, "p", "move", '{"city": "Ulm"}', timeout=30)
    assert (await operations.show_workflow(operator, "p")).letters == []
    async with app_of(url).run():
        await operations.signal_workflow(operator, "go", '"now"', id="p")
        await parcel.handle("p").result()
        with pytest.raises(WorkflowEnded):
            await asking.update_workflow(operator, "p", "move", '{"city": "Ulm"}', timeout=30)


async def test_an_update_that_is_not_answered_is_waited_for_so_long_and_stays_sent(url: str) -> None:
    async with running(url) as operator:
        await silent.start(id="s")
        with pytest.raises(WorkflowBusy, match=r"'s' has not answered the update 'move' within 0\.05 s; it was sent"):
            await asking.update_workflow(operator, "s", "move", '{"city": "Ulm"}', timeout=0.05)
        letters = (await operations.show_workflow(operator, "s")).letters
        journal = (await operations.show_workflow(operator, "s")).journal
        assert [letter.kind for letter in letters] == ["update"] or [entry.kind for entry in journal] == ["update"]
        await asyncio.gather(silent.handle("s").signal(go, ""), silent.handle("s").result())
