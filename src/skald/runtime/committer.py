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
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Union

from skald import failpoints
from skald.errors import Busy, Overloaded, Rejection, SkaldError, Stopped
from skald.store import Store
from skald.unit import Committed, Unit


class _Told:
    """What stands for the future of a caller that wants to be called, and never inside a task."""

    __slots__ = ("_context", "_is_over", "_then")

    def __init__(self, then: Callable[[Committed | BaseException], None], context: Context) -> None:
        self._then, self._context, self._is_over = then, context, False

    def cancelled(self) -> bool:
        return False

    def done(self) -> bool:
        return self._is_over

    def set_result(self, outcome: Committed | BaseException) -> None:
        self._is_over = True
        loop = asyncio.get_running_loop()
        if asyncio.current_task(loop) is None:
            self._context.run(self._then, outcome)
        else:
            loop.call_soon(self._then, outcome, context=self._context)

    set_exception = set_result


_Waiter = Union["asyncio.Future[Committed]", _Told]
_Pending = tuple[Unit | Callable[[], Unit], _Waiter]
_Item = tuple[Unit, _Waiter]


MIN_GROUP = 20
"""Units: smaller groups are not shared out."""


class Committer:
    """``max_group`` bounds a group (units), ``max_pending`` what may wait before callers are refused (units)."""

    def __init__(
        self, store: Store, *, max_group: int = 200, max_pending: int = 20_000, patience: float = 30.0
    ) -> None:
        self._store, self._max_group, self._max_pending, self._patience = store, max_group, max_pending, patience
        self._ensure_free = store.ensure_free
        self._pending: deque[_Pending] = deque()
        self._patient: set[asyncio.Task[None]] = set()
        self._woken = False
        self._tasks: list[asyncio.Task[None]] = []
        self._asleep: list[asyncio.Future[None]] = []
        """The tasks that wait for something to do."""
        self._busy = 0
        """Units that are tried again beside the groups."""
        self._in_flight: set[str] = set()
        self._flying = 0
        """Groups."""
        self._at_once = store.features.commits_at_once
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = Context()
        self._stopping = False

    def start(self) -> None:
        name = f"skald:{self._store.service}:committer"
        self._loop = asyncio.get_running_loop()
        while len(self._tasks) < self._store.features.writers:
            self._tasks.append(asyncio.create_task(self._run(), name=name))

    async def stop(self) -> None:
        """Commits what is pending, then stops. Legal before ``start`` and twice."""
        self._stopping = True
        self._rouse()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await task
        if self._patient:
            await asyncio.wait(self._patient)

    def submit_open(
        self, close: Callable[[], Unit], then: Callable[[Committed | BaseException], None], context: Context
    ) -> None:
        """As ``submit``, for an owner's unit that still grows: ``close`` is called when its group is put together, and
        ``then`` when it is durable, or was not written; never inside a task, and in ``context``."""
        try:
            if self._stopping or not self._tasks:
                raise self._stopped()
            self._ensure_free()
        except SkaldError as error:
            asyncio.get_running_loop().call_soon(then, error, context=context)
            return
        self._pending.append((close, _Told(then, context)))
        if not self._woken:
            self._call()

    def submit(self, unit: Unit) -> asyncio.Future[Committed]:
        """Await it until the unit is durable; raises its ``Rejection``, or ``Overloaded`` when too much is pending."""
        # A plain function: a coroutine for each unit would cost as much as the rest of it.
        future: asyncio.Future[Committed] = asyncio.Future()
        try:
            # What an owner has handled is never refused: it is bounded by itself, and ends work instead of adding some.
            if len(self._pending) + self._busy >= self._max_pending and unit.fence is None:
                raise Overloaded(f"the commit queue of {self._store.service}")
            if self._stopping or not self._tasks:
                raise self._stopped()
            self._ensure_free()
        except SkaldError as error:
            future.set_exception(error)
            return future
        self._pending.append((unit, future))
        if not self._woken:
            self._call()
        return future

    def _stopped(self) -> Stopped:
        return Stopped(f"the committer of {self._store.service} is not running; nothing was written")

    # --- at once ------------------------------------------------------------------------------------------------------

    def _call(self) -> None:
        """Somebody has to look what is pending."""
        self._woken = True
        if not self._at_once or self._flying or self._loop is None:
            self._rouse()
        else:
            self._loop.call_soon(self._flush, context=self._context)

    def _rouse(self) -> None:
        """One task looks what is pending; where all of them are at work, each does when it is done."""
        while self._asleep:
            sleeper = self._asleep.pop()
            if not sleeper.done():
                sleeper.set_result(None)
                return

    def _flush(self) -> None:
        """Commits a small group without a task. Where that cannot be, a task does it."""
        if self._flying:
            self._rouse()
            return
        group, _ = self._take(1)
        outcomes: Sequence[Committed | Rejection] | None = ()
        if group:
            try:
                failpoints.hit("commit.before")
                outcomes = self._store.commit_at_once([unit for unit, _ in group])
                if outcomes is not None:
                    failpoints.hit("commit.after")
            except Exception as error:
                for _, waiter in group:
                    _settle(waiter, error)
        if outcomes is None:
            self._pending.extendleft(reversed(group))
            self._rouse()
            return
        self._woken = bool(self._pending)
        if self._woken:
            self._call()
        if outcomes:
            self._answer(group, outcomes)

    # --- by tasks -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._commit_all()
        except BaseException:
            # A defect; without this everybody would wait for ever.
            self._stopping = True
            while self._pending:
                _settle(self._pending.popleft()[1], self._failed())
            self._rouse()  # the others end, too
            raise

    def _failed(self) -> Stopped:
        return Stopped(f"the committer of {self._store.service} has ended; whether this was written is not known")

    async def _commit_all(self) -> None:
        while True:
            group, keys = self._take(len(self._asleep) + 1)
            if group:
                if self._asleep:
                    self._woken = bool(self._pending)
                    if self._woken:
                        self._rouse()
                self._in_flight |= keys
                self._flying += 1
                try:
                    await self._commit(group)
                finally:
                    self._flying -= 1
                    self._in_flight -= keys
            elif self._stopping and not self._pending:
                self._rouse()  # who ends as well, and so on
                return
            else:
                self._woken = False
                self._asleep.append(asyncio.get_running_loop().create_future())
                await self._asleep[-1]

    def _take(self, writers: int) -> tuple[list[_Item], set[str]]:
        """The next group and its keys: as much as there is, shared by so many writers."""
        group: list[_Item] = []
        taken: set[str] = set()
        pending = self._pending
        if not pending:
            return group, taken
        blocked = set(self._in_flight)
        held_back: list[_Pending] = []
        most = min(self._max_group, max(MIN_GROUP, -(-len(pending) // writers)))
        while pending and len(group) < most:
            item: Any = pending.popleft()
            unit, future = item
            if future.cancelled():
                continue
            if unit.__class__ is not Unit:
                item = unit, future = unit(), future
            if keys := unit.keys():
                if not blocked.isdisjoint(keys):
                    held_back.append(item)
                    if len(held_back) >= self._max_group:
                        break
                    # Nothing may overtake it on any of its keys.
                    blocked.update(keys)
                    continue
                taken.update(keys)
                blocked.update(keys)
            group.append(item)
        if held_back:
            pending.extendleft(reversed(held_back))
        return group, taken

    async def _commit(self, group: list[_Item]) -> None:
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
        self._answer(group, outcomes)

    def _answer(self, group: list[_Item], outcomes: Sequence[Committed | Rejection]) -> None:
        busy = []
        for item, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Committed):
                if not item[1].done():
                    item[1].set_result(outcome)
            elif isinstance(outcome, Busy):
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

    async def _retry(self, items: list[_Item]) -> None:
        """Tries busy units beside the groups, with growing pauses, until patience ends and the callers get ``Busy``."""
        try:
            await self._retry_until_settled(items)
        finally:
            self._busy -= len(items)

    async def _retry_until_settled(self, items: list[_Item]) -> None:
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


def _settle(future: _Waiter, outcome: Committed | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Committed):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
