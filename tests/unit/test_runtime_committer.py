"""Group commit, with a store that does what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest

from skald.errors import Busy, CursorMoved, Overloaded, Rejection, Stopped, StoreUnavailable
from skald.runtime.committer import Committer
from skald.unit import Append, Committed, CursorMove, Unit


class Script:
    """A store whose commits wait for ``go`` and then answer what ``answer`` says of each unit."""

    service = "orders"

    def __init__(self, writers: int = 1, exclusive: bool = False) -> None:
        self.features = SimpleNamespace(writers=writers, exclusive_transactions=exclusive)
        self.groups: list[list[Unit]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.answer: Callable[[Unit], Committed | Rejection] = lambda unit: Committed()
        self.failing: Exception | None = None
        self.running: set[str] = set()

    def ensure_free(self) -> None:
        pass

    async def commit(self, units: Sequence[Unit], *, patient: bool = False) -> list[Committed | Rejection]:
        self.groups.append(list(units))
        keys = list(chain.from_iterable(map(Unit.keys, units)))
        assert len(keys) == len(set(keys)), "a group holds one unit per key"
        assert self.running.isdisjoint(keys), "two groups in flight hold the same key"
        self.running.update(keys)
        await self.go.wait()
        self.running.difference_update(keys)
        if self.failing is not None:
            raise self.failing
        return [self.answer(unit) for unit in units]


@pytest.fixture(params=[1, 2, 3])
async def script(request: pytest.FixtureRequest) -> Script:
    return Script(request.param)


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
