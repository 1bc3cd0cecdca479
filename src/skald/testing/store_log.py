"""Reading the log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from skald.message import new_id
from skald.store import Store
from skald.testing.samples import START, commit, plain, record, records
from skald.unit import Append, Unit

NewStore = Callable[[], Awaitable[Store]]


class LogConformance:
    """``Log``: one order over events and messages, the same for every reader."""

    async def test_an_empty_log(self, store: Store) -> None:
        log = store.log
        assert await log.read(0, 10) == []
        assert await log.end() == (0, None)
        assert await log.floor() == 0
        assert await log.versions([]) == {}
        assert await log.find(new_id()) is None
        assert await log.position_at(START) == 0
        assert await log.read_stream("s") == []

    async def test_events_and_messages_are_merged_by_position(self, store: Store) -> None:
        sent = []
        for _ in range(5):
            unit = Unit(events=records(1, "Fact"), messages=records(2, "Command"))
            await commit(store, unit)
            sent += [r.id for r in (*unit.events, *unit.messages)]
        log = await store.log.read(0, 100)
        assert [r.id for r in log] == sent
        assert [r.type for r in log] == ["Fact", "Command", "Command"] * 5

    async def test_a_record_comes_back_as_it_was_sent(self, store: Store) -> None:
        fact = replace(record("Fact", "käse", b'{"a":1}'), causation_id="cause", traceparent="00-" + "a" * 52)
        message = replace(record("Command"), priority=3, delay=5_000_000)
        [committed] = await commit(store, Unit(events=(fact,), messages=(message,)))
        first, second = committed.positions
        assert await store.log.read(0, 10) == [
            replace(fact, position=first),
            replace(message, position=second),
        ]

    async def test_bounds_are_inclusive_and_the_limit_cuts(self, store: Store) -> None:
        [committed] = await commit(store, Unit(events=records(5), messages=records(5)))
        p = committed.positions

        async def positions(position: int, limit: int, upto: int | None = None) -> tuple[int, ...]:
            return tuple(r.position for r in await store.log.read(position, limit, upto=upto))

        assert await positions(p[3], 100) == p[3:]
        assert await positions(p[3], 3) == p[3:6]
        assert await positions(p[3], 100, p[6]) == p[3:7]
        assert await positions(p[3], 2, p[6]) == p[3:5]
        assert await positions(p[3], 100, p[3]) == p[3:4]
        assert await positions(p[-1] + 1, 100) == ()

    async def test_payloads_of_other_types_stay_away_but_their_rows_come(self, store: Store) -> None:
        unit = Unit(events=(record("A", payload=b"1"), record("B", payload=b"2")), messages=(record("C"), record("A")))
        await commit(store, unit)
        log = await store.log.read(0, 10, types={"A"})
        assert [(r.type, r.payload) for r in log] == [("A", b"1"), ("B", None), ("C", None), ("A", b"{}")]
        assert [r.payload for r in await store.log.read(0, 10, types=[])] == [None] * 4
        odd = ["quote's", 'double"', "back\\slash", "ümlaut", "B"]
        assert [r.payload for r in await store.log.read(0, 10, types=odd)] == [None, b"2", None, None]

    async def test_a_stream_is_read_forwards_and_backwards(self, store: Store) -> None:
        for _ in range(3):
            await commit(store, Unit(appends=(Append("s", records(2)), Append("other", records(1)))), plain())

        async def versions(**how: int | bool) -> list[int | None]:
            return [r.stream_version for r in await store.log.read_stream("s", **how)]  # type: ignore[arg-type]

        assert await versions() == [1, 2, 3, 4, 5, 6]
        assert await versions(after=2, limit=3) == [3, 4, 5]
        assert await versions(after=6) == []
        assert await versions(backwards=True) == [6, 5, 4, 3, 2, 1]
        assert await versions(backwards=True, limit=2) == [6, 5]
        assert await versions(backwards=True, after=3) == [2, 1]

    async def test_versions_of_unknown_keys_are_0(self, store: Store) -> None:
        await commit(store, Unit(appends=(Append("it's", records(2)),)))
        keys = ["stream:it's", "stream:unknown", "tag:it's"]
        assert await store.log.versions(keys) == {"stream:it's": 2, "stream:unknown": 0, "tag:it's": 0}

    async def test_find_and_end(self, store: Store) -> None:
        unit = Unit(events=records(2), messages=records(1), appends=(Append("s", records(1)),))
        [committed] = await commit(store, unit)
        sent = [*unit.events, *unit.appends[0].records, *unit.messages]
        for position, one in zip(committed.positions, sent, strict=True):
            found = await store.log.find(one.id)
            assert found is not None
            assert (found.position, found.id) == (position, one.id)
        assert await store.log.find(new_id()) is None
        assert await store.log.end() == (committed.positions[-1], sent[-1].id)

    async def test_position_at_is_before_the_first_record_of_a_time(self, store: Store) -> None:
        await commit(
            store,
            *(Unit(events=(record(time=START + n),), messages=(record(time=START + n),)) for n in range(5)),
        )

        async def times_from(time: int) -> list[int]:
            position = await store.log.position_at(time)
            return [r.time - START for r in await store.log.read(position + 1, 100)]

        assert await times_from(START - 10) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert await times_from(START + 3) == [3, 3, 4, 4]
        assert await times_from(START + 5) == []

    async def test_floor_is_what_retention_wrote(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.execute("UPDATE skald_meta SET value = '41' WHERE key = 'floor'")
        assert await store.log.floor() == 41

    async def test_each_type_has_a_floor_of_its_own(self, store: Store) -> None:
        async with store.transaction() as tx:
            for key, value in [("floor:A", "7"), ("floor:B", "12"), ("floor", "12")]:
                await tx.execute(
                    "INSERT INTO skald_meta (key, value) VALUES (:key, :value) "
                    "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                    key=key,
                    value=value,
                )
        assert await store.log.floor(["A", "unknown"]) == 7
        assert await store.log.floor(["A", "B"]) == 12
        assert await store.log.floor(["unknown"]) == 0
        assert await store.log.floor([]) == 0

    async def test_positions_are_not_drawn_twice_after_the_end_was_deleted(self, store: Store) -> None:
        [before] = await commit(store, plain(3))
        async with store.transaction() as tx:
            await tx.execute("DELETE FROM skald_events")
        [after] = await commit(store, plain())
        assert after.positions[0] > before.positions[-1]

    async def test_listeners_hear_of_commits_and_transactions(self, store: Store, new_store: NewStore) -> None:
        other = await new_store()
        for write in (self._commit, self._transact):
            for writer in (store, other):
                await self._until_heard(store, lambda write=write, writer=writer: write(writer))  # type: ignore[misc]

    async def test_ring_is_heard_and_a_stopped_listener_hears_nothing(self, store: Store, new_store: NewStore) -> None:
        other = await new_store()
        deaf = asyncio.Event()
        stop = store.log.listen(deaf.set)
        stop()
        stop()

        async def ring() -> None:
            other.ring()

        await self._until_heard(store, ring)
        assert not deaf.is_set()

    async def _commit(self, store: Store) -> None:
        await commit(store, plain())

    async def _transact(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.apply(plain())

    async def _until_heard(self, store: Store, write: Callable[[], Awaitable[None]]) -> None:
        """A ring may be lost, so it is repeated; a store whose rings are never heard fails."""
        heard = asyncio.Event()
        stop = store.log.listen(heard.set)
        try:
            for _ in range(50):
                await write()
                try:
                    async with asyncio.timeout(0.2):
                        await heard.wait()
                        return
                except TimeoutError:
                    continue
            raise AssertionError("nothing was heard of 50 commits")
        finally:
            stop()
