"""One service in one process: its committer, lease, consumers and queue workers, started and stopped in order.

Start   open the store; committer; providers; fence; lease; consumers. Stop, in reverse: take no new messages, end what
runs, hand the work over, leave the group, close. Losing the fence stops everything at once: another process owns the
work, and every further write of this one would be refused anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from skald.clock import Clock
from skald.errors import ConfigurationError, SkaldError
from skald.messaging import cursor
from skald.messaging.connection import Connection
from skald.messaging.consumer import Consumer, ConsumerSettings
from skald.messaging.definition import injectable
from skald.messaging.invoke import Invoker
from skald.messaging.provider import provide
from skald.messaging.publisher import Publisher
from skald.messaging.router import Subscription
from skald.messaging.service import Service
from skald.messaging.starting import starting_point
from skald.messaging.worker import Worker
from skald.runtime.committer import Committer
from skald.runtime.lanes import assigned
from skald.runtime.lease import Lease
from skald.runtime.process import this_process
from skald.store import Log, Member, Store
from skald.telemetry import LanesTaken, Recovering, Refused, emit, log


class RuntimeSettings(msgspec.Struct, frozen=True):
    """``lease``: seconds after which a silent process loses its work. ``max_pending``: units that may wait."""

    lease: float = 5.0
    max_pending: int = 20_000
    max_body: int = 1 << 20
    consumer: ConsumerSettings = ConsumerSettings()


class ConnectedService:
    """A service that can publish: its store and committer, without any consumer."""

    def __init__(
        self, service: Service, store: Store, topics: Mapping[type, str], clock: Clock, settings: RuntimeSettings
    ) -> None:
        self.service, self.store, self._clock, self.settings = service, store, clock, settings
        self.publisher = Publisher(service.name, topics, clock, settings.max_body)
        self.committer = Committer(store, max_pending=settings.max_pending)

    async def start(self) -> None:
        await self.store.open()
        self.committer.start()
        self.service.bind(Connection(self.store, self.publisher, self.committer))

    async def stop(self) -> None:
        self.service.bind(None)
        await self.committer.stop()
        await self.store.close()


class RunningService:
    """Consumes what a connected service subscribes to. ``logs`` are the origins, by name."""

    def __init__(
        self, connected: ConnectedService, subscriptions: tuple[Subscription, ...], logs: Mapping[str, Log], clock: Clock
    ) -> None:
        self._connected, self._subscriptions, self._logs, self._clock = connected, subscriptions, logs, clock
        self._service, self._store = connected.service, connected.store
        self._settings = connected.settings
        self.member = this_process(self._service.name)
        self._lease = Lease(
            self.member, self._store.membership, lease=self._settings.lease, lost=self._lose, seen=self._saw
        )
        self.consumers: list[Consumer] = []
        self.workers: list[Worker] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._resources = AsyncExitStack()
        self._members: list[Member] = [self.member]
        self._dead: list[tuple[Member, str]] = []
        self._look = asyncio.Event()
        self._stopping = False
        self.lost = asyncio.Event()
        """Set when another process has taken over from this one."""

    async def start(self) -> None:
        handlers = self._service.handlers
        wanted = {cls for h in handlers for cls in h.injected.values() if not injectable(cls)}
        dependencies = await provide(self._service.providers, wanted, self._resources)
        try:
            invoker = Invoker(
                self._service.name, handlers, dependencies, self._connected.publisher, self._clock
            )
            await self._open_logs()
            await cursor.fence(self._store, self.member.id)
            await self._lease.start()
            self._build(invoker)
        except BaseException:
            await self._resources.aclose()
            raise
        name = self._service.name
        for consumer in self.consumers:
            self._spawn(self._supervise(consumer.run()), f"skald:{name}:{consumer.origin}")
        for worker in self.workers:
            self._spawn(self._supervise(worker.run()), f"skald:{name}:queue")
        self._spawn(self._balance(), f"skald:{name}:lanes")

    def _spawn(self, work: Any, name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def _supervise(self, work: Any) -> None:
        try:
            await work
        except SkaldError as error:
            # Fenced, mostly: this process must stop, and whoever runs it is told by ``lost``.
            emit(Refused(self._service.name, "a consumer", str(error)))
            self._lose()
        except Exception:
            # A defect. Whoever runs this process is told to start it again; nothing goes on half alive.
            log.exception("%s: a role of the runtime ended", self._service.name)
            self._lose()

    def _build(self, invoker: Invoker) -> None:
        connected, common = self._connected, self._settings.consumer
        for subscription in self._subscriptions:
            consumer = Consumer(
                subscription,
                store=self._store,
                log=self._logs[subscription.origin],
                submit=connected.committer,
                invoker=invoker,
                publisher=connected.publisher,
                clock=self._clock,
                owner=self.member.id,
                settings=common,
            )
            self.consumers.append(consumer)
        for handler in self._service.handlers:
            if handler.queue is not None:
                worker = Worker(
                    group=self._service.name,
                    handler=handler,
                    store=self._store,
                    submit=connected.committer,
                    invoker=invoker,
                    publisher=connected.publisher,
                    clock=self._clock,
                    owner=self.member.id,
                    poll=common.poll,
                )
                self.workers.append(worker)

    # --- origins ------------------------------------------------------------------------------------------------------

    async def _open_logs(self) -> None:
        """Opens the origins' logs, and makes the cursors of those that were never read."""
        known = {row.origin for row in await cursor.lanes(self._store, self._service.name)}
        for subscription in self._subscriptions:
            log = self._logs[subscription.origin]
            await log.open()
            if subscription.origin not in known:
                place = await starting_point(log, self._service.start, subscription.handlers)
                await cursor.create(self._store, self._service.name, subscription.origin, subscription.lanes, place)
        self._check_lanes(await cursor.lanes(self._store, self._service.name))

    def _check_lanes(self, rows: list[cursor.LaneRow]) -> None:
        """Refuses to work with a number of lanes that is not the stored one: keys would be in the wrong lanes."""
        for subscription in self._subscriptions:
            count = sum(row.origin == subscription.origin for row in rows)
            if count != subscription.lanes:
                raise ConfigurationError(
                    f"{self._service.name} has {count} lanes on {subscription.origin}, and lanes={subscription.lanes} "
                    f"was asked for: stop its processes and run 'skald subscriptions relane'"
                )

    # --- members and lanes --------------------------------------------------------------------------------------------

    def _lose(self) -> None:
        self.lost.set()
        self._look.set()

    def _saw(self, alive: list[Member], dead: list[tuple[Member, str]]) -> None:
        self._members, self._dead = alive, dead
        self._look.set()

    async def _balance(self) -> None:
        """Takes over from the dead, claims free lanes, gives up what is another's, at each look of the lease."""
        while not self._stopping and not self.lost.is_set():
            try:
                await self._take_over()
                await self._share()
            except ConfigurationError as error:
                emit(Refused(self._service.name, "sharing the lanes", str(error)))
                self._lose()
            except (SkaldError, OSError) as error:
                emit(Recovering(self._service.name, "sharing the lanes", str(error), self._settings.lease / 3))
            await self._look.wait()
            self._look.clear()

    async def _take_over(self) -> None:
        while self._dead:
            member, reason = self._dead.pop()
            freed = await cursor.take_over(self._store, member.id)
            self._lease.forget(member.id)
            if freed:
                emit(LanesTaken(self._service.name, self.member.id, member.id, reason))

    async def _share(self) -> None:
        rows = await cursor.lanes(self._store, self._service.name)
        self._check_lanes(rows)
        origins = {consumer.origin: consumer for consumer in self.consumers}
        lanes = [(row.origin, row.lane) for row in rows if row.origin in origins and row.stopped is None]
        mine = assigned([member.id for member in self._members], self.member.id, lanes)
        for consumer in self.consumers:
            await consumer.refresh({row.lane: row.version for row in rows if row.origin == consumer.origin})
            for lane in [lane for lane in consumer.lanes if (consumer.origin, lane) not in mine]:
                await consumer.release(lane)
        free = [(row.origin, row.lane) for row in rows if row.owner is None and (row.origin, row.lane) in mine]
        if free:
            claimed = await cursor.claim(self._store, self._service.name, free, self.member.id)
            # Their number may have been changed since we looked; the next look tells, and nothing was done yet.
            versions = {(row.origin, row.lane): row.version for row in rows}
            stale = [lane for lane in claimed if lane.version != versions[lane.origin, lane.lane]]
            for lane in stale:
                await cursor.release(self._store, lane.group, lane.origin, lane.lane, lane.owner)
            claimed = [lane for lane in claimed if lane not in stale]
            for origin, consumer in origins.items():
                await consumer.assign([lane for lane in claimed if lane.origin == origin])

    # --- stopping -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Ends in order: what runs is finished and committed, and others can take the work at once."""
        if self._stopping:
            return
        self._stopping = True
        self._look.set()
        for consumer in self.consumers:
            await consumer.stop()
        for worker in self.workers:
            await worker.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)
        try:
            await cursor.hand_over(self._store, self.member.id)
        except SkaldError as error:
            emit(Recovering(self._service.name, "handing over", str(error), self._settings.lease))
        await self._lease.stop()
        await self._resources.aclose()
        for task in self._tasks:
            if not task.cancelled() and task.exception() is not None:
                raise task.exception()  # type: ignore[misc]
