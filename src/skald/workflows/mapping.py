"""PURE. The same step or workflow for many items: at most so many at once, and what happens if some of them fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

import msgspec

from skald.errors import ConfigurationError, MapFailed, StepFailed, WorkflowFailed

T = TypeVar("T")
R = TypeVar("R")


class Mapped(msgspec.Struct, Generic[R], frozen=True):
    """By the item's place: what came out, in that order, and what failed."""

    results: dict[int, R]
    failures: dict[int, StepFailed | WorkflowFailed]


async def map(
    items: Iterable[T],
    function: Callable[[T], Awaitable[R]],
    *,
    max_concurrency: int = 100,
    min_successful: int | None = None,
    tolerated_failures: int = 0,
) -> Mapped[R]:
    """Calls a step, or a workflow's ``run``, for each item; never more than ``max_concurrency`` at once.

    With ``min_successful`` it returns as soon as so many have succeeded, and the rest is cancelled. ``MapFailed`` as
    soon as more than ``tolerated_failures`` have failed, or when too few can still succeed.
    """
    todo = list(enumerate(items))
    if max_concurrency < 1:
        raise ConfigurationError("max_concurrency must be at least 1")
    if min_successful is not None and min_successful > len(todo):
        raise ConfigurationError(f"min_successful is {min_successful}, and there are only {len(todo)} items")
    waiting = iter(todo)
    mapped: Mapped[R] = Mapped({}, {})
    enough = asyncio.Event()

    async def work() -> None:
        for place, item in waiting:
            try:
                mapped.results[place] = await function(item)
            except (StepFailed, WorkflowFailed) as failure:
                mapped.failures[place] = failure
                too_few = min_successful is not None and len(todo) - len(mapped.failures) < min_successful
                if too_few or len(mapped.failures) > tolerated_failures:
                    raise MapFailed(len(mapped.results), mapped.failures) from failure
            if min_successful is not None and len(mapped.results) >= min_successful:
                enough.set()
            if enough.is_set():
                return

    workers = [asyncio.create_task(work()) for _ in range(min(max_concurrency, len(todo)))]
    ending = asyncio.create_task(enough.wait())
    try:
        pending: set[asyncio.Task[object]] = {*workers}
        while pending and not enough.is_set():
            done, pending = await asyncio.wait({*pending, ending}, return_when=asyncio.FIRST_COMPLETED)
            pending.discard(ending)
            for task in done - {ending}:
                task.result()
    finally:
        for task in (*workers, ending):
            task.cancel()
        await asyncio.wait([*workers, ending])
    return Mapped(dict(sorted(mapped.results.items())), mapped.failures)
