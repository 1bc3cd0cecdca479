"""Starts the children of workflows, each once, however often its parent is replayed: its id is the same then, and its
row names the parent.

A parent that is retried brings back those that it waits for and that had ended in vain before: one that failed goes on
from where it has failed; one that was compensated, terminated or cancelled, mostly because its parent had failed, is
run anew. So are the children that an earlier run of its own has left in vain, while what they completed stays done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from skald.clock import Clock
from skald.errors import Busy, Stopped, StoreUnavailable, TransactionConflict, WorkflowExists, WorkflowUnknown
from skald.message import new_id
from skald.messaging.outcome import describe
from skald.store import Store
from skald.telemetry import Recovering, emit
from skald.unit import AddressKind, Letter, LetterKind, Unit, WorkflowStart, WorkflowState, WorkflowWrites
from skald.workflows import journal
from skald.workflows.client import AnyWorkflow, Local
from skald.workflows.definition import Child
from skald.workflows.failure import BY_CALLER, End, encode_failure, is_of_before
from skald.workflows.instance import Instance
from skald.workflows.letters import delayed
from skald.workflows.steps import StepRunner
from skald.workflows.turner import PAUSE, Turner

_IN_VAIN = (WorkflowState.FAILED, WorkflowState.CANCELLED, WorkflowState.TERMINATED)


class Starter(Local, Protocol):
    """What runs the workflows of a service."""

    store: Store
    steps: StepRunner
    turner: Turner

    def look(self) -> None: ...


class Children:
    """Of the workflows of one service in this process. ``max_live`` as in its settings."""

    def __init__(
        self, service: str, workflows: Mapping[str, AnyWorkflow], starter: Starter, clock: Clock, max_live: int
    ) -> None:
        self._service, self._workflows, self._starter = service, workflows, starter
        self._clock, self._max_live = clock, max_live
        self._loop = asyncio.get_running_loop()

    def begin(self, parent: Instance, child: Child) -> None:
        """As one of the parent's tasks: until the child's start is durable, the parent must not leave memory."""
        context, before = self._starter.turner.context, parent.tasks.get(child.identity)
        assert before is None or isinstance(before, asyncio.Task)
        task = self._loop.create_task(self._start(parent, child, before), context=context.copy())
        parent.tasks[child.identity] = task
        child.begun = True
        parent.detaching += child.detached
        task.add_done_callback(partial(self._started, parent, child, before), context=context)

    def _started(
        self, parent: Instance, child: Child, before: asyncio.Task[Any] | None, task: asyncio.Task[End | None]
    ) -> None:
        if parent.tasks.get(child.identity) is task:
            del parent.tasks[child.identity]
        if task.cancelled():
            if before is not None:
                before.cancel()
            return  # by a process that stops: another one starts it, and its caller does not end before
        parent.detaching -= child.detached
        end = End(WorkflowState.FAILED, encode_failure(error)) if (error := task.exception()) else task.result()
        if end is not None:
            self._starter.turner.child_ended(parent, child, end)
        self._starter.turner.write(parent)

    async def _start(self, parent: Instance, child: Child, before: asyncio.Task[Any] | None) -> End | None:
        """Its end, if it has ended already; a failure, if it cannot be started."""
        if child.workflow.name not in self._workflows:
            raise WorkflowUnknown(f"{child.workflow.name!r} is no workflow of service {self._service!r}")
        if before is not None:
            # It may have looked too early; two at once would be in each other's way.
            await asyncio.wait([before])
        while True:
            try:
                return await self._start_once(parent, child)
            except (StoreUnavailable, Stopped, Busy, TransactionConflict) as error:
                # No fault of the child's: the store is away, or this process is about to end.
                emit(Recovering(self._service, f"starting workflow {child.id}", describe(error), PAUSE))
                await self._starter.steps.sleep(PAUSE)

    async def _start_once(self, parent: Instance, child: Child) -> End | None:
        store, retried_at, given_up = self._starter.store, parent.machine.retried_at, parent.machine.given_up
        while True:
            known = await self._known(parent, child)
            if known is None:
                return None
            # With the same arguments, by the last run or by one that it continues.
            if known.workflow != child.workflow.name or not await journal.was_started_with(
                store, child.id, child.workflow, child.body
            ):
                raise WorkflowExists(child.id)
            if known.parent != parent.run and (child.detached or not await self._is_in_vain(known.parent, parent)):
                raise WorkflowExists(child.id)
            if known.end is None and known.parent == parent.run:
                if retried_at and child.id not in given_up:
                    await journal.keep(store, child.id, retried_at)
                return None
            if known.end is None:
                if known.state == WorkflowState.PAUSED:
                    raise WorkflowExists(child.id)
                if known.state == WorkflowState.SCHEDULED:
                    await self._forgo(known)
                await self._starter.steps.sleep(PAUSE)  # it is being cancelled with the run that has called it
                continue
            assert known.ended_at is not None
            in_vain = is_of_before(known.end, known.ended_at, retried_at, given_up=child.id in given_up)
            over = known.parent == parent.run and not in_vain
            if over or child.is_let_go or known.end.state == WorkflowState.COMPLETED:
                return known.end
            await self._bring_back(parent, child, known)

    async def _known(self, parent: Instance, child: Child) -> journal.Known | None:
        """What there is of it; nothing, if it was started just now."""
        store, live = self._starter.store, self._starter.live(child.id)
        if live is not None and live.machine.end is None:
            with suppress(WorkflowExists):
                await asyncio.shield(live.started)
        else:
            # Of a parent that was replayed it has mostly been started.
            known = None if parent.first else await journal.by_id(store, child.id)
            if known is not None:
                return known
            with suppress(WorkflowExists):
                await self._insert(parent, child)
                return None
        known = await journal.by_id(store, child.id)
        if known is None:
            raise WorkflowExists(child.id)
        return known

    async def _is_in_vain(self, run: str | None, parent: Instance) -> bool:
        """Whether that was an earlier run of the same workflow, which did not come to a good end."""
        if run is None:
            return False
        before = await journal.by_run(self._starter.store, run)
        return before is not None and before.id == parent.id and before.state in _IN_VAIN

    async def _forgo(self, known: journal.Known) -> None:
        """Ends one that has not begun, and would hear of its cancellation only then."""
        starter, now = self._starter, self._clock.now()
        letter = Letter(known.run, LetterKind.TERMINATE, AddressKind.RUN, known.run, "", BY_CALLER.encode(), now)
        async with starter.store.transaction() as tx:
            await tx.apply(Unit(fence=starter.owner, workflows=WorkflowWrites(letters=(letter,))))

    async def _bring_back(self, parent: Instance, child: Child, known: journal.Known) -> None:
        """One that has ended goes on from where it has failed, or is run anew; nothing, if somebody was quicker."""
        starter = self._starter
        goes_on = known.state == WorkflowState.FAILED and known.style is None and known.parent == parent.run
        async with starter.store.transaction() as tx:
            await tx.apply(Unit(fence=starter.owner))
            if goes_on:
                await journal.reopen(tx, known)
            elif await journal.is_last(tx, starter.store, known):
                start = self._row(parent, child, again=True)
                if known.parent != parent.run:
                    start = await delayed(start, child.delay, tx.now)
                await tx.apply(Unit(fence=starter.owner, workflows=WorkflowWrites(starts=(start,))))
        starter.look()

    async def _insert(self, parent: Instance, child: Child) -> None:
        starter = self._starter
        if not child.delay and len(starter.turner.live) < self._max_live:
            body = child.signature.whole(child.body)
            begun = starter.begin(
                child.workflow, child.id, new_id(), body, child.key, parent.run, correlation=parent.machine.correlation
            )
            await asyncio.shield(begun.started)
            return
        async with starter.store.transaction() as tx:
            start = await delayed(self._row(parent, child), child.delay, tx.now)
            await tx.apply(Unit(fence=starter.owner, workflows=WorkflowWrites(starts=(start,))))

    def _row(self, parent: Instance, child: Child, *, again: bool = False) -> WorkflowStart:
        """Whoever runs the service takes it."""
        body = child.signature.whole(child.body)
        return WorkflowStart(
            new_id(), child.id, child.workflow.name, None, 0, parent.run, child.key, body, self._clock.now(), again,
            style=child.workflow.style, correlation=parent.machine.correlation,
        )  # fmt: skip
