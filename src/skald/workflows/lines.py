"""What one attempt of a step is bound by, and how it tells that it lives and how far it is."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextlib import suppress
from threading import Lock
from typing import Any, TypeVar

from skald.workflows.definition import Step

T = TypeVar("T")

EVERY = 1.0
"""Seconds between two writes of one step's progress."""


class Reports:
    """How far one call is: its next attempt is told, and at most once a second it is written down."""

    def __init__(self, progress: bytes | None, write: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
        self.progress, self._write = progress, write
        self.is_written = progress is not None
        """There may be a letter."""
        self._unwritten = False
        self._ended = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def report(self, progress: bytes) -> None:
        self.progress, self._unwritten = progress, True
        if (self._writing is None or self._writing.done()) and not self._ended.is_set():
            self._writing = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        while self._unwritten and self.progress is not None and not self._ended.is_set():
            self._unwritten, self.is_written = False, True
            await self._write(self.progress)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), EVERY)

    async def end(self) -> None:
        """Nothing is written any more when this returns."""
        self._ended.set()
        if self._writing is not None:
            await asyncio.wait([self._writing])


class Line:
    """What one attempt is bound by, and how it tells that it lives (see ``context.Line``). ``over`` is when the call's
    ``total`` is, by the loop's time."""

    cancelled = False
    cut_off: str | None = None
    """The limit that ended it."""
    _timeout: asyncio.Timeout | None = None
    _heard, _progress = True, b""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        step: Step[..., Any],
        over: float | None,
        reports: Callable[[], Reports],
    ) -> None:
        self._loop, self._step, self._reports = loop, step, reports
        self._end = None if over is None else (over, "total")
        if step.timeout is not None:
            timeout = loop.time() + step.timeout, "timeout"
            self._end = timeout if self._end is None else min(self._end, timeout)
        self._next = self._end
        self._lock = Lock()
        self.heartbeat = step.heartbeat

    @property
    def has_limits(self) -> bool:
        return self._end is not None or self.heartbeat is not None

    def end(self) -> None:
        """Its attempt is over, and nothing is reported any more. The call that made it holds it, and was held by it."""
        self.cancelled = True
        del self._reports

    def beat(self, progress: bytes | None) -> None:
        with self._lock:
            if progress is not None:
                self._progress = progress
            heard, self._heard = self._heard, False
        if heard:  # otherwise it is about to look
            with suppress(RuntimeError):  # the loop has ended, and this thread has not
                self._loop.call_soon_threadsafe(self._look, context=contextvars.Context())  # of nobody's transaction

    def _look(self) -> None:
        with self._lock:
            self._heard, progress, self._progress = True, self._progress, b""
        if self.cancelled or (self._timeout is not None and self._timeout.expired()):
            return  # of an attempt that has ended, or has to
        if self._timeout is not None:
            self._set_next()
            self._timeout.reschedule(self._next[0] if self._next else None)
        if progress:
            self._reports().report(progress)

    def _set_next(self) -> None:
        if self.heartbeat is not None:
            silent = self._loop.time() + self.heartbeat, "heartbeat"
            self._next = silent if self._end is None else min(self._end, silent)

    async def bound(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises TimeoutError, naming the limit, if one ends it."""
        self._set_next()
        try:
            async with asyncio.timeout_at(self._next[0] if self._next else None) as self._timeout:
                return await work
        except Exception as error:
            if self._next is None or self._timeout is None or not self._timeout.expired():
                raise  # its own
            self.cut_off = self._next[1]
            raise TimeoutError(limit_text(self._step, self.cut_off)) from error
        finally:
            self.cancelled, self._timeout = True, None


def limit_text(step: Step[..., Any], limit: str) -> str:
    said = {
        "total": "all attempts together took longer",
        "timeout": "the attempt took longer",
        "heartbeat": "the attempt gave no heartbeat for longer",
    }
    return f"{said[limit]} than {limit}={getattr(step, limit):g} s"
