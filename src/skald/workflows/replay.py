"""PURE. A workflow as a machine: an entry of its journal goes in, and what is to be done comes out.

Live and in replay alike: run to quiescence, deliver one entry, run to quiescence, repeat. So what the code does depends
on its input and on the entries alone. Only completions are ordered: the order in which steps are *called* differs
between Python versions, and therefore a step is known by its name, the digest of its arguments, and its occurrence
among the calls that are equal in both.

A history that has a completion of a step that the code is not waiting for, or goes on after the code has returned, was
written by other code: ``Diverged`` says what each side has, and at which position.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any
from uuid import UUID
from zlib import crc32

from skald.errors import Diverged, StepFailed, WorkflowError, WorkflowFailed
from skald.unit import EntryKind, JournalEntry, Reply, WorkflowState
from skald.workflows.definition import Call, Child, ContinueAsNew, Step, Workflow
from skald.workflows.failure import End, decode_failure, encode_failure
from skald.workflows.inbox import Inbox
from skald.workflows.loop import WorkflowLoop, explained
from skald.workflows.signature import Identity

AnyCall = Call | Child


class Evicted(BaseException):
    """Thrown into a workflow that leaves memory. No ``Exception``, so that no ``except`` of its code catches it."""


class Patches:
    """Which changes of the code a run has; ``mark`` journals one."""

    def __init__(self, mark: Callable[[str], None]) -> None:
        self._mark = mark
        self.decided: dict[str, bool] = {}
        self.recorded: set[str] | None = None
        """Those of the history, while it is replayed."""

    def patched(self, name: str) -> bool:
        """Decided once for a run: where history has passed, by what it holds; where it has not, the run has it."""
        if name not in self.decided:
            self.decided[name] = self.recorded is None or name in self.recorded
            if self.recorded is None:
                self._mark(name)
        return self.decided[name]

    def deprecate(self, name: str) -> None:
        self.decided.setdefault(name, True)

    def forget(self) -> None:
        del self._mark


class Machine:
    """One workflow in memory. After each method these hold what is to be done, until it is taken: ``called`` and
    ``dropped`` the steps and children to start and to stop, ``marks`` the patches to journal (at the positions after
    ``position``, which counts them already), ``inbox.replies`` the answers to updates; ``end`` is how it ended.

    ``time`` is when it was started, microseconds since 1970. ``complaints`` gathers what nobody awaited.
    """

    def __init__(
        self, workflow: Workflow[*tuple[Any, ...], Any], run: str, body: bytes, time: int, *, id: str | None = None
    ) -> None:
        self.workflow, self.run, self.began, self.time, self.id = workflow, run, time, time, id or run
        self.called: list[AnyCall] = []
        self.dropped: list[AnyCall] = []
        self.marks: list[JournalEntry] = []
        self.complaints: list[str] = []
        self.end: End | None = None
        self.local: dict[str, Any] = {}
        """What belongs to this workflow and is made anew at each replay: its random numbers."""
        self.position = 0
        """Entries so far."""
        self._body = body
        self.calls: dict[Identity, AnyCall] = {}
        """What it waits for."""
        self._counts: dict[tuple[str, bytes], int] = {}
        self.patches = Patches(self._mark)
        self._over = False
        self._loop = WorkflowLoop(  # type: ignore[abstract]  # what is missing are its refusals
            time / 1e6, salt=crc32(run.encode()), host=self, complain=self._complain
        )
        self.inbox = Inbox(self._loop, self.id)

    # --- from outside -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Runs it up to where it first waits."""
        args, kwargs = self.workflow.signature.decode(self._body)
        # A context of its own: what the starter had in his is not stored.
        main = self.workflow.bounded(args, kwargs)
        self.task = self._loop.create_task(main, name="workflow", context=Context())
        self._turn()

    def deliver(self, entry: JournalEntry) -> None:
        """The next entry, live or of the history."""
        self.position += 1
        if entry.position != self.position:
            raise _diverged(self, f"an entry of position {entry.position}")
        if entry.kind == EntryKind.PATCH:
            if entry.name not in self.patches.decided:
                raise _diverged(self, f"the patch {entry.name!r}, which can be kept by deprecate_patch({entry.name!r})")
            return
        if self.end is not None:
            raise _diverged(self, _told(entry))
        self.time = max(self.time, entry.time)
        if entry.kind != EntryKind.TIMER:
            # Before its time is told: a result is no later than a timeout that is only noticed now.
            self._tell(entry)
        due = self._loop.advance(self.time / 1e6)
        if entry.kind == EntryKind.TIMER and not due:
            raise _diverged(self, _told(entry))
        self._turn()

    def replay(self, history: Sequence[JournalEntry]) -> None:
        """Begins, and delivers what has happened. What it still waits for is in ``called`` then."""
        self.patches.recorded = {entry.name for entry in history if entry.kind == EntryKind.PATCH}
        self.begin()
        waiting: dict[Identity, AnyCall] = {}
        replies: dict[str, Reply] = {}
        for entry in history:
            self.deliver(entry)
            self._settle(waiting, replies)
        self._settle(waiting, replies)
        self.patches.recorded = None
        self.called = [call for call in waiting.values() if call.identity in self.calls]
        # Again, because the one who gave them may have died before he could; a second reply changes nothing.
        self.inbox.replies = list(replies.values())

    def _settle(self, waiting: dict[Identity, AnyCall], replies: dict[str, Reply]) -> None:
        waiting.update((call.identity, call) for call in self.called)
        replies.update((reply.letter, reply) for reply in self.inbox.replies)
        self.called, self.dropped, self.inbox.replies = [], [], []

    def awaits(self, call: AnyCall) -> bool:
        """Whether its result is still wanted."""
        return self.calls.get(call.identity) is call

    def wake_at(self) -> int | None:
        """When its next timer is due, microseconds since 1970."""
        when = None if self.end else self._loop.next_timer()
        # Rounded up, and by more than a float of this size can be off: delivered at that time, it is due.
        return None if when is None else int(when * 1e6) + 1

    def terminate(self, body: bytes) -> None:
        """Ends it as it is, without a turn."""
        self._end(End(WorkflowState.TERMINATED, body))

    def leave(self) -> list[Any]:
        """Ends it in memory and nowhere else; returns the tasks that would not end (see ``WorkflowLoop.end``)."""
        self._over = True
        stubborn = self._loop.end(Evicted())
        if not stubborn:
            # Without its circles it is freed now, and not when the collector comes round.
            self._loop.host = None
            self.inbox.forget()
            self.patches.forget()
        return stubborn

    # --- from inside --------------------------------------------------------------------------------------------------

    def call(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """What calling a step comes to."""
        self._ensure_alive(f"the step {step.name}")
        return self._call(step, args, kwargs)

    async def _call(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        body, digest = step.called(args, kwargs)
        return await self._outcome(Call(step, body, digest, self._count(step.name, digest), self._loop.create_future()))

    def child(self, workflow: Workflow[*tuple[Any, ...], Any], args: tuple[Any, ...], options: dict[str, Any]) -> Child:
        """Calls a workflow; it is awaited by ``joined``."""
        self._ensure_alive(f"the workflow {workflow.name}")
        body, digest = workflow.called(args)
        name = f"workflow {workflow.name}"
        occurrence = self._count(name, digest)
        # By what it is called with, because the order of calls is nobody's promise; with a part of the run's own id,
        # because another run of this workflow's id may have called the same.
        own = f"{self.id}.{workflow.name}.{self.run[-6:]}{digest.hex()[:6]}.{occurrence}"
        id = options.pop("id", None) or own
        call = Child(workflow, body, digest, occurrence, self._loop.create_future(), id, **options)
        self.calls[call.identity] = call
        self.called.append(call)
        return call

    async def joined(self, child: Child) -> Any:
        """The result of a child."""
        try:
            return await child.future
        finally:
            if child.future.cancelled():
                self._drop(child)

    async def _outcome(self, call: Call) -> Any:
        self.calls[call.identity] = call
        self.called.append(call)
        try:
            return await call.future
        finally:
            if call.future.cancelled():
                self._drop(call)

    def _ensure_alive(self, what: str) -> None:
        if self._over:
            raise Evicted
        if self.inbox.looking_at is not None:
            raise WorkflowError(f"{what} cannot be called by a query or a validator: they may only look")

    def _count(self, name: str, digest: bytes) -> int:
        same = (name, digest)
        self._counts[same] = occurrence = self._counts.get(same, 0) + 1
        return occurrence

    def _mark(self, patch: str) -> None:
        self.position += 1
        self.marks.append(JournalEntry(self.run, self.position, EntryKind.PATCH, patch, b"", 0, self.time, None))

    # --- what it is told ----------------------------------------------------------------------------------------------

    def _tell(self, entry: JournalEntry) -> None:
        match entry.kind:
            case EntryKind.SIGNAL:
                self.inbox.signal(entry.name, entry.payload or b"")
            case EntryKind.UPDATE:
                self.inbox.update(str(UUID(bytes=entry.digest)), entry.name, entry.payload or b"")
            case EntryKind.CANCEL:
                self.task.cancel((entry.payload or b"").decode())
            case EntryKind.STEP_BEGUN:
                call = self.calls.get((entry.name, entry.digest, entry.occurrence))
                if isinstance(call, Call):
                    call.begun = True
            case _:
                self._complete(entry)

    def _drop(self, call: AnyCall) -> None:
        if self.calls.pop(call.identity, None) is not None:
            self.dropped.append(call)

    def _complete(self, entry: JournalEntry) -> None:
        call = self.calls.pop((entry.name, entry.digest, entry.occurrence), None)
        if call is None:
            raise _diverged(self, _told(entry))
        body = entry.payload or b""
        match entry.kind:
            case EntryKind.STEP_DONE | EntryKind.CHILD_DONE:
                call.future.set_result(call.signature.result.decode(body))
            case EntryKind.CHILD_FAILED:
                failure = decode_failure(body)
                id = call.id if isinstance(call, Child) else call.name
                call.future.set_exception(WorkflowFailed(id, failure.type, failure.message))
            case _:
                failure = decode_failure(body)
                call.future.set_exception(StepFailed(call.name, failure.type, failure.message))

    def _turn(self) -> None:
        while True:
            try:
                self._loop.run()
                break
            except SystemExit:
                continue  # of the workflow's own code: its task has ended with it, and nothing else has to
        if self.task.done() and self.end is None:
            self._end(self._ended())

    def _end(self, end: End) -> None:
        self.end = end
        for call in tuple(self.calls.values()):
            self._drop(call)
        self.inbox.close(end.state)

    def _ended(self) -> End:
        try:
            return End(WorkflowState.COMPLETED, self.workflow.signature.result.encode(self.task.result()))
        except ContinueAsNew as again:
            return End(WorkflowState.CONTINUED, again.body)
        except asyncio.CancelledError as cancelled:
            return End(WorkflowState.CANCELLED, encode_failure(cancelled))
        except BaseException as error:
            return End(WorkflowState.FAILED, encode_failure(explained(error)))

    def _complain(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        # Its type alone: the text of a user's exception may hold anything.
        said = str(context.get("message")).partition("\n")[0]
        self.complaints.append(f"{said}: {type(error).__name__}" if error else said)


def _diverged(machine: Machine, history: str) -> Diverged:
    if machine.end is not None:
        code = f"has ended ({machine.end.state.value})"
    elif machine.calls:
        code = f"waits for {', '.join(str(call) for call in machine.calls.values())}"
    elif machine.wake_at() is not None:
        code = "waits for a timer"
    else:
        code = "waits for nothing that could happen"
    return Diverged(machine.position, history, code)


def _told(entry: JournalEntry) -> str:
    """An entry in words."""
    match entry.kind:
        case EntryKind.TIMER:
            return "a timer that fired"
        case EntryKind.SIGNAL | EntryKind.UPDATE:
            return f"the {entry.kind.name.lower()} {entry.name!r}"
        case EntryKind.CANCEL:
            return "a request to cancel it"
        case _:
            return f"the end of {entry.name}#{entry.occurrence} ({entry.digest.hex()[:8]})"
