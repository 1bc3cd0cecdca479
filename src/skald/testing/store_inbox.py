"""Cursors and deliveries: what a consumer commits with its effects."""

from __future__ import annotations

import msgspec
import pytest

from skald.errors import CursorMoved, DeliveryGone
from skald.store import Store
from skald.testing.samples import commit, delivery, move, place_cursor, records
from skald.unit import Committed, CursorMove, DeliveryState, Resolve, Unit

WRONG: dict[str, CursorMove] = {
    "position behind": move(position=4, to=9),
    "position ahead": move(position=6, to=9),
    "version": move(position=5, to=9, version=1),
    "owner": move(position=5, to=9, owner="q"),
    "lane": move(position=5, to=9, lane=3),
}


class InboxConformance:
    """Cursors move by compare-and-swap; deliveries are written whole and resolved once."""

    async def test_a_cursor_moves_with_the_effects(self, store: Store) -> None:
        await place_cursor(store)
        async with store.transaction() as tx:
            await tx.execute("UPDATE skald_cursors SET takeovers = 2, version = 3")
        await commit(store, Unit(cursor=move(0, 5, version=3), events=records(1)))
        [row] = await store.fetch("SELECT position, message_id, version, owner, takeovers FROM skald_cursors")
        assert row == {"position": 5, "message_id": "message-5", "version": 3, "owner": "p", "takeovers": 0}

    @pytest.mark.parametrize("wrong", WRONG)
    async def test_a_cursor_moves_only_from_its_place(self, store: Store, wrong: str) -> None:
        await place_cursor(store)
        await commit(store, Unit(cursor=move(0, 5)))
        [outcome] = await store.commit([Unit(cursor=WRONG[wrong], events=records(1))])
        assert isinstance(outcome, CursorMoved)
        assert (outcome.group, outcome.origin, outcome.lane) == ("g", "origin", WRONG[wrong].lane)
        assert await store.fetch("SELECT position FROM skald_cursors") == [{"position": 5}]
        assert await store.log.end() == (0, None)

    async def test_of_two_who_move_from_one_place_one_succeeds(self, store: Store) -> None:
        await place_cursor(store)
        assert isinstance((await store.commit([Unit(cursor=move(0, 5))]))[0], Committed)
        assert isinstance((await store.commit([Unit(cursor=move(0, 4))]))[0], CursorMoved)

    async def test_lanes_move_in_one_group(self, store: Store) -> None:
        for lane in range(16):
            await place_cursor(store, lane)
        await commit(store, *(Unit(cursor=move(0, 5, lane=lane), events=records(3)) for lane in range(16)))
        rows = await store.fetch("SELECT DISTINCT position FROM skald_cursors")
        assert rows == [{"position": 5}]

    async def test_a_delivery_is_stored_whole_and_replaced_whole(self, store: Store) -> None:
        first = delivery(7, owner="p", attempts=2, due=123, error="ValueError: no")
        await commit(store, Unit(deliveries=(first,)))
        second = msgspec.structs.replace(first, state=DeliveryState.DELAYED, attempts=3, owner=None, error=None)
        await commit(store, Unit(deliveries=(second,)))
        [row] = await store.fetch(
            "SELECT group_name, handler, origin, lane, state, attempts, due, error, owner, position, id, "
            "aggregatetype, aggregateid, slot, type, version, time, correlation_id, payload, priority, delay "
            "FROM skald_deliveries"
        )
        r = second.record
        assert (row["group_name"], row["handler"], row["origin"], row["lane"]) == ("g", "h", "origin", 0)
        assert (row["state"], row["attempts"], row["due"]) == ("delayed", 3, 123)
        assert (row["error"], row["owner"]) == (None, None)
        assert (row["position"], str(row["id"]), row["slot"]) == (7, r.id, r.slot)
        assert (row["aggregatetype"], row["aggregateid"], row["type"]) == (r.topic, r.key, r.type)
        assert (row["time"], row["payload"], row["priority"], row["delay"]) == (r.time, r.payload, 0, 0)

    async def test_a_delivery_is_resolved_once(self, store: Store) -> None:
        await commit(store, Unit(deliveries=(delivery(7), delivery(8), delivery(7, handler="other"))))
        resolve = Unit(resolves=(Resolve("g", "h", "origin", 7),), events=records(1))
        assert isinstance((await store.commit([resolve]))[0], Committed)
        [again] = await store.commit([resolve])
        assert isinstance(again, DeliveryGone)
        assert (again.handler, again.origin, again.position) == ("h", "origin", 7)
        rows = await store.fetch("SELECT handler, position FROM skald_deliveries ORDER BY position")
        assert rows == [{"handler": "other", "position": 7}, {"handler": "h", "position": 8}]

    async def test_only_its_owner_resolves_an_owned_delivery(self, store: Store) -> None:
        await commit(store, Unit(deliveries=(delivery(7, owner="p"),)))
        [theirs] = await store.commit([Unit(resolves=(Resolve("g", "h", "origin", 7, "q"),))])
        assert isinstance(theirs, DeliveryGone)
        await commit(store, Unit(resolves=(Resolve("g", "h", "origin", 7, "p"),)))
        assert await store.fetch("SELECT position FROM skald_deliveries") == []

    async def test_without_an_owner_anybody_resolves(self, store: Store) -> None:
        await commit(store, Unit(deliveries=(delivery(7, owner="p"),)))
        await commit(store, Unit(resolves=(Resolve("g", "h", "origin", 7),)))
        assert await store.fetch("SELECT position FROM skald_deliveries") == []

    async def test_an_unowned_delivery_is_not_resolved_by_an_owner(self, store: Store) -> None:
        await commit(store, Unit(deliveries=(delivery(7),)))
        [outcome] = await store.commit([Unit(resolves=(Resolve("g", "h", "origin", 7, "q"),))])
        assert isinstance(outcome, DeliveryGone)

    async def test_one_unit_hands_a_delivery_on(self, store: Store) -> None:
        await commit(store, Unit(deliveries=(delivery(7, owner="p"),)))
        handed_on = Unit(resolves=(Resolve("g", "h", "origin", 7, "p"),), deliveries=(delivery(7, attempts=1),))
        await commit(store, handed_on)
        rows = await store.fetch("SELECT attempts, owner FROM skald_deliveries")
        assert rows == [{"attempts": 1, "owner": None}]

    async def test_one_that_need_not_be_there_rejects_nothing(self, store: Store) -> None:
        await commit(store, Unit(deliveries=(delivery(7, owner="p"), delivery(8))))
        resolves = [Resolve("g", "h", "origin", position, required=False) for position in (7, 9)]
        await commit(store, Unit(resolves=tuple(resolves), events=records(1)))
        assert await store.fetch("SELECT position FROM skald_deliveries") == [{"position": 8}]
