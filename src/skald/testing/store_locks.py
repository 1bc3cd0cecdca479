"""What a store keeps of locks: letters that ask, wait and hold, one holder of a key, and the view ``skald_locks``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from skald.errors import StoreError
from skald.message import new_id
from skald.store import Store
from skald.testing.samples import START, commit
from skald.unit import (
    AddressKind,
    Letter,
    LetterKind,
    Unit,
    WorkflowEnd,
    WorkflowStart,
    WorkflowState,
    WorkflowWrites,
)
from skald.workflows import journal, locks
from skald.workflows.locking import Conflict, Request, Verdict, decode_verdict, encode

_TOLD = "SELECT name, payload FROM skald_letters WHERE to_run = :run AND taken = 0"
NewStore = Callable[[], Awaitable[Store]]


def begun(id: str) -> WorkflowStart:
    return WorkflowStart(new_id(), id, "buy", "p", None, None, None, b"{}", START, style="orchestration")


def asked(saga: WorkflowStart, key: str, conflict: Conflict = "wait", time: int = START) -> Letter:
    body = encode(Request(f"lock {key}:00:1", conflict))
    return Letter(new_id(), LetterKind.LOCK, AddressKind.RUN, saga.run, key, body, time)


def asking(*letters: Letter) -> Unit:
    return Unit(workflows=WorkflowWrites(letters=letters))


def ending(saga: WorkflowStart, *held: Letter) -> Unit:
    end = WorkflowEnd(saga.run, WorkflowState.COMPLETED, b"{}", START, frees=True)
    return Unit(workflows=WorkflowWrites(ends=(end,), taken=tuple(letter.id for letter in held)))


async def begin(store: Store, *ids: str) -> list[WorkflowStart]:
    starts = [begun(id) for id in ids]
    await commit(store, Unit(workflows=WorkflowWrites(starts=tuple(starts))))
    return starts


async def settled(store: Store) -> dict[str, list[str]]:
    """By key: who has it, and who waits for it in order, when everything is decided."""
    while (await journal.poll(store))[2]:
        await locks.settle(store)
    found: dict[str, list[str]] = {}
    for row in await store.fetch("SELECT key, place, saga_id FROM skald_locks ORDER BY key, place"):
        assert row["place"] == len(found.setdefault(row["key"], []))
        found[row["key"]].append(row["saga_id"])
    return found


async def answers(store: Store) -> list[tuple[str, Verdict]]:
    """What the sagas of process ``p`` are told, by run."""
    mail = await journal.letters(store, "p")
    found = [(run, letter) for run, letters in mail.items() for letter in letters]
    assert all(letter.kind == LetterKind.ANSWER for _, letter in found)
    return [(run, decode_verdict(letter.payload)) for run, letter in found]


class _World:
    """Lets wait for whatever happens next."""

    def __init__(self) -> None:
        self.version = self.left = 0
        self._changed = asyncio.Event()

    def happened(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed.clear()

    async def after(self, version: int) -> None:
        while self.version == version:
            await self._changed.wait()

    async def commit(self, store: Store, unit: Unit) -> None:
        await commit(store, unit)
        self.happened()


class LockConformance:
    """Locks of sagas, which are letters."""

    async def test_nothing_is_to_be_decided_where_nobody_asks(self, store: Store) -> None:
        await begin(store, "a")
        assert not (await journal.poll(store))[2]

    async def test_a_lock_is_granted_in_the_order_of_asking_and_freed_with_the_end(self, store: Store) -> None:
        a, b, c = await begin(store, "a", "b", "c")
        mine, his, hers = asked(a, "k"), asked(b, "k", time=START + 2), asked(c, "k", time=START + 1)
        await commit(store, asking(his), asking(mine), asking(hers))
        assert (await journal.poll(store))[2]
        assert await answers(store) == []  # nobody reads who asks
        assert await settled(store) == {"k": ["a", "c", "b"]}
        assert await answers(store) == [(a.run, Verdict())]
        await commit(store, asking(mine))  # by a process that does not know whether it was written
        assert await settled(store) == {"k": ["a", "c", "b"]}
        await commit(store, ending(a, mine))
        assert await settled(store) == {"k": ["c", "b"]}
        assert [run for run, _ in await answers(store)] == [c.run]

    async def test_who_asks_later_stands_behind_however_early_his_clock(self, store: Store) -> None:
        a, b, c = await begin(store, "a", "b", "c")
        for number, saga in enumerate((a, b, c)):
            await commit(store, asking(asked(saga, "k", time=START - number)))
            await settled(store)
        assert await settled(store) == {"k": ["a", "b", "c"]}

    async def test_who_gives_up_waiting_leaves_the_queue(self, store: Store) -> None:
        a, b, c = await begin(store, "a", "b", "c")
        mine, his, hers = asked(a, "k"), asked(b, "k", time=START + 1), asked(c, "k", time=START + 2)
        await commit(store, asking(mine, his, hers))
        await settled(store)
        await commit(store, Unit(workflows=WorkflowWrites(taken=(his.id,))))
        assert await settled(store) == {"k": ["a", "c"]}
        await commit(store, Unit(workflows=WorkflowWrites(taken=(mine.id,))))  # and who has just got it
        assert await settled(store) == {"k": ["c"]}

    @pytest.mark.parametrize("conflict", ["fail", "proceed"])
    async def test_who_does_not_wait_is_told_who_has_it(self, store: Store, conflict: Conflict) -> None:
        a, b = await begin(store, "a", "b")
        await commit(store, asking(asked(a, "k")))
        await settled(store)
        ask = asked(b, "k", conflict, START + 1)
        await commit(store, asking(ask))
        assert await settled(store) == {"k": ["a"]}
        await commit(store, asking(ask))  # once more: it has its answer
        assert await settled(store) == {"k": ["a"]}
        assert dict(await answers(store))[b.run] == Verdict("a", "buy")

    async def test_an_end_that_says_nothing_of_locks_frees_them_too(self, store: Store) -> None:
        a, b, c = await begin(store, "a", "b", "c")
        await commit(store, asking(asked(a, "k"), asked(b, "k", time=START + 1), asked(c, "k", time=START + 2)))
        await settled(store)
        await commit(store, ending(a), ending(b))
        assert await settled(store) == {"k": ["c"]}

    async def test_an_end_that_frees_a_lock_rings(self, store: Store, new_store: NewStore) -> None:
        other = await new_store()
        a, b = await begin(store, "a", "b")
        mine = asked(a, "k")
        await commit(store, asking(mine, asked(b, "k", time=START + 1)))
        await settled(store)
        rung = asyncio.Event()
        stop = other.workflows.listen(rung.set)
        await commit(store, ending(a, mine))
        async with asyncio.timeout(10):
            await rung.wait()
        stop()

    async def test_retention_leaves_open_sagas_their_locks(self, store: Store) -> None:
        a, b, c = await begin(store, "a", "b", "c")
        await commit(store, asking(asked(a, "k"), asked(b, "k", time=START + 1), asked(c, "l")))
        await settled(store)
        await commit(store, ending(c))
        for_ever = await store.now() + 10**15
        await journal.prune_letters(store, for_ever, for_ever)
        assert await settled(store) == {"k": ["a", "b"]}
        assert [row["n"] for row in await store.fetch("SELECT count(*) AS n FROM skald_letters WHERE kind > 9")] == [2]

    async def test_nobody_waits_for_one_that_stands_still_while_it_decides(
        self, store: Store, new_store: NewStore
    ) -> None:
        if store.features.exclusive_transactions:
            return  # such a transaction is bounded, as all are
        [a] = await begin(store, "a")
        await commit(store, asking(asked(a, "k")))
        async with store.transaction() as tx:
            await tx.fetch("SELECT key FROM skald_heads WHERE key = 'locks' FOR UPDATE")
            assert not await locks.settle(await new_store())
        assert await settled(store) == {"k": ["a"]}

    async def test_a_circle_is_refused(self, store: Store) -> None:
        a, b, c = await begin(store, "a", "b", "c")
        await commit(store, asking(asked(a, "k"), asked(b, "l"), asked(c, "m")))
        await settled(store)
        for saga, key in ((a, "l"), (b, "m"), (c, "k")):
            await commit(store, asking(asked(saga, key, time=START + 1)))
            await settled(store)
        assert await settled(store) == {"k": ["a"], "l": ["b", "a"], "m": ["c", "b"]}
        assert Verdict("a", "buy", ("c", "a", "b")) in [verdict for _, verdict in await answers(store)]

    async def test_a_key_has_one_holder_whoever_writes_it(self, store: Store) -> None:
        a, b = await begin(store, "a", "b")
        await commit(store, asking(asked(a, "k"), asked(b, "k", time=START + 1)))
        await settled(store)
        with pytest.raises(StoreError):
            async with store.transaction() as tx:
                await tx.execute("UPDATE skald_letters SET kind = 12 WHERE kind = 11")
        assert await settled(store) == {"k": ["a", "b"]}

    @pytest.mark.parametrize("seed", range(3))
    async def test_many_who_ask_give_up_and_end_at_once(self, new_store: NewStore, seed: int) -> None:
        """Several processes decide, while sagas come and go: each key has one holder, nobody who waits is forgotten,
        and no two sagas wait for each other."""
        chance, world = random.Random(seed), _World()
        stores = [await new_store() for _ in range(3)]
        sagas = await begin(stores[0], *(f"s{n}" for n in range(8)))
        world.left = len(sagas)

        async def live(saga: WorkflowStart, store: Store) -> None:
            mine = [asked(saga, key, time=START + world.left) for key in chance.sample("klmn", 2)]
            for letter in mine:
                await world.commit(store, asking(letter))
            if chance.random() < 0.3:
                await world.commit(store, Unit(workflows=WorkflowWrites(taken=(mine.pop().id,))))
            while True:
                since = world.version
                found = await store.fetch(_TOLD, run=saga.run)
                told = {row["name"].removeprefix("lock ")[0] for row in found}
                refused = any(decode_verdict(row["payload"]).chain for row in found)
                if refused or told >= {letter.name for letter in mine}:
                    break
                await world.after(since)
            world.left -= 1
            await world.commit(store, ending(saga, *mine))

        async def decide(store: Store) -> None:
            while world.left:
                since = world.version
                if (await journal.poll(store))[2] and await locks.settle(store):
                    world.happened()
                else:
                    await world.after(since)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for store in stores:
                group.create_task(decide(store))
            for saga in sagas:
                group.create_task(live(saga, chance.choice(stores)))
        assert await settled(stores[0]) == {}
