"""The waiting room of units that found a key held: all of them are tried again together, so that many cost as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from skald.errors import Busy, Rejection, StoreUnavailable
from skald.unit import Committed, Unit

Outcome = Committed | Rejection
FIRST_PAUSE, LAST_PAUSE = 0.01, 0.05
MAX_TRIED = 100


class _Waiter:
    def __init__(self, unit: Unit, deadline: float) -> None:
        self.unit, self.deadline = unit, deadline
        self.keys = set(unit.keys())
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


class WaitingRoom:
    def __init__(self, commit: Callable[[Sequence[Unit]], Awaitable[list[Outcome]]], patience: float) -> None:
        self._commit, self._patience = commit, patience
        self._waiters: list[_Waiter] = []
        self._trying: list[_Waiter] = []
        self._task: asyncio.Task[None] | None = None

    async def commit(self, units: Sequence[Unit]) -> list[Outcome]:
        """Outcomes other than ``Busy`` as soon as they are known, ``Busy`` after the patience (seconds) is over."""
        loop = asyncio.get_running_loop()
        waiters = [_Waiter(unit, loop.time() + self._patience) for unit in units]
        self._waiters += waiters
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run(), name="skald postgres busy units")
        return list(await asyncio.gather(*[waiter.future for waiter in waiters]))

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for waiter in list(self._waiters):
            known = "whether this unit was written is not known" if waiter in self._trying else "nothing was written"
            self._settle(waiter, StoreUnavailable(f"the store was closed; {known}"))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while self._waiters:
            self._trying = batch = self._take()
            try:
                outcomes = await self._commit([waiter.unit for waiter in batch])
            except Exception as error:
                for waiter in batch:
                    self._settle(waiter, error)
                continue
            self._trying = []
            for waiter, outcome in zip(batch, outcomes, strict=True):
                if not isinstance(outcome, Busy) or loop.time() >= waiter.deadline:
                    self._settle(waiter, outcome)
            if any(isinstance(outcome, Committed) for outcome in outcomes):
                pause = FIRST_PAUSE
            if self._waiters:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)

    def _take(self) -> list[_Waiter]:
        """Those who have waited longest without a try, one for each key; they go to the end of the queue."""
        batch: list[_Waiter] = []
        keys: set[str] = set()
        self._waiters = [waiter for waiter in self._waiters if not waiter.future.done()]
        for waiter in self._waiters:
            if len(batch) < MAX_TRIED and keys.isdisjoint(waiter.keys):
                batch.append(waiter)
            # Also the keys of those left behind: nobody overtakes on a key.
            keys |= waiter.keys
        tried = set(map(id, batch))
        if len(self._waiters) > MAX_TRIED:
            self._waiters = [w for w in self._waiters if id(w) not in tried] + batch
        return batch

    def _settle(self, waiter: _Waiter, outcome: Outcome | Exception) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if waiter.future.done():
            return
        if isinstance(outcome, Rejection) or not isinstance(outcome, Exception):
            waiter.future.set_result(outcome)
        else:
            waiter.future.set_exception(outcome)
