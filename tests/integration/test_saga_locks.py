"""Locks of sagas: one holder of a key, the others in order, and free again after every end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import pytest

from skald import NEVER, Handle, LockTaken, SagaCompensated, Service, compensation, lock, saga, step, workflow
from skald.errors import WorkflowError, WorkflowFailed
from skald.testing.workflows import Lab, crash_everywhere, laboratory
from skald.unit import Unit, WorkflowWrites
from skald.workflows import Signal
from skald.workflows.locking import Conflict, granted

go = Signal("go", str)
stock: dict[str, int] = {}
"""What is left; reserved at once, and given back by the compensation: in between it is tentative."""
trouble: dict[str, Exception] = {}


@compensation(retry=NEVER)
async def give_back(item: str) -> None:
    if item in trouble:
        raise trouble[item]
    stock[item] += 1


@step(compensate=give_back)
async def take(item: str) -> None:
    stock[item] -= 1


@step
async def count(item: str) -> int:
    return stock[item]


@saga
async def buy(item: str) -> str:
    await lock(item)
    await take(item)
    word = await go.receive()
    if word == "no":
        raise ValueError("not paid")
    return word


@saga
async def read(item: str, conflict: Conflict) -> str:
    """What it finds, and from whom."""
    found = await lock(item, conflict=conflict)
    return f"{await count(item)} of {found.holder or 'nobody else'}"


@saga
async def hold(keys: list[str], timeout: float | None = None) -> list[str]:
    """Takes one after the other, and waits for a word before each but the first."""
    for number, key in enumerate(keys):
        if number:
            await go.receive()
        await lock(key, timeout=timeout)
    await go.receive()
    return keys


@saga
async def patient(key: str) -> str:
    try:
        await lock(key, timeout=60)
    except TimeoutError as error:
        return str(error)
    return "got it"


@saga
async def twice(key: str) -> list[bool]:
    found = await asyncio.gather(lock(key), lock(key), lock(key, conflict="fail"))
    await go.receive()
    return [one.dirty for one in found]


@saga
async def beside(key: str) -> None:
    """Branches that nobody awaits want locks, now and later, and another one fails."""
    late = asyncio.create_task(want_later("later"))
    await take("book")
    await asyncio.gather(lock(key), pay())
    await late


async def want_later(key: str) -> None:
    await asyncio.sleep(60)  # sleep: a durable timer
    await lock(key)


@step(retry=NEVER)
async def pay() -> None:
    raise ValueError("no money")


@saga
async def wants_both(keys: list[str]) -> None:
    await asyncio.gather(*(lock(key) for key in keys))


@workflow
async def no_saga(key: str) -> None:
    await lock(key)


orders = Service("orders", workflows=[buy, read, hold, patient, twice, beside, wants_both, no_saga])


@pytest.fixture(autouse=True)
def world() -> None:
    stock.clear()
    stock.update(book=10)
    trouble.clear()


@pytest.fixture(params=[3_600.0, 0.0], ids=["in memory", "out of memory"])
def idle(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@asynccontextmanager
async def playing(idle: float = 3_600.0) -> AsyncIterator[Lab]:
    async with laboratory(orders, idle=idle) as lab:
        yield lab


async def start(lab: Lab, workflow: Any, *args: Any, id: str) -> Handle[Any]:
    """Each a moment after the one before."""
    handle: Handle[Any] = await workflow.start(*args, id=id)
    await lab.advance(0.001)
    return handle


async def say(lab: Lab, handle: Handle[Any], word: str = "yes") -> None:
    await handle.signal(go, word)
    await lab.settle()


async def seen() -> dict[str, list[str]]:
    """By key: who has it, and who waits, in order."""
    found: dict[str, list[str]] = {}
    rows = await orders.fetch("SELECT key, state, place, saga_id FROM skald_locks ORDER BY key, place")
    for row in rows:
        assert (row["state"] == "held") is (row["place"] == 0)
        found.setdefault(row["key"], []).append(row["saga_id"])
    return found


async def letters() -> list[Any]:
    return [row["id"] for row in await orders.fetch("SELECT id FROM skald_letters")]


# --- one at a time ----------------------------------------------------------------------------------------------------


async def test_who_waits_gets_it_in_the_order_of_asking(idle: float) -> None:
    async with playing(idle) as lab:
        handles = [await start(lab, hold, ["k"], id=id) for id in "acb"]
        assert await seen() == {"k": ["a", "c", "b"]}
        for left, handle in zip((["c", "b"], ["b"], []), handles, strict=True):
            await say(lab, handle)
            assert await handle.result() == ["k"]
            assert (await seen()).get("k", []) == left
        assert await letters() == []


async def test_keys_are_apart(idle: float) -> None:
    async with playing(idle) as lab:
        one, two = await start(lab, hold, ["k"], id="a"), await start(lab, hold, ["l"], id="b")
        assert await seen() == {"k": ["a"], "l": ["b"]}
        await say(lab, two)
        assert await two.result() == ["l"]
        await say(lab, one)
        assert await one.result() == ["k"]


async def test_one_that_has_it_gets_it_again(idle: float) -> None:
    async with playing(idle) as lab:
        handle = await start(lab, twice, "k", id="a")
        assert await seen() == {"k": ["a"]}
        await say(lab, handle)
        assert await handle.result() == [False, False, False]
        assert [entry.name for entry in (await lab.history("a")).entries] == ["lock k", "go"]


async def test_branches_of_one_saga_wait_for_it_together(idle: float) -> None:
    async with playing(idle) as lab:
        first, second = await start(lab, hold, ["k"], id="a"), await start(lab, twice, "k", id="b")
        assert await seen() == {"k": ["a", "b"]}
        await say(lab, first)
        await say(lab, second)
        assert await second.result() == [False, False, False]


# --- every end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["completes", "compensates", "is cancelled", "is terminated"])
async def test_every_end_frees_it(idle: float, end: str) -> None:
    async with playing(idle) as lab:
        first, second = await start(lab, buy, "book", id="a"), await start(lab, buy, "book", id="b")
        if end == "is cancelled":
            await first.cancel()
        elif end == "is terminated":
            await first.terminate()
        else:
            await first.signal(go, "no" if end == "compensates" else "yes")
        await lab.settle()
        assert await seen() == {"book": ["b"]}
        await say(lab, second)
        assert await second.result() == "yes"
        assert stock["book"] == (8 if end in ("completes", "is terminated") else 9)
        assert await letters() == []


async def test_a_compensation_that_needs_a_person_keeps_it_until_that_is_resolved() -> None:
    async with playing() as lab:
        trouble["book"] = OSError("away")
        first, second = await start(lab, buy, "book", id="a"), await start(lab, buy, "book", id="b")
        await say(lab, first, "no")
        assert await seen() == {"book": ["a", "b"]}
        await lab.resolve(first, "skip", "take")
        assert await seen() == {"book": ["b"]}
        await say(lab, second)
        assert await second.result() == "yes"


async def test_a_saga_whose_code_is_gone_frees_it_when_it_is_terminated() -> None:
    async with playing(idle=0) as lab:
        first, second = await start(lab, hold, ["k"], id="a"), await start(lab, buy, "k", id="b")
        stock["k"] = 1
        [executor] = lab._executors
        code = executor._client.workflows.pop("hold")
        await first.terminate()
        await lab.settle()
        executor._client.workflows["hold"] = code
        assert await seen() == {"k": ["b"]}
        await say(lab, second)
        assert await second.result() == "yes"


async def test_a_saga_that_was_deleted_frees_it() -> None:
    async with playing() as lab:
        await start(lab, hold, ["k"], id="a")
        second = await start(lab, hold, ["k"], id="b")
        async with orders.transaction() as tx:  # as nobody should, and as a restored database may have it
            await tx.execute(
                "UPDATE skald_workflows SET ended_at = 1, state = 'terminated', owner = NULL WHERE id = 'a'"
            )
        await lab.settle()
        assert await seen() == {"k": ["b"]}
        await say(lab, second)
        assert await second.result() == ["k"]


# --- giving up --------------------------------------------------------------------------------------------------------


async def test_who_has_waited_too_long_leaves_the_queue(idle: float) -> None:
    async with playing(idle) as lab:
        first = await start(lab, hold, ["k"], id="a")
        second, third = await start(lab, patient, "k", id="b"), await start(lab, hold, ["k"], id="c")
        await lab.advance(timedelta(seconds=61))
        assert await second.result() == "lock k: TimeoutError: not free within 60 s"
        assert await seen() == {"k": ["a", "c"]}
        await say(lab, first)
        assert await seen() == {"k": ["c"]}
        await say(lab, third)
        assert await letters() == []


async def test_a_timeout_that_nobody_catches_fails_the_saga() -> None:
    async with playing() as lab:
        await start(lab, hold, ["k"], id="a")
        second = await start(lab, hold, ["k"], 30.0, id="b")
        with pytest.raises(SagaCompensated, match="not free within 30 s") as raised:
            await lab.result(second)
        assert (raised.value.type, raised.value.step) == ("TimeoutError", "lock k")
        assert await seen() == {"k": ["a"]}


@pytest.mark.parametrize("end", ["cancel", "terminate"])
async def test_one_that_ends_while_it_waits_leaves_the_queue(idle: float, end: str) -> None:
    async with playing(idle) as lab:
        first = await start(lab, hold, ["k"], id="a")
        second = await start(lab, hold, ["k"], id="b")
        await getattr(second, end)()
        await lab.settle()
        assert await seen() == {"k": ["a"]}
        await say(lab, first)
        assert (await seen(), await letters()) == ({}, [])


async def test_a_saga_that_has_failed_waits_for_no_lock_any_more() -> None:
    async with playing() as lab:
        trouble["book"] = OSError("away")
        await start(lab, hold, ["k"], id="a")
        second = await start(lab, beside, "k", id="b")  # its compensation waits for a person
        assert await seen() == {"k": ["a"]}
        await lab.advance(61)
        assert await seen() == {"k": ["a"]}
        await lab.resolve(second, "skip", "take")
        with pytest.raises(SagaCompensated, match="no money"):
            await second.result()


class Spy:
    """Sees what is written of workflows."""

    def __init__(self, lab: Lab) -> None:
        [executor] = lab._executors
        self.writes: list[WorkflowWrites] = []
        self._inner = executor.committer
        executor.turner.recorder.use(cast("Any", self))

    def submit_open(self, close: Any, then: Any, context: Any) -> None:
        def closed() -> Unit:
            unit: Unit = close()
            assert unit.workflows is not None
            self.writes.append(unit.workflows)
            return unit

        self._inner.submit_open(closed, then, context)


async def test_who_gives_up_leaves_neither_his_place_nor_an_answer_that_comes_in_this_moment() -> None:
    async with playing() as lab:
        await start(lab, hold, ["k"], id="a")
        spy = Spy(lab)
        await start(lab, patient, "k", id="b")
        [place] = [letter for one in spy.writes for letter in one.letters]
        await lab.advance(61)
        assert [id for one in spy.writes for id in one.taken] == [place.id, granted(place.id)]


async def test_an_end_says_that_it_frees_locks() -> None:
    """So that those who wait in other processes are not left until they look around."""
    async with playing() as lab:
        spy = Spy(lab)
        one, two = await start(lab, hold, ["k"], id="a"), await start(lab, hold, [], id="b")
        await say(lab, one)
        await say(lab, two)
        assert [end.frees for one in spy.writes for end in one.ends] == [True, False]


# --- conflicts, and dirty reads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("paid", ["yes", "no"])
async def test_who_waits_reads_what_has_become_of_it(idle: float, paid: str) -> None:
    async with playing(idle) as lab:
        buyer, reader = await start(lab, buy, "book", id="a"), await start(lab, read, "book", "wait", id="b")
        assert stock["book"] == 9  # tentative
        await say(lab, buyer, paid)
        assert await reader.result() == f"{9 if paid == 'yes' else 10} of nobody else"


async def test_who_fails_reads_nothing_and_names_the_holder(idle: float) -> None:
    async with playing(idle) as lab:
        await start(lab, buy, "book", id="a")
        reader = await start(lab, read, "book", "fail", id="b")
        with pytest.raises(SagaCompensated, match="LockTaken: buy 'a' has it") as raised:
            await lab.result(reader)
        assert (raised.value.type, raised.value.step) == ("LockTaken", "lock book")
        assert await seen() == {"book": ["a"]}


async def test_who_proceeds_knows_that_what_is_read_is_tentative(idle: float) -> None:
    async with playing(idle) as lab:
        buyer, reader = await start(lab, buy, "book", id="a"), await start(lab, read, "book", "proceed", id="b")
        assert await reader.result() == "9 of a"
        await say(lab, buyer, "no")
        assert stock["book"] == 10  # what was read never was
        assert await (await start(lab, read, "book", "proceed", id="c")).result() == "10 of nobody else"
        assert await letters() == []


@pytest.mark.parametrize("conflict", ["fail", "proceed"])
async def test_what_is_free_is_taken_in_every_mode(conflict: Conflict) -> None:
    async with playing() as lab:
        reader = await start(lab, read, "book", conflict, id="b")
        assert await reader.result() == "10 of nobody else"


async def test_the_error_has_the_key_and_the_holder() -> None:
    found = LockTaken("k", "a", "buy")
    assert (found.key, found.holder, str(found)) == ("k", "a", "lock k: LockTaken: buy 'a' has it")


# --- deadlocks --------------------------------------------------------------------------------------------------------


async def test_of_two_that_would_wait_for_each_other_the_last_one_is_refused(idle: float) -> None:
    async with playing(idle) as lab:
        one, two = await start(lab, hold, ["k", "l"], id="a"), await start(lab, hold, ["l", "k"], id="b")
        await say(lab, one)
        assert await seen() == {"k": ["a"], "l": ["b", "a"]}
        await say(lab, two)
        with pytest.raises(SagaCompensated, match="b waits for a waits for b") as raised:
            await two.result()
        assert (raised.value.type, raised.value.step) == ("LockDeadlock", "lock k")
        assert await seen() == {"k": ["a"], "l": ["a"]}
        await say(lab, one)
        assert await one.result() == ["k", "l"]


async def test_a_circle_through_the_queue_is_found_before_it_closes() -> None:
    """When ``a`` ends, ``k`` is for ``d``, who waits for ``c`` too: so ``c`` must not wait behind ``d``."""
    async with playing() as lab:
        await start(lab, hold, ["k"], id="a")
        three = await start(lab, hold, ["l", "k"], id="c")
        two = await start(lab, hold, ["m"], id="b")
        both = await start(lab, wants_both, ["k", "l"], id="d")
        assert await seen() == {"k": ["a", "d"], "l": ["c", "d"], "m": ["b"]}
        await say(lab, three)
        with pytest.raises(SagaCompensated, match="c waits for d waits for c"):
            await three.result()
        await two.terminate()
        await both.terminate()


# --- crashes, and changed code ----------------------------------------------------------------------------------------


async def test_every_commit_may_fail() -> None:
    """The holder's and the waiter's own, before and after they are written: they come back, and each has it once."""

    async def scenario(lab: Lab) -> list[Any]:
        first, second = await start(lab, buy, "book", id="a"), await start(lab, buy, "book", id="b")
        for handle, word in ((first, "no"), (second, "yes")):
            await lab.settle()
            assert len((await seen())["book"]) == (2 if handle is first else 1)
            await handle.signal(go, word)
            await lab.settle()
        with pytest.raises(SagaCompensated):
            await lab.result(first)
        return [await lab.result(second), await seen(), await letters()]

    assert all(found == ["yes", {}, []] for found in await crash_everywhere(scenario, orders))


async def test_a_saga_that_was_replaced_by_another_run_has_nothing_left() -> None:
    async with playing() as lab:
        handle = await start(lab, hold, ["k"], id="a")
        await handle.terminate()
        await lab.settle()
        again = await hold.start(["k"], id="a", existing="restart")
        await lab.settle()
        assert await seen() == {"k": ["a"]}
        await say(lab, again)
        assert await again.result() == ["k"]


# --- wrong input ------------------------------------------------------------------------------------------------------


async def test_only_sagas_have_locks() -> None:
    async with playing() as lab:
        with pytest.raises(WorkflowFailed, match=r"test_saga_locks.py:\d+: lock\(\) is for sagas, .* with @saga"):
            await lab.result(await start(lab, no_saga, "k", id="a"))
    with pytest.raises(WorkflowError, match=r"test_saga_locks.py:\d+: lock\(\) is for the code of sagas"):
        lock("k")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"key": ""}, "a key is a text of 1 to 200 printable characters"),
        ({"key": "a\0"}, "a key is a text of 1 to 200 printable characters"),
        ({"key": "k" * 201}, "a key is a text of 1 to 200 printable characters"),
        ({"key": "k", "conflict": "steal"}, "use one of wait, fail, proceed"),
        ({"key": "k", "timeout": 0}, "a number of seconds above 0"),
        ({"key": "k", "timeout": 5, "conflict": "fail"}, "only where it waits"),
    ],
)
async def test_wrong_input_names_the_line(args: dict[str, Any], text: str) -> None:
    @saga
    async def wrong() -> None:
        await lock(**args)

    async with laboratory(Service("wrong", workflows=[wrong])) as lab:
        with pytest.raises(SagaCompensated, match=rf"test_saga_locks.py:\d+: lock\(.*{text}"):
            await lab.result(await wrong.start(id="a"))
