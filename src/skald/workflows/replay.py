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
from typing import Any, Final, Protocol
from uuid import UUID
from zlib import crc32

from msgspec.structs import replace

from skald.errors import Diverged, StepFailed, WorkflowError
from skald.unit import EntryKind, JournalEntry, Reply, WorkflowState
from skald.workflows.calling import Ask, Asked
from skald.workflows.definition import Call, Child, Step, Workflow, continuation
from skald.workflows.failure import End, came_with, decode_failure, encode, encode_failure, failed, failure_of, let_go
from skald.workflows.forgetting import WaitedAnew, forgotten
from skald.workflows.inbox import Inbox
from skald.workflows.loop import WorkflowLoop, explained
from skald.workflows.signature import Identity

AnyCall = Call | Child | Asked
UNREAD: Final = object()
_STEP_DONE = EntryKind.STEP_DONE
_NOTHING: Final = WaitedAnew()
_ANSWERED = (EntryKind.CALL_DONE, EntryKind.CALL_REJECTED)


class Evicted(BaseException):
    """Thrown into a workflow that leaves memory. No ``Exception``, so that no ``except`` of its code catches it."""


class Conductor(Protocol):
    """What stands between a saga's code and its machine."""

    is_closed: bool
    """The code has ended, and calls nothing any more."""

    def call(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]: ...

    def ask(self, ask: Ask) -> Coroutine[Any, Any, Any]: ...

    def cancel(self, reason: str) -> None: ...

    def looks_for(self, identity: Identity) -> bool:
        """Whether it wants to know yet what has become of a call that was given up."""
        ...

    def expects(self, status: str) -> bool:
        """Whether the code has come to it, too, in a replay."""
        ...

    def ahead(self) -> list[str]:
        """Takes the statuses that the code has come to, and no entry has told."""
        ...


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
    ``dropped`` the steps and children to start and to stop, ``asked`` commands and locks, ``marks`` the patches and
    statuses to journal (at the positions after ``position``, which counts them already), ``inbox.replies`` the answers
    to updates; ``end`` is how it ended.

    ``time`` is when it was started, microseconds since 1970; ``copy`` what ``body`` says, if somebody has read it.
    ``complaints`` gathers what nobody awaited.
    """

    def __init__(
        self,
        workflow: Workflow[..., Any],
        run: str,
        body: bytes,
        time: int,
        *,
        id: str | None = None,
        copy: Any = None,
        correlation: str | None = None,
    ) -> None:
        self.workflow, self.run, self.began, self.time, self.id = workflow, run, time, time, id or run
        self.correlation = correlation or self.id
        self.called: list[AnyCall] = []
        self.dropped: list[AnyCall] = []
        self.asked: list[Asked] = []
        self.marks: list[JournalEntry] = []
        self.complaints: list[str] = []
        self.end: End | None = None
        self.local: dict[str, Any] = {}
        """What belongs to this workflow and is made anew at each replay: its random numbers."""
        self.position = 0
        """Entries so far."""
        self.told = 0
        """The position of the entry that the code was told last."""
        self._doubtful = 0
        """Up to here they may have come from a failure that was forgotten since."""
        self.retries = 0
        """How often it was retried after a failure."""
        self.retried_at = 0
        """When it was retried after a failure, the last time (microseconds since 1970)."""
        self.given_up: set[str] = set()
        """Children, by id, that the code has given up since then."""
        self.waited_anew = _NOTHING
        self._body, self._copy = body, copy
        self.calls: dict[Identity, AnyCall] = {}
        """What it waits for."""
        self._counts: dict[tuple[str, bytes], int] = {}
        self.patches = Patches(self.mark)
        self.conductor: Conductor | None = None
        """Of a saga."""
        self._over = self.is_replayed = False
        self.loop = WorkflowLoop(  # type: ignore[abstract]  # what is missing are its refusals
            time / 1e6, salt=crc32(run.encode()), host=self, complain=self._complain
        )
        self.timers = self.loop.timers
        """Empty if none is set."""
        self.inbox = Inbox(self.loop, self.id)

    # --- from outside -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Runs it up to where it first waits."""
        signature, (copy, self._copy) = self.workflow.signature, (self._copy, None)
        args, kwargs = signature.decode(self._body) if copy is None else signature.unpacked(copy)
        # A context of its own: what the starter had in his is not stored.
        main = self.workflow.bounded(self, args, kwargs)
        self.task = self.loop.create_task(main, name="workflow", context=Context())
        self._turn()

    def deliver(self, entry: JournalEntry, value: Any = UNREAD) -> None:
        """The next entry, live or of the history. ``value`` is what its payload says, if somebody has read it."""
        self.position += 1
        if entry.position != self.position:
            raise _diverged(self, f"an entry of position {entry.position}")
        if entry.kind == EntryKind.FORGOTTEN:
            found = forgotten(entry.digest)
            self._doubtful, self.retried_at = max(self._doubtful, found.last), max(self.retried_at, found.at)
            step = self.calls.get((entry.name, found.digest, entry.occurrence))
            if isinstance(step, Call) and entry.payload is not None and not decode_failure(entry.payload).unknown:
                step.begun = False  # no attempt has done it
            self.retries += 1
            for call in self.calls.values():
                if isinstance(call, Ask):
                    call.after_retry(self.retries)
            self.given_up.clear()
            return
        doubtful = entry.position <= self._doubtful or self.waited_anew.has_led_to(entry.position)
        if doubtful and not _fits(self, entry):
            return
        if entry.kind == EntryKind.PATCH:
            if entry.name not in self.patches.decided:
                raise _diverged(self, f"the patch {entry.name!r}, which can be kept by deprecate_patch({entry.name!r})")
            return
        if entry.kind == EntryKind.STAGE:
            return
        if entry.kind == EntryKind.STATUS:
            if self.conductor is None or not self.conductor.expects(entry.name):
                raise _diverged(self, f"the status {entry.name}")
            return
        if self.end is not None:
            raise _diverged(self, _told(entry))
        self.told = entry.position
        if entry.time > self.time:
            self.time = entry.time
        if entry.kind != EntryKind.TIMER:
            # Before its time is told: a result is no later than a timeout that is only noticed now.
            self._tell(entry, value)
        due = self.loop.advance(self.time / 1e6)
        if entry.kind == EntryKind.TIMER and not due:
            raise _diverged(self, _told(entry))
        self._turn()

    def done(self, call: Call, entry: JournalEntry, value: Any) -> None:
        """As ``deliver``, of the end of a step that it waits for; ``value`` is its result, or its ``Failure``."""
        self.position = self.told = entry.position
        if entry.time > self.time:
            self.time = entry.time
        del self.calls[call.identity]
        if entry.kind is _STEP_DONE:
            call.result = entry.payload
            call.future.set_result(value)
        else:
            call.future.set_exception(_step_failed(call, entry, value))
        self.loop.advance(self.time / 1e6)
        self._turn()

    def replay(self, history: Sequence[JournalEntry]) -> None:
        """Begins, and delivers what has happened. What it still waits for is in ``called`` then."""
        self.waited_anew = WaitedAnew(history)
        self.patches.recorded = {entry.name for entry in history if entry.kind == EntryKind.PATCH}
        # Where nothing was written yet, the statuses of the first turn are not either.
        self.is_replayed = bool(history)
        self.begin()
        waiting: dict[Identity, AnyCall] = {}
        replies: dict[str, Reply] = {}
        for entry in history:
            self.deliver(entry)
            _forget_what_was_asked(self, waiting, replies)
        _forget_what_was_asked(self, waiting, replies)
        untold = bool(history) and history[-1].kind == EntryKind.TIMER and history[-1].occurrence
        ahead = [] if self.conductor is None else self.conductor.ahead()
        if ahead and not untold:  # what such a timer leads to has yet to happen
            raise Diverged(self.position, "no change of its status", f"is {ahead[0]}")
        self.patches.recorded, self.is_replayed = None, False
        self.called = [call for call in waiting.values() if call.identity in self.calls]
        # Again, because the one who gave them may have died before he could; a second reply changes nothing.
        self.inbox.replies = list(replies.values())

    def awaits(self, call: AnyCall) -> bool:
        """Whether its result is still wanted."""
        return self.calls.get(call.identity) is call

    def wake_at(self) -> int | None:
        """When its next timer is due, microseconds since 1970."""
        when = None if self.end else self.loop.next_timer()
        # Rounded up, and by more than a float of this size can be off: delivered at that time, it is due.
        return None if when is None else int(when * 1e6) + 1

    def terminate(self, body: bytes) -> None:
        """Ends it as it is, without a turn."""
        self._end(End(WorkflowState.TERMINATED, body))

    def leave(self) -> list[Any]:
        """Ends it in memory and nowhere else; returns the tasks that would not end (see ``WorkflowLoop.end``)."""
        self._over = True
        stubborn = self.loop.end(Evicted())
        if not stubborn:
            # Without its circles it is freed now, and not when the collector comes round.
            self.loop.host = self.conductor = None
            self.inbox.forget()
            self.patches.forget()
            if self.end is not None and self.end.state == WorkflowState.FAILED:
                let_go(self.task.exception())
        return stubborn

    # --- from inside --------------------------------------------------------------------------------------------------

    def call(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """What calling a step comes to."""
        if self._over or self.inbox.looking_at is not None:
            self.ensure_alive(f"the step {step.name}")
        if self.conductor is not None:
            return self.conductor.call(step, args, kwargs)
        return self.outcome(self.issue(step, *step.signature.called(args, kwargs)))

    def issue(self, step: Step[..., Any], body: bytes, digest: bytes, copy: Any = None) -> Call:
        """A call that is made by ``outcome``."""
        same = (step.name, digest)
        self._counts[same] = occurrence = self._counts.get(same, 0) + 1
        return Call(step, body, (step.name, digest, occurrence), self.loop.create_future(), copy)

    def child(self, workflow: Workflow[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Child:
        """Calls a workflow; it is awaited by ``joined``."""
        self.ensure_alive(f"the workflow {workflow.name}")
        if self.conductor is not None and self.conductor.is_closed:
            raise WorkflowError(f"the saga {self.id!r} is being compensated, and calls no {workflow.name!r}")
        body, digest = workflow.called(args)
        name = f"workflow {workflow.name}"
        occurrence = self.count(name, digest)
        # By what it is called with, because the order of calls is nobody's promise; with a part of the run's own id,
        # because another run of this workflow's id may have called the same.
        own = f"{self.id}.{workflow.name}.{self.run[-6:]}{digest.hex()[:6]}.{occurrence}"
        id = options.pop("id", None) or own
        future, begun = self.loop.create_future(), self.patches.recorded is not None
        call = Child(workflow, body, digest, occurrence, future, id, begun=begun, **options)
        self.calls[call.identity] = call
        self.called.append(call)
        return call

    async def joined(self, child: Child) -> Any:
        """The result of a child."""
        child.joined = True
        try:
            return await child.future
        finally:
            if child.future.cancelled():
                self._drop(child)

    async def outcome(self, call: Call | Asked) -> Any:
        """Its result; raises ``StepFailed``."""
        self.calls[call.identity] = call
        if isinstance(call, Asked):
            self.asked.append(call)
        else:
            self.called.append(call)
        try:
            return await call.future
        finally:
            if call.future.cancelled():
                self._drop(call)

    def ensure_alive(self, what: str) -> None:
        """Raises where nothing can be called any more, or nothing may be."""
        if self._over:
            raise Evicted
        if self.inbox.looking_at is not None:
            raise WorkflowError(f"{what} cannot be called by a query or a validator: they may only look")

    def count(self, name: str, digest: bytes) -> int:
        """The occurrence of a call among those that are equal to it."""
        same = (name, digest)
        self._counts[same] = occurrence = self._counts.get(same, 0) + 1
        return occurrence

    def mark(self, name: str, kind: EntryKind = EntryKind.PATCH, payload: bytes | None = None) -> None:
        if not self._over:
            self.position += 1
            self.marks.append(JournalEntry(self.run, self.position, kind, name, b"", 0, self.time, payload))

    # --- what it is told ----------------------------------------------------------------------------------------------

    def _tell(self, entry: JournalEntry, value: Any) -> None:
        match entry.kind:
            case EntryKind.SIGNAL:
                self.inbox.signal(entry.name, entry.payload or b"")
            case EntryKind.UPDATE:
                self.inbox.update(str(UUID(bytes=entry.digest)), entry.name, entry.payload or b"")
            case EntryKind.CANCEL:
                reason = (entry.payload or b"").decode()
                self.task.cancel(reason) if self.conductor is None else self.conductor.cancel(reason)
            case EntryKind.STEP_BEGUN:
                call = self.calls.get((entry.name, entry.digest, entry.occurrence))
                if not isinstance(call, Call):
                    raise _diverged(self, _told(entry))
                call.begun = True
            case _:
                self._complete(entry, value)

    def _drop(self, call: AnyCall) -> None:
        if self.awaits(call):
            del self.calls[call.identity]
            self.dropped.append(call)
            if self.retried_at and self.position > self._doubtful and isinstance(call, Child):
                self.given_up.add(call.id)

    def _complete(self, entry: JournalEntry, value: Any) -> None:
        call = self.calls.get((entry.name, entry.digest, entry.occurrence))
        if call is None or isinstance(call, Asked) is not (entry.kind in _ANSWERED):
            raise _diverged(self, _told(entry))
        del self.calls[call.identity]
        body = entry.payload or b""
        if isinstance(call, Asked):
            call.settle(entry.kind, body)
            return
        match entry.kind:
            case EntryKind.STEP_DONE | EntryKind.CHILD_DONE:
                if self.conductor is not None and isinstance(call, Call):
                    call.result = body
                call.future.set_result(call.signature.result.decode(body) if value is UNREAD else value)
            case EntryKind.CHILD_FAILED:
                id = call.id if isinstance(call, Child) else call.name
                call.future.set_exception(_from(entry, failed(id, decode_failure(body))))
            case _:
                call.future.set_exception(_step_failed(call, entry, value))

    def _turn(self) -> None:
        self.loop.run()
        if self.end is None and self.task.done():
            self._end(self._ended())

    def _end(self, end: End) -> None:
        self.end = end
        for call in tuple(self.calls.values()):
            if not (isinstance(call, Child) and call.detached):  # which is started all the same
                self._drop(call)
        self.inbox.close(end.state)

    def _ended(self) -> End:
        try:
            return End(WorkflowState.COMPLETED, self.workflow.signature.result.encode(self.task.result()))
        except asyncio.CancelledError as cancelled:
            return End(WorkflowState.CANCELLED, encode_failure(cancelled))
        except BaseException as error:
            if (again := continuation(error)) is not None:
                return End(WorkflowState.CONTINUED, again.body)
            return End(WorkflowState.FAILED, _failure(self, explained(error)))

    def _complain(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        # Its type alone: the text of a user's exception may hold anything.
        said = str(context.get("message")).partition("\n")[0]
        self.complaints.append(f"{said}: {type(error).__name__}" if error else said)


def may_be_retried(machine: Machine) -> bool:
    """It has failed, and is no saga, which would be undone by then."""
    return machine.conductor is None and machine.end is not None and machine.end.state == WorkflowState.FAILED


def _step_failed(call: Call | Child, entry: JournalEntry, value: Any) -> WorkflowError:
    failure = decode_failure(entry.payload or b"") if value is UNREAD else value
    return _from(entry, StepFailed(call.name, failure.type, failure.message, failure.unknown))


def give_up_children(machine: Machine) -> None:
    """Those that go with the code that has called them."""
    for call in tuple(machine.calls.values()):
        if isinstance(call, Child) and not call.detached:
            call.future.cancel()
            machine._drop(call)


def _forget_what_was_asked(machine: Machine, waiting: dict[Identity, AnyCall], replies: dict[str, Reply]) -> None:
    waiting.update((call.identity, call) for call in machine.called)
    replies.update((reply.letter, reply) for reply in machine.inbox.replies)
    # What was asked because of an entry was sent with it.
    machine.called, machine.dropped, machine.asked, machine.inbox.replies = [], [], [], []


def _fits(machine: Machine, entry: JournalEntry) -> bool:
    """Whether the machine waits for an entry."""
    match entry.kind:
        case EntryKind.PATCH:
            return entry.name in machine.patches.decided
        case EntryKind.STAGE:
            return True
        case EntryKind.TIMER:
            when = machine.wake_at()
            return when is not None and when <= entry.time
        case EntryKind.SIGNAL | EntryKind.UPDATE:
            return machine.end is None
        case EntryKind.CANCEL | EntryKind.STATUS:
            return False
        case _:
            call = machine.calls.get((entry.name, entry.digest, entry.occurrence))
            return call is not None and isinstance(call, Ask) is (entry.kind in _ANSWERED)


def _failure(machine: Machine, error: BaseException) -> bytes:
    """What it ends with; and because of which entry, where a retry asks for that."""
    if machine.conductor is not None:
        return encode_failure(error)
    source = came_with(error, machine.told)
    entry, unanswered = (0, None) if source is None else (source.position, getattr(source, "call", None))
    return encode(replace(failure_of(error), entry=entry, unanswered=unanswered))


def _from(entry: JournalEntry, error: WorkflowError) -> WorkflowError:
    error.position = entry.position
    return error


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
        case EntryKind.STEP_BEGUN:
            return f"an attempt at {entry.name}#{entry.occurrence} ({entry.digest.hex()[:8]})"
        case _:
            return f"the end of {entry.name}#{entry.occurrence} ({entry.digest.hex()[:8]})"
