"""One service in one process: its committer, lease, consumers and queue workers, started and stopped in order.

Start   open the store; committer; providers; consumers; lease; fence; lanes. Stop, in reverse: take no new messages,
end what runs, hand the work over, leave the group, close. Losing the fence stops everything at once: another process
owns the work, and every further write of this one would be refused anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import msgspec

from skald import failpoints
from skald.clock import Clock
from skald.errors import SkaldError, StoreUnavailable
from skald.messaging import cursor
from skald.messaging.connection import Connection
from skald.messaging.consumer import Consumer, ConsumerSettings
from skald.messaging.definition import Handler, injectable
from skald.messaging.invoke import Invoker
from skald.messaging.provider import provide
from skald.messaging.publisher import Publisher
from skald.messaging.router import Subscription
from skald.messaging.service import Service
from skald.messaging.starting import starting_point
from skald.messaging.transaction import Transaction, user_transaction
from skald.messaging.worker import Worker
from skald.runtime.balance import Balance, check_lanes
from skald.runtime.committer import Committer
from skald.runtime.lease import Lease
from skald.runtime.memory import MemoryWatch
from skald.runtime.process import this_process
from skald.runtime.pruner import Pruner, PrunerSettings, Slowest
from skald.store import Log, Store
from skald.telemetry import Recovering, Refused, emit, log
from skald.workflows.client import Client
from skald.workflows.executor import Executor, ExecutorSettings
from skald.workflows.steps import StepRunner

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
"""Seconds between tries to open the log of an origin that is not there yet."""


class RuntimeSettings(msgspec.Struct, frozen=True):
    """``lease``: seconds after which a silent process loses its work. ``max_pending``: units that may wait.
    ``max_body``: bytes of a message. ``memory_growth``: MB of growth at which the handler behind it is named."""

    lease: float = 5.0
    max_pending: int = 20_000
    max_body: int = 1 << 20
    memory_growth: float = 256.0
    consumer: ConsumerSettings = ConsumerSettings()
    pruner: PrunerSettings = PrunerSettings()
    workflows: ExecutorSettings = ExecutorSettings()


class ConnectedService:
    """A service that can publish: its store and committer, without any consumer."""

    def __init__(
        self, service: Service, store: Store, topics: Mapping[type, str], clock: Clock, settings: RuntimeSettings
    ) -> None:
        self.service, self.store, self._clock, self.settings = service, store, clock, settings
        self.publisher = Publisher(service.name, topics, clock, settings.max_body)
        self.committer = Committer(store, max_pending=settings.max_pending)
        self.workflows = Client(service.name, service.workflows, store, self.committer, clock)
        self._bound = self._workflows_bound = False

    async def start(self) -> None:
        await self.store.open()
        self.committer.start()
        self.service.bind(Connection(self.store, self.publisher, self.committer, self.workflows))
        self._bound = True
        self.service.bind_workflows()
        self.workflows.bind()
        self._workflows_bound = True

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        return user_transaction(self.store, self.publisher)

    async def stop(self) -> None:
        # Otherwise it is somebody else's: this one was refused.
        if self._workflows_bound:
            self.workflows.unbind()
        if self._bound:
            self.service.bind(None)
        await self.committer.stop()
        await self.store.close()


class RunningService:
    """Consumes what a connected service subscribes to. ``logs`` are the origins, by name; ``readers`` says how far the
    readers of this service's own log are (without it, nothing is ever deleted)."""

    def __init__(
        self,
        connected: ConnectedService,
        subscriptions: tuple[Subscription, ...],
        logs: Mapping[str, Log],
        clock: Clock,
        readers: Slowest | None = None,
    ) -> None:
        self._connected, self._subscriptions, self._logs, self._clock = connected, subscriptions, logs, clock
        self._service, self._store = connected.service, connected.store
        self._settings = connected.settings
        self.member = this_process(self._service.name)
        self._memory = MemoryWatch(self._service.name, self._settings.memory_growth)
        self.consumers: list[Consumer] = []
        self.workers: list[Worker] = []
        self.lost = asyncio.Event()
        """Set when another process has taken over from this one, or when this one cannot go on."""
        self._balance = Balance(
            store=self._store, member=self.member, subscriptions=subscriptions, consumers=self.consumers,
            forget=self._forget, freed=self._work_is_free, lose=self._lose, pause=self._settings.lease / 3,
        )  # fmt: skip
        self._lease = Lease(
            self.member, self._store.membership, lease=self._settings.lease, lost=self._lose, seen=self._balance.saw
        )
        self._pruner = readers and Pruner(
            store=self._store, service=self._service, readers=readers, clock=clock, settings=self._settings.pruner,
            leads=lambda: self._balance.leads,
        )  # fmt: skip
        self.invoker: Invoker | None = None
        self.executor: Executor | None = None
        if self._service.workflows:
            self.executor = Executor(
                self._service.name, connected.workflows, store=self._store, committer=connected.committer, clock=clock,
                owner=self.member.id, lose=self._lose, settings=self._settings.workflows,
                steps=StepRunner(
                    self._service.name, connected.transaction, self.member.id, connected.committer, clock
                ),
            )  # fmt: skip
        self._tasks: list[asyncio.Task[None]] = []
        self._resources = AsyncExitStack()
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        handlers = self._service.handlers
        wanted = {cls for h in handlers for cls in h.injected.values() if not injectable(cls)}
        dependencies = await provide(self._service.providers, wanted, self._resources)
        try:
            self.invoker = invoker = Invoker(
                self._service.name,
                handlers,
                dependencies,
                self._connected.publisher,
                self._clock,
                self._memory,
                self._store,
            )
            self._resources.callback(invoker.close)
            rows = await cursor.lanes(self._store, self._service.name)
            check_lanes(self._service.name, rows, self._subscriptions)
            missing = [s for s in self._subscriptions if not await self._attach(s, invoker)]
            # In this order: whoever may write is a member, or else has been taken over.
            await self._lease.start()
            failpoints.hit("start.joined")
            await cursor.fence(self._store, self.member.id)
            failpoints.hit("start.fenced")
        except BaseException:
            await self._resources.aclose()
            raise
        name = self._service.name
        for subscription in missing:
            self._spawn(self._wait_for(subscription, invoker), f"skald:{name}:{subscription.origin}:opening")
        for handler in handlers:
            if handler.queue is not None:
                self._start_worker(handler, invoker)
        if self.executor:
            await self.executor.start()
            self._spawn(self.executor.run(), f"skald:{name}:workflows")
        self._spawn(self._balance.run(), f"skald:{name}:lanes")
        if self._pruner is not None:
            self._spawn(self._pruner.run(), f"skald:{name}:pruner")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(self._supervise(work), name=name))

    async def _supervise(self, work: Coroutine[Any, Any, None]) -> None:
        """Whoever runs this process is told by ``lost`` to start it again; nothing goes on half alive."""
        try:
            await work
        except SkaldError as error:
            # Fenced, mostly.
            emit(Refused(self._service.name, "a role of the runtime", str(error)))
            self._lose()
        except BaseException as error:
            self._lose()
            if not isinstance(error, Exception):
                raise
            log.exception("%s: a role of the runtime ended", self._service.name)

    def _lose(self) -> None:
        self.lost.set()
        self._balance.stop()

    def _forget(self, id: str) -> None:
        self._lease.forget(id)

    def _work_is_free(self) -> None:
        if self.executor:
            self.executor.look()

    def _start_worker(self, handler: Handler, invoker: Invoker) -> None:
        worker = Worker(
            group=self._service.name,
            handler=handler,
            store=self._store,
            submit=self._connected.committer,
            invoker=invoker,
            publisher=self._connected.publisher,
            clock=self._clock,
            owner=self.member.id,
            poll=self._settings.consumer.poll,
        )
        self.workers.append(worker)
        self._spawn(worker.run(), f"skald:{self._service.name}:queue:{handler.name}")

    # --- origins ------------------------------------------------------------------------------------------------------

    async def _attach(self, subscription: Subscription, invoker: Invoker) -> bool:
        """Opens an origin's log, makes its cursors if it was never read, and starts to consume. False if it is away."""
        log = self._logs[subscription.origin]
        try:
            rows = await cursor.lanes(self._store, self._service.name)
            await log.open()
            if not any(row.origin == subscription.origin for row in rows):
                place = await starting_point(log, self._service.start, subscription.handlers)
                await cursor.create(self._store, self._service.name, subscription.origin, subscription.lanes, place)
        except StoreUnavailable as error:
            emit(Recovering(self._service.name, f"opening {subscription.origin}", str(error), LONGEST_PAUSE))
            return False
        consumer = Consumer(
            subscription,
            store=self._store,
            log=log,
            submit=self._connected.committer,
            invoker=invoker,
            publisher=self._connected.publisher,
            clock=self._clock,
            owner=self.member.id,
            settings=self._settings.consumer,
            ran=self._memory.stretch,
            local=self.executor.local if self.executor else None,
        )
        self.consumers.append(consumer)
        self._spawn(consumer.run(), f"skald:{self._service.name}:{subscription.origin}")
        return True

    async def _wait_for(self, subscription: Subscription, invoker: Invoker) -> None:
        """Services start in any order: an origin that is not there yet is no reason not to read the others."""
        pause, attached = FIRST_PAUSE, False
        while not attached:
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
                return
            except TimeoutError:
                pause = min(pause * 2, LONGEST_PAUSE)
                attached = await self._attach(subscription, invoker)
        self._balance.look()

    # --- stopping -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Ends in order: what runs is finished and committed, and others can take the work at once."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._balance.stop()
        for consumer in self.consumers:
            await consumer.stop()
        for worker in self.workers:
            await worker.stop()
        if self.executor:
            await self.executor.stop(lost=self.lost.is_set())
        if self._pruner is not None:
            await self._pruner.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)
        try:
            begun = [place for consumer in self.consumers for place in consumer.begun()]
            await cursor.hand_over(self._store, self._service.name, self.member.id, begun)
            failpoints.hit("stop.handed_over")
        except SkaldError as error:
            emit(Recovering(self._service.name, "handing over", str(error), self._settings.lease))
        await self._lease.stop()
        await self._resources.aclose()
        for task in self._tasks:
            if not task.cancelled() and task.exception() is not None:
                raise task.exception()  # type: ignore[misc]
