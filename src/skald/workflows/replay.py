"""PURE. A workflow as a machine: an entry of its journal goes in, and what is to be done comes out.

Live and in replay alike: run to quiescence, deliver one entry, run to quiescence, repeat. So what the code does depends
on its input and on the entries alone. Only completions are ordered: the order in which steps are *called* differs
between Python versions, and therefore a step is known by its name, the digest of its arguments, and its occurrence
among the calls that are equal in both.

A history that has a completion of a step that the code is not waiting for, or goes on after the code has returned, was
written by other code: ``Diverged`` says what each side has, and at which position.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import Context
from typing import Any
from zlib import crc32

import msgspec

from skald.errors import Diverged, StepFailed
from skald.unit import EntryKind, JournalEntry, WorkflowState
from skald.workflows.definition import Call, Step, Workflow
from skald.workflows.loop import WorkflowLoop, explained

MAX_ERROR = 2_000
"""Characters of an error's text that are stored."""


class Evicted(BaseException):
    """Thrown into a workflow that leaves memory. No ``Exception``, so that no ``except`` of its code catches it."""


class Failure(msgspec.Struct, frozen=True):
    """An exception as data."""

    type: str
    message: str


class End(msgspec.Struct, frozen=True):
    """How a workflow has ended: ``body`` is its result, or the ``Failure``."""

    state: WorkflowState
    body: bytes


_encode = msgspec.json.Encoder().encode
_failure = msgspec.json.Decoder(Failure).decode


def failure_of(error: BaseException) -> Failure:
    """Its type and text, fit to be stored whatever they hold. A failed step's own are passed on."""
    if isinstance(error, StepFailed):
        return Failure(error.type, error.message)
    try:
        text = str(error)
    except Exception:
        # An error whose own text fails is still an error.
        text = ""
    return Failure(type(error).__name__, text.encode("utf-8", "replace").decode()[:MAX_ERROR])


def encode_failure(error: BaseException) -> bytes:
    return _encode(failure_of(error))


def decode_failure(body: bytes) -> Failure:
    return _failure(body)


class Machine:
    """One workflow in memory. After each method ``called`` and ``dropped`` hold the steps to start and to stop, until
    they are taken; ``end`` is how it ended.

    ``time`` is when it was started, microseconds since 1970. ``complaints`` gathers what nobody awaited.
    """

    def __init__(self, workflow: Workflow[*tuple[Any, ...], Any], run: str, body: bytes, time: int) -> None:
        self.workflow, self.run, self.time = workflow, run, time
        self.called: list[Call] = []
        self.dropped: list[Call] = []
        self.complaints: list[str] = []
        self.end: End | None = None
        self.local: dict[str, Any] = {}
        """What belongs to this workflow and is made anew at each replay: its random numbers."""
        self.position = 0
        """Entries delivered so far."""
        self._body = body
        self._calls: dict[tuple[str, bytes, int], Call] = {}
        self._counts: dict[tuple[str, bytes], int] = {}
        self._over = False
        self._loop = WorkflowLoop(  # type: ignore[abstract]  # what is missing are its refusals
            time / 1e6, salt=crc32(run.encode()), host=self, complain=self._complain
        )

    # --- from outside -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Runs it up to where it first waits."""
        args, kwargs = self.workflow.signature.decode(self._body)
        # A context of its own: what the starter had in his is not stored.
        self._task = self._loop.create_task(self.workflow.function(*args, **kwargs), name="workflow", context=Context())
        self._turn()

    def deliver(self, entry: JournalEntry) -> None:
        """The next entry, live or of the history."""
        self.position += 1
        self.time = max(self.time, entry.time)
        if entry.kind != EntryKind.TIMER:
            # Before its time is told: a result is no later than a timeout that is only noticed now.
            self._complete(entry)
        due = self._loop.advance(self.time / 1e6)
        if entry.kind == EntryKind.TIMER and not due:
            raise self._diverged("a timer that fired")
        self._turn()

    def replay(self, history: Iterable[JournalEntry]) -> None:
        """Begins, and delivers what has happened. What it still waits for is in ``called`` then."""
        self.begin()
        waiting: dict[tuple[str, bytes, int], Call] = {}
        for entry in history:
            self.deliver(entry)
            self._settle(waiting)
        self._settle(waiting)
        self.called = [call for call in waiting.values() if call.identity in self._calls]

    def _settle(self, waiting: dict[tuple[str, bytes, int], Call]) -> None:
        waiting.update((call.identity, call) for call in self.called)
        self.called, self.dropped = [], []

    def awaits(self, call: Call) -> bool:
        """Whether its result is still wanted."""
        return self._calls.get(call.identity) is call

    def wake_at(self) -> int | None:
        """When its next timer is due, microseconds since 1970."""
        when = None if self.end else self._loop.next_timer()
        # Rounded up, and by more than a float of this size can be off: delivered at that time, it is due.
        return None if when is None else int(when * 1e6) + 1

    def leave(self) -> list[Any]:
        """Ends it in memory and nowhere else; returns the tasks that would not end (see ``WorkflowLoop.end``)."""
        self._over = True
        return self._loop.end(Evicted())

    # --- from inside --------------------------------------------------------------------------------------------------

    async def call(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What calling a step comes to."""
        if self._over:
            raise Evicted
        body, digest = step.called(args, kwargs)
        same = (step.name, digest)
        self._counts[same] = occurrence = self._counts.get(same, 0) + 1
        future = self._loop.create_future()
        call = Call(step, body, digest, occurrence, future)
        self._calls[call.identity] = call
        self.called.append(call)
        try:
            return await future
        finally:
            if future.cancelled():
                self._drop(call)

    def _drop(self, call: Call) -> None:
        if self._calls.pop(call.identity, None) is not None:
            self.dropped.append(call)

    def _complete(self, entry: JournalEntry) -> None:
        call = self._calls.pop((entry.name, entry.digest, entry.occurrence), None)
        if call is None:
            raise self._diverged(f"the end of {entry.name}#{entry.occurrence} ({entry.digest.hex()[:8]})")
        body = entry.payload or b""
        if entry.kind == EntryKind.STEP_DONE:
            call.future.set_result(call.step.signature.result.decode(body))
        else:
            failure = _failure(body)
            call.future.set_exception(StepFailed(call.step.name, failure.type, failure.message))

    def _turn(self) -> None:
        self._loop.run()
        if self._task.done() and self.end is None:
            self.end = self._ended()
            for call in tuple(self._calls.values()):
                self._drop(call)

    def _ended(self) -> End:
        try:
            return End(WorkflowState.COMPLETED, self.workflow.signature.result.encode(self._task.result()))
        except BaseException as error:
            # Cancelled by itself, too.
            return End(WorkflowState.FAILED, encode_failure(explained(error)))

    def _diverged(self, history: str) -> Diverged:
        if self.end is not None:
            code = f"has ended ({self.end.state.value})"
        elif self._calls:
            code = f"waits for {', '.join(str(call) for call in self._calls.values())}"
        elif self._loop.next_timer() is not None:
            code = "waits for a timer"
        else:
            code = "waits for nothing that could happen"
        return Diverged(self.position, history, code)

    def _complain(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.complaints.append(f"{context.get('message')}: {error!r}" if error else str(context.get("message")))
