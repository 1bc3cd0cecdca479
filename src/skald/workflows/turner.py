"""Turns workflows: tells them what happened, runs the steps they call, journals it in order, and ends them.

Machines are entered in plain callbacks only, never inside a task (see ``workflows.loop``): the end of a step, of a
commit and of a timer are such callbacks. A commit that fails makes the memory worthless: the workflow leaves it, and is
brought back from its journal.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from skald import failpoints
from skald.clock import Clock
from skald.errors import Fenced, Stopped, WorkflowExists
from skald.messaging.outcome import describe
from skald.telemetry import Recovering, WorkflowComplaint, WorkflowStopped, emit
from skald.unit import Committed, EntryKind, JournalEntry, Unit, WorkflowEnd, WorkflowStart
from skald.workflows.definition import Call
from skald.workflows.instance import Instance
from skald.workflows.replay import End
from skald.workflows.steps import StepRunner

PAUSE = 1.0
"""Seconds before something that failed is tried again."""
PATIENCE = 10.0
"""Seconds for which stopping waits for steps to end."""

_stubborn: list[Any] = []
"""Tasks that would not end; dropping one would never come back."""


class Submit(Protocol):
    def submit(self, unit: Unit) -> asyncio.Future[Committed]: ...


class Turner:
    """Holds the workflows of one service that are in this process's memory. Made on the event loop.

    ``lose`` is called when another process has taken over from this one, ``forgotten`` with a run that has left memory
    and is to be brought back.
    """

    def __init__(
        self,
        service: str,
        *,
        committer: Submit,
        clock: Clock,
        owner: str,
        lose: Callable[[], None],
        forgotten: Callable[[str], None],
    ) -> None:
        self._service, self._committer, self._clock, self._owner = service, committer, clock, owner
        self._lose, self._forgotten = lose, forgotten
        self.live: dict[str, Instance] = {}
        """By id."""
        self.stopping = False
        self.context = contextvars.copy_context()
        """In which everything runs that no caller's context belongs to."""
        self._steps = StepRunner(service)
        self._loop = asyncio.get_running_loop()
        self._in_flight = 0
        self._quiet = asyncio.Event()

    async def stop(self) -> None:
        """Ends the running steps and waits for what is being committed; ``leave_all`` follows."""
        self.stopping = True
        tasks = [task for instance in self.live.values() for task in instance.tasks.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE)
        self._steps.close()
        while self._in_flight:
            self._quiet.clear()
            await self._quiet.wait()

    def leave_all(self) -> None:
        for instance in tuple(self.live.values()):
            self._leave(instance)

    # --- the first turn -----------------------------------------------------------------------------------------------

    def begin(self, instance: Instance) -> None:
        """Runs a new one up to where it first waits, and commits that it was started."""
        machine = instance.machine
        try:
            machine.begin()
        except Exception as error:
            self._refuse_start(instance, error)
            return
        start = WorkflowStart(
            instance.run, instance.id, instance.workflow.name, self._owner, instance.body, machine.time
        )
        failpoints.hit("workflow.start")
        self._submit(instance, starts=(start,))
        self._after(instance)

    def resume(self, instance: Instance, history: Sequence[JournalEntry]) -> None:
        """Brings one back to where it was, and runs what it waits for."""
        instance.started.set_result(None)
        self.live[instance.id] = instance
        machine = instance.machine
        try:
            machine.replay(history)
        except Exception as error:
            self._stop(instance, error)
            return
        called, machine.called = machine.called, []
        for call in called:
            self._run_step(instance, call)
        self._after(instance)

    # --- what workflows are told --------------------------------------------------------------------------------------

    def _tell(self, instance: Instance, entry: JournalEntry) -> None:
        try:
            instance.machine.deliver(entry)
        except Exception as error:
            self._stop(instance, error)
            return
        instance.pending.append(entry)
        self._after(instance)

    def _after(self, instance: Instance) -> None:
        """What the code has asked for, now that it waits again."""
        machine = instance.machine
        if machine.dropped:
            for call in machine.dropped:
                if task := instance.tasks.get(call.identity):
                    task.cancel()
            machine.dropped.clear()
        if machine.complaints:
            for text in machine.complaints:
                emit(WorkflowComplaint(self._service, instance.workflow.name, instance.id, text))
            machine.complaints.clear()
        self._set_timer(instance)
        if not instance.in_flight and (instance.pending or machine.end is not None):
            self._submit(instance)

    def _run_step(self, instance: Instance, call: Call) -> None:
        task = self._loop.create_task(self._steps.perform(instance, call), context=self.context.copy())
        instance.tasks[call.identity] = task
        task.add_done_callback(partial(self._stepped, instance, call), context=self.context)

    def _stepped(self, instance: Instance, call: Call, task: asyncio.Task[tuple[EntryKind, bytes]]) -> None:
        instance.tasks.pop(call.identity, None)
        if task.cancelled() or self.stopping or instance.stopped or not instance.machine.awaits(call):
            return
        if error := task.exception():
            self._stop(instance, error)  # a defect of ours
            return
        kind, body = task.result()
        now, position = self._clock.now(), instance.machine.position + 1
        self._tell(instance, JournalEntry(instance.run, position, kind, *call.identity, now, body))

    def _set_timer(self, instance: Instance) -> None:
        wake_at = instance.machine.wake_at()
        if wake_at is None or self.stopping:
            return
        if instance.asleep is not None:
            if instance.wake_at <= wake_at:
                return  # it will look again then
            instance.asleep.cancel()
        instance.wake_at = wake_at
        delay = max(0.0, (wake_at - self._clock.now()) / 1e6)
        instance.asleep = self._loop.call_later(delay, self._wake, instance, context=self.context)

    def _wake(self, instance: Instance) -> None:
        instance.asleep = None
        wake_at, now = instance.machine.wake_at(), self._clock.now()
        if wake_at is None or self.stopping or instance.stopped:
            return
        if now < wake_at:
            self._set_timer(instance)
            return
        position = instance.machine.position + 1
        self._tell(instance, JournalEntry(instance.run, position, EntryKind.TIMER, "", b"", 0, now, None))

    # --- commits ------------------------------------------------------------------------------------------------------

    def _submit(self, instance: Instance, starts: tuple[WorkflowStart, ...] = ()) -> None:
        machine, end = instance.machine, instance.machine.end
        entries, instance.pending = tuple(instance.pending), []
        instance.called, machine.called = machine.called, []
        ends = (WorkflowEnd(instance.run, end.state, end.body, self._clock.now()),) if end is not None else ()
        instance.in_flight = True
        self._in_flight += 1
        future = self._committer.submit(Unit(fence=self._owner, starts=starts, journal=entries, ends=ends))
        future.add_done_callback(partial(self._committed, instance, end), context=self.context)

    def _committed(self, instance: Instance, end: End | None, future: asyncio.Future[Committed]) -> None:
        instance.in_flight = False
        self._in_flight -= 1
        if not self._in_flight:
            self._quiet.set()
        error = Stopped("the commit was cancelled") if future.cancelled() else future.exception()
        if error is not None:
            self._failed(instance, error)
            return
        if not instance.started.done():
            instance.started.set_result(None)
        if end is not None:
            self._leave(instance, end)
        elif not self.stopping and not instance.stopped:
            for call in instance.called:
                if instance.machine.awaits(call):
                    self._run_step(instance, call)
            if instance.pending:
                self._submit(instance)

    def _failed(self, instance: Instance, error: BaseException) -> None:
        if isinstance(error, WorkflowExists):
            self._refuse_start(instance, error)
            return
        starting = not instance.started.done()
        self._refuse_start(instance, error)
        if isinstance(error, Fenced):
            self._lose()
        elif not self.stopping:
            # Of a start, too, the outcome may be unknown; where there is no row nothing is resumed.
            self._forgotten(instance.run)
            if not starting:
                emit(Recovering(self._service, f"workflow {instance.id}", describe(error), PAUSE))

    # --- leaving memory -----------------------------------------------------------------------------------------------

    def _leave(self, instance: Instance, end: End | None = None) -> None:
        """Out of memory, with its end or without."""
        if self.live.get(instance.id) is instance:
            del self.live[instance.id]
        instance.stopped = True
        for task in instance.tasks.values():
            task.cancel()
        if instance.asleep is not None:
            instance.asleep.cancel()
        if stubborn := instance.machine.leave():
            _stubborn.extend(stubborn)
            emit(WorkflowStopped(self._service, instance.workflow.name, instance.id, "its code swallows its end"))
        if not instance.ended.done():
            instance.ended.set_result(end)

    def _stop(self, instance: Instance, error: BaseException) -> None:
        """It cannot go on with this code; nothing is written, so that it can with other code."""
        emit(WorkflowStopped(self._service, instance.workflow.name, instance.id, describe(error)))
        instance.ended.set_exception(error)
        instance.ended.exception()  # asked for: nobody may be waiting
        self._refuse_start(instance, error)

    def _refuse_start(self, instance: Instance, error: BaseException) -> None:
        self._leave(instance)
        if not instance.started.done():
            instance.started.set_exception(error)
            instance.started.exception()  # asked for: its caller may have gone
