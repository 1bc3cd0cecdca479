"""Whatever moment a workflow is taken for idle in, it goes on: here it may leave memory between any two callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from skald import App, RuntimeSettings, Service, step, workflow
from skald.workflows.executor import Executor, ExecutorSettings


@step
async def act(number: int) -> int:
    return number * 10


@workflow
async def child(number: int) -> int:
    return await act(number)


@workflow
async def changes_its_mind(number: int) -> int:
    """Calls a child, gives it up and calls a step, all because of one result."""
    first = await act(number)
    task = asyncio.ensure_future(child.run(number))
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return first + await act(number + 1)


@workflow
async def does_both(number: int) -> int:
    """Calls a child and a step because of one timer."""
    await asyncio.sleep(0.01)  # sleep: a durable timer
    return sum(await asyncio.gather(child.run(number), act(number)))


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


@contextmanager
def evicted_all_the_time(service: Service) -> Iterator[None]:
    """In each round of the event loop."""
    executor = service.connection.workflows.local
    assert isinstance(executor, Executor)
    turner, loop, over = executor.turner, asyncio.get_running_loop(), False

    def evict() -> None:
        if not over:
            turner.evict(-1.0)
            loop.call_soon(evict, context=turner.context)

    evict()
    try:
        yield
    finally:
        over = True


async def test_what_was_called_is_done(url: str) -> None:
    works = Service("works", workflows=[child, changes_its_mind, does_both])
    app = App(works, store=url, settings=RuntimeSettings(workflows=ExecutorSettings(idle=0.0, poll=0.02)))
    await app.migrate()
    async with app.run():
        with evicted_all_the_time(works):
            handles = [
                await kind.start(number, id=f"{kind.name} {number}")
                for kind in (changes_its_mind, does_both)
                for number in range(5)
            ]
            async with asyncio.timeout(30):
                results = [await handle.result() for handle in handles]
    assert results == [20 * n + 10 for n in range(5)] + [20 * n for n in range(5)]
