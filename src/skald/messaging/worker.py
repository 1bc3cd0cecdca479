"""Works on one queue: takes due work by priority, beside any number of other processes, and deletes what is done.

A process that dies counts an attempt for everything it was working on. So what has died with its process once is tried
again alone: if it was the cause, nobody else pays for it the next time.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from skald.clock import Clock
from skald.errors import DeliveryGone, Fenced, Stopped, StoreError
from skald.messaging import parking
from skald.messaging.attempts import GRACE
from skald.messaging.connection import Submit
from skald.messaging.definition import Handler
from skald.messaging.deliverer import LONGEST_PAUSE, Deliverer
from skald.messaging.invoke import Invoker
from skald.messaging.outcome import describe
from skald.messaging.publisher import Publisher
from skald.store import Store
from skald.telemetry import Recovering, emit
from skald.unit import Delivery

AGAIN = 1.0
"""Seconds before something unforeseen is tried again."""


class Worker:
    """``poll`` is the longest time (seconds) between looks; new work rings the bell of the service's own log."""

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
        self._group, self._handler, self._store = group, handler, store
        self._clock, self._owner, self._poll = clock, owner, poll
        self._deliverer = Deliverer(
            store=store, submit=submit, invoker=invoker, publisher=publisher, clock=clock, owner=owner
        )
        self._active: dict[asyncio.Task[None], Delivery] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._draining = True
        """Nothing new is begun until the suspects have been tried."""
        self._look_again_at = 0.0
        self._uncertain = False
        """What was taken last may be ours without our knowing."""
        assert handler.queue is not None
        self._seats = handler.queue.workers

    async def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    @property
    def busy(self) -> int:
        """Work that is being done, or just being taken."""
        return len(self._active) + self._uncertain

    async def due(self) -> int | None:
        """When further work is due that there is a seat for."""
        if self.busy >= self._seats:
            return None
        return (await parking.next_work(self._store, self._group, self._handler.name))[0]

    def look(self) -> None:
        """Asks for a look now, because the clock was set."""
        self._wake.set()

    async def run(self) -> None:
        """Until ``stop``; then ends what is being worked on, in order if there is time."""
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
                    pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            unlisten()
            await self._drop(GRACE if self._stopping else 0)

    async def _take(self) -> bool:
        free = self._seats - len(self._active)
        if free <= 0:
            return False
        found = []
        if self._uncertain:
            found = await parking.owned_work(self._store, self._group, self._handler.name, self._owner)
        await self._look_for_suspects()
        if self._draining and self._active:
            return False
        self._uncertain = True
        if self._draining:
            found += await self._claim(1, suspects=True)
            self._draining = bool(found)
        if not self._draining and len(found) < free:
            found += await self._claim(free - len(found), suspects=False)
        self._uncertain = False
        # What is ours may be in work already. What came back in the same moment in which its last attempt ended is not.
        new = [delivery for delivery in found if delivery not in self._active.values()]
        for delivery in new:
            task = asyncio.create_task(self._work(delivery))
            self._active[task] = delivery
            task.add_done_callback(self._ended)
        return bool(new)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._active[task]
        self._wake.set()

    async def _claim(self, limit: int, *, suspects: bool) -> list[Delivery]:
        return await parking.claim_work(
            self._store, self._group, self._handler.name, self._owner, limit, suspects=suspects
        )

    async def _look_for_suspects(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self._draining and now >= self._look_again_at:
            self._look_again_at = now + self._poll
            _, self._draining = await parking.next_work(self._store, self._group, self._handler.name)

    async def _sleep(self) -> None:
        seconds = self._poll
        if len(self._active) < self._seats and not (self._draining and self._active):
            due, self._draining = await parking.next_work(self._store, self._group, self._handler.name)
            if due is not None:
                seconds = min(seconds, max(0.01, (due - self._clock.now()) / 1e6))
        await self._until_woken(seconds)

    async def _until_woken(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _work(self, delivery: Delivery) -> None:
        # There is no event to wait for.
        while not await self._delivered(delivery):  # noqa: ASYNC110
            await asyncio.sleep(AGAIN)

    async def _delivered(self, delivery: Delivery) -> bool:
        try:
            await self._deliverer.deliver(delivery, self._handler)
        except (DeliveryGone, Fenced, Stopped):
            return True
        except Exception as error:
            # It is still ours, so nobody else will try it again.
            emit(Recovering(self._group, f"queue {self._handler.name}", describe(error), AGAIN))
            return False
        return True

    async def _drop(self, grace: float) -> None:
        tasks = list(self._active)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=GRACE + 1)
