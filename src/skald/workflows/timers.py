"""The timers of workflows in memory: one of the process's loop for each workflow, at its next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context

from skald.clock import Clock
from skald.workflows.instance import Instance

LONGEST = 3_600.0
"""Seconds: further ones are looked at again, because clocks are set."""


class Timers:
    """``due`` is called outside of any task, never before the time on ``clock``."""

    def __init__(self, clock: Clock, context: Context, due: Callable[[Instance], None]) -> None:
        self._clock, self._context, self._due = clock, context, due
        self._loop = asyncio.get_running_loop()

    def set(self, instance: Instance) -> None:
        wake_at = instance.machine.wake_at()
        if wake_at is None:
            return
        if instance.asleep is not None:
            if instance.wake_at <= wake_at:
                return  # it will look again then
            instance.asleep.cancel()
        instance.wake_at = wake_at
        delay = min(max(0.0, (wake_at - self._clock.now()) / 1e6), LONGEST)
        instance.asleep = self._loop.call_later(delay, self._look, instance, context=self._context)

    def drop(self, instance: Instance) -> None:
        if instance.asleep is not None:
            instance.asleep.cancel()
            instance.asleep = None

    def look(self, instance: Instance) -> None:
        """Looks now whether its next timer is due, because the clock was set."""
        if instance.asleep is not None:
            instance.asleep.cancel()
            self._look(instance)

    def _look(self, instance: Instance) -> None:
        instance.asleep = None
        wake_at = instance.machine.wake_at()
        if wake_at is None or instance.stopped:
            return
        if self._clock.now() < wake_at:
            self.set(instance)
        else:
            self._due(instance)
