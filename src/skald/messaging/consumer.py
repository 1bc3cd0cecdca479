"""Reads one origin's log for one service: in order by key, each effect once, in as many lanes as this process owns.

The loop is the only place that changes a lane. Each turn: take and give lanes, settle deliveries, read the next
stretch, run it, commit it with the cursors. Lanes that stand at the same place are read together (a *cohort*); one
that lags is read up to where the next cohort stands and then joins it, so a lane that was reset does not make the
others wait, and the log is not read once per lane.

Reading is inclusive: the message at the cursor must still have the id that was handled. If not, the origin's history
has forked, and the lanes stop by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby

import msgspec

from skald import failpoints
from skald.clock import Clock
from skald.errors import BelowFloor, Busy, CursorMoved, LogForked, SkaldError, Stopped, StoreError
from skald.message import Record
from skald.messaging import cursor
from skald.messaging.attempts import GRACE
from skald.messaging.batch import Stretch
from skald.messaging.calls import is_called, replied
from skald.messaging.connection import Submit
from skald.messaging.deliverer import Deliverer
from skald.messaging.invoke import Invoker
from skald.messaging.local import LocalWorkflows
from skald.messaging.outcome import HANDED_OVER, WAITING, Done, Item, LaneState, Taken, describe
from skald.messaging.publisher import Publisher
from skald.messaging.reading import Mismatch, Reader, cohorts
from skald.messaging.redelivery import Redelivery
from skald.messaging.router import Subscription, lane_of
from skald.store import Log, Store
from skald.telemetry import LaneStopped, Recovering, emit
from skald.unit import CursorMove, DeliveryState, Unit

LONGEST_PAUSE = 5.0
"""Seconds between two tries while a database is away."""
CAUTIOUS = 2
"""From so many takeovers without progress on, a lane's messages are handled one by one, written down before."""


class ConsumerSettings(msgspec.Struct, frozen=True):
    """``run``: messages of one stretch at most; ``patience``: seconds after which a slow handler goes on alone."""

    run: int = 500
    concurrency: int = 100
    patience: float = 0.05
    poll: float = 5.0
    checkpoint: float = 1.0
    max_stragglers: int = 500


class Counters(msgspec.Struct):
    """Since the start of the process."""

    handled: int = 0
    ignored: int = 0
    duplicates: int = 0


class Consumer:
    def __init__(
        self,
        subscription: Subscription,
        *,
        store: Store,
        log: Log,
        submit: Submit,
        invoker: Invoker,
        publisher: Publisher,
        clock: Clock,
        owner: str,
        settings: ConsumerSettings,
        ran: Callable[[], None] = lambda: None,
        local: LocalWorkflows | None = None,
    ) -> None:
        """``ran`` is called after each stretch; ``local`` are the service's workflows, if they run in this process."""
        self._subscription, self._store, self._submit = subscription, store, submit
        self.log = log
        self._clock, self._owner, self._settings, self._ran, self._local = clock, owner, settings, ran, local
        self.lanes: dict[int, LaneState] = {}
        self.counters = Counters()
        self._begun: dict[int, int] = {}
        """Of lanes that were given up: how many of their next messages may have been begun."""
        self._changes: list[tuple[list[LaneState] | int, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._stopping = self._over = False
        self._checkpoint_at = 0.0
        self._reader = Reader(log, store, subscription.origin, frozenset(subscription.handlers), settings.run)
        handlers = {h.name: h for found in subscription.handlers.values() for h in found}
        deliverer = Deliverer(
            store=store, submit=submit, invoker=invoker, publisher=publisher, clock=clock, owner=owner
        )
        self.redelivery = Redelivery(
            store=store, deliverer=deliverer, clock=clock, group=subscription.group, origin=subscription.origin,
            handlers=handlers, lanes=self.lanes, wake=self._wake.set,
        )  # fmt: skip
        self._stretch = Stretch(
            store=store, submit=submit, invoker=invoker, publisher=publisher, clock=clock,
            origin=subscription.origin, concurrency=settings.concurrency, patience=settings.patience,
            on_straggler=self.redelivery.follow, stopping=lambda: self._stopping,
            local=local,
        )  # fmt: skip

    @property
    def origin(self) -> str:
        return self._subscription.origin

    # --- lanes --------------------------------------------------------------------------------------------------------

    async def assign(self, lanes: list[LaneState]) -> None:
        """Gives the consumer lanes that this process has claimed; together, so that they are read together."""
        await self._change(lanes)

    async def release(self, lane: int) -> None:
        """Reads no further for the lane, ends what runs for it, and lets others claim it."""
        await self._change(lane)
        await self.redelivery.drop(lane)
        begun = lane in self._begun
        await cursor.release(self._store, self._subscription.group, self.origin, lane, self._owner, begun=begun)
        self._begun.pop(lane, None)

    def begun(self) -> list[tuple[str, int]]:
        """The lanes of which messages that were not committed may have been begun: by us, or before us."""
        held = {number for number, lane in self.lanes.items() if lane.suspects}
        return [(self.origin, number) for number in sorted(held | self._begun.keys())]

    async def _change(self, change: list[LaneState] | int) -> None:
        if self._over:
            raise Stopped(f"{self._subscription.group} does not read {self.origin} any more")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.append((change, future))
        self._wake.set()
        await future

    async def _apply_changes(self) -> None:
        while self._changes:
            change, future = self._changes.pop(0)
            try:
                if isinstance(change, list):
                    await self.redelivery.load(change)
                    for lane in change:
                        # A stretch from the beginning of a log has one more.
                        begun = self._settings.run + 1 if lane.takeovers else 0
                        lane.suspects = max(begun, self._begun.pop(lane.lane, 0))
                        self.lanes[lane.lane] = lane
                elif (left := self.lanes.pop(change, None)) is not None and left.suspects:
                    self._begun[change] = left.suspects
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)
                if not isinstance(error, SkaldError):
                    raise
            else:
                if not future.done():
                    future.set_result(None)

    def refresh(self, versions: dict[int, int]) -> None:
        """Told the stored versions of its lanes: what somebody changed or took is read again in the next turn."""
        changed = [lane for number, lane in self.lanes.items() if versions.get(number) != lane.version]
        if changed:
            for lane in changed:
                lane.version = -1
            self._wake.set()

    async def _reload(self) -> None:
        """Reads every lane again, after something went wrong or was changed from outside."""
        owned = await cursor.owned(self._store, self._subscription.group, self.origin, self._owner)
        kept = {number: owned[number] for number in self.lanes if number in owned}
        await self.redelivery.load(kept.values())
        for number, lane in list(self.lanes.items()):
            if number in kept:
                kept[number].suspects, kept[number].counted = lane.suspects, lane.counted
                self.lanes[number] = kept[number]
            else:
                del self.lanes[number]
                await self.redelivery.drop(number, grace=0)

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until ``stop``. Trouble with a database is survived with growing pauses; a lost fence is not."""
        pause = 0.1
        unlisten = self.log.listen(self._wake.set)
        try:
            while not self._stopping:
                try:
                    if not await self._step():
                        await self._wait()
                    pause = 0.1
                except CursorMoved:
                    await self._recover()
                except (StoreError, Busy, OSError) as error:
                    what = f"reading {self.origin}"
                    emit(Recovering(self._subscription.group, what, describe(error), pause))
                    await self._pause(pause)
                    pause = min(pause * 2, LONGEST_PAUSE)
                    await self._recover()
        finally:
            self._over = True
            unlisten()
            self._reader.close()
            for _, future in self._changes:
                if not future.done():
                    future.set_exception(Stopped(f"{self._subscription.group} stops reading {self.origin}"))
            # In order, there is time to finish; otherwise somebody else has the lanes already.
            await self.redelivery.drop(grace=GRACE if self._stopping else 0)

    async def _recover(self) -> None:
        try:
            await self._reload()
        except (StoreError, OSError):
            # The next turn meets the same trouble and waits longer; stale lanes are caught by compare-and-swap.
            for lane in self.lanes.values():
                lane.version = -1

    async def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    async def _pause(self, seconds: float) -> None:
        """Only the end ends it: those who ring do not know of the trouble."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not self._stopping and loop.time() < end:
            self._wake.clear()
            await self._until_woken(end - loop.time())

    async def _until_woken(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _wait(self) -> None:
        due = self.redelivery.next_due()
        seconds = self._settings.poll
        if due is not None:
            seconds = min(seconds, max(0.0, (due - self._clock.now()) / 1e6))
        if any(lane.scanned != lane.position for lane in self.lanes.values()):
            seconds = min(seconds, self._settings.checkpoint)
        # What has rung since this turn began has set the event, and is not waited for.
        await self._until_woken(seconds)

    async def _step(self) -> bool:
        """True if the next turn need not wait."""
        self._wake.clear()
        await self._apply_changes()
        if any(lane.version < 0 for lane in self.lanes.values()):
            await self._reload()
        progress = await self.redelivery.settle()
        if self.redelivery.active < self._settings.max_stragglers:
            for cohort, upto in cohorts(self.lanes.values(), self._settings.run):
                progress = await self._advance(cohort, upto) or progress
        await self._checkpoint()
        return progress

    async def _advance(self, cohort: list[LaneState], upto: int | None) -> bool:
        """True if there may be more that nobody rings for: of what comes after the read, somebody does."""
        try:
            records = await self._reader.read(cohort[0].scanned, cohort[0].scanned_id, upto)
        except Mismatch as mismatch:
            await self._stop_lanes(cohort, mismatch.found)
            return True
        was_ahead = self._reader.was_ahead
        if not records:
            return was_ahead
        is_handled = await self._handle({lane.lane: lane for lane in cohort}, records)
        return was_ahead or upto is not None or len(records) >= self._settings.run or not is_handled

    async def _stop_lanes(self, cohort: Sequence[LaneState], found: Record | None) -> None:
        floor = await self.log.floor()
        for lane in cohort:
            position, id = lane.scanned, lane.scanned_id or ""
            error: SkaldError = BelowFloor(self.origin, position, floor)
            if position >= floor:
                there = found.id if found is not None and found.position == position else None
                error = LogForked(lane.group, self.origin, lane.lane, position, id, there)
            await cursor.stop(self._store, lane, str(error))
            del self.lanes[lane.lane]
            await self.redelivery.drop(lane.lane)
            emit(LaneStopped(lane.group, self.origin, lane.lane, str(error)))

    # --- a stretch ----------------------------------------------------------------------------------------------------

    async def _handle(self, lanes: dict[int, LaneState], records: list[Record]) -> bool:
        last = records[-1]
        items = self._items(lanes, records)
        cautious = {number for number, lane in lanes.items() if lane.takeovers >= CAUTIOUS}
        try:
            finished = await self._run(lanes, items, cautious, last)
        except BaseException:
            # What was begun in vain will be begun again.
            own = _first([item for item in items if item.record.position > lanes[item.lane].position])
            for number, position in own.items():
                lanes[number].doubt(sum(record.position >= position for record in records))
            raise
        if finished:
            own = _first(items)
            for number, lane in lanes.items():
                lane.scanned, lane.scanned_id = last.position, last.id
                lane.passed(records, own.get(number))
        return finished

    async def _run(self, lanes: dict[int, LaneState], items: list[Item], cautious: set[int], last: Record) -> bool:
        if cautious:
            if not await self._cautiously(lanes, [item for item in items if item.lane in cautious]):
                return False
            items = [item for item in items if item.lane not in cautious]
        if items:
            if not await self._stretch.run(lanes, items, last):
                return False
            self._took(lanes, items)
        return True

    def _items(self, lanes: dict[int, LaneState], records: list[Record]) -> list[Item]:
        handlers, topics, count = self._subscription.handlers, self._subscription.topics, self._subscription.lanes
        now = self._clock.now()
        items: list[Item] = []
        for record in records:
            found = handlers.get(record.type)
            if found is None or record.topic not in topics:
                self.counters.ignored += 1
                continue
            number = lane_of(record.slot, count)
            lane = lanes.get(number)
            if lane is None:
                continue
            for handler in found:
                if handler.answers:
                    if is_called(record.causation_id):
                        reply = replied(record, heard=self._local is not None and self._local.await_answer(record))
                        items.append(Item(record, handler, number, Done(replies=(reply,))))
                    continue
                item = Item(record, handler, number)
                if handler.keeps is not None:
                    item.blocked = lane.blocked
                if handler.queue is not None:
                    item.outcome = Taken(DeliveryState.QUEUED, 0, now + record.delay)
                elif lane.suspects:
                    item.unknown = True
                items.append(item)
        return items

    def _took(self, lanes: dict[int, LaneState], items: list[Item]) -> None:
        self.counters.handled += len(items)
        self._ran()
        queued = False
        for item in items:
            outcome = item.outcome
            if type(outcome) is Taken:
                if outcome.state is DeliveryState.QUEUED:
                    queued = True
                else:
                    self.redelivery.took(lanes[item.lane], item)
            elif type(outcome) is Done and outcome.timeouts:
                queued = True
        if queued:
            # The queue's workers, here and in other processes, listen at this bell.
            self._store.ring()

    async def _cautiously(self, lanes: dict[int, LaneState], items: list[Item]) -> bool:
        """Each message is written down as being tried before it is tried, alone, so that a crash is counted to it."""
        for _, group in groupby(items, key=lambda item: item.record.position):
            if self._stopping:
                return False
            same = list(group)
            lane = lanes[same[0].lane]
            for item in same:
                key = (item.handler.name, item.record.key)
                if item.outcome is None:
                    waits = key in lane.blocked
                    # That an earlier owner may have begun it has to outlive this process as well.
                    known = HANDED_OVER if item.unknown else None
                    trying = Taken(DeliveryState.RUNNING, 0, self._clock.now(), known)
                    item.outcome = WAITING if waits else trying
                    lane.blocked.add(key)
            # All handlers of the message in one unit: the cursor passes it only once.
            await self._stretch.run({lane.lane: lane}, same, same[0].record)
            self._took(lanes, same)
            for item in same:
                if isinstance(item.outcome, Taken) and item.outcome.state is DeliveryState.RUNNING:
                    await self.redelivery.alone(lane, item)
        return True

    async def _checkpoint(self) -> None:
        """Now and then writes down how far lanes without messages have been read, in one unit each."""
        now = asyncio.get_running_loop().time()
        if now < self._checkpoint_at:
            return
        behind = [lane for lane in self.lanes.values() if lane.scanned != lane.position and lane.scanned_id]
        if not behind:
            return
        self._checkpoint_at = now + self._settings.checkpoint
        failpoints.hit("checkpoint.before")
        units = [Unit(fence=self._owner, cursor=_scanned(lane)) for lane in behind]
        results = await asyncio.gather(*map(self._submit.submit, units), return_exceptions=True)
        for lane, result in zip(behind, results, strict=True):
            if isinstance(result, BaseException):
                raise result
            lane.position, lane.id, lane.takeovers = lane.scanned, lane.scanned_id, 0


def _first(items: Sequence[Item]) -> dict[int, int]:
    """The position of the first message of each lane."""
    return {item.lane: item.record.position for item in reversed(items)}


def _scanned(lane: LaneState) -> CursorMove:
    return CursorMove(
        lane.group, lane.origin, lane.lane, lane.owner, lane.position, lane.version, lane.scanned,
        lane.scanned_id or "",
    )  # fmt: skip
