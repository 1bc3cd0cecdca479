"""Workflows that wait for somebody or something, and how long it takes to reach them.

Times are microseconds of CLOCK_MONOTONIC, which the processes of a machine share: whoever sends something puts the time
into it. Workflows may not look at a clock; these do, and never depend on what they see.
"""

from __future__ import annotations

import asyncio
from array import array
from typing import Any

from benchmarks.harness.rounds import percentiles
from benchmarks.spine.messages import now
from skald import App, RuntimeSettings, Service, step, workflow
from skald.workflows import Signal
from skald.workflows.executor import ExecutorSettings

FIFTHS = 5


class Tally:
    """Microseconds that something took, and how often something happened in each fifth of a span of time. What lies
    outside of the span does not count. Without a length it has no end."""

    def __init__(self, began: float = 0.0, seconds: float = float("inf")) -> None:
        self._began, self._length = began * 1e6, seconds * 1e6
        self.micros = array("i")  # small, because the memory of its process is measured too
        self.fifths = [0] * FIFTHS

    def took(self, sent: int) -> None:
        """Until now."""
        if self._fifth() is not None:
            self.micros.append(now() - sent)

    def count(self) -> None:
        if (fifth := self._fifth()) is not None:
            self.fifths[fifth] += 1

    def _fifth(self) -> int | None:
        passed = now() - self._began
        return int(FIFTHS * passed / self._length) if 0 <= passed < self._length else None

    def found(self) -> dict[str, Any]:
        return {"fifths": self.fifths, "counted": len(self.micros), **percentiles(self.micros)}


tally = Tally()
"""Of this process."""
go = Signal("go", int)
TIMER = 0.05


def begin(began: float = 0.0, seconds: float = float("inf")) -> None:
    """A new tally."""
    global tally
    tally = Tally(began, seconds)


@step
async def arrive(sent: int) -> int:
    tally.took(sent)
    return sent


@workflow
async def touched(sent: int) -> int:
    return await arrive(sent)


@workflow
async def told(number: int) -> int:
    tally.took(await go.receive())
    return number


@step
async def move(number: int, state: str) -> str:
    return state


@workflow
async def ride(number: int) -> str:
    """Eight steps and two waits: for a timer, and for a signal."""
    await move(number, "requested")
    await move(number, "offered")
    await asyncio.sleep(TIMER)
    await move(number, "matched")
    await move(number, "driver_arriving")
    tally.took(await go.receive())
    await move(number, "in_progress")
    await move(number, "completed")
    await move(number, "payment_complete")
    state = await move(number, "driver_paid")
    tally.count()
    return state


@workflow
async def nap(seconds: float) -> str:
    state = await move(0, "asleep")
    await asyncio.sleep(seconds)
    return state


service = Service("orders", workflows=[touched, told, ride, nap])


def application(url: str, idle: float = ExecutorSettings().idle) -> App:
    return App(service, store=url, settings=RuntimeSettings(workflows=ExecutorSettings(idle=idle)))
