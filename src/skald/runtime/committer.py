"""Group commit: what gathers while one commit is in flight shares the next one.

There is no timer: the first unit that arrives at an idle committer starts a commit at once, and everything submitted
while it runs goes into the following group, so groups grow with load and latency falls back with it. A group holds at
most one unit per key; later ones for the same key wait for the next group, which alone prevents two units of one
statement from being decided on each other's absence. A unit whose key is held by somebody's open transaction leaves
the group and is tried again beside it, so that nobody else waits.
"""

from __future__ import annotations

import asyncio
from collections import deque

from skald import failpoints
from skald.errors import Busy, Overloaded, Rejection, SkaldError, Stopped
from skald.store import Store
from skald.unit import Committed, Unit

_Pending = tuple[Unit, "asyncio.Future[Committed]"]


MIN_GROUP = 20
"""Units: smaller groups are not shared out."""


class Committer:
    """``max_group`` bounds a group (units), ``max_pending`` what may wait before callers are refused (units)."""

    def __init__(
        self, store: Store, *, max_group: int = 200, max_pending: int = 20_000, patience: float = 30.0
    ) -> None:
        self._store, self._max_group, self._max_pending, self._patience = store, max_group, max_pending, patience
        self._pending: deque[_Pending] = deque()
        self._patient: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._woken = False
        self._tasks: list[asyncio.Task[None]] = []
        self._busy = 0
        """Units that are tried again beside the groups."""
        self._idle = 0
        self._in_flight: set[str] = set()
        self._stopping = False

    def start(self) -> None:
        name = f"skald:{self._store.service}:committer"
        while len(self._tasks) < self._store.features.writers:
            self._tasks.append(asyncio.create_task(self._run(), name=name))

    async def stop(self) -> None:
        """Commits what is pending, then stops. Legal before ``start`` and twice."""
        self._stopping = True
        self._wake.set()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await task
        if self._patient:
            await asyncio.wait(self._patient)

    def submit(self, unit: Unit) -> asyncio.Future[Committed]:
        """Await it until the unit is durable; raises its ``Rejection``, or ``Overloaded`` when too much is pending."""
        # A plain function: a coroutine for each unit would cost as much as the rest of it.
        future: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        try:
            # What an owner has handled is never refused: it is bounded by itself, and ends work instead of adding some.
            if self._stopping or not self._tasks or (unit.fence is None and self._is_full()):
                self._refuse()
            self._store.ensure_free()
        except SkaldError as error:
            future.set_exception(error)
            return future
        self._pending.append((unit, future))
        if not self._woken:
            self._woken = True
            self._wake.set()
        return future

    def _is_full(self) -> bool:
        return len(self._pending) + self._busy >= self._max_pending

    def _refuse(self) -> None:
        if self._stopping or not self._tasks:
            raise Stopped(f"the committer of {self._store.service} is not running; nothing was written")
        raise Overloaded(f"the commit queue of {self._store.service}")

    async def _run(self) -> None:
        try:
            await self._commit_all()
        except BaseException:
            # A defect; without this everybody would wait for ever.
            self._stopping = True
            for _, future in self._pending:
                _settle(future, self._failed())
            raise

    def _failed(self) -> Stopped:
        return Stopped(f"the committer of {self._store.service} has ended; whether this was written is not known")

    async def _commit_all(self) -> None:
        while True:
            group = self._take()
            if group:
                keys = set[str]().union(*(unit.keys() for unit, _ in group))
                self._in_flight |= keys
                await self._commit(group)
                self._in_flight -= keys
                if self._idle and self._pending:
                    # What was held back for these keys waits at the other writer.
                    self._wake.set()
            elif self._stopping and not self._pending:
                return
            else:
                self._idle += 1
                self._wake.clear()
                self._woken = False
                await self._wake.wait()
                self._idle -= 1

    def _take(self) -> list[_Pending]:
        """The next group: as much as there is, shared with the writers that wait beside this one."""
        group: list[_Pending] = []
        keys: set[str] = set(self._in_flight)
        held_back: list[_Pending] = []
        most = min(self._max_group, max(MIN_GROUP, -(-len(self._pending) // (self._idle + 1))))
        while self._pending and len(group) < most:
            item = self._pending.popleft()
            if item[1].cancelled():
                continue
            wanted = item[0].keys()
            if not wanted:
                group.append(item)
                continue
            if not keys.isdisjoint(wanted):
                held_back.append(item)
                if len(held_back) >= self._max_group:
                    break
            else:
                group.append(item)
            # Also those of a unit held back: nothing may overtake it on any of its keys.
            keys.update(wanted)
        self._pending.extendleft(reversed(held_back))
        return group

    async def _commit(self, group: list[_Pending]) -> None:
        if not group:
            return
        try:
            failpoints.hit("commit.before")
            outcomes = await self._store.commit([unit for unit, _ in group])
            failpoints.hit("commit.after")
        except BaseException as error:
            told = error if isinstance(error, Exception) else self._failed()
            for _, future in group:
                _settle(future, told)
            if told is not error:
                raise
            return
        busy = []
        for item, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Busy):
                busy.append(item)
            else:
                _settle(item[1], outcome)
        # Where one open transaction keeps everybody out, they wait for the same thing and stay one group.
        together = self._store.features.exclusive_transactions
        for some in [busy] if busy and together else [[item] for item in busy]:
            self._busy += len(some)
            task = asyncio.create_task(self._retry(some))
            self._patient.add(task)
            task.add_done_callback(self._patient.discard)

    async def _retry(self, items: list[_Pending]) -> None:
        """Tries busy units beside the groups, with growing pauses, until patience ends and the callers get ``Busy``."""
        try:
            await self._retry_until_settled(items)
        finally:
            self._busy -= len(items)

    async def _retry_until_settled(self, items: list[_Pending]) -> None:
        loop = asyncio.get_running_loop()
        end, pause = loop.time() + self._patience, 0.01
        while items := [item for item in items if not item[1].done()]:
            try:
                outcomes: list[Committed | Rejection] | Exception
                outcomes = await self._store.commit([unit for unit, _ in items], patient=True)
            except Exception as error:
                outcomes = error
            last = loop.time() + pause > end or self._stopping
            for index, (_, future) in enumerate(items):
                outcome = outcomes if isinstance(outcomes, Exception) else outcomes[index]
                if last or not isinstance(outcome, Busy):
                    _settle(future, outcome)
            if not last:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)


def _settle(future: asyncio.Future[Committed], outcome: Committed | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Committed):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
