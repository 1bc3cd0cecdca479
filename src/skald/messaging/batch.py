"""Runs handlers over a stretch of one origin's log and commits what they decided, with the cursors, in order.

Handlers without a transaction run concurrently, one chain per key; their results are committed with the stretch.
Handlers with a transaction run one after another inside the transaction that moves the cursors, at most 50 of them
and 50 ms at a time. That is optimistic: if one raises, the transaction is rolled back and its messages are repeated
with a transaction each, where a savepoint undoes a failed handler alone.

A handler slower than ``patience`` does not hold up its stretch: its message becomes a delivery in state ``running``,
its key is blocked, the cursors move on, and its result is committed on its own.

An exception counts as an attempt only where it can be the handler's: while it runs, or because its result cannot be
written. Trouble of the database's own ends the stretch, and the consumer begins again where its cursors stand. What a
handler remembered of a key and somebody else has changed is no failure: its message is decided on again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import groupby

import msgspec

from skald import failpoints
from skald.clock import Clock
from skald.errors import Busy, CursorMoved, Fenced, MarkMoved, Rejection, StoreUnavailable
from skald.message import Record
from skald.messaging.attempts import GRACE, Seat, call_with, run_attempts, watch
from skald.messaging.connection import Submit
from skald.messaging.doubts import Doubts, Ran, ended
from skald.messaging.invoke import Invoker
from skald.messaging.local import LocalWorkflows
from skald.messaging.marks import Undecided
from skald.messaging.outcome import (
    WAITING,
    Done,
    Item,
    LaneState,
    Ledger,
    Outcome,
    Taken,
    by_lane,
    cut,
    release,
    run_unit,
    share_marks,
)
from skald.messaging.publisher import Publisher
from skald.messaging.transaction import Starts
from skald.store import Store
from skald.store import Transaction as StoreTransaction
from skald.unit import DeliveryState, Unit

MAX_TRANSACTIONAL = 50
MAX_TRANSACTION_SECONDS = 0.05
_NOT_THE_HANDLERS = (Fenced, CursorMoved, Busy, StoreUnavailable)


class Straggler(msgspec.Struct, frozen=True):
    """A handler that outlived its stretch; ``task`` ends with its outcome, and ``item`` holds what was stored of it."""

    item: Item
    lane: LaneState
    seat: Seat
    task: asyncio.Task[Outcome | None]


class Stretch:
    """One contiguous stretch of an origin's log for the lanes that stand at its beginning."""

    def __init__(
        self,
        *,
        store: Store,
        submit: Submit,
        invoker: Invoker,
        publisher: Publisher,
        clock: Clock,
        origin: str,
        concurrency: int,
        patience: float,
        on_straggler: Callable[[Straggler], None],
        stopping: Callable[[], bool] = lambda: False,
        local: LocalWorkflows | None = None,
    ) -> None:
        self._store, self._submit, self._invoker, self._publisher = store, submit, invoker, publisher
        self._clock, self._origin = clock, origin
        self._concurrency, self._patience, self._on_straggler = concurrency, patience, on_straggler
        self._stopping, self._local = stopping, local
        self._reached = 0
        self._ledger = Ledger()
        self._doubts, self._ran = Doubts(invoker.keeper), Ran()

    async def run(self, lanes: dict[int, LaneState], items: Sequence[Item], last: Record) -> bool:
        """Handles the items in order and moves the cursors of their lanes, in the end to ``last``.

        False if it ended before because the consumer stops. Raises ``CursorMoved`` or ``Fenced`` if a lane is not this
        process's any more; what was committed stays.
        """
        self._ran.recall(items)
        try:
            return await self._run(lanes, items, last)
        except Exception:
            self._ran.remember(lanes, items)
            raise

    async def _run(self, lanes: dict[int, LaneState], items: Sequence[Item], last: Record) -> bool:
        if self._invoker.keeper is not None:
            self._ledger = await self._invoker.keeper.recall(items)
            self._doubts.clear()
        start = 0
        while start < len(items):
            if start and self._stopping():
                return False
            stop = start + cut(items[start:])
            segment = items[start:stop]
            plain = [i for i in segment if i.handler.transaction is None and i.outcome is None]
            end = last if stop == len(items) else segment[-1].record
            stragglers: list[Straggler] = []
            try:
                if plain:
                    await self._concurrently(lanes, plain, stragglers)
                if not any(i.outcome is None for i in segment):
                    await self._commit(lanes, segment, end)
                elif not await self._transactionally(lanes, segment, end, may_stop=not plain):
                    return False
            finally:
                await self._part(stragglers)
            start = stop
        return True

    async def _part(self, stragglers: list[Straggler]) -> None:
        """Those whose deliveries are stored go on alone; the others end, because their messages will be read again."""
        lost: list[Straggler] = []
        for straggler in stragglers:
            item = straggler.item
            if straggler.lane.position >= item.record.position and item.outcome is not WAITING:
                self._on_straggler(straggler)
            else:
                straggler.task.cancel()
                lost.append(straggler)
        if lost:
            await asyncio.wait([straggler.task for straggler in lost], timeout=GRACE)
        for straggler in lost:
            straggler.item.ran = ended(straggler.task) or straggler.item.ran

    # --- without a transaction ----------------------------------------------------------------------------------------

    async def _concurrently(self, lanes: dict[int, LaneState], items: list[Item], stragglers: list[Straggler]) -> None:
        chains: dict[str, list[Item]] = {}
        for item in items:
            chains.setdefault(item.record.key, []).append(item)
        queue = deque(chains.values())
        while queue:
            seats = [Seat() for _ in range(min(len(queue), self._concurrency))]
            tasks = [asyncio.create_task(self._work(lanes, queue, seat)) for seat in seats]
            try:
                await asyncio.wait(tasks, timeout=self._patience)
                for seat, task in zip(seats, tasks, strict=True):
                    if task.done():
                        task.result()
                    else:
                        stragglers.append(self._spill(lanes, queue, seat, task))
            except BaseException:
                for task in tasks:
                    task.cancel()
                raise

    async def _work(self, lanes: dict[int, LaneState], queue: deque[list[Item]], seat: Seat) -> Outcome | None:
        while queue:
            seat.rest = queue.popleft()
            while seat.rest:
                item = seat.rest.pop(0)
                lane = lanes[item.lane]
                if (item.handler.name, item.record.key) in lane.blocked:
                    item.outcome = WAITING
                    continue
                seat.item = item
                outcome = await run_attempts(self._invoker, self._origin, item, seat)
                if seat.spilled:
                    return outcome
                seat.item = None
                item.outcome = outcome
                if type(outcome) is Taken:
                    lane.blocked.add((item.handler.name, item.record.key))
        return None

    def _spill(
        self,
        lanes: dict[int, LaneState],
        queue: deque[list[Item]],
        seat: Seat,
        task: asyncio.Task[Outcome | None],
    ) -> Straggler:
        item = seat.item
        assert item is not None
        lane = lanes[item.lane]
        seat.spilled, item.ledger = True, None
        lane.blocked.add((item.handler.name, item.record.key))
        item.outcome = Taken(DeliveryState.RUNNING, item.attempts + 1, self._clock.now())
        if seat.rest:
            queue.appendleft(seat.rest)
            seat.rest = []
        return Straggler(item, lane, seat, task)

    # --- with a transaction -------------------------------------------------------------------------------------------

    async def _transactionally(
        self, lanes: dict[int, LaneState], items: Sequence[Item], end: Record, *, may_stop: bool
    ) -> bool:
        start = 0
        while start < len(items):
            if start and may_stop and self._stopping():
                return False
            ours = [item for item in items[start:] if item.outcome is None]
            try:
                start = await self._optimistically(lanes, items, start, end)
            except (Fenced, CursorMoved):
                raise
            except Exception:
                # Something in this transaction failed; find out what, with a transaction for each message.
                self._ledger.doubt()
                for item in ours:
                    item.unknown = item.unknown or item.outcome is not None
                    item.outcome = None
                start = await self._one_by_one(lanes, items, start, end)
        return True

    async def _one_by_one(self, lanes: dict[int, LaneState], items: Sequence[Item], start: int, end: Record) -> int:
        """A transaction for each message, up to where the common one failed; the index of the first that is left."""
        reached = items[self._reached].record.position
        while start < len(items) and items[start].record.position <= reached:
            _, group = next(groupby(items[start:], key=_position))
            single = list(group)
            start += len(single)
            await self._singly(lanes, single, end if start == len(items) else single[-1].record)
        return start

    async def _optimistically(self, lanes: dict[int, LaneState], items: Sequence[Item], start: int, end: Record) -> int:
        """Runs and commits items from ``start`` on; returns the index of the first one that is left."""
        loop = asyncio.get_running_loop()
        index, count, began = start, 0, loop.time()
        self._reached = start
        async with self._starting() as (inner, starts):
            while index < len(items):
                item = items[index]
                self._reached = index
                if item.outcome is None:
                    item.outcome = await self._in_transaction(lanes, inner, item, starts)
                    count += 1
                index += 1
                full = count >= MAX_TRANSACTIONAL or loop.time() - began > MAX_TRANSACTION_SECONDS
                if full and (index == len(items) or items[index].record.position != item.record.position):
                    break
            last = end if index == len(items) else items[index - 1].record
            failpoints.hit("transaction.handled")
            if starts is not None:
                await starts.write()
            touched = await self._apply(lanes, inner, items[start:index], last)
            failpoints.hit("transaction.applied")
        failpoints.hit("transaction.committed")
        self._committed(touched, last, items[start:index])
        return index

    @asynccontextmanager
    async def _starting(self) -> AsyncIterator[tuple[StoreTransaction, Starts | None]]:
        """A transaction whose handlers may start workflows in this process."""
        if self._local is None:
            async with self._store.transaction() as inner:
                yield inner, None
            return
        starts: Starts | None = None
        try:
            async with self._store.transaction() as inner:
                starts = Starts(inner, self._local)
                yield inner, starts
        except BaseException:
            if starts is not None:
                starts.failed()
            raise
        starts.committed()

    async def _in_transaction(
        self, lanes: dict[int, LaneState], inner: StoreTransaction, item: Item, starts: Starts | None = None
    ) -> Outcome:
        if (item.handler.name, item.record.key) in lanes[item.lane].blocked:
            return WAITING
        return await call_with(self._invoker, self._publisher, self._origin, inner, item, starts)

    async def _singly(self, lanes: dict[int, LaneState], items: Sequence[Item], last: Record) -> None:
        """One message in a transaction of its own, as often as its policy says."""
        if self._doubts.concern(items):
            await self._decide_again(items)
        while True:
            running: Item | None = None
            try:
                async with self._store.transaction() as inner:
                    for running in [item for item in items if item.outcome is None]:
                        running.outcome = await self._in_savepoint(lanes, inner, running)
                    running = None
                    failpoints.hit("single.handled")
                    touched = await self._apply(lanes, inner, items, last)
                    failpoints.hit("single.applied")
                failpoints.hit("single.committed")
                break
            except (Fenced, CursorMoved, Undecided):
                raise
            except MarkMoved:
                await self._decide_again(items)
            except Exception as error:
                if running is None and isinstance(error, _NOT_THE_HANDLERS):
                    raise
                await self._rolled_back(items, running, error)
        self._committed(touched, last, items)
        for item in items:
            if type(item.outcome) is Taken and item.outcome.state is not DeliveryState.QUEUED:
                lanes[item.lane].blocked.add((item.handler.name, item.record.key))

    async def _rolled_back(self, items: Sequence[Item], running: Item | None, error: Exception) -> None:
        """Blames the handler that ran, or all whose results could not be written, and lets the others run again."""
        done = [item for item in items if isinstance(item.outcome, Done)]
        undone = [item for item in done if item.handler.transaction is not None]
        for item in undone:
            item.unknown, item.outcome = True, None
        await self._blame([running] if running else done if isinstance(error, Rejection) else undone, error)

    async def _decide_again(self, items: Sequence[Item]) -> None:
        """What was remembered of a key is not so any more: nobody's fault, and no attempt. Those without a transaction
        run again here."""
        self._ledger.doubt()
        self._doubts.add(items)
        for item in items:
            done = item.outcome
            if item.handler.transaction is not None:
                item.unknown, item.outcome = item.unknown or done is not None, None
                await self._invoker.decide_aside(item, self._origin)
            elif isinstance(done, Done) and item.handler.keeps is not None:
                if done.marks:  # otherwise it was passed over
                    item.unknown, item.ran = True, None if item.rescued else done
                item.outcome = None
                await self._run_again(item)
            elif isinstance(done, Taken) and done.marks:
                # It was about to be parked. Due instead, because what waits behind it cannot be decided on here.
                item.outcome = msgspec.structs.replace(done, state=DeliveryState.DELAYED, marks=())

    async def _run_again(self, item: Item) -> None:
        seat = Seat(item)
        task = asyncio.create_task(run_attempts(self._invoker, self._origin, item, seat))
        item.outcome = await watch(task, seat, self._invoker.group)

    async def _blame(self, items: Sequence[Item], error: Exception) -> None:
        """Counts an attempt; handlers without a transaction make the next one here, if that is due at once."""
        if not items:
            raise error
        self._doubts.add(items)
        for item in items:
            item.attempts += 1
            item.outcome = await self._invoker.failed(item, self._origin, error)
            if item.outcome is None and item.handler.transaction is None:
                await self._run_again(item)

    async def _in_savepoint(self, lanes: dict[int, LaneState], inner: StoreTransaction, item: Item) -> Outcome:
        while True:
            try:
                async with inner.savepoint():
                    return await self._in_transaction(lanes, inner, item)
            except (MarkMoved, Undecided):
                raise
            except Exception as error:
                await inner.now()  # raises if the transaction is gone too
                item.attempts += 1
                outcome = await self._invoker.failed(item, self._origin, error, aside=False)
                if outcome is not None:
                    return outcome

    # --- committing ---------------------------------------------------------------------------------------------------

    async def _apply(
        self, lanes: dict[int, LaneState], inner: StoreTransaction, items: Sequence[Item], last: Record
    ) -> list[LaneState]:
        if self._ledger.written:
            release(items)
        owners = by_lane(lanes, items)
        units = [run_unit(lane, own, last) for lane, own in owners]
        if share_marks(units):
            for unit in units:
                await inner.apply(unit)
        else:
            await inner.apply_all(units)
        return [lane for lane, _ in owners]

    async def _commit(self, lanes: dict[int, LaneState], items: Sequence[Item], last: Record) -> None:
        if self._ledger.written:
            release(items)
        owners = by_lane(lanes, items)
        units = [run_unit(lane, own, last) for lane, own in owners]
        if share_marks(units):
            for (lane, own), unit in zip(owners, units, strict=True):
                await self._commit_behind(lane, own, unit, last)
            return
        results = await asyncio.gather(*map(self._submit.submit, units), return_exceptions=True)
        fine = [pair for pair, result in zip(owners, results, strict=True) if _ok(result)]
        self._committed([lane for lane, _ in fine], last, [item for _, own in fine for item in own])
        for (lane, own), result in zip(owners, results, strict=True):
            if isinstance(result, Rejection) and not isinstance(result, _NOT_THE_HANDLERS):
                await self._commit_singly(lane, own, last)
            elif isinstance(result, BaseException):
                raise result

    async def _commit_behind(self, lane: LaneState, items: Sequence[Item], unit: Unit, last: Record) -> None:
        """A unit that may have been decided on those of other lanes: each waits for the one before it."""
        if not self._doubts.concern(items):
            try:
                await self._submit.submit(unit)
            except Rejection as error:
                if isinstance(error, _NOT_THE_HANDLERS):
                    raise
            else:
                self._committed([lane], last, items)
                return
        await self._commit_singly(lane, items, last)

    async def _commit_singly(self, lane: LaneState, items: Sequence[Item], last: Record) -> None:
        """A unit for each message, because the result of one cannot be written; that is its handler's failure."""
        for _, group in groupby(items, key=_position):
            single = list(group)
            end = last if single[-1] is items[-1] else single[-1].record
            if self._doubts.concern(single):
                await self._decide_again(single)
            while True:
                try:
                    await self._submit.submit(run_unit(lane, single, end))
                    break
                except Rejection as error:
                    if isinstance(error, _NOT_THE_HANDLERS):
                        raise
                    if isinstance(error, MarkMoved):
                        await self._decide_again(single)
                        continue
                    await self._blame([item for item in single if isinstance(item.outcome, Done)], error)
            self._committed([lane], end, single)
            _hold_back(lane, single, items)

    def _committed(self, lanes: Iterable[LaneState], last: Record, items: Sequence[Item]) -> None:
        self._ledger.settled()
        if self._local is not None:
            done = [(item.record, item.outcome) for item in items if isinstance(item.outcome, Done)]
            if heard := [record for record, one in done if any(reply.heard for reply in one.replies)]:
                self._local.answer(heard)
        for lane in lanes:
            lane.position = lane.scanned = last.position
            lane.id = lane.scanned_id = last.id
            lane.takeovers = 0


def _position(item: Item) -> int:
    return item.record.position


def _ok(result: object) -> bool:
    return not isinstance(result, BaseException)


def _hold_back(lane: LaneState, failed: Iterable[Item], items: Iterable[Item]) -> None:
    """What had been handled behind a message that turned out to have failed waits for it after all."""
    keys = {(item.handler.name, item.record.key) for item in failed if isinstance(item.outcome, Taken)} - lane.blocked
    lane.blocked |= keys
    behind = max(item.record.position for item in failed)
    for item in items if keys else ():
        if item.record.position > behind and (item.handler.name, item.record.key) in keys:
            item.unknown, item.outcome = True, WAITING
