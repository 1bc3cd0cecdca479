"""Writes down what workflows were told and have asked for: one record of a workflow is on its way at a time.

Records of many workflows share one unit, which is closed when its group of commits is put together: a unit and a future
for each cost a third of a step. Starts are units of their own, because they can be refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Protocol

import msgspec

from skald.clock import Clock
from skald.errors import Diverged, Fenced, NeverIdle, Rejection, Stopped, WorkflowUnknown
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
from skald.workflows.failure import End, Failure, encode
from skald.workflows.instance import Instance
from skald.workflows.replay import AnyCall

MOST = 500
"""Records in one unit."""


class Submit(Protocol):
    def submit(self, unit: Unit) -> asyncio.Future[Committed]: ...

    def submit_open(self, close: Callable[[], Unit]) -> asyncio.Future[Committed]: ...


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
    called: list[AnyCall]
    marked: list[asyncio.Future[None]]
    ended_at: int
    starts: tuple[WorkflowStart, ...]
    journal: list[JournalEntry]
    letters: list[Letter]
    taken: list[str]
    replies: list[Reply]


def writes_of(records: Sequence[Record]) -> WorkflowWrites:
    """As one unit."""
    return WorkflowWrites(
        ends=tuple([_end(one.instance.run, one.end, one.ended_at) for one in records if one.end is not None]),
        starts=tuple([start for one in records for start in one.starts]),
        journal=tuple([entry for one in records for entry in one.journal]),
        rests=tuple([one.rest for one in records if one.rest is not None]),
        letters=tuple([letter for one in records for letter in one.letters]),
        taken=tuple([id for one in records for id in one.taken]),
        replies=tuple([reply for one in records for reply in one.replies]),
    )


def _end(run: str, end: End, now: int) -> WorkflowEnd:
    return WorkflowEnd(run, end.state, b"" if end.state == WorkflowState.CONTINUED else end.body, now)


def child_ended(parent: str | None, id: str, end: End, now: int) -> tuple[Letter, ...]:
    """What a parent is told, if there is one."""
    if parent is None:
        return ()
    body = encode(ChildEnd(end.state, end.body))
    return (Letter(new_id(), LetterKind.CHILD, AddressKind.RUN, parent, id, body, now),)


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
        if end is not None:
            instance.rest, now = None, self._clock.now()
            starts += self._because_of(instance, end, now)
        one = Record(
            instance, end, instance.rest, machine.called, instance.marked, now, starts, instance.pending,
            instance.letters, instance.taken, instance.replies,
        )  # fmt: skip
        machine.called, instance.marked, instance.pending = [], [], []
        instance.letters, instance.taken, instance.replies = [], [], []
        instance.in_flight = True
        self._in_flight += 1
        if starts:
            self._submit([one])
        elif self._open is not None and len(self._open) < MOST:
            self._open.append(one)
        else:
            self._open = records = [one]
            self._answered(self._committer.submit_open(partial(self._close, records)), records)

    def _close(self, records: list[Record]) -> Unit:
        if self._open is records:
            self._open = None
        return Unit(fence=self._owner, workflows=writes_of(records))

    def _submit(self, records: list[Record]) -> None:
        self._answered(self._committer.submit(Unit(fence=self._owner, workflows=writes_of(records))), records)

    def _answered(self, future: asyncio.Future[Committed], records: list[Record]) -> None:
        future.add_done_callback(partial(self._recorded, records), context=self._context)

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
            return (WorkflowStart(run, instance.id, name, None, 0, parent, key, end.body, now, True),)
        instance.letters += child_ended(instance.parent, instance.id, end, now)
        return ()

    def _recorded(self, records: list[Record], future: asyncio.Future[Committed]) -> None:
        error = Stopped("the commit was cancelled") if future.cancelled() else future.exception()
        if self._open is records:
            self._open = None  # it was never closed
        if len(records) > 1 and isinstance(error, Rejection) and not isinstance(error, Fenced):
            # One of them cannot be written: as units of their own, only that one fails.
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
