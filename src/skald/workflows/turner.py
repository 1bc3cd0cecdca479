"""Turns workflows: tells them what happened, runs the steps they call, journals it in order, and ends them.

Machines are entered in plain callbacks only, never inside a task (see ``workflows.loop``): the end of a step, of a
commit and of a timer are such callbacks. A commit that fails makes the memory worthless: the workflow leaves it, and is
brought back from its journal.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from skald import failpoints
from skald.clock import Clock
from skald.errors import Fenced, Rejection
from skald.messaging.outcome import describe
from skald.sagas.announcing import announce
from skald.telemetry import Recovering, WorkflowComplaint, WorkflowPaused, WorkflowStopped, emit
from skald.unit import (
    EntryKind,
    JournalEntry,
    LetterKind,
    WorkflowRest,
    WorkflowStart,
    WorkflowState,
)
from skald.workflows.asking import unsent
from skald.workflows.calling import Asked
from skald.workflows.client import outside
from skald.workflows.crew import Crew, Job
from skald.workflows.definition import Call, Child
from skald.workflows.failure import End, encode, failure_of
from skald.workflows.instance import Instance
from skald.workflows.journal import Mail
from skald.workflows.receiving import receive
from skald.workflows.recorder import Record, Recorder, Submit, cancelled_by
from skald.workflows.replay import UNREAD, AnyCall, Machine, may_be_retried
from skald.workflows.signature import Identity
from skald.workflows.steps import Exhausted, StepRunner
from skald.workflows.timers import Timers

PAUSE = 1.0
"""Seconds before something that failed is tried again."""
PATIENCE = 10.0
"""Seconds for which stopping waits for steps to end."""

_stubborn: list[Any] = []
"""Tasks that would not end; dropping one would never come back."""


class Turner:
    """Holds the workflows of one service that are in this process's memory. Made on the event loop.

    ``lose`` is called when another process has taken over from this one, ``forgotten`` with a run that has left memory
    and is to be brought back, ``begin_child`` to start the child of an instance.
    """

    def __init__(
        self,
        service: str,
        *,
        committer: Submit,
        clock: Clock,
        owner: str,
        steps: StepRunner,
        lose: Callable[[], None],
        forgotten: Callable[[str], None],
        begin_child: Callable[[Instance, Child], None],
    ) -> None:
        self._service, self._committer, self._clock, self._owner = service, committer, clock, owner
        self._lose, self._forgotten, self.begin_child = lose, forgotten, begin_child
        self.live: dict[str, Instance] = {}
        """By id."""
        self.runs: dict[str, Instance] = {}
        """The same, by run."""
        self.asked: dict[str, Instance] = {}
        """Those that wait for the answer to a command, by its id."""
        self.stopping = False
        self.context = contextvars.copy_context()
        """In which everything runs that no caller's context belongs to."""
        self._steps = steps
        self._loop = asyncio.get_running_loop()
        self.recorder = Recorder(
            service, committer=committer, clock=clock, owner=owner, context=self.context,
            committed=self._committed, failed=self._failed,
        )  # fmt: skip
        self._record = self.recorder.record
        self.timers = Timers(clock, self.context, self._due)
        self._crew = Crew(f"skald:{service}:steps", self.context, self._stepped)

    async def stop(self, *, lost: bool = False) -> None:
        """Ends the running steps, waits for what is being committed, and leaves memory. Compensations may end by
        themselves, unless they are ``lost`` to another process, which runs them again."""
        self.stopping = True
        tasks = [
            task
            for instance in self.live.values()
            for identity, task in instance.tasks.items()
            if lost or not _is_shielded(instance.machine.calls.get(identity), self._steps.resting)
        ]
        for task in tasks:
            task.cancel()
        children = [task for task in tasks if isinstance(task, asyncio.Task)]
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                if children:
                    await asyncio.wait(children)
                await self._crew.quiet()
        for instance in self.live.values():
            for task in instance.tasks.values():
                task.cancel()
        self._crew.close()
        self._steps.close()
        await self.recorder.quiet()

        def leave_all() -> None:
            for instance in tuple(self.live.values()):
                self._leave(instance)

        await outside(leave_all)
        # What they were told at last is written before the process gives up its right to write.
        await self.recorder.quiet()

    def add(self, instance: Instance) -> None:
        self.live[instance.id] = self.runs[instance.run] = instance

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
            instance.run, instance.id, instance.workflow.name, self._owner, None, instance.parent, instance.key,
            instance.body, machine.time, style=instance.workflow.style, correlation=instance.correlation,
        )  # fmt: skip
        failpoints.hit("workflow.start")
        _gather(self._service, instance, machine)
        self._record(instance, starts=(start,))
        self.after(instance)

    def resume(
        self, instance: Instance, history: Sequence[JournalEntry], mail: Iterable[Mail], open_calls: frozenset[str]
    ) -> None:
        """Brings one back to where it was, tells it what came meanwhile, and runs what it waits for. ``open_calls`` are
        commands that were sent and have no answer yet, by id; letters have the others."""
        instance.started.set_result(None)
        self.add(instance)
        machine, mail = instance.machine, tuple(mail)
        ending = [letter for letter in mail if letter.kind == LetterKind.TERMINATE]
        # A timer that was journalled without its workflow: what it leads to has not happened yet.
        untold = [entry for entry in history[-1:] if entry.kind == EntryKind.TIMER and entry.occurrence]
        outstanding: list[AnyCall] = []
        try:
            if instance.first and not history:
                if not ending:
                    machine.begin()
            else:
                machine.replay(history[: len(history) - len(untold)])
                outstanding, machine.called = machine.called, []
            for entry in untold:
                machine.deliver(entry)
                for call in machine.called:
                    # Where it matters whether it may have been done before.
                    if isinstance(call, Child):
                        call.begun = True
                    elif isinstance(call, Call) and (machine.conductor is not None or call.step.lookup is not None):
                        call.woken = True
        except Exception as error:
            if not ending:  # which needs no history that fits
                self._stop(instance, error)
                return
        machine.asked = unsent(machine, open_calls.union(letter.id for letter in mail))
        self.asked.update((call.id, instance) for call in machine.calls.values() if isinstance(call, Asked))
        for call in outstanding:
            if isinstance(call, Child) and call.detached:
                self.begin_child(instance, call)  # whatever ends its caller
        outstanding = [call for call in outstanding if not (isinstance(call, Child) and call.detached)]
        # First what came: the result of a step may be among it.
        for letter in ending or mail:
            receive(self, instance, letter, self._clock.now())
        for call in outstanding:
            if isinstance(call, Call):
                call.unknown = True
        self._run(instance, outstanding)
        self.after(instance)
        if machine.called and not (instance.in_flight or instance.rest or instance.stopped):
            # Called because of something that is durable already, and with nothing to be written before.
            called, machine.called = machine.called, []
            self._run(instance, called)

    def guarded(self, instance: Instance, function: Callable[[], None]) -> None:
        """Calls it for an instance; what it raises stops that one, and nobody else."""
        try:
            function()
        except Exception as error:
            self._stop(instance, error)

    # --- what workflows are told --------------------------------------------------------------------------------------

    def tell(
        self,
        instance: Instance,
        kind: EntryKind,
        identity: Identity,
        body: bytes | None,
        value: Any = UNREAD,
        *,
        done: Call | None = None,
    ) -> None:
        """An entry of the journal; ``value`` is what ``body`` says, if somebody has it. ``done``: that it is the end of
        a step that is waited for, and so needs no looking."""
        machine = instance.machine
        instance.since = self._loop.time()
        entry = JournalEntry(instance.run, machine.position + 1, kind, *identity, self._clock.now(), body)
        try:
            if done is None:
                machine.deliver(entry, value)
            else:
                machine.done(done, entry, value)
        except Exception as error:
            self._stop(instance, error)
            return
        instance.pending.append(entry)
        self.after(instance)

    def after(self, instance: Instance) -> None:
        """What the code has asked for, now that it waits again."""
        machine = instance.machine
        if machine.dropped:
            for call in machine.dropped:
                self._give_up(instance, call)
            machine.dropped.clear()
        if machine.complaints:
            for text in machine.complaints:
                emit(WorkflowComplaint(self._service, instance.workflow.name, instance.id, text))
            machine.complaints.clear()
        if machine.marks or machine.inbox.replies:
            _gather(self._service, instance, machine)
        if machine.asked and instance.tasks:
            machine.asked = [ask for ask in machine.asked if not instance.holds_back(ask)]
        if machine.timers and not (self.stopping or instance.rest):
            self.timers.set(instance)
        self.write(instance)

    def write(self, instance: Instance) -> None:
        """What there is to be written, if nothing of it is on its way."""
        if instance.in_flight or instance.stopped or not (instance.pending or instance.has_writes):
            return
        if not instance.waits_to_end:
            self._record(instance)

    def _give_up(self, instance: Instance, call: AnyCall) -> None:
        if isinstance(call, Child) and call.detached:
            return
        if task := instance.tasks.get(call.identity):
            task.cancel()
        if isinstance(call, Asked):
            if not may_be_retried(instance.machine):  # which waits for the same answer then
                instance.taken += call.letters  # what answers it now finds nothing
            self.asked.pop(call.id, None)
        elif isinstance(call, Child) and call.begun:
            instance.letters.append(cancelled_by(instance.run, call.id, self._clock.now()))

    def _run(self, instance: Instance, called: Sequence[AnyCall]) -> None:
        if Child in map(type, called):
            begin = [call for call in called if isinstance(call, Child) and (call.detached or instance.wants(call))]
            called = [call for call in called if isinstance(call, Call)]
            for child in begin:
                self.begin_child(instance, child)
            if begin:
                # They begin first: a step may end at once, and its workflow with it.
                self._loop.call_soon(self._run, instance, called, context=self.context)
                return
        over = []
        for call in called:
            if isinstance(call, Call) and instance.wants(call):
                if instance.tasks and instance.holds_back(call):
                    continue
                job = Job(self._steps.perform(instance, call, self._mark), (instance, call))
                if self._crew.run(job):
                    over.append(job)
                else:
                    instance.tasks[call.identity] = job
        # Not before all have begun, as it would be with a task for each.
        for job in over:
            if instance.wants(job.about[1]):
                self._over(job)

    async def _mark(self, instance: Instance, call: Call) -> None:
        """Durable when this returns: an attempt of the step begins."""
        marked: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_soon(self._begun, instance, call, marked, context=self.context)
        await marked

    def _begun(self, instance: Instance, call: Call, marked: asyncio.Future[None]) -> None:
        if instance.stopped or instance.rest or not instance.machine.awaits(call):
            marked.cancel()
            return
        instance.marked.append(marked)
        self.tell(instance, EntryKind.STEP_BEGUN, call.identity, None)

    def child_ended(self, instance: Instance, child: Child, end: End) -> None:
        """It could not be started, or had ended long ago."""
        machine = instance.machine
        if machine.end is None and instance.wants(child) and not self.stopping:
            done = end.state == WorkflowState.COMPLETED
            kind = EntryKind.CHILD_DONE if done else EntryKind.CHILD_FAILED
            self.tell(instance, kind, child.identity, end.body)

    def _stepped(self, job: Job[tuple[Instance, Call]]) -> None:
        instance, call = job.about
        if instance.tasks.get(call.identity) is job:  # and not that of the same call once more
            del instance.tasks[call.identity]
            behind = instance.behind.pop(call.identity, None) if instance.behind else None
            if behind and not self.stopping:
                self._run(instance, [one for one in behind if isinstance(one, Call)])
                if asked := [one for one in behind if isinstance(one, Asked) and instance.wants(one)]:
                    instance.machine.asked += asked
                    self.after(instance)
        if instance.wants(call):
            self._over(job)

    def _over(self, job: Job[tuple[Instance, Call]]) -> None:
        (instance, call), error = job.about, job.error
        if self.stopping and not call.shielded:
            return
        if error is not None:
            if isinstance(error, asyncio.CancelledError) and job.cancels:
                return
            if isinstance(error, Exhausted):
                name, failure = instance.workflow.name, error.failure
                emit(WorkflowPaused(self._service, name, instance.id, call.name, failure.type))
                self.put_away(instance, WorkflowState.PAUSED, encode(failure))
            else:
                self._stop(instance, error)  # a defect of ours
            return
        if job.result is not None:  # otherwise it comes as a letter
            kind, body, value = job.result
            if call.letter is not None:
                if call.letter in instance.seen:
                    return  # somebody has looked for letters meanwhile
                instance.seen.add(call.letter)
                instance.taken.append(call.letter)
            self.tell(instance, kind, call.identity, body, value, done=call)

    def _due(self, instance: Instance) -> None:
        if not (self.stopping or instance.stopped or instance.rest):
            self.tell(instance, EntryKind.TIMER, ("", b"", 0), None)

    # --- leaving for a while ------------------------------------------------------------------------------------------

    def evict(self, idle: float, most: int | None = None) -> None:
        """Lets those leave memory that have waited for so many seconds, and run nothing; the oldest first. None while
        this process stops: what they ran was cut off, and somebody has to run it."""
        if self.stopping:
            return
        before = self._loop.time() - idle
        for instance in tuple(self.live.values()):
            if most is not None and most <= 0:
                return
            quiet = not (instance.tasks or instance.in_flight or instance.rest or instance.has_writes)
            if quiet and instance.since <= before and instance.started.done():
                self.guarded(instance, partial(self.put_away, instance, WorkflowState.RUNNING))
                most = None if most is None else most - 1

    def put_away(self, instance: Instance, state: WorkflowState, note: bytes | None = None) -> None:
        """Out of memory and without an owner, once that is durable."""
        wake_at = instance.machine.wake_at() if state == WorkflowState.RUNNING else None
        instance.rest = WorkflowRest(instance.run, state, wake_at, note)
        for task in instance.tasks.values():
            task.cancel()
        if not instance.in_flight:
            self._record(instance)

    # --- commits ------------------------------------------------------------------------------------------------------

    def _committed(self, record: Record) -> None:
        instance = record.instance
        if record.starts and not instance.started.done():
            instance.started.set_result(None)
        if record.end is not None:
            self._leave(instance, record.end)
        elif record.rest is not None:
            self._leave(instance)
        elif not self.stopping and not instance.stopped:
            if record.messages:
                # Some of them may have been given up meanwhile.
                sent, calls = {command.id for command in record.messages}, instance.machine.calls.values()
                self.asked.update((one.id, instance) for one in calls if isinstance(one, Asked) and one.id in sent)
            self._run(instance, record.called)
            if not instance.in_flight:
                self.write(instance)

    def _failed(self, instance: Instance, error: BaseException) -> None:
        if isinstance(error, Rejection) and not isinstance(error, Fenced) and not instance.started.done():
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
        if instance.stopped:
            return  # its process stops, and this was committed while it did
        if self.runs.pop(instance.run, None) is not None and self.live.get(instance.id) is instance:
            del self.live[instance.id]
        instance.stopped = True
        for task in instance.tasks.values():
            task.cancel()
        self.timers.drop(instance)
        for call in instance.machine.calls.values():
            if isinstance(call, Asked):
                self.asked.pop(call.id, None)
        if stubborn := instance.machine.leave():
            _stubborn.extend(stubborn)
            emit(WorkflowStopped(self._service, instance.workflow.name, instance.id, "its code swallows its end"))
        if not instance.ended.done():
            instance.ended.set_result(end)

    def _stop(self, instance: Instance, error: BaseException) -> None:
        """It cannot go on with this code: it waits, as its journal has it, until somebody resumes it."""
        starting = not instance.started.done()
        if not instance.ended.done():
            instance.ended.set_exception(error)
            instance.ended.exception()  # asked for: nobody may be waiting
        self._refuse_start(instance, error)
        if not (starting or self.stopping):

            def parked(future: asyncio.Future[Any]) -> None:
                failed = None if future.cancelled() or self.stopping else future.exception()
                if isinstance(failed, Fenced):
                    self._lose()
                elif failed is not None:
                    self._forgotten(instance.run)

            noted = self.recorder.park(instance.workflow.name, instance.id, instance.run, failure_of(error))
            noted.add_done_callback(parked)

    def _refuse_start(self, instance: Instance, error: BaseException) -> None:
        self._leave(instance)
        if not instance.started.done():
            instance.started.set_exception(error)
            instance.started.exception()  # asked for: its caller may have gone


def _gather(service: str, instance: Instance, machine: Machine) -> None:
    """What a turn leaves to be written."""
    if machine.marks:
        instance.pending += machine.marks
        announce(service, instance.workflow.name, instance.id, machine.marks)
        machine.marks = []
    if machine.inbox.replies:
        instance.replies += machine.inbox.replies
        machine.inbox.replies = []


def _is_shielded(call: AnyCall | None, resting: Container[Call]) -> bool:
    """A process that stops waits for it, unless it waits itself."""
    return isinstance(call, Call) and call.shielded and call not in resting
