"""Turns at one file: a job is done in its turn, or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from skald.stores.sqlite.turn import Turn

LONG, SHORT = 60.0, 0.01


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[tuple[Turn, Turn]]:
    """Of two handles, as two processes have them."""
    both = Turn(tmp_path / "orders.db"), Turn(tmp_path / "orders.db")
    for turn in both:
        turn.open()
    yield both
    for turn in both:
        turn.close()


async def test_a_turn_is_one_handles_at_a_time(turns: tuple[Turn, Turn]) -> None:
    ours, theirs = turns
    assert theirs.begin()
    assert not ours.begin()
    theirs.end()
    assert ours.begin()
    ours.end()


async def test_a_job_waits_for_its_turn_and_gives_it_back(turns: tuple[Turn, Turn]) -> None:
    ours, theirs = turns
    assert theirs.begin()
    job = asyncio.create_task(ours.run(theirs.begin, LONG))
    await asyncio.sleep(0)
    assert not job.done()
    theirs.end()
    assert await job is False, "the turn was somebody else's during the job"
    assert await ours.run(lambda: 7, LONG) == 7
    while not theirs.begin():
        await asyncio.sleep(0)


async def test_a_job_whose_turn_does_not_come_in_time_is_never_done(turns: tuple[Turn, Turn]) -> None:
    ours, theirs = turns
    done: list[str] = []
    assert theirs.begin()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await ours.run(lambda: done.append("late"), SHORT)
    theirs.end()
    await ours.run(lambda: done.append("next"), LONG)
    assert done == ["next"]


async def test_a_job_of_a_cancelled_caller_is_never_done_unless_it_has_begun(turns: tuple[Turn, Turn]) -> None:
    ours, theirs = turns
    done: list[str] = []
    assert theirs.begin()
    caller = asyncio.create_task(ours.run(lambda: done.append("cancelled"), LONG))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    theirs.end()
    begun, may_end = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        may_end.wait(LONG)
        done.append("begun")

    caller = asyncio.create_task(ours.run(job, LONG))
    await asyncio.to_thread(begun.wait)
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == ["begun"]


async def test_the_error_of_a_job_is_its_callers(turns: tuple[Turn, Turn]) -> None:
    def job() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await turns[0].run(job, LONG)
    while not turns[1].begin():
        await asyncio.sleep(0)


async def test_closing_does_not_wait_for_a_turn(turns: tuple[Turn, Turn]) -> None:
    ours, theirs = turns
    assert theirs.begin()
    with pytest.raises(TimeoutError):
        await ours.run(lambda: None, SHORT)
    ours.close()
    ours.close()
    ours.open()
    theirs.end()
    assert await ours.run(lambda: 7, LONG) == 7
