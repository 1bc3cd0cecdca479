"""Finishes deliveries of the owned lanes, key by key: delayed ones when due, long-running ones, and what waits behind.

A key is blocked as long as it has deliveries, and the one with the lowest position is its *head*: whatever happens next
happens to the head. Every head runs in a task of its own. What follows is decided by the consumer between two
stretches, through ``settle``, from the stored rows alone: while it decides, no new message can be put behind the key
unseen, and nothing that was remembered can be wrong.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import msgspec

from skald.clock import Clock
from skald.errors import DeliveryGone, Fenced, Stopped
from skald.messaging import parking
from skald.messaging.attempts import GRACE
from skald.messaging.batch import Straggler
from skald.messaging.definition import Handler
from skald.messaging.deliverer import Deliverer, tell
from skald.messaging.outcome import Item, LaneState, Taken, describe
from skald.messaging.parking import Head
from skald.store import Store
from skald.telemetry import Recovering, emit
from skald.unit import Delivery, DeliveryState

PAUSE = 1_000_000
"""Microseconds before a key is looked at again after something unforeseen."""

Key = tuple[str, str]
"""Handler and key."""


class _Ended(msgspec.Struct, frozen=True):
    lane: int
    key: Key
    not_before: int


class Redelivery:
    """``handlers`` by name. ``lanes`` is the consumer's own table of owned lanes."""

    def __init__(
        self,
        *,
        store: Store,
        deliverer: Deliverer,
        clock: Clock,
        group: str,
        origin: str,
        handlers: dict[str, Handler],
        lanes: dict[int, LaneState],
        wake: Callable[[], None],
    ) -> None:
        self._store, self._deliverer, self._clock = store, deliverer, clock
        self._group, self._origin = group, origin
        self._handlers, self._lanes, self._wake = handlers, lanes, wake
        self._due: list[tuple[int, int, Key]] = []
        self._suspicious: set[Key] = set()
        """Keys whose heads may be what ends processes. One is tried at a time, so that the others do not pay for it."""
        self._suspects: deque[tuple[int, Key]] = deque()
        """Those of them that are due."""
        self._suspect: Key | None = None
        self._active: dict[Key, tuple[int, asyncio.Task[None]]] = {}
        self._ended: deque[_Ended] = deque()
        self._fenced: Fenced | None = None

    @property
    def active(self) -> int:
        return len(self._active)

    def next_due(self) -> int | None:
        return self._due[0][0] if self._due else None

    def goes_on_at(self) -> int | None:
        """When something will happen by itself: now, if a delivery has ended and what follows is yet to be decided."""
        return self._clock.now() if self._ended else self.next_due()

    def look(self) -> None:
        """Asks for a look now, because the clock was set."""
        self._wake()

    async def load(self, lanes: Collection[LaneState]) -> None:
        """Reads what lanes carry along: which keys are blocked, what is due, what a dead owner left behind."""
        heads = await parking.heads(self._store, self._group, self._origin)
        by_number = {lane.lane: lane for lane in lanes}
        self._due = [entry for entry in self._due if entry[1] not in by_number]
        heapq.heapify(self._due)
        self._suspects = deque(entry for entry in self._suspects if entry[0] not in by_number)
        for lane in lanes:
            # What still runs blocks its key until its end is settled.
            lane.blocked = {key for key, (number, _) in self._active.items() if number == lane.lane}
        for head in heads:
            key = (head.handler, head.key)
            if head.lane in by_number:
                by_number[head.lane].blocked.add(key)
                if key not in self._active and head.handler in self._handlers:
                    self._remember(head, key)

    def _remember(self, head: Head, key: Key) -> None:
        if head.state is not DeliveryState.PARKED:
            self._judge(head, key)
            self._schedule(head.due if head.state is DeliveryState.DELAYED else 0, head.lane, key)

    def _judge(self, head: Head | Delivery, key: Key) -> None:
        if parking.is_suspect(head):
            self._suspicious.add(key)
        else:
            self._suspicious.discard(key)

    def _schedule(self, due: int, lane: int, key: Key) -> None:
        heapq.heappush(self._due, (due, lane, key))

    def took(self, lane: LaneState, item: Item) -> None:
        """A stretch has just committed this item as a delivery of its own."""
        outcome = item.outcome
        if isinstance(outcome, Taken):
            tell(self._group, item.handler.name, self._origin, item.record, outcome, self._clock.now())
            if outcome.state is DeliveryState.DELAYED:
                self._schedule(outcome.due, lane.lane, (item.handler.name, item.record.key))

    async def settle(self) -> bool:
        """Decides what follows for the keys whose deliveries ended, and starts what is due. True if there was any.

        Raises ``Fenced`` if one of them has learned that another process has taken over.
        """
        if self._fenced is not None:
            raise self._fenced
        moved = False
        while self._ended:
            moved = True
            ended = self._ended[0]
            lane = self._lanes.get(ended.lane)
            if lane is not None:
                await self._follow_up(lane, ended.key, ended.not_before)
            self._ended.popleft()
        now = self._clock.now()
        while self._due and self._due[0][0] <= now:
            _, number, key = heapq.heappop(self._due)
            if key in self._suspicious:
                self._suspects.append((number, key))
            else:
                moved = self._begin(number, key) or moved
        while self._suspects and self._suspect not in self._active:
            number, self._suspect = self._suspects.popleft()
            moved = self._begin(number, self._suspect) or moved
        return moved

    def _begin(self, number: int, key: Key) -> bool:
        lane = self._lanes.get(number)
        if lane is None or key in self._active:
            return False
        self._start(number, key, self._deliver_head(lane, key))
        return True

    async def _follow_up(self, lane: LaneState, key: Key, not_before: int) -> None:
        if key in self._active:
            return
        head = await parking.head(self._store, lane, *key)
        if head is None:
            self._suspicious.discard(key)
            lane.blocked.discard(key)
            return
        self._judge(head, key)
        if head.state is DeliveryState.WAITING and not not_before:
            self._start(lane.lane, key, self._deliver(head))
        elif head.state is not DeliveryState.PARKED:
            due = head.due if head.state is DeliveryState.DELAYED else 0
            self._schedule(max(due, not_before), lane.lane, key)

    async def alone(self, lane: LaneState, item: Item) -> None:
        """Runs a delivery that was just written and waits for its end; nothing else of the lane is begun meanwhile."""
        key = (item.handler.name, item.record.key)
        self._start(lane.lane, key, self._deliver_head(lane, key))
        await asyncio.wait([self._active[key][1]], timeout=item.handler.timeout)
        await self.settle()

    def follow(self, straggler: Straggler) -> None:
        """Commits the result of a handler that outlived its stretch, when it has one."""
        item, lane = straggler.item, straggler.lane
        taken = item.outcome
        assert isinstance(taken, Taken)
        stored = Delivery(
            self._group, item.handler.name, self._origin, lane.lane, taken.state, item.record, taken.attempts, taken.due
        )
        work = self._deliverer.finish(stored, item, straggler.seat, straggler.task)
        self._start(lane.lane, (item.handler.name, item.record.key), work)

    # --- running ------------------------------------------------------------------------------------------------------

    def _start(self, lane: int, key: Key, work: Coroutine[Any, Any, None]) -> None:
        assert key not in self._active
        self._active[key] = lane, asyncio.create_task(self._guard(lane, key, work))

    async def _guard(self, lane: int, key: Key, work: Coroutine[Any, Any, None]) -> None:
        not_before = 0
        try:
            await work
        except Fenced as error:
            self._fenced = error
        except (DeliveryGone, Stopped):
            return
        except Exception as error:
            # Not known to be written: the row says where it stands, so look again soon.
            emit(Recovering(self._group, f"{key[0]} at {self._origin}, key {key[1]}", describe(error), PAUSE / 1e6))
            not_before = self._clock.now() + PAUSE
        finally:
            del self._active[key]
            self._ended.append(_Ended(lane, key, not_before))
            self._wake()

    async def _deliver_head(self, lane: LaneState, key: Key) -> None:
        head = await parking.head(self._store, lane, *key)
        if head is None or head.state is DeliveryState.PARKED:
            return
        if head.state is DeliveryState.DELAYED and head.due > self._clock.now():
            return
        await self._deliver(head)

    async def _deliver(self, head: Delivery) -> None:
        await self._deliverer.deliver(head, self._handlers[head.handler])

    async def drop(self, lane: int | None = None, *, grace: float = GRACE) -> None:
        """Ends what runs for a lane (or for all); the rows say where each one stands."""
        self._due = [entry for entry in self._due if lane is not None and entry[1] != lane]
        heapq.heapify(self._due)
        tasks = [task for number, task in self._active.values() if lane in (None, number)]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace)
        for task in late:
            task.cancel()
        if late:
            # Each waits for its handler in turn, names it if it goes on, and writes down that it was handed over.
            await asyncio.wait(late, timeout=GRACE + 1)
