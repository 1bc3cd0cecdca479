"""The workflows of one service in one process: starts them, and resumes those that nobody owns.

The owner of a workflow is the process whose name stands in its row; every unit names that process's fence, so one that
was replaced cannot write. Nothing is read on a first execution.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from skald.clock import Clock
from skald.errors import ConfigurationError, Fenced, Overloaded, SkaldError, Stopped, WorkflowExists, WorkflowMismatch
from skald.message import new_id
from skald.messaging.outcome import describe
from skald.store import Store
from skald.telemetry import Recovering, WorkflowStopped, emit
from skald.workflows import journal
from skald.workflows.definition import Workflow
from skald.workflows.handle import WorkflowHandle
from skald.workflows.instance import Instance
from skald.workflows.turner import PAUSE, Submit, Turner

AnyWorkflow = Workflow[*tuple[Any, ...], Any]

MAX_ID = 200
"""Characters of an id."""
MAX_LIVE = 100_000
"""Workflows in memory, before starting another one is refused."""
BATCH = 200
"""Workflows resumed at a time."""


class Executor:
    """Made on the event loop. ``owner`` names this process, ``lose`` is called when another has taken over from it."""

    def __init__(
        self,
        service: str,
        workflows: Iterable[AnyWorkflow],
        *,
        store: Store,
        committer: Submit,
        clock: Clock,
        owner: str,
        lose: Callable[[], None],
    ) -> None:
        self._service, self._store, self._clock, self._owner, self._lose = service, store, clock, owner, lose
        self._workflows = {workflow.name: workflow for workflow in workflows}
        self._turner = Turner(
            service, committer=committer, clock=clock, owner=owner, lose=lose, forgotten=self._bring_back
        )
        self._loop = asyncio.get_running_loop()
        self._lost: set[str] = set()
        """Runs that are owned and not in memory, because a commit has failed."""
        self._look = asyncio.Event()
        self._started = self._stopping = False

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """From now on workflows can be started here; ``run`` resumes those that nobody owns."""
        if not self._store.features.workflows:
            raise ConfigurationError(f"{self._service}: workflows need SQLite for now, and its store is another one")
        bound = []
        try:
            for workflow in self._workflows.values():
                workflow.bind(self)
                bound.append(workflow)
        except SkaldError:
            for workflow in bound:
                workflow.bind(None)
            raise
        self._started = True
        self._look.set()

    def look(self) -> None:
        """Asks for a look at workflows without an owner."""
        self._look.set()

    async def run(self) -> None:
        """Until ``stop``: resumes what nobody owns, whenever somebody asks."""
        while not self._stopping:
            await self._look.wait()
            self._look.clear()
            try:
                await self._resume()
            except Fenced:
                self._lose()
                return
            except (SkaldError, OSError) as error:
                emit(Recovering(self._service, "resuming workflows", describe(error), PAUSE))
                self._loop.call_later(PAUSE, self._look.set)

    async def stop(self) -> None:
        """Ends the running steps and waits for what is being committed. The workflows go on in another process."""
        if self._stopping or not self._started:
            return
        self._stopping = True
        self._look.set()
        for workflow in self._workflows.values():
            workflow.bind(None)
        await self._turner.stop()
        await self._outside(self._turner.leave_all)

    async def _outside(self, callback: Callable[[], None]) -> None:
        """Calls it in a plain callback of the loop, because it enters machines, and waits for it."""
        done: asyncio.Future[None] = self._loop.create_future()

        def call() -> None:
            try:
                callback()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._loop.call_soon(call, context=self._turner.context)
        await done

    # --- starting -----------------------------------------------------------------------------------------------------

    async def start_workflow(self, workflow: AnyWorkflow, args: tuple[Any, ...], id: str | None) -> WorkflowHandle:
        """Durable when it returns. An id that exists is the same workflow, or ``WorkflowMismatch``."""
        body = workflow.signature.encode(args, {})
        run = new_id()
        id = run if id is None else id
        if not 1 <= len(id) <= MAX_ID or not id.isprintable():
            raise WorkflowMismatch(f"{id[:MAX_ID]!r} is no id: use 1 to {MAX_ID} printable characters")
        instance = self._turner.live.get(id) or self._new(workflow, id, run, body)
        try:
            # Others may wait for it too, and it goes on if this caller gives up.
            await asyncio.shield(instance.started)
        except WorkflowExists:
            return await self._existing(workflow, body, id)
        _require_same(id, workflow, body, instance.workflow.name, instance.body)
        return WorkflowHandle(self._store, workflow, id, instance.ended)

    def _new(self, workflow: AnyWorkflow, id: str, run: str, body: bytes) -> Instance:
        live = self._turner.live
        if self._stopping:
            raise Stopped(f"service {self._service!r} is stopping; nothing was started")
        if len(live) >= MAX_LIVE:
            raise Overloaded(f"the memory of {self._service} for workflows")
        self._store.ensure_free()
        instance = live[id] = Instance(workflow, id, run, body, self._clock.now(), resumed=False)
        self._loop.call_soon(self._turner.begin, instance, context=self._turner.context)
        return instance

    async def _existing(self, workflow: AnyWorkflow, body: bytes, id: str) -> WorkflowHandle:
        known = await journal.by_id(self._store, id)
        if known is None:
            raise WorkflowExists(id)  # and was deleted meanwhile
        _require_same(id, workflow, body, known.workflow, known.input)
        if known.owner == self._owner and known.end is None and id not in self._turner.live:
            # An earlier call has committed it without being told so.
            self._bring_back(known.run)
        return self.handle(workflow, id)

    def handle(self, workflow: AnyWorkflow, id: str) -> WorkflowHandle:
        instance = self._turner.live.get(id)
        return WorkflowHandle(self._store, workflow, id, instance.ended if instance is not None else None)

    # --- resuming -----------------------------------------------------------------------------------------------------

    def _bring_back(self, run: str) -> None:
        """One whose memory was given up. Where no row is (a start that failed) nothing is resumed."""
        self._lost.add(run)
        self._loop.call_later(PAUSE, self._look.set)

    async def _resume(self) -> None:
        runs, self._lost = self._lost, set()
        try:
            await self._resume_all(await journal.mine(self._store, self._owner, runs))
        except BaseException:
            self._lost |= runs
            raise
        while not self._stopping:
            found = await journal.claim(self._store, self._owner, BATCH)
            await self._resume_all(found)
            if len(found) < BATCH:
                return

    async def _resume_all(self, found: list[journal.Open]) -> None:
        for one in found:
            workflow = self._workflows.get(one.workflow)
            if workflow is None:
                error = f"there is no workflow {one.workflow!r} in this program"
                emit(WorkflowStopped(self._service, one.workflow, one.id, error))
            elif not self._stopping and one.id not in self._turner.live:
                instance = Instance(workflow, one.id, one.run, one.input, one.started_at, resumed=True)
                await self._outside(partial(self._turner.resume, instance, one.history))


def _require_same(id: str, workflow: AnyWorkflow, body: bytes, known: str, known_body: bytes) -> None:
    if workflow.name != known:
        raise WorkflowMismatch(f"the id {id!r} belongs to a workflow {known!r}, which is not {workflow.name!r}")
    if body != known_body:
        raise WorkflowMismatch(
            f"workflow {id!r} was started with other arguments: {known_body[:200]!r} and now {body[:200]!r}"
        )
