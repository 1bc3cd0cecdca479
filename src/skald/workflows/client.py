"""What a connected service has for its workflows: starts them, sends them letters, asks them.

Where the service runs in this process, the executor takes what is started here at once; otherwise the row waits for a
process that does, and the bell tells it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from skald.clock import Clock
from skald.errors import SkaldError, WorkflowExists, WorkflowMismatch, WorkflowUnknown
from skald.message import new_id
from skald.messaging.context import correlation
from skald.store import Store
from skald.unit import AddressKind, Committed, Letter, LetterKind, Unit, WorkflowStart, WorkflowWrites
from skald.workflows import journal
from skald.workflows.definition import Workflow
from skald.workflows.handle import WorkflowHandle
from skald.workflows.instance import Instance, unharmed
from skald.workflows.letters import check_name, delayed, require_same, started
from skald.workflows.replay import Machine
from skald.workflows.starting import Options

T = TypeVar("T")
AnyWorkflow = Workflow[..., Any]
MAX_REASON = 2_000
"""Bytes."""


class Submit(Protocol):
    def submit(self, unit: Unit) -> Awaitable[Committed]: ...


class Local(Protocol):
    """The executor of this process."""

    def live(self, id: str) -> Instance | None: ...

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

    def bring_back(self, run: str) -> None: ...

    @property
    def owner(self) -> str: ...


class Client:
    """Of one service."""

    def __init__(
        self, service: str, workflows: Iterable[AnyWorkflow], store: Store, committer: Submit, clock: Clock
    ) -> None:
        self.store = store
        self.workflows = {workflow.name: workflow for workflow in workflows}
        self._service, self._committer, self._clock = service, committer, clock
        self.local: Local | None = None

    def bind(self) -> None:
        bound = []
        try:
            for workflow in self.workflows.values():
                workflow.bind(self)
                bound.append(workflow)
        except SkaldError:
            for workflow in bound:
                workflow.bind(None)
            raise

    def unbind(self) -> None:
        for workflow in self.workflows.values():
            workflow.bind(None)

    # --- starting -----------------------------------------------------------------------------------------------------

    async def start_workflow(
        self, workflow: AnyWorkflow, args: tuple[Any, ...], options: Options, *, to_end: bool = False
    ) -> WorkflowHandle:
        """Durable when it returns; and has ended, with ``to_end``, if it runs here."""
        (body, copy), run = workflow.signature.input(args), new_id()
        id = run if options.id is None else options.id
        check_name("id", id)
        if options.key is not None:
            check_name("key", options.key)
        try:
            if self.local is not None and not options.delay and options.existing != "restart":
                instance = self.local.live(id)
                if instance is not None and options.existing == "reject":
                    raise WorkflowExists(id)
                instance = instance or self.local.begin(
                    workflow, id, run, body, options.key, copy=copy, correlation=correlation()
                )
                try:
                    require_same(id, workflow, body, instance.workflow.name, instance.body)
                except WorkflowMismatch:
                    if not instance.started.done():
                        raise
                    return await self._existing(workflow, body, id)  # it may continue one that was started so
                if to_end:
                    await unharmed(instance.ended)
                if not instance.started.done():
                    await unharmed(instance.started)
                instance.started.result()
                return WorkflowHandle(self, workflow, id, instance)
            start = started(workflow, body, run, id, options, self._clock.now(), correlation())
            await self._insert(start, options.delay)
        except WorkflowExists:
            if options.existing == "reject":
                raise
            return await self._existing(workflow, body, id)
        return self.handle(workflow, id)

    async def _insert(self, start: WorkflowStart, delay: float) -> None:
        if not delay:
            await self._committer.submit(Unit(workflows=WorkflowWrites(starts=(start,))))
            return
        async with self.store.transaction() as tx:
            await tx.apply(Unit(workflows=WorkflowWrites(starts=(await delayed(start, delay, tx.now),))))

    async def _existing(self, workflow: AnyWorkflow, body: bytes, id: str) -> WorkflowHandle:
        known = await journal.by_id(self.store, id)
        if known is None:
            raise WorkflowExists(id)  # and was deleted meanwhile
        if not await journal.was_started_with(self.store, id, workflow, body):  # or a run before
            require_same(id, workflow, body, known.workflow, known.input)
        local = self.local
        if local is not None and known.owner == local.owner and known.end is None and local.live(id) is None:
            # An earlier call has committed it without being told so.
            local.bring_back(known.run)
        return self.handle(workflow, id)

    # --- talking ------------------------------------------------------------------------------------------------------

    def handle(self, workflow: AnyWorkflow, id: str) -> WorkflowHandle:
        return WorkflowHandle(self, workflow, id, self.live(id))

    def live(self, id: str) -> Instance | None:
        return None if self.local is None else self.local.live(id)

    async def send(
        self, kind: LetterKind, by: AddressKind, address: str, name: str, payload: bytes, letter: str | None = None
    ) -> None:
        check_name("key" if by == AddressKind.KEY else "id", address)
        if kind in (LetterKind.CANCEL, LetterKind.TERMINATE):
            payload = payload[:MAX_REASON]
        found = Letter(letter or new_id(), kind, by, address, name, payload, self._clock.now())
        await self._committer.submit(Unit(workflows=WorkflowWrites(letters=(found,))))

    async def ask(self, workflow: AnyWorkflow, id: str, query: str) -> bytes:
        """Of the instance here, or of one that is replayed for it."""
        instance = self.live(id)
        if instance is not None and instance.workflow is workflow:
            return instance.machine.inbox.ask(query, self._clock.now())
        known = await journal.by_id(self.store, id)
        if known is None:
            raise WorkflowUnknown(f"no workflow with the id {id!r} was started")
        if known.workflow != workflow.name:
            raise WorkflowMismatch(f"the id {id!r} belongs to a workflow {known.workflow!r}, not {workflow.name!r}")
        history = await journal.history(self.store, known.run)

        def answer() -> bytes:
            machine = Machine(workflow, known.run, known.input, known.started_at, id=id)
            try:
                machine.replay(history)
                return machine.inbox.ask(query, self._clock.now())
            finally:
                machine.leave()

        return await outside(answer)

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        return self.store.workflows.listen(heard)


async def outside(function: Callable[[], T]) -> T:
    """Calls it in a plain callback of the loop, because it enters machines, and waits for what it returns."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def call() -> None:
        try:
            result = function()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    loop.call_soon(call)
    return await done
