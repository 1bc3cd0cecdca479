"""Starts the children of workflows, each once, however often its parent is replayed: its id is the same then, and its
row names the parent.

A parent that is retried calls its children again. One that failed, and whose failure is what was forgotten, goes on
from where it has failed. One that was cancelled when its parent failed had done nothing wrong, and is run anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from skald.clock import Clock
from skald.errors import Stopped, StoreUnavailable, WorkflowBusy, WorkflowExists, WorkflowUnknown
from skald.message import new_id
from skald.messaging.outcome import describe
from skald.store import Store
from skald.telemetry import Recovering, emit
from skald.unit import Unit, WorkflowStart, WorkflowState, WorkflowWrites
from skald.workflows import journal
from skald.workflows.client import AnyWorkflow
from skald.workflows.definition import Child
from skald.workflows.failure import End, encode_failure, is_by_caller
from skald.workflows.instance import Instance
from skald.workflows.letters import delayed
from skald.workflows.steps import StepRunner
from skald.workflows.turner import PAUSE, Turner


class Starter(Protocol):
    """What runs the workflows of a service."""

    store: Store
    owner: str
    steps: StepRunner
    turner: Turner

    def live(self, id: str) -> Instance | None: ...

    def look(self) -> None: ...

    def begin(
        self,
        workflow: AnyWorkflow,
        id: str,
        run: str,
        body: bytes,
        key: str | None,
        parent: str | None = None,
        *,
        copy: Any = None,
        correlation: str | None = None,
    ) -> Instance: ...


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
        context = self._starter.turner.context
        task = self._loop.create_task(self._start(parent, child), context=context.copy())
        parent.tasks[child.identity] = task
        parent.detaching += child.detached
        task.add_done_callback(partial(self._started, parent, child), context=context)

    def _started(self, parent: Instance, child: Child, task: asyncio.Task[End | None]) -> None:
        parent.tasks.pop(child.identity, None)
        if task.cancelled():
            return  # by a process that stops: another one starts it, and its caller does not end before
        parent.detaching -= child.detached
        end = End(WorkflowState.FAILED, encode_failure(error)) if (error := task.exception()) else task.result()
        if end is not None:
            self._starter.turner.child_ended(parent, child, end)
        self._starter.turner.write(parent)

    async def _start(self, parent: Instance, child: Child) -> End | None:
        """Its end, if it has ended already; a failure, if it cannot be started."""
        if child.workflow.name not in self._workflows:
            raise WorkflowUnknown(f"{child.workflow.name!r} is no workflow of service {self._service!r}")
        while True:
            try:
                return await self._start_once(parent, child)
            except (StoreUnavailable, Stopped) as error:
                # No fault of the child's: the store is away, or this process is about to end.
                emit(Recovering(self._service, f"starting workflow {child.id}", describe(error), PAUSE))
                await self._starter.steps.sleep(PAUSE)

    async def _start_once(self, parent: Instance, child: Child) -> End | None:
        ours, store = (parent.run, child.workflow.name), self._starter.store
        known: journal.Known | None = None
        live = self._starter.live(child.id)
        if live is not None and live.machine.end is None:
            await asyncio.shield(live.started)
            found = live.parent, live.workflow.name
        else:
            # Of a parent that was replayed it has mostly been started.
            known = None if parent.first else await journal.by_id(store, child.id)
            if known is None:
                try:
                    await self._insert(parent, child)
                    return None
                except WorkflowExists:
                    known = await journal.by_id(store, child.id)
                    if known is None:
                        raise
            found = known.parent, known.workflow
        # With the same arguments, by the last run or by one that it continues.
        if found != ours or not await journal.was_started_with(store, child.id, child.workflow, child.body):
            raise WorkflowExists(child.id)
        if known is None or known.end is None or await self._goes_on(parent, child, known):
            return None
        return known.end

    async def _goes_on(self, parent: Instance, child: Child, known: journal.Known) -> bool:
        """Whether one that has ended does so, because its parent was retried since."""
        retried_at = parent.machine.retried.get(child.identity)
        assert known.end is not None
        assert known.ended_at is not None
        if retried_at is not None and known.ended_at <= retried_at and known.state != WorkflowState.COMPLETED:
            again = known.state != WorkflowState.FAILED or known.style is not None
        elif parent.machine.retried and is_by_caller(known.end):
            again = True
        else:
            return False
        try:
            if again:
                await self._insert(parent, child, again=True)
            else:
                await journal.retry(self._starter.store, child.id)
                self._starter.look()
        except (WorkflowBusy, WorkflowExists):
            # Somebody else was quicker.
            return (await journal.by_id(self._starter.store, child.id) or known).end is None
        return True

    async def _insert(self, parent: Instance, child: Child, *, again: bool = False) -> None:
        starter = self._starter
        run, body, correlation = new_id(), child.signature.whole(child.body), parent.machine.correlation
        if not again and not child.delay and len(starter.turner.live) < self._max_live:
            begun = starter.begin(child.workflow, child.id, run, body, child.key, parent.run, correlation=correlation)
            await asyncio.shield(begun.started)
            return
        start = WorkflowStart(
            run, child.id, child.workflow.name, None, 0, parent.run, child.key, body, self._clock.now(), again,
            style=child.workflow.style, correlation=correlation,
        )  # fmt: skip
        async with starter.store.transaction() as tx:
            start = await delayed(start, child.delay, tx.now)
            await tx.apply(Unit(fence=starter.owner, workflows=WorkflowWrites(starts=(start,))))
