"""Group commit, with a store that does what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import Context
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest

from skald.errors import Busy, CursorMoved, Overloaded, Rejection, Stopped, StoreUnavailable
from skald.runtime.committer import Committer
from skald.unit import Append, Committed, CursorMove, Unit


class Script:
    """A store whose commits wait for ``go`` and then answer what ``answer`` says of each unit; ``at_once`` it commits
    without a turn of the loop whenever there is nothing to wait for."""

    service = "orders"

    def __init__(self, writers: int = 1, exclusive: bool = False, at_once: bool = False) -> None:
        self.features = SimpleNamespace(writers=writers, exclusive_transactions=exclusive, commits_at_once=at_once)
        self.groups: list[list[Unit]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.answer: Callable[[Unit], Committed | Rejection] = lambda unit: Committed()
        self.failing: BaseException | None = None
        self.running: set[str] = set()
        self.begun: asyncio.Queue[int] = asyncio.Queue()
        """How many groups there are, each time that one begins."""

    def ensure_free(self) -> None:
        pass

    async def commit(self, units: Sequence[Unit], *, patient: bool = False) -> list[Committed | Rejection]:
        keys = self._begin(units)
        self.running.update(keys)
        await self.go.wait()
        self.running.difference_update(keys)
        return self._end(units)

    def commit_at_once(self, units: Sequence[Unit]) -> list[Committed | Rejection] | None:
        if not self.go.is_set():
            return None
        self._begin(units)
        return self._end(units)

    def _begin(self, units: Sequence[Unit]) -> list[str]:
        self.groups.append(list(units))
        self.begun.put_nowait(len(self.groups))
        keys = list(chain.from_iterable(map(Unit.keys, units)))
        assert len(keys) == len(set(keys)), "a group holds one unit per key"
        assert self.running.isdisjoint(keys), "two groups in flight hold the same key"
        return keys

    def _end(self, units: Sequence[Unit]) -> list[Committed | Rejection]:
        if self.failing is not None:
            raise self.failing
        return [self.answer(unit) for unit in units]


@pytest.fixture(params=[(1, False), (1, True), (2, False), (3, False)], ids=["1", "at once", "2", "3"])
async def script(request: pytest.FixtureRequest) -> Script:
    writers, at_once = request.param
    return Script(writers, at_once=at_once)


@pytest.fixture
async def committer(script: Script) -> AsyncIterator[Committer]:
    made = committer_of(script)
    made.start()
    yield made
    script.go.set()
    await asyncio.wait_for(made.stop(), 10)


def committer_of(script: Script, **options: Any) -> Committer:
    return Committer(script, **options)  # type: ignore[arg-type]


def unit(key: int | None = None, fence: str | None = None) -> Unit:
    return Unit(appends=() if key is None else (Append(f"s{key}", ()),), fence=fence)


async def test_what_gathers_during_a_commit_shares_the_next(script: Script, committer: Committer) -> None:
    script.go.clear()
    first = [committer.submit(unit()) for _ in range(script.features.writers)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    more = [committer.submit(unit()) for _ in range(100)]
    script.go.set()
    await asyncio.gather(*first, *more)
    assert sum(map(len, script.groups)) == 100 + len(first)
    assert len(script.groups) <= 2 * script.features.writers + 1


async def test_units_of_one_key_are_committed_one_after_the_other_in_order(
    script: Script, committer: Committer
) -> None:
    order: list[int] = []

    async def one(number: int) -> None:
        await committer.submit(Unit(appends=(Append("same", ()),), fence=str(number)))
        order.append(number)

    await asyncio.gather(*(one(number) for number in range(30)), *(committer.submit(unit(n)) for n in range(50)))
    fences = [u.fence for group in script.groups for u in group if u.fence is not None]
    assert fences == [str(number) for number in range(30)]
    assert order == list(range(30))


@pytest.mark.parametrize("writers", [2, 3])
async def test_what_comes_meanwhile_is_taken_by_whoever_is_free(writers: int) -> None:
    script = Script(writers)
    committer = committer_of(script)
    committer.start()
    await committer.submit(unit())  # all are asleep behind it
    script.go.clear()
    futures = []
    for number in range(1 + writers):
        assert await asyncio.wait_for(script.begun.get(), 10) == 1 + number
        futures.append(committer.submit(unit(number)))
    futures.append(committer.submit(unit(1 + writers)))
    script.go.set()
    await asyncio.wait_for(asyncio.gather(*futures), 10)
    assert [len(group) for group in script.groups] == [1] * (1 + writers) + [2], (
        "the last two came when nobody was free"
    )
    await asyncio.wait_for(committer.stop(), 10)


async def test_a_rejection_is_its_units_alone(script: Script, committer: Committer) -> None:
    rejection = CursorMoved("g", "o", 1)
    script.answer = lambda u: rejection if u.cursor is not None else Committed()
    move = Unit(cursor=CursorMove("g", "o", 1, "me", 0, 0, 1, "x"))
    results = await asyncio.gather(*map(committer.submit, [unit(), move, unit(7)]), return_exceptions=True)
    assert results == [Committed(), rejection, Committed()]


async def test_a_store_that_is_away_fails_the_group_and_not_the_next(script: Script, committer: Committer) -> None:
    script.failing = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await committer.submit(unit())
    script.failing = None
    await committer.submit(unit())


@pytest.mark.parametrize("exclusive", [False, True])
async def test_a_busy_unit_is_tried_again_beside_the_others(exclusive: bool) -> None:
    script = Script(exclusive=exclusive)
    committer = committer_of(script)
    committer.start()
    held = True
    script.answer = lambda u: Busy("s1") if held and u.keys() == ["stream:s1"] else Committed()
    busy = committer.submit(unit(1))
    for n in range(5):
        await committer.submit(unit(10 + n))
    assert not busy.done()
    held = False
    await asyncio.wait_for(busy, 10)
    await committer.stop()


async def test_overload_is_refused_at_the_door_and_owners_are_not(script: Script, committer: Committer) -> None:
    small = committer_of(script, max_pending=5, max_group=1)
    small.start()
    script.go.clear()
    futures = [small.submit(unit()) for _ in range(50)]
    await asyncio.sleep(0)
    futures += [small.submit(unit()) for _ in range(50)]
    owner = small.submit(Unit(cursor=CursorMove("g", "o", 1, "me", 0, 0, 1, "x"), fence="me"))
    script.go.set()
    results = await asyncio.gather(*futures, return_exceptions=True)
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert 50 < len(refused) < 100
    assert refused[0].retry_after > 0
    assert all(result == Committed() for result in results if not isinstance(result, Overloaded))
    await owner
    await small.submit(unit())
    await small.stop()


async def test_busy_units_count_as_waiting() -> None:
    script = Script()
    committer = committer_of(script, max_pending=5, patience=0.05)
    committer.start()
    script.answer = lambda u: Busy("s")
    first = [committer.submit(unit(n)) for n in range(5)]
    while committer._busy < 5:
        await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await committer.submit(unit(9))
    assert all(isinstance(r, Busy) for r in await asyncio.gather(*first, return_exceptions=True))
    script.answer = lambda u: Committed()
    await committer.submit(unit(9))
    await committer.stop()


async def test_stopping_commits_what_is_pending_and_refuses_the_rest(script: Script) -> None:
    committer = committer_of(script)
    with pytest.raises(Stopped):
        await committer.submit(unit())
    await committer.stop()
    committer = committer_of(script)
    committer.start()
    futures = [committer.submit(unit(n % 3)) for n in range(20)]
    await asyncio.wait_for(committer.stop(), 10)
    await committer.stop()
    assert await asyncio.gather(*futures) == [Committed()] * 20
    with pytest.raises(Stopped):
        await committer.submit(unit())


async def test_a_defect_of_the_committer_leaves_nobody_waiting() -> None:
    script = Script()
    committer = committer_of(script)
    committer.start()
    script.go.clear()
    first = committer.submit(unit(1))
    await asyncio.sleep(0)
    waiting = [committer.submit(unit(1)) for _ in range(3)]
    for task in committer._tasks:
        task.cancel()
    results = await asyncio.wait_for(asyncio.gather(first, *waiting, return_exceptions=True), 10)
    assert all(isinstance(result, Stopped) for result in results)
    with pytest.raises(Stopped):
        await committer.submit(unit())


async def test_one_writer_that_ends_takes_the_others_with_it() -> None:
    script = Script(writers=2)
    committer = committer_of(script)
    committer.start()
    await committer.submit(unit())  # all are asleep behind it
    script.go.clear()
    futures = [committer.submit(unit(1)), committer.submit(unit(1))]
    while await asyncio.wait_for(script.begun.get(), 10) < 2:
        pass
    assert len(script.groups[-1]) == 1, "one is being committed, the other one has to wait for its key"
    script.failing = asyncio.CancelledError()
    script.go.set()
    results = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)
    assert all(isinstance(result, Stopped) for result in results)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(committer.stop(), 10)


async def test_a_cancelled_caller_takes_its_unit_with_it(script: Script, committer: Committer) -> None:
    script.go.clear()
    blocking = [committer.submit(unit(1)) for _ in range(script.features.writers)]
    await asyncio.sleep(0)
    future = committer.submit(Unit(appends=(Append("s1", ()),), fence="cancelled"))
    future.cancel()
    script.go.set()
    await asyncio.gather(*blocking)
    await committer.submit(unit(1))
    assert "cancelled" not in {u.fence for group in script.groups for u in group}


async def test_what_is_committed_at_once_is_one_group() -> None:
    """Nobody else would take the other half."""
    script = Script(at_once=True)
    committer = committer_of(script)
    committer.start()
    await asyncio.gather(*(committer.submit(unit()) for _ in range(100)))
    assert [len(group) for group in script.groups] == [100]
    await committer.stop()


async def test_who_wants_to_be_called_is_called_outside_of_any_task() -> None:
    for at_once in (True, False):
        script = Script(at_once=at_once)
        committer = committer_of(script)
        committer.start()
        told: list[Any] = []

        def then(outcome: Committed | BaseException, told: list[Any] = told) -> None:
            told.append((outcome, asyncio.current_task()))

        script.answer = lambda unit: CursorMoved("g", "o", 1) if unit.appends else Committed()
        committer.submit_open(unit, then, Context())
        committer.submit_open(lambda: unit(7), then, Context())
        await committer.submit(unit())
        await asyncio.sleep(0)
        assert [(type(outcome), task) for outcome, task in told] == [(Committed, None), (CursorMoved, None)]
        await committer.stop()
        committer.submit_open(unit, then, Context())
        await asyncio.sleep(0)
        assert isinstance(told[2][0], Stopped)
