"""Writes down what workflows were told and have asked for: one record of a workflow is on its way at a time.

Records of many workflows share one unit, which is closed when its group of commits is put together: a unit and a future
for each cost a third of a step. If one of them is refused, which starts can be, all are written as units of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from skald.clock import Clock
from skald.errors import Diverged, Fenced, NeverIdle, Rejection, WorkflowUnknown
from skald.message import Record as Message
from skald.message import new_id
from skald.telemetry import WorkflowStopped, emit
from skald.unit import (
    AddressKind,
    Committed,
    JournalEntry,
    Letter,
    LetterKind,
    Reply,
    Unit,
    WorkflowEnd,
    WorkflowRest,
    WorkflowStart,
    WorkflowState,
    WorkflowWrites,
)
from skald.workflows.definition import Child
from skald.workflows.failure import BY_CALLER, End, Failure, encode
from skald.workflows.instance import Instance
from skald.workflows.locking import held
from skald.workflows.replay import AnyCall

MOST = 500
"""Records in one unit."""
ALONE = 1_000
"""Starts that share no unit after one was refused: where ids are started twice all the time, sharing costs twice."""


class Submit(Protocol):
    def submit(self, unit: Unit) -> asyncio.Future[Committed]: ...

    def submit_open(
        self, close: Callable[[], Unit], then: Callable[[Committed | BaseException], None], context: Context
    ) -> None: ...


class ChildEnd(msgspec.Struct, frozen=True):
    """What a parent is told."""

    state: WorkflowState
    body: bytes


class Record(msgspec.Struct):
    """What one workflow has to write. With its ``end`` it ends, with ``rest`` it leaves memory; otherwise what it has
    ``called`` begins once this is durable."""

    instance: Instance
    end: End | None
    rest: WorkflowRest | None
    called: Sequence[AnyCall]
    marked: Sequence[asyncio.Future[None]]
    ended_at: int
    starts: tuple[WorkflowStart, ...]
    journal: Sequence[JournalEntry]
    letters: Sequence[Letter]
    taken: Sequence[str]
    replies: Sequence[Reply]
    messages: Sequence[Message]
    """Commands that it has called."""


_NONE: Final[tuple[Any, ...]] = ()


def writes_of(records: Sequence[Record], *, is_plain: bool = False) -> WorkflowWrites:
    """As one unit. ``is_plain``: they have nothing but starts, ends and entries."""
    ends = tuple([_end(one.instance, one.end, one.ended_at) for one in records if one.end is not None])
    starts = tuple([start for one in records for start in one.starts])
    journal = tuple([entry for one in records for entry in one.journal])
    if is_plain:
        return WorkflowWrites(ends=ends, starts=starts, journal=journal)
    return WorkflowWrites(
        ends=ends,
        starts=starts,
        journal=journal,
        rests=tuple([one.rest for one in records if one.rest is not None]),
        letters=tuple([letter for one in records for letter in one.letters]),
        taken=tuple([id for one in records for id in one.taken]),
        replies=tuple([reply for one in records for reply in one.replies]),
    )


def _end(instance: Instance, end: End, now: int) -> WorkflowEnd:
    body = b"" if end.state == WorkflowState.CONTINUED else end.body
    return WorkflowEnd(instance.run, end.state, body, now, frees=bool(held(instance.machine)))


def child_ended(parent: str | None, id: str, end: End, now: int) -> tuple[Letter, ...]:
    """What a parent is told, if there is one."""
    if parent is None:
        return ()
    body = encode(ChildEnd(end.state, end.body))
    return (Letter(new_id(), LetterKind.CHILD, AddressKind.RUN, parent, id, body, now),)


def cancelled_by(run: str, child: str, now: int) -> Letter:
    """What the child of a run is told. To its id, because its start may be on its way; and in the name of the run,
    because others may start that id if that comes to nothing."""
    return Letter(new_id(), LetterKind.CANCEL, AddressKind.ID, child, run, BY_CALLER.encode(), now)


def _asked(instance: Instance, now: int) -> list[Message]:
    """The commands to send, with letters that hold the places of their answers. One that was given up at once is not
    sent."""
    machine = instance.machine
    asked, machine.asked, sent = machine.asked, [], []
    for ask in asked:
        if machine.awaits(ask):
            instance.letters.append(ask.place(now))
            if (message := ask.record(now)) is not None:
                sent.append(message)
    return sent


class Recorder:
    """Of one service. ``committed`` and ``failed`` are called outside of any task."""

    def __init__(
        self,
        service: str,
        *,
        committer: Submit,
        clock: Clock,
        owner: str,
        context: Context,
        committed: Callable[[Record], None],
        failed: Callable[[Instance, BaseException], None],
    ) -> None:
        self._service, self._committer, self._clock, self._owner = service, committer, clock, owner
        self._context, self._then, self._else = context, committed, failed
        self._open: list[Record] | None = None
        """What may still join the unit that was submitted last."""
        self._is_plain = True
        """Nothing in it has more than starts, ends and entries."""
        self._alone = 0
        """Starts that go as units of their own, because one was refused."""
        self._in_flight = 0
        self._quiet = asyncio.Event()

    def use(self, committer: Submit) -> None:
        """From now on."""
        self._committer = committer

    async def quiet(self) -> None:
        """Returns when nothing is on its way."""
        while self._in_flight:
            self._quiet.clear()
            await self._quiet.wait()

    def record(self, instance: Instance, starts: tuple[WorkflowStart, ...] = ()) -> None:
        """Commits what an instance has to write; ``starts`` is its own."""
        machine, end, now = instance.machine, instance.machine.end, 0
        messages = _asked(instance, self._clock.now()) if machine.asked else []
        if end is not None and any(isinstance(call, Child) and call.detached for call in machine.called):
            end = None  # once these have been started
        if end is not None:
            instance.rest, now = None, self._clock.now()
            starts += self._because_of(instance, end, now)
            instance.taken += held(machine)
        # An empty list stays the instance's: what it gets later is not of this record, which is not closed yet.
        one = Record(
            instance, end, instance.rest, machine.called, instance.marked or _NONE, now, starts, instance.pending,
            instance.letters or _NONE, instance.taken or _NONE, instance.replies or _NONE, messages,
        )  # fmt: skip
        machine.called, instance.pending = [], []
        # Mostly there are none, and a list for each would be made for each step.
        is_plain = not (instance.letters or instance.taken or instance.replies or instance.rest or messages)
        if not is_plain:
            instance.letters, instance.taken, instance.replies = [], [], []
        if instance.marked:
            instance.marked = []
        instance.in_flight = True
        self._in_flight += 1
        if starts and self._alone:
            self._alone -= 1
            self._submit([one])
        elif self._open is not None and len(self._open) < MOST:
            self._open.append(one)
            self._is_plain = self._is_plain and is_plain
        else:
            self._open, self._is_plain = [one], is_plain
            self._submit(self._open)

    def _close(self, records: list[Record]) -> Unit:
        is_plain = False
        if self._open is records:
            self._open, is_plain = None, self._is_plain
        if is_plain:
            return Unit(fence=self._owner, workflows=writes_of(records, is_plain=True))
        messages = tuple([message for one in records for message in one.messages])
        return Unit(fence=self._owner, messages=messages, workflows=writes_of(records))

    def _submit(self, records: list[Record]) -> None:
        self._committer.submit_open(partial(self._close, records), partial(self._recorded, records), self._context)

    def park(self, workflow: str, id: str, run: str, failure: Failure) -> asyncio.Future[Committed]:
        """Pauses one that is not in memory."""
        ours = failure.type in (Diverged.__name__, NeverIdle.__name__, WorkflowUnknown.__name__)
        # A user's own text may hold anything; it stands in the row.
        emit(
            WorkflowStopped(self._service, workflow, id, f"{failure.type}: {failure.message}" if ours else failure.type)
        )
        rest = WorkflowRest(run, WorkflowState.PAUSED, None, encode(failure))
        return self._committer.submit(Unit(fence=self._owner, workflows=WorkflowWrites(rests=(rest,))))

    def _because_of(self, instance: Instance, end: End, now: int) -> tuple[WorkflowStart, ...]:
        """What an end brings with it: its parent is told, or the next run begins."""
        if end.state == WorkflowState.CONTINUED:
            run = new_id()
            # To the id, because the next run may end as quickly; and as old as this run, so that they come first.
            instance.letters += [
                Letter(new_id(), LetterKind.SIGNAL, AddressKind.ID, instance.id, name, body, instance.machine.began)
                for name, body in instance.machine.inbox.unheard()
            ]
            name, parent, key = instance.workflow.name, instance.parent, instance.key
            return (
                WorkflowStart(
                    run, instance.id, name, None, 0, parent, key, end.body, now, True, correlation=instance.correlation
                ),
            )
        instance.letters += child_ended(instance.parent, instance.id, end, now)
        return ()

    def _recorded(self, records: list[Record], outcome: Committed | BaseException) -> None:
        error = outcome if isinstance(outcome, BaseException) else None
        if self._open is records:
            self._open = None  # it was never closed
        if len(records) > 1 and isinstance(error, Rejection) and not isinstance(error, Fenced):
            # One of them cannot be written: as units of their own, only that one fails.
            self._alone = ALONE
            for one in records:
                self._submit([one])
            return
        self._in_flight -= len(records)
        if not self._in_flight:
            self._quiet.set()
        for one in records:
            one.instance.in_flight = False
        for one in records:
            if error is not None:
                self._else(one.instance, error)
                continue
            for marked in one.marked:
                if not marked.done():
                    marked.set_result(None)
            self._then(one)
