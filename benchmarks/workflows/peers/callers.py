"""What ``benchmarks.workflows.load`` does, for processes without the library: so many callers at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from benchmarks.harness.child import Channel

Order = dict[str, Any]


async def serve(
    channel: Channel, place_order: Callable[[Order], Awaitable[str]], stored: Callable[[], Awaitable[dict[str, int]]]
) -> None:
    """Measures as often as it is told; told to ``count``, says what has been run and what of it is stored."""
    numbers = count()
    completed = 0

    async def caller(end: float) -> None:
        nonlocal completed
        while time.perf_counter() < end:
            made = order(next(numbers))
            result = await place_order(made)
            if result != f"email-{made['id']}":
                raise RuntimeError(f"the order {made['id']} has ended with {result!r}")
            completed += 1

    channel.say(ready=True)
    while True:
        told = await channel.heard()
        if told["run"] == "count":
            channel.say(completed=completed, **await stored())
            continue
        before, began = completed, time.perf_counter()
        await asyncio.gather(*(caller(began + told["seconds"]) for _ in range(told["at_once"])))
        channel.say(rate=(completed - before) / (time.perf_counter() - began))


def order(number: int) -> Order:
    return {"id": f"{number:08}", "customer": "somebody@example.com", "total": 4200 + number}
