"""Marks: what is remembered of a key, written over exactly the version that it was decided on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from skald.errors import Busy, MarkMoved, Rejection
from skald.store import Store
from skald.testing.samples import START, commit, is_kind, records
from skald.unit import NEW, Committed, Mark, MarkKind, Unit

NewStore = Callable[[], Awaitable[Store]]


def mark(key: str = "k", expected: int = NEW, state: str = "done", **rest: Any) -> Mark:
    """Of handler ``h``."""
    return Mark(rest.pop("kind", MarkKind.EFFECT), rest.pop("name", "h"), key, expected, state, START, **rest)


async def marks(store: Store) -> list[tuple[str, int, str]]:
    rows = await store.fetch("SELECT key, version, state FROM skald_marks ORDER BY kind, name, key")
    return [(row["key"], row["version"], row["state"]) for row in rows]


class MarkConformance:
    """A mark is written once per version, with everything else of its unit or not at all."""

    async def test_a_mark_is_stored_whole_and_replaced_whole(self, store: Store) -> None:
        first = Mark(MarkKind.PROCESS, "Checkout", "o1", NEW, "running", START, b"{}", "paying", "correlated")
        second = Mark(MarkKind.PROCESS, "Checkout", "o1", 1, "ended", START + 5, b"[]", None, "ignored")
        await commit(store, Unit(marks=(first,)))
        await commit(store, Unit(marks=(second,)))
        [row] = await store.fetch("SELECT * FROM skald_marks")
        assert {**row, "payload": bytes(row["payload"])} == {
            "kind": "process", "name": "Checkout", "key": "o1", "version": 2, "state": "ended", "step": None,
            "payload": b"[]", "correlation_id": "correlated", "created_at": START, "updated_at": START + 5,
        }  # fmt: skip

    @pytest.mark.parametrize("expected", [0, 2, 7])
    async def test_a_mark_is_written_over_its_version_only(self, store: Store, expected: int) -> None:
        await commit(store, Unit(marks=(mark(),)))
        other = mark("other", name="other")
        [outcome] = await store.commit([Unit(events=records(1), marks=(other, mark(expected=expected, state="late")))])
        assert isinstance(outcome, MarkMoved)
        assert (outcome.kind, outcome.name, outcome.key) == ("effect", "h", "k")
        assert await marks(store) == [("k", 1, "done")]
        assert await store.log.end() == (0, None)

    async def test_a_mark_that_is_not_there_has_no_version_to_write_over(self, store: Store) -> None:
        [outcome] = await store.commit([Unit(marks=(mark(expected=1),))])
        assert isinstance(outcome, MarkMoved)
        assert await marks(store) == []

    async def test_places_differ_by_kind_name_and_key(self, store: Store) -> None:
        places = [mark(kind=kind, name=name, key=key) for kind in MarkKind for name in "gh" for key in "kl"]
        await commit(store, *(Unit(marks=(one,)) for one in places[:6]), Unit(marks=tuple(places[6:])))
        assert len(await marks(store)) == len(places)

    async def test_a_unit_with_two_marks_of_a_place_is_rejected_alone(self, store: Store) -> None:
        twice = Unit(events=records(2), marks=(mark(), mark(expected=1)))
        [before, outcome, after] = await store.commit([Unit(events=records(1)), twice, Unit(events=records(1))])
        assert isinstance(outcome, MarkMoved)
        assert isinstance(before, Committed)
        assert isinstance(after, Committed)
        assert await marks(store) == []

    async def test_in_a_group_each_fails_alone(self, store: Store) -> None:
        await commit(store, *(Unit(marks=(mark(f"old{n}"),)) for n in range(10)))
        fresh = [Unit(events=records(1), marks=(mark(f"new{n}", payload=b"x"),)) for n in range(20)]
        right = [Unit(events=records(1), marks=(mark(f"old{n}", 1, "undone"),)) for n in range(0, 10, 2)]
        wrong = [Unit(events=records(1), marks=(mark(f"old{n}", n % 3 * 2, "undone"),)) for n in range(1, 10, 2)]
        outcomes = await store.commit([*fresh, *wrong, *right])
        assert [isinstance(outcome, Committed) for outcome in outcomes] == [True] * 20 + [False] * 5 + [True] * 5
        assert len(is_kind(outcomes, MarkMoved)) == 5
        assert [key for key, version, _ in await marks(store) if version == 2] == [f"old{n}" for n in range(0, 10, 2)]
        assert len(await store.log.read(0, 100)) == 25

    async def test_of_many_who_make_one_mark_one_succeeds(self, store: Store, new_store: NewStore) -> None:
        other = await new_store()

        async def make(which: Store) -> Committed | Rejection:
            while True:
                [outcome] = await which.commit([Unit(events=records(1), marks=(mark(),))])
                if not isinstance(outcome, Busy):
                    return outcome

        outcomes = await asyncio.gather(*(make(other if n % 2 else store) for n in range(20)))
        assert len(is_kind(outcomes, Committed)) == 1
        assert len(is_kind(outcomes, MarkMoved)) == 19
        assert len(await store.log.read(0, 100)) == 1

    async def test_a_transaction_applies_marks_and_outlives_a_refused_one(self, store: Store) -> None:
        await commit(store, Unit(marks=(mark(payload=b"one"),)))
        async with store.transaction() as tx:
            with pytest.raises(MarkMoved):
                await tx.apply(Unit(events=records(1), marks=(mark(), mark("new"))))
            await tx.apply(Unit(events=records(1), marks=(mark(expected=1, state="undone"), mark("new", step="one"))))
        assert await marks(store) == [("k", 2, "undone"), ("new", 1, "done")]
        assert len(await store.log.read(0, 100)) == 1
