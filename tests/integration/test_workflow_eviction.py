"""Whatever moment a workflow is taken for idle in, it goes on: here it may leave memory between any two callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from skald import App, RuntimeSettings, Service, step, workflow, workflows
from skald.unit import EntryKind
from skald.workflows import turner as turners
from skald.workflows.client import outside
from skald.workflows.executor import Executor, ExecutorSettings

go = workflows.Signal("go", int)


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


@workflow
async def patient() -> int:
    return await go.receive()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


def turner_of(service: Service) -> turners.Turner:
    executor = service.connection.workflows.local
    assert isinstance(executor, Executor)
    return executor.turner


@contextmanager
def evicted_all_the_time(service: Service) -> Iterator[None]:
    """In each round of the event loop."""
    turner, loop, over = turner_of(service), asyncio.get_running_loop(), False

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


async def test_what_is_told_in_the_moment_in_which_its_process_stops_is_written(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They leave memory, and their ends are committed behind that."""
    works = Service("works", workflows=[patient])
    app = App(works, store=url)
    await app.migrate()
    async with app.run():
        for number in range(2):
            await patient.start(id=str(number))
        turner = turner_of(works)

        async def at_once(leave: Any) -> None:
            def last() -> None:
                for instance in tuple(turner.live.values()):
                    turner.tell(instance, EntryKind.SIGNAL, ("go", b"", 0), b"7")
                leave()

            await outside(last)

        monkeypatch.setattr(turners, "outside", at_once)
    assert not [record for record in caplog.records if record.name == "asyncio"], caplog.text
    async with app.connect():
        assert await works.fetch("SELECT outcome FROM skald_workflows") == [{"outcome": b"7"}] * 2
