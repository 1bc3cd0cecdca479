"""Works on one queue: takes due work by priority, beside any number of other processes, and deletes what is done."""

from __future__ import annotations

import asyncio

import msgspec

from skald.clock import Clock
from skald.errors import DeliveryGone, Fenced, Stopped, StoreError
from skald.messaging import parking
from skald.messaging.batch import Seat, call_with, run_attempts
from skald.messaging.connection import Submit
from skald.messaging.definition import Handler
from skald.messaging.invoke import Invoker
from skald.messaging.outcome import Done, Item, Taken, after_failure, describe, resolve_unit
from skald.messaging.publisher import Publisher
from skald.messaging.redelivery import ProcessEnded, watch
from skald.store import Store
from skald.telemetry import Parked, Recovering, Retried, emit
from skald.unit import Delivery, DeliveryState


class Worker:
    """``poll`` is the longest time (seconds) between looks; new work of this process wakes it at once."""

    def __init__(
        self,
        *,
        group: str,
        handler: Handler,
        store: Store,
        submit: Submit,
        invoker: Invoker,
        publisher: Publisher,
        clock: Clock,
        owner: str,
        poll: float = 5.0,
    ) -> None:
        self._group, self._handler, self._store, self._submit = group, handler, store, submit
        self._invoker, self._publisher, self._clock = invoker, publisher, clock
        self._owner, self._poll = owner, poll
        self._active: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        assert handler.queue is not None
        self._seats = handler.queue.workers

    def wake(self) -> None:
        self._wake.set()

    async def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Until ``stop``; then waits for what is being worked on."""
        pause = 0.1
        unlisten = self._store.log.listen(self._wake.set)
        try:
            while not self._stopping:
                self._wake.clear()
                try:
                    if not await self._take():
                        await self._sleep()
                    pause = 0.1
                except (StoreError, OSError) as error:
                    emit(Recovering(self._group, f"queue {self._handler.name}", describe(error), pause))
                    await self._until_woken(pause)
                    pause = min(pause * 2, 5.0)
        finally:
            unlisten()
            if self._active:
                await asyncio.wait(self._active)

    async def _take(self) -> bool:
        free = self._seats - len(self._active)
        if free <= 0:
            return False
        found = await parking.claim_work(self._store, self._group, self._handler.name, self._owner, free)
        for delivery in found:
            task = asyncio.create_task(self._work(delivery))
            self._active.add(task)
            task.add_done_callback(self._ended)
        return bool(found)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._active.discard(task)
        self._wake.set()

    async def _sleep(self) -> None:
        seconds = self._poll
        if len(self._active) < self._seats:
            due = await parking.next_work(self._store, self._group, self._handler.name)
            if due is not None:
                seconds = min(seconds, max(0.01, (due - self._clock.now()) / 1e6))
        await self._until_woken(seconds)

    async def _until_woken(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            return

    async def _work(self, delivery: Delivery) -> None:
        try:
            await self._attempt(delivery)
        except (DeliveryGone, Fenced, Stopped):
            return
        except StoreError as error:
            emit(Recovering(self._group, f"queue {self._handler.name}", describe(error), self._poll))

    async def _attempt(self, delivery: Delivery) -> None:
        item = Item(delivery.record, self._handler, delivery.lane, None, delivery.attempts, delivery.attempts > 0)
        if delivery.attempts and delivery.error is None:
            # Attempts without an error ended with their process.
            decision = after_failure(self._handler, ProcessEnded(), delivery.attempts, self._clock.now())
            if isinstance(decision, Taken) and decision.state is DeliveryState.PARKED:
                await self._end(delivery, decision)
                return
        if self._handler.transaction is not None:
            if await self._in_transaction(delivery, item):
                return
        else:
            seat = Seat(item)
            task = asyncio.create_task(run_attempts(self._invoker, delivery.origin, item, seat))
            item.outcome = await watch(task, seat, self._group)
        assert item.outcome is not None
        await self._end(delivery, item.outcome)

    async def _in_transaction(self, delivery: Delivery, item: Item) -> bool:
        while True:
            try:
                async with self._store.transaction() as inner:
                    done = await call_with(self._invoker, self._publisher, delivery.origin, inner, item)
                    await inner.apply(resolve_unit(self._owner, delivery, done))
                return True
            except (Fenced, DeliveryGone, Stopped):
                raise
            except Exception as error:
                item.attempts += 1
                item.outcome = await self._invoker.failed(item, delivery.origin, error)
                if item.outcome is not None:
                    return False

    async def _end(self, delivery: Delivery, outcome: Done | Taken) -> None:
        if isinstance(outcome, Taken):
            if outcome.state is DeliveryState.DELAYED:
                # Back into the queue, due later; any process may take it then.
                outcome = msgspec.structs.replace(outcome, state=DeliveryState.QUEUED)
            self._tell(delivery, outcome)
        await self._submit.submit(resolve_unit(self._owner, delivery, outcome))

    def _tell(self, delivery: Delivery, taken: Taken) -> None:
        record = delivery.record
        where = (self._group, delivery.handler, delivery.origin, record.position, record.id, record.correlation_id)
        if taken.state is DeliveryState.PARKED:
            emit(Parked(*where, taken.attempts, taken.error or ""))
        else:
            emit(Retried(*where, taken.attempts, (taken.due - self._clock.now()) / 1e6, taken.error or ""))
