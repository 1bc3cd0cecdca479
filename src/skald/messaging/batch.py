"""Runs handlers over a stretch of one origin's log and commits what they decided, with the cursors, in order.

Handlers without a transaction run concurrently, one chain per key; their results are committed with the stretch.
Handlers with a transaction run one after another inside the transaction that moves the cursors, at most 50 of them
and 50 ms at a time. That is optimistic: if one raises, the transaction is rolled back and its messages are repeated
with a transaction each, where a savepoint undoes a failed handler alone.

A handler slower than ``patience`` does not hold up its stretch: its message becomes a delivery in state ``running``,
its key is blocked, the cursors move on, and its result is committed on its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import msgspec

from skald.clock import Clock
from skald.errors import CursorMoved, Fenced, StoreUnavailable, TransactionConflict, TransactionTooLong
from skald.message import Record
from skald.messaging.connection import Submit
from skald.messaging.invoke import Invoker
from skald.messaging.outcome import WAITING, Done, Item, LaneState, Outcome, Taken, cut, run_unit
from skald.messaging.publisher import Publisher
from skald.messaging.transaction import Transaction
from skald.store import Store
from skald.store import Transaction as StoreTransaction
from skald.unit import DeliveryState

MAX_TRANSACTIONAL = 50
MAX_TRANSACTION_SECONDS = 0.05

_ENDS_TRANSACTION = (StoreUnavailable, TransactionTooLong, TransactionConflict, Fenced, CursorMoved)


class Seat(msgspec.Struct):
    """Where one worker stands: what it runs, since when, and whether it was left behind by its stretch."""

    item: Item | None = None
    started: float = 0.0
    rest: list[Item] = msgspec.field(default_factory=list)
    spilled: bool = False
    timed_out: bool = False


class Straggler(msgspec.Struct, frozen=True):
    """A handler that outlived its stretch; ``task`` ends with its outcome."""

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
    ) -> None:
        self._store, self._submit, self._invoker, self._publisher = store, submit, invoker, publisher
        self._clock, self._origin = clock, origin
        self._concurrency, self._patience, self._on_straggler = concurrency, patience, on_straggler

    async def run(self, lanes: dict[int, LaneState], items: Sequence[Item], last: Record) -> None:
        """Handles the items in order and moves the cursors of their lanes, in the end to ``last``.

        Raises ``CursorMoved`` or ``Fenced`` if a lane is not this process's any more; what was committed stays.
        """
        stragglers: list[Straggler] = []
        start = 0
        while start < len(items):
            stop = start + cut(items[start:])
            segment = items[start:stop]
            plain = [i for i in segment if i.handler.transaction is None and i.outcome is None]
            if plain:
                stragglers += await self._concurrently(lanes, plain)
            end = last if stop == len(items) else segment[-1].record
            if any(i.outcome is None for i in segment):
                await self._transactionally(lanes, segment, end)
            else:
                await self._commit(lanes, segment, end)
            # Only now do their deliveries exist, so only now may they end.
            for straggler in stragglers:
                self._on_straggler(straggler)
            stragglers.clear()
            start = stop

    # --- without a transaction ----------------------------------------------------------------------------------------

    async def _concurrently(self, lanes: dict[int, LaneState], items: list[Item]) -> list[Straggler]:
        chains: dict[str, list[Item]] = {}
        for item in items:
            chains.setdefault(item.record.key, []).append(item)
        queue = deque(chains.values())
        stragglers: list[Straggler] = []
        while queue:
            seats = [Seat() for _ in range(min(len(queue), self._concurrency))]
            tasks = [asyncio.create_task(self._work(lanes, queue, seat)) for seat in seats]
            try:
                await asyncio.wait(tasks, timeout=self._patience)
            except asyncio.CancelledError:
                for task in tasks:
                    task.cancel()
                raise
            for seat, task in zip(seats, tasks, strict=True):
                if task.done():
                    task.result()
                elif seat.item is not None:
                    stragglers.append(self._spill(lanes, queue, seat, task))
        return stragglers

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
        seat.spilled = True
        lane.blocked.add((item.handler.name, item.record.key))
        item.outcome = Taken(DeliveryState.RUNNING, item.attempts + 1, self._clock.now())
        if seat.rest:
            queue.appendleft(seat.rest)
            seat.rest = []
        running = msgspec.structs.replace(item, outcome=None)
        seat.item = running
        return Straggler(running, lane, seat, task)

    # --- with a transaction -------------------------------------------------------------------------------------------

    async def _transactionally(self, lanes: dict[int, LaneState], items: Sequence[Item], end: Record) -> None:
        start = 0
        while start < len(items):
            ours = [item for item in items[start:] if item.outcome is None]
            try:
                start = await self._optimistically(lanes, items, start, end)
            except (StoreUnavailable, Fenced, CursorMoved):
                raise
            except Exception:
                # Something in this transaction failed; find out what, with a transaction for each message.
                for item in ours:
                    item.outcome = None
                for _, group in groupby(items[start:], key=lambda item: item.record.position):
                    single = list(group)
                    rest = start + len(single)
                    await self._singly(lanes, single, end if rest == len(items) else single[-1].record)
                    start = rest

    async def _optimistically(
        self, lanes: dict[int, LaneState], items: Sequence[Item], start: int, end: Record
    ) -> int:
        """Runs and commits items from ``start`` on; returns the index of the first one that is left."""
        loop = asyncio.get_running_loop()
        index, count, began = start, 0, loop.time()
        async with self._store.transaction() as inner:
            while index < len(items):
                item = items[index]
                if item.outcome is None:
                    item.outcome = await self._in_transaction(lanes, inner, item)
                    count += 1
                index += 1
                full = count >= MAX_TRANSACTIONAL or loop.time() - began > MAX_TRANSACTION_SECONDS
                if full and (index == len(items) or items[index].record.position != item.record.position):
                    break
            last = end if index == len(items) else items[index - 1].record
            touched = await self._apply(lanes, inner, items[start:index], last)
        _advance(touched, last)
        return index

    async def _in_transaction(self, lanes: dict[int, LaneState], inner: StoreTransaction, item: Item) -> Outcome:
        if (item.handler.name, item.record.key) in lanes[item.lane].blocked:
            return WAITING
        return await call_with(self._invoker, self._publisher, self._origin, inner, item)

    async def _singly(self, lanes: dict[int, LaneState], items: Sequence[Item], last: Record) -> None:
        """One message in a transaction of its own, as often as its policy says."""
        while True:
            ours = [item for item in items if item.outcome is None]
            try:
                async with self._store.transaction() as inner:
                    for item in ours:
                        item.outcome = await self._in_savepoint(lanes, inner, item)
                    touched = await self._apply(lanes, inner, items, last)
                break
            except (StoreUnavailable, Fenced, CursorMoved):
                raise
            except Exception as error:
                for item in ours:
                    item.attempts += 1
                    item.outcome = await self._invoker.failed(item, self._origin, error)
        _advance(touched, last)
        for item in items:
            if type(item.outcome) is Taken and item.outcome.state is not DeliveryState.QUEUED:
                lanes[item.lane].blocked.add((item.handler.name, item.record.key))

    async def _in_savepoint(self, lanes: dict[int, LaneState], inner: StoreTransaction, item: Item) -> Outcome:
        while True:
            try:
                async with inner.savepoint():
                    return await self._in_transaction(lanes, inner, item)
            except _ENDS_TRANSACTION:
                raise
            except Exception as error:
                item.attempts += 1
                outcome = await self._invoker.failed(item, self._origin, error)
                if outcome is not None:
                    return outcome

    # --- committing ---------------------------------------------------------------------------------------------------

    async def _apply(
        self, lanes: dict[int, LaneState], inner: StoreTransaction, items: Sequence[Item], last: Record
    ) -> list[LaneState]:
        touched = []
        for lane, own in _by_lane(lanes, items):
            await inner.apply(run_unit(lane, own, last))
            touched.append(lane)
        return touched

    async def _commit(self, lanes: dict[int, LaneState], items: Sequence[Item], last: Record) -> None:
        by_lane = _by_lane(lanes, items)
        results = await asyncio.gather(
            *(self._submit.submit(run_unit(lane, own, last)) for lane, own in by_lane), return_exceptions=True
        )
        _advance([lane for (lane, _), result in zip(by_lane, results, strict=True) if _ok(result)], last)
        for result in results:
            if isinstance(result, BaseException):
                raise result


def _ok(result: object) -> bool:
    return not isinstance(result, BaseException)


def _by_lane(lanes: dict[int, LaneState], items: Iterable[Item]) -> list[tuple[LaneState, list[Item]]]:
    found: dict[int, list[Item]] = {}
    for item in items:
        found.setdefault(item.lane, []).append(item)
    return [(lanes[number], own) for number, own in found.items()]


def _advance(lanes: Iterable[LaneState], last: Record) -> None:
    for lane in lanes:
        lane.position = lane.scanned = last.position
        lane.id = lane.scanned_id = last.id
        lane.takeovers = 0


async def call_with(
    invoker: Invoker, publisher: Publisher, origin: str, inner: StoreTransaction, item: Item
) -> Done:
    """One attempt inside a transaction; what the handler published through it joins what it returned."""
    transaction = Transaction(inner, publisher)
    async with asyncio.timeout(item.handler.timeout):
        done = await invoker.call(item, origin, transaction)
    collected = transaction.collected()
    if not collected:
        return done
    return Done(
        tuple(record for unit in collected for record in unit.events) + done.events,
        tuple(record for unit in collected for record in unit.messages) + done.messages,
    )


async def run_attempts(invoker: Invoker, origin: str, item: Item, seat: Seat) -> Outcome:
    """Attempts at once as the policy says. Whoever watches the seat ends an attempt that takes too long."""
    loop = asyncio.get_running_loop()
    while True:
        seat.started = loop.time()
        try:
            return await invoker.call(item, origin)
        except asyncio.CancelledError:
            if not seat.timed_out:
                raise
            seat.timed_out = False
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            error: Exception = TimeoutError(f"no result within {item.handler.timeout:g} s")
        except Exception as raised:
            error = raised
        item.attempts += 1
        outcome = await invoker.failed(item, origin, error)
        if outcome is not None:
            return outcome
