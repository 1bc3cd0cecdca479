"""Coroutines without a task of their own: in no way can they tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from skald.workflows.client import outside
from skald.workflows.crew import SPARE, Crew, Job

mine: ContextVar[str] = ContextVar("mine", default="nobody's")


class Played:
    """A crew, and what has become of its jobs."""

    def __init__(self) -> None:
        self.over: dict[str, Job[str]] = {}
        self.crew: Crew[str] = Crew("crew", copy_context(), self._told)

    def _told(self, job: Job[str]) -> None:
        assert asyncio.current_task() is None, "outside of any task"
        self.over[job.about] = job

    async def run(
        self, name: str, coroutine: Coroutine[Any, Any, Any], then: Callable[[Job[str]], object] = id
    ) -> bool:
        """Whether it was over at once; ``then`` is called in the same callback."""
        job = Job(coroutine, name)

        def run() -> bool:
            at_once = self.crew.run(job)
            if at_once:
                self._told(job)
            then(job)
            return at_once

        return await outside(run)

    async def end(self, name: str) -> Any:
        async with asyncio.timeout(10):
            while name not in self.over:
                await asyncio.sleep(0)
        job = self.over[name]
        if job.error is not None:
            raise job.error
        return job.result


@pytest.fixture
async def played() -> AsyncIterator[Played]:
    made = Played()
    yield made
    async with asyncio.timeout(10):
        await made.crew.quiet()
        made.crew.close()
        while tasks():
            await asyncio.sleep(0)


def tasks() -> list[asyncio.Task[Any]]:
    """Of the crew."""
    return [task for task in asyncio.all_tasks() if task.get_name() == "crew"]


async def quick(number: int) -> int:
    return number + 1


async def waiting(number: int, until: asyncio.Event) -> int:
    await until.wait()
    return number + 1


async def test_what_does_not_wait_is_over_at_once(played: Played) -> None:
    assert await played.run("a", quick(1))
    assert await played.end("a") == 2


async def test_what_waits_begins_at_once_and_ends_later(played: Played) -> None:
    begun: list[str] = []
    until = asyncio.Event()

    async def job(name: str) -> str:
        begun.append(name)
        await until.wait()
        return name

    for name in "abc":
        assert not await played.run(name, job(name))
    assert begun == ["a", "b", "c"]
    assert played.over == {}
    until.set()
    assert [await played.end(name) for name in "abc"] == ["a", "b", "c"]


async def test_an_exception_is_its_end(played: Played) -> None:
    async def fail(wait: bool) -> None:
        if wait:
            await asyncio.sleep(0)
        raise LookupError("no")

    assert await played.run("a", fail(False))
    assert not await played.run("b", fail(True))
    for name in "ab":
        with pytest.raises(LookupError, match="no"):
            await played.end(name)


async def test_it_is_in_one_task_all_the_time(played: Played) -> None:
    until = asyncio.Event()

    async def seen() -> list[Any]:
        found = [asyncio.current_task()]
        await asyncio.sleep(0)
        found.append(asyncio.current_task())
        await until.wait()
        return [*found, asyncio.current_task()]

    names = ["a", "b", "c"]
    for name in names:
        await played.run(name, seen())
    until.set()
    found = [await played.end(name) for name in names]
    assert all(len(set(one)) == 1 and one[0] is not None for one in found)
    assert len({one[0] for one in found}) == 3, "and no two share one at a time"


async def test_each_has_a_context_of_its_own(played: Played) -> None:
    until = asyncio.Event()

    async def change(name: str, wait: bool) -> tuple[str, str]:
        before = mine.get()
        mine.set(name)
        if wait:
            await until.wait()
        return before, mine.get()

    for number in range(6):
        await played.run(str(number), change(str(number), wait=number % 2 == 0))
    until.set()
    assert [await played.end(str(n)) for n in range(6)] == [("nobody's", str(n)) for n in range(6)]
    assert mine.get() == "nobody's"


@pytest.mark.parametrize("early", [True, False], ids=["before its task has it", "while it waits"])
async def test_cancelling(played: Played, early: bool) -> None:
    caught: list[str] = []

    async def hang(name: str) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling()
            caught.append(name)
            if name == "goes on":
                await asyncio.sleep(0)
                return name
            raise
        raise AssertionError("never")

    cancel: Callable[[Job[str]], None] = Job.cancel
    for name in ("ends", "goes on"):
        if early:
            await played.run(name, hang(name), cancel)
        else:
            found: list[Job[str]] = []
            await played.run(name, hang(name), found.append)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            found[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await played.end("ends")
    assert await played.end("goes on") == "goes on"
    assert caught == ["ends", "goes on"]

    # What was meant for them concerns nobody after them.
    async def later() -> int:
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        return task.cancelling()

    for number in range(4):
        await played.run(str(number), later())
        assert await played.end(str(number)) == 0


async def test_limits_and_groups_work_in_it(played: Played) -> None:
    async def limited(seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            return "late"
        return "?"

    async def grouped() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(quick(n)) for n in range(3)]
        return [task.result() for task in tasks]

    async def failing() -> str:
        async def fail() -> None:
            raise LookupError

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                group.create_task(asyncio.Event().wait())
        except ExceptionGroup as group_error:
            return type(group_error.exceptions[0]).__name__
        return "?"

    # A limit that is over before its task has taken over, too.
    for number, coroutine in enumerate([limited(-1), limited(0), limited(0.001), grouped(), failing()]):
        await played.run(str(number), coroutine)
    assert [await played.end(str(n)) for n in range(5)] == ["late", "late", "late", [1, 2, 3], "LookupError"]


@pytest.mark.parametrize("waits", [True, False])
async def test_one_that_cancels_itself_harms_nobody_else(played: Played, waits: bool) -> None:
    async def strike() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if waits:
            await asyncio.sleep(0)
        return "unharmed"

    for number in range(3):
        await played.run(f"strikes {number}", strike())
        await played.run(f"after {number}", quick(number))
    for number in range(3):
        if waits:
            with pytest.raises(asyncio.CancelledError):
                await played.end(f"strikes {number}")
        else:
            assert await played.end(f"strikes {number}") == "unharmed"
        assert await played.end(f"after {number}") == number + 1


async def test_tasks_are_kept_for_others_and_not_more_than_enough(played: Played) -> None:
    until = asyncio.Event()
    for number in range(SPARE + 50):
        await played.run(str(number), waiting(number, until))
    assert len(tasks()) == SPARE + 50
    until.set()
    for number in range(SPARE + 50):
        assert await played.end(str(number)) == number + 1
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(tasks()) == SPARE
    await played.run("more", waiting(1, until))
    assert await played.end("more") == 2
    assert len(tasks()) == SPARE
