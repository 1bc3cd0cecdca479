"""Finishes deliveries of the owned lanes: delayed ones when due, long-running ones, and those that wait behind them.

Every delivery runs in a task of its own and commits its own unit, guarded by the delivery's row. What follows for the
key (the next waiting message, or opening the key again) is decided by the consumer between two stretches, through
``settle``: while it decides, no new message can be put behind the key unseen.

An attempt is written down before it is made (``running``, attempts + 1), so that a message which ends its process
every time runs out of attempts like any other. The first attempt of a message that only waited is spared that write.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from skald.clock import Clock
from skald.errors import CursorMoved, DeliveryGone, Fenced, Stopped, StoreError
from skald.message import Record
from skald.messaging import parking
from skald.messaging.batch import Seat, Straggler, call_with, run_attempts
from skald.messaging.connection import Submit
from skald.messaging.definition import Handler
from skald.messaging.invoke import Invoker
from skald.messaging.outcome import Done, Item, LaneState, Outcome, Taken, describe, resolve_unit
from skald.messaging.parking import Place
from skald.messaging.publisher import Publisher
from skald.store import Store
from skald.telemetry import HandlerIgnoresCancellation, Parked, Recovering, Retried, emit
from skald.unit import Delivery, DeliveryState

GRACE = 5.0
"""Seconds that a cancelled handler gets to end."""

_BLOCKING = (DeliveryState.DELAYED, DeliveryState.RUNNING, DeliveryState.PARKED)


class ProcessEnded(Exception):
    """Stands for the attempts that ended with their process."""


class _Ended(msgspec.Struct, frozen=True):
    lane: int
    place: Place
    key: str
    due: int | None
    """When it is due again; ``None`` when it is resolved or waits for a person."""
    open: bool
    """Whether the key may go on."""


class Redelivery:
    """``handlers`` by name. ``lanes`` is the consumer's own table of owned lanes."""

    def __init__(
        self,
        *,
        store: Store,
        submit: Submit,
        invoker: Invoker,
        publisher: Publisher,
        clock: Clock,
        group: str,
        origin: str,
        owner: str,
        handlers: dict[str, Handler],
        lanes: dict[int, LaneState],
        wake: Callable[[], None],
    ) -> None:
        self._store, self._submit, self._invoker, self._publisher = store, submit, invoker, publisher
        self._clock, self._group, self._origin, self._owner = clock, group, origin, owner
        self._handlers, self._lanes, self._wake = handlers, lanes, wake
        self._due: list[tuple[int, int, Place, str]] = []
        self._active: dict[Place, tuple[int, asyncio.Task[None]]] = {}
        self._ended: deque[_Ended] = deque()

    @property
    def active(self) -> int:
        return len(self._active)

    def next_due(self) -> int | None:
        return self._due[0][0] if self._due else None

    async def load(self, lane: LaneState) -> None:
        """Reads what a lane carries along: which keys are blocked, what is due, what a dead owner left behind."""
        rows = await parking.of_lane(self._store, lane)
        blocking = {(row.handler, row.key) for row in rows if row.state in _BLOCKING}
        lane.blocked = {(row.handler, row.key) for row in rows}
        self._due = [entry for entry in self._due if entry[1] != lane.lane]
        free: set[tuple[str, str]] = set()
        for row in rows:
            place = (row.handler, self._origin, row.position)
            if place in self._active or row.handler not in self._handlers:
                continue
            if row.state is DeliveryState.DELAYED:
                self._schedule(row.due, lane.lane, place, row.key)
            elif row.state is DeliveryState.RUNNING:
                self._schedule(0, lane.lane, place, row.key)
            elif row.state is DeliveryState.WAITING and (row.handler, row.key) not in blocking | free:
                free.add((row.handler, row.key))
                self._schedule(0, lane.lane, place, row.key)
        heapq.heapify(self._due)

    def _schedule(self, due: int, lane: int, place: Place, key: str) -> None:
        heapq.heappush(self._due, (due, lane, place, key))

    def took(self, lane: LaneState, item: Item) -> None:
        """A stretch has just committed this item as a delivery of its own."""
        outcome = item.outcome
        if isinstance(outcome, Taken):
            self._tell(outcome, item.record, item.handler.name)
            if outcome.state is DeliveryState.DELAYED:
                place = (item.handler.name, self._origin, item.record.position)
                self._schedule(outcome.due, lane.lane, place, item.record.key)

    async def settle(self) -> bool:
        """Decides what follows for the keys of ended deliveries, and starts what is due. True if there was any."""
        moved = False
        while self._ended:
            ended = self._ended.popleft()
            lane = self._lanes.get(ended.lane)
            moved = True
            if lane is None:
                continue
            if ended.due is not None:
                self._schedule(ended.due, ended.lane, ended.place, ended.key)
            elif ended.open:
                await self._open(lane, ended.place[0], ended.key)
        now = self._clock.now()
        while self._due and self._due[0][0] <= now:
            _, number, place, key = heapq.heappop(self._due)
            if number in self._lanes and place not in self._active:
                self._start(place, number, key, self._redeliver(place, number, key))
                moved = True
        return moved

    async def _open(self, lane: LaneState, handler: str, key: str) -> None:
        position = await parking.next_waiting(self._store, lane, handler, key)
        if position is None:
            lane.blocked.discard((handler, key))
        else:
            place = (handler, self._origin, position)
            self._start(place, lane.lane, key, self._redeliver(place, lane.lane, key))

    async def alone(self, lane: LaneState, item: Item) -> None:
        """Runs a delivery that was just written and waits for its end; nothing else of the lane runs meanwhile."""
        place = (item.handler.name, self._origin, item.record.position)
        self._start(place, lane.lane, item.record.key, self._redeliver(place, lane.lane, item.record.key))
        await asyncio.wait([self._active[place][1]])
        await self.settle()

    def follow(self, straggler: Straggler) -> None:
        """Commits the result of a handler that outlived its stretch, when it has one."""
        item = straggler.item
        place = (item.handler.name, self._origin, item.record.position)
        self._start(place, straggler.lane.lane, item.record.key, self._finish(place, straggler))

    def _start(self, place: Place, lane: int, key: str, work: Coroutine[Any, Any, Taken | None]) -> None:
        task = asyncio.create_task(self._guard(place, lane, key, work))
        self._active[place] = (lane, task)

    async def _guard(self, place: Place, lane: int, key: str, work: Coroutine[Any, Any, Taken | None]) -> None:
        due: int | None = None
        opened = False
        try:
            taken = await work
            opened = taken is None
            due = taken.due if taken is not None and taken.state is DeliveryState.DELAYED else None
        except DeliveryGone:
            opened = True
        except (Fenced, CursorMoved, Stopped):
            return
        except StoreError as error:
            # Not known to be written: the row still says where it stands, so look again soon.
            emit(Recovering(self._group, f"{place[0]} at {self._origin}:{place[2]}", describe(error), 1.0))
            due = self._clock.now() + 1_000_000
        finally:
            self._active.pop(place, None)
            self._ended.append(_Ended(lane, place, key, due, opened))
            self._wake()

    async def _redeliver(self, place: Place, lane: int, key: str) -> Taken | None:
        """Runs a stored delivery; returns what it has become, or ``None`` when it is resolved."""
        stored = await parking.get(self._store, self._group, place)
        if stored is None or stored.state is DeliveryState.PARKED:
            return None if stored is None else Taken(DeliveryState.PARKED, stored.attempts)
        handler = self._handlers[place[0]]
        item = Item(stored.record, handler, lane, attempts=stored.attempts, unknown=stored.attempts > 0)
        if stored.state is DeliveryState.RUNNING and stored.attempts:
            crashed = await self._invoker.failed(item, self._origin, ProcessEnded("the process ended while handling it"))
            if crashed is not None:
                return await self._end(stored, crashed)
        if stored.attempts or stored.state is DeliveryState.RUNNING:
            stored = await self._announce(stored)
        if handler.transaction is not None:
            return await self._run_in_transaction(stored, item)
        seat = Seat(item)
        task = asyncio.create_task(run_attempts(self._invoker, self._origin, item, seat))
        return await self._end(stored, await watch(task, seat, self._group))

    async def _announce(self, stored: Delivery) -> Delivery:
        running = msgspec.structs.replace(stored, state=DeliveryState.RUNNING, attempts=stored.attempts + 1)
        unit = resolve_unit(self._owner, stored, Taken(running.state, running.attempts, running.due, running.error))
        await self._submit.submit(unit)
        return msgspec.structs.replace(running, owner=None)

    async def _finish(self, place: Place, straggler: Straggler) -> Taken | None:
        outcome = await watch(straggler.task, straggler.seat, self._group)
        item = straggler.item
        old = Delivery(self._group, place[0], self._origin, straggler.lane.lane, DeliveryState.RUNNING, item.record)
        return await self._end(old, outcome)

    async def _end(self, stored: Delivery, outcome: Outcome) -> Taken | None:
        await self._submit.submit(resolve_unit(self._owner, stored, outcome))
        if isinstance(outcome, Done):
            return None
        self._tell(outcome, stored.record, stored.handler)
        return outcome

    async def _run_in_transaction(self, stored: Delivery, item: Item) -> Taken | None:
        while True:
            try:
                async with self._store.transaction() as inner:
                    done = await call_with(self._invoker, self._publisher, self._origin, inner, item)
                    await inner.apply(resolve_unit(self._owner, stored, done))
                return None
            except (Fenced, DeliveryGone, Stopped):
                raise
            except Exception as error:
                item.attempts += 1
                outcome = await self._invoker.failed(item, self._origin, error)
                if outcome is not None:
                    return await self._end(stored, outcome)

    def _tell(self, taken: Taken, record: Record, handler: str) -> None:
        where = (self._group, handler, self._origin, record.position, record.id, record.correlation_id)
        if taken.state is DeliveryState.PARKED:
            emit(Parked(*where, taken.attempts, taken.error or ""))
        elif taken.state is DeliveryState.DELAYED:
            emit(Retried(*where, taken.attempts, (taken.due - self._clock.now()) / 1e6, taken.error or ""))

    async def drop(self, lane: int | None = None) -> None:
        """Ends what runs for a lane (or for all) and forgets it; the rows say where each one stands."""
        self._due = [entry for entry in self._due if lane is not None and entry[1] != lane]
        heapq.heapify(self._due)
        tasks = [task for number, task in self._active.values() if lane in (None, number)]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=GRACE)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=GRACE)


async def watch(
    task: asyncio.Task[Outcome] | asyncio.Task[Outcome | None], seat: Seat, group: str
) -> Outcome:
    """Waits for a handler and ends each attempt that exceeds its timeout; one that will not end is named."""
    loop = asyncio.get_running_loop()
    try:
        while not task.done():
            assert seat.item is not None
            started, timeout = seat.started, seat.item.handler.timeout
            await asyncio.wait([task], timeout=max(0.0, started + timeout - loop.time()))
            if task.done() or seat.started != started or loop.time() < started + timeout:
                continue
            seat.timed_out = True
            task.cancel()
            await asyncio.wait([task], timeout=GRACE)
            if not task.done() and seat.timed_out:
                handler, id = seat.item.handler, seat.item.record.id
                emit(HandlerIgnoresCancellation(group, handler.name, id, loop.time() - started))
                await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        raise
    outcome = task.result()
    assert outcome is not None
    return outcome
