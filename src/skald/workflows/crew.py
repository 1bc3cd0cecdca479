"""Coroutines that run from plain callbacks, mostly without a task of their own: a task for each step costs more than
its journalling.

Each runs at once up to where it first waits, in a context of its own and in the name of a task that is kept for it.
If it has not ended by then, that task takes it over, so that it finds itself in one and the same task all the time;
a task that has brought its coroutine to its end is kept for another one. (From Python 3.12 on a task can be started
eagerly, which is the same with a new task each time.)
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task  # asyncio documents them for whoever implements tasks
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

A = TypeVar("A")

SPARE = 100
"""Tasks that are kept although there is nothing to do."""


class Job(Generic[A]):
    """``about`` is the business of whoever is told that it is over. One that was cancelled may have a result all the
    same, as a task may."""

    cancels = 0
    result: Any = None
    error: BaseException | None = None
    task: asyncio.Task[None] | None = None
    """That has taken it over."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], about: A) -> None:
        self.coroutine, self.about = coroutine, about

    def cancel(self) -> None:
        self.cancels += 1
        if self.task is not None:
            self.task.cancel()


class Crew(Generic[A]):
    """Made on the event loop. ``context`` is the one that each job gets a copy of; ``over`` is called when one is over
    that has waited, outside of any task."""

    def __init__(self, name: str, context: Context, over: Callable[[Job[A]], None]) -> None:
        self.name, self.context, self.loop, self._tell = name, context, asyncio.get_running_loop(), over
        self._idle: list[_Hand[A]] = []
        self._at_work = 0
        self._quiet = asyncio.Event()
        self._closed = False

    def run(self, job: Job[A]) -> bool:
        """To be called in a plain callback, and never in a task. True if it is over by then, which nobody is told."""
        idle = self._idle
        if not idle:
            idle.append(_Hand(self))
        hand = idle[-1]
        context, task = self.context.copy(), hand.task
        _enter_task(self.loop, task)
        try:
            waits_for = context.run(job.coroutine.send, None)
        except StopIteration as stop:
            job.result = stop.value
        except (Exception, asyncio.CancelledError) as error:
            job.error = error
        else:
            self._at_work += 1
            idle.pop()
            hand.take_over(job, _Rest(job.coroutine, context, waits_for))
            return False
        finally:
            _leave_task(self.loop, task)
        if self._closed or task.cancelling():
            idle.pop().task.cancel()
        return True

    async def quiet(self) -> None:
        """Returns when no job is left."""
        while self._at_work:
            self._quiet.clear()
            await self._quiet.wait()

    def close(self) -> None:
        """Ends its idle tasks; those at work end with their jobs."""
        self._closed = True
        for hand in self._idle:
            hand.task.cancel()
        self._idle.clear()

    def keep(self, hand: _Hand[A]) -> None:
        """For another job."""
        if self._closed or len(self._idle) >= SPARE:
            hand.task.cancel()
        else:
            self._idle.append(hand)

    def lose(self, hand: _Hand[A]) -> None:
        """Its task has ended."""
        if hand in self._idle:
            self._idle.remove(hand)

    def over(self, job: Job[A]) -> None:
        """One that has waited has come to its end."""
        self._at_work -= 1
        if not self._at_work:
            self._quiet.set()
        self._tell(job)


class _Hand(Generic[A]):
    """A task that is kept."""

    def __init__(self, crew: Crew[A]) -> None:
        self._crew = crew
        self._job: Job[A] | None = None
        self._rest: _Rest | None = None
        self._struck = False
        self._called: asyncio.Future[None] = crew.loop.create_future()
        self.task = crew.loop.create_task(self._work(), name=crew.name, context=crew.context.copy())
        self.task.add_done_callback(self._ended)

    def take_over(self, job: Job[A], rest: _Rest, *, struck: bool = False) -> None:
        """``struck``: its task was cancelled, by whomever."""
        self._job, self._rest, self._struck = job, rest, struck
        if not self._called.done():
            self._called.set_result(None)

    async def _work(self) -> None:
        crew, task = self._crew, self.task
        while True:
            try:
                await self._called
            except asyncio.CancelledError:
                if self._job is None:
                    raise
                # Meant for the job: a limit of its own has come before this task did.
                task.cancel()
                task.uncancel()
            self._called = crew.loop.create_future()
            job, rest = self._job, self._rest
            assert job is not None
            assert rest is not None
            job.task = task
            for _ in range(job.cancels + self._struck):
                task.cancel()
            try:
                job.result = await rest
            except (Exception, asyncio.CancelledError) as error:
                job.error = error
            self._job = self._rest = job.task = None
            # What we have asked for is over with the job. A task that somebody else has cancelled has to end.
            for _ in range(job.cancels):
                task.uncancel()
            crew.loop.call_soon(crew.over, job, context=crew.context)
            if task.cancelling():
                return
            crew.keep(self)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._crew.lose(self)
        job, rest = self._job, self._rest
        if job is not None and rest is not None and job.task is None:
            # The job has cancelled its task before this had begun.
            _Hand(self._crew).take_over(job, rest, struck=True)


class _Rest:
    """A coroutine that has begun to wait, in its own context."""

    __slots__ = ("_context", "_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], context: Context, waits_for: Any) -> None:
        self._coroutine, self._context, self._waits_for = coroutine, context, waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine, waits_for = self._context.run, self._coroutine, self._waits_for
        try:
            while True:
                try:
                    sent = yield waits_for
                except BaseException as error:
                    waits_for = run(coroutine.throw, error)
                else:
                    waits_for = run(coroutine.send, sent)
        except StopIteration as stop:
            return stop.value
