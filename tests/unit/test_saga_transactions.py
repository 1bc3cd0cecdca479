"""Transactional steps of sagas: one that was given up is undone exactly if its transaction has committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from skald import NEVER, Service, compensation, failpoints, saga, step
from skald.errors import WorkflowFailed
from skald.testing.workflows import Lab, crash_everywhere
from skald.unit import EntryKind

pytest_plugins = ["skald.testing.plugin"]
NewLab = Callable[..., AbstractAsyncContextManager[Lab]]

undone: list[int | None] = []
begun = asyncio.Event()
waits = True


@compensation(transactional=True, retry=NEVER)
async def give_back(amount: int | None) -> None:
    undone.append(amount)


@step(transactional=True, compensate=give_back)
async def book(name: str) -> int:
    begun.set()
    if waits:
        await asyncio.Event().wait()
    return 7


@step(transactional=True, pivot=True)
async def settle(name: str) -> int:
    return await book.function(name)


@saga
async def one(name: str) -> int:
    return await book(name)


@saga
async def hasty(name: str) -> int:
    """The code gives it up itself."""
    async with asyncio.timeout(10):
        return await (settle if name == "settle" else book)(name)


SERVICE = Service("transactions", workflows=[one, hasty])


@pytest.fixture(autouse=True)
def world() -> None:
    global begun, waits
    begun, waits = asyncio.Event(), True
    undone.clear()


def cancel(lab: Lab) -> None:
    """At once: the step's transaction would keep out one that asks for it from outside."""
    turner = lab._executors[0].turner
    [instance] = turner.runs.values()
    turner.tell(instance, EntryKind.CANCEL, ("", b"", 0), b"enough")


async def ends_with(lab: Lab, handle: Any, failure: str) -> None:
    with pytest.raises(WorkflowFailed, match=failure):
        await lab.result(handle)
    assert await lab._executors[0].store.fetch("SELECT * FROM skald_letters WHERE kind = 6") == []


async def test_one_that_was_rolled_back_is_not_undone(workflow_lab: NewLab) -> None:
    async with workflow_lab(SERVICE) as lab:
        handle = await one.start("a", id="a")
        await begun.wait()
        cancel(lab)
        await ends_with(lab, handle, "CancelledError")
        assert undone == []


async def test_one_that_has_committed_is_undone_by_its_result(
    workflow_lab: NewLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    global waits
    waits = False
    async with workflow_lab(SERVICE) as lab:

        def hit(name: str) -> None:
            if name == "step.committed" and not undone:
                cancel(lab)  # before the letter with the result has come

        monkeypatch.setattr(failpoints, "hit", hit)
        handle = await one.start("a", id="a")
        await ends_with(lab, handle, "CancelledError")
        assert undone == [7]


async def test_a_pivot_that_the_code_gives_up_needs_no_person(workflow_lab: NewLab) -> None:
    async with workflow_lab(SERVICE) as lab:
        handle = await hasty.start("settle", id="a")
        await begun.wait()
        await lab.advance(11)
        await ends_with(lab, handle, "TimeoutError")


async def test_a_crash_at_every_commit_while_it_is_looked_for() -> None:
    async def scenario(lab: Lab) -> None:
        handle = await hasty.start("a", id="a")
        await lab.advance(11)
        await ends_with(lab, handle, "TimeoutError")
        assert undone == []

    await crash_everywhere(scenario, SERVICE)
