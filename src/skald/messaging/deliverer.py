"""Brings one stored delivery to its end: attempts, and the commit of what came of them, guarded by the delivery's row.

That guard makes every commit here safe to repeat: whoever finds the row gone has come too late, or has been there
before. So an outcome that is known is committed again until the database takes it, and the handler is not run again
because of trouble that is not its own.

An attempt is written down before it is made (``running``, attempts + 1; a queue's delivery has an owner instead), so
that a message which ends its process every time runs out of attempts like any other. An attempt that ends because its
process gives up the lane is taken back, but the next one is told that the outcome is unknown.
"""

from __future__ import annotations

import asyncio

import msgspec

from skald import failpoints
from skald.clock import Clock
from skald.errors import Busy, DeliveryGone, Fenced, MarkMoved, Rejection, SkaldError, StoreUnavailable
from skald.message import Record
from skald.messaging.attempts import Seat, call_with, run_attempts, watch
from skald.messaging.connection import Submit
from skald.messaging.definition import Handler
from skald.messaging.invoke import Invoker
from skald.messaging.marks import Undecided
from skald.messaging.outcome import (
    ENDED,
    HANDED_OVER,
    Done,
    Item,
    Outcome,
    ProcessEnded,
    Taken,
    describe,
    resolve_unit,
)
from skald.messaging.publisher import Publisher
from skald.store import Store
from skald.telemetry import Parked, Recovering, Retried, emit
from skald.unit import Delivery, DeliveryState

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
_TROUBLE = (StoreUnavailable, Busy)


class Deliverer:
    """For the deliveries of one service. Raises ``DeliveryGone`` and ``Fenced``: somebody else has the delivery now."""

    def __init__(
        self, *, store: Store, submit: Submit, invoker: Invoker, publisher: Publisher, clock: Clock, owner: str
    ) -> None:
        self._store, self._submit, self._invoker, self._publisher = store, submit, invoker, publisher
        self._clock, self._owner = clock, owner

    async def deliver(self, stored: Delivery, handler: Handler) -> None:
        """Makes the next attempt; returns when the delivery is gone, or written down as it now stands."""
        unknown = stored.attempts > 0 or stored.error == HANDED_OVER
        item = Item(stored.record, handler, stored.lane, None, stored.attempts, unknown)
        if _has_crashed(stored):
            outcome = await self._invoker.failed(item, stored.origin, ProcessEnded())
            if outcome is not None:
                return await self._end(stored, item, outcome)
        if handler.queue is None:
            stored = await self._announce(stored)
            failpoints.hit("delivery.announced")
        decided = await self._attempt(stored, item)
        failpoints.hit("delivery.decided")
        if decided is not None:
            await self._end(stored, item, decided)
            failpoints.hit("delivery.ended")

    async def finish(self, stored: Delivery, item: Item, seat: Seat, task: asyncio.Task[Outcome | None]) -> None:
        """Waits for a handler that runs already, and ends its delivery."""
        await self._end(stored, item, await self._watch(stored, item, seat, task))

    async def _announce(self, stored: Delivery) -> Delivery:
        running = msgspec.structs.replace(stored, state=DeliveryState.RUNNING, attempts=stored.attempts + 1)
        taken = Taken(running.state, running.attempts, running.due, running.error)
        await self._submit.submit(resolve_unit(self._owner, stored, taken))
        return msgspec.structs.replace(running, owner=None)

    async def _attempt(self, stored: Delivery, item: Item) -> Outcome | None:
        """What the attempts have come to; ``None`` if that is committed already."""
        if item.handler.transaction is not None:
            return await self._in_transaction(stored, item)
        pause = FIRST_PAUSE
        while True:
            seat = Seat(item)
            try:
                return await self._watch(stored, item, seat, asyncio.create_task(self._attempts(stored, item, seat)))
            except Undecided as error:
                # What the handler has done before, and could not write, is known here alone.
                pause = await self._pause(stored, error, pause)

    async def _attempts(self, stored: Delivery, item: Item, seat: Seat) -> Outcome | None:
        return await run_attempts(self._invoker, stored.origin, item, seat)

    async def _watch(self, stored: Delivery, item: Item, seat: Seat, task: asyncio.Task[Outcome | None]) -> Outcome:
        try:
            return await watch(task, seat, self._invoker.group)
        except asyncio.CancelledError:
            if task.done():
                await self._take_back(stored, item, None if task.cancelled() or task.exception() else task.result())
            raise

    async def _in_transaction(self, stored: Delivery, item: Item) -> Outcome | None:
        """Attempts in a transaction each, until one is committed (``None``) or none is left for now."""
        pause = FIRST_PAUSE
        while True:
            handling = False
            try:
                async with self._store.transaction() as inner:
                    handling = True
                    done = await call_with(self._invoker, self._publisher, stored.origin, inner, item)
                    handling = False
                    await inner.apply(resolve_unit(self._owner, stored, done))
                    failpoints.hit("delivery.applied")
                self._ring(done)
                return None
            except asyncio.CancelledError:
                await self._take_back(stored, item, None)
                raise
            except MarkMoved:
                # Nobody's fault, and no attempt: what is remembered now decides.
                item.unknown = item.unknown or not handling
                await self._invoker.decide_aside(item, stored.origin)
            except Exception as error:
                if not handling and isinstance(error, (Fenced, DeliveryGone)):
                    raise
                if isinstance(error, Undecided) or (not handling and isinstance(error, _TROUBLE)):
                    item.unknown = True
                    pause = await self._pause(stored, error, pause)
                    continue
                item.attempts += 1
                outcome = await self._invoker.failed(item, stored.origin, error)
                if outcome is not None:
                    return outcome

    # --- the end of an attempt ----------------------------------------------------------------------------------------

    async def _end(self, stored: Delivery, item: Item, outcome: Outcome) -> None:
        pause = FIRST_PAUSE
        while True:
            if isinstance(outcome, Taken) and outcome.state is DeliveryState.DELAYED and item.handler.queue is not None:
                # Back into the queue, due later; any process may take it then.
                outcome = msgspec.structs.replace(outcome, state=DeliveryState.QUEUED)
            try:
                await self._submit.submit(resolve_unit(self._owner, stored, outcome))
                break
            except (Fenced, DeliveryGone):
                raise
            except _TROUBLE as error:
                pause = await self._pause(stored, error, pause)
            except MarkMoved:
                item.unknown = True
                item.ran = outcome if isinstance(outcome, Done) and not item.rescued else None
                decided = await self._attempt(stored, item)
                if decided is None:
                    return
                outcome = decided
            except Rejection as error:
                if not isinstance(outcome, Done):
                    raise
                # What the handler returned cannot be written, and so it has failed.
                item.attempts += 1
                decided = await self._invoker.failed(item, stored.origin, error) or await self._attempt(stored, item)
                if decided is None:
                    return
                outcome = decided
        if isinstance(outcome, Taken):
            self._tell(stored, outcome)
        else:
            self._ring(outcome)

    def _ring(self, done: Done) -> None:
        if done.timeouts:
            # The workers of their queues may have to wake up earlier.
            self._store.ring()

    async def _pause(self, stored: Delivery, error: Exception, pause: float) -> float:
        what = f"{stored.handler} at {stored.origin}:{stored.record.position}"
        emit(Recovering(stored.group, what, describe(error), pause))
        await asyncio.sleep(pause)
        return min(pause * 2, LONGEST_PAUSE)

    async def _take_back(self, stored: Delivery, item: Item, outcome: Outcome | None) -> None:
        """The attempt was cancelled, and has ended: another process may make it again, and nothing is counted."""
        if item.handler.queue is not None:
            return
        again = Taken(DeliveryState.DELAYED, item.attempts, self._clock.now(), HANDED_OVER)
        try:
            await self._submit.submit(resolve_unit(self._owner, stored, outcome or again))
        except SkaldError:
            # The row still says ``running``, and whoever comes next counts the attempt.
            return

    def _tell(self, stored: Delivery, taken: Taken) -> None:
        tell(stored.group, stored.handler, stored.origin, stored.record, taken, self._clock.now())


def _has_crashed(stored: Delivery) -> bool:
    if stored.state is DeliveryState.RUNNING:
        return stored.attempts > 0
    return stored.state is DeliveryState.QUEUED and stored.error == ENDED


def tell(group: str, handler: str, origin: str, record: Record, taken: Taken, now: int) -> None:
    """One line for a retry or a parking."""
    where = (group, handler, origin, record.position, record.id, record.correlation_id)
    if taken.state is DeliveryState.PARKED:
        emit(Parked(*where, taken.attempts, taken.error or ""))
    elif taken.state in (DeliveryState.DELAYED, DeliveryState.QUEUED) and taken.error is not None:
        emit(Retried(*where, taken.attempts, max(0, taken.due - now) / 1e6, taken.error))
