"""Atomicity, order, streams, tags and fences."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from skald.errors import Conflict, Fenced, Rejection
from skald.store import Store
from skald.testing.samples import (
    commit,
    delivery,
    is_kind,
    move,
    place_cursor,
    place_fence,
    plain,
    record,
    records,
)
from skald.unit import NEW, Append, Committed, Resolve, Tag, Unit

NewStore = Callable[[], Awaitable[Store]]

FAILING: dict[str, Unit] = {
    "stream": Unit(events=records(1), appends=(Append("taken", records(1), NEW),)),
    "stream ahead": Unit(events=records(1), appends=(Append("other", records(1), 7),)),
    "tag": Unit(events=records(1), tags=(Tag("seat", expected=7, bump=True),)),
    "fence": Unit(events=records(1), fence="nobody"),
    "cursor": Unit(events=records(1), cursor=move(position=7, to=8)),
    "resolve": Unit(events=records(1), resolves=(Resolve("g", "h", "origin", 99),)),
    "second append": Unit(appends=(Append("fresh", records(1), NEW), Append("taken", records(1), NEW))),
    "all but the first": Unit(
        events=records(1),
        messages=records(1),
        tags=(Tag("fine", bump=True),),
        deliveries=(delivery(5),),
        appends=(Append("fresh", records(1), NEW), Append("taken", records(1), NEW)),
    ),
}
"""One unit per guard; each would also write something that must not be there afterwards."""


class UnitConformance:
    """``Store.commit``: what is whole, what is alone, and in what order."""

    async def test_an_empty_group_and_an_empty_unit_are_committed(self, store: Store) -> None:
        assert await store.commit([]) == []
        assert await store.commit([Unit()]) == [Committed()]
        assert await store.log.end() == (0, None)

    async def test_positions_follow_units_and_in_a_unit_events_appends_messages(self, store: Store) -> None:
        event, first, second, message = records(4)
        unit = Unit(messages=(message,), appends=(Append("s", (first,)), Append("t", (second,))), events=(event,))
        one, two = await commit(store, unit, plain(2))

        log = await store.log.read(0, 10)
        assert [r.id for r in log][:4] == [event.id, first.id, second.id, message.id]
        assert [r.position for r in log] == [*one.positions, *two.positions]
        assert (one.versions, two.versions) == ((1, 1), ())

    async def test_positions_rise_across_groups_and_handles(self, store: Store, new_store: NewStore) -> None:
        other = await new_store()
        positions: list[int] = []
        for turn in range(20):
            for committed in await commit(other if turn % 3 else store, plain(2), plain()):
                positions += committed.positions
        assert positions == sorted(set(positions))
        assert [r.position for r in await store.log.read(0, 100)] == positions

    @pytest.mark.parametrize("guard", FAILING)
    async def test_a_failed_guard_fails_its_unit_alone_and_whole(self, store: Store, guard: str) -> None:
        await commit(store, Unit(appends=(Append("taken", records(1), NEW),)))
        await place_cursor(store)
        before, _ = await store.log.end()

        group = [Unit(appends=(Append(f"free-{n}", records(1), NEW),)) for n in range(50)]
        group.insert(25, FAILING[guard])
        outcomes = await store.commit(group)

        assert isinstance(outcomes[25], Rejection)
        assert len(is_kind(outcomes, Committed)) == 50
        assert [r.stream for r in await store.log.read(before + 1, 100)] == [f"free-{n}" for n in range(50)]
        left = await store.log.versions(["stream:taken", "stream:fresh", "tag:seat", "tag:fine"])
        assert left == {"stream:taken": 1, "stream:fresh": 0, "tag:seat": 0, "tag:fine": 0}
        assert await store.fetch("SELECT position FROM skald_deliveries") == []
        assert await store.fetch("SELECT position FROM skald_cursors") == [{"position": 0}]

    async def test_many_failures_of_every_kind_in_one_group(self, store: Store) -> None:
        await commit(store, Unit(appends=(Append("taken", records(1), NEW),)))
        failing = [FAILING[guard] for guard in ("stream", "stream ahead", "tag", "fence", "cursor", "resolve")]
        group = [unit for failed in failing for unit in (plain(), failed)]
        outcomes = await store.commit(group)
        assert [isinstance(outcome, Committed) for outcome in outcomes] == [True, False] * len(failing)

    async def test_versions_of_a_stream_are_gapless_and_rise_with_the_position(self, store: Store) -> None:
        [first] = await commit(store, Unit(appends=(Append("s", records(2), NEW),)))
        [second] = await commit(store, Unit(appends=(Append("s", records(3), 2),)))
        assert (first.versions, second.versions) == ((2,), (5,))
        log = await store.log.read(0, 10)
        assert [(r.stream, r.stream_version) for r in log] == [("s", n) for n in range(1, 6)]

    async def test_a_conflict_names_key_and_versions(self, store: Store) -> None:
        await commit(store, Unit(appends=(Append("s", records(2)),), tags=(Tag("t", bump=True),)))
        stream, tag = await store.commit(
            [Unit(appends=(Append("s", records(1), 1),)), Unit(tags=(Tag("t", expected=0),))]
        )
        assert isinstance(stream, Conflict)
        assert isinstance(tag, Conflict)
        assert (stream.key, stream.expected, stream.actual) == ("stream:s", 1, 2)
        assert (tag.key, tag.expected, tag.actual) == ("tag:t", 0, 1)

    async def test_appends_at_any_version_from_two_handles_all_succeed(self, store: Store, new_store: NewStore) -> None:
        other = await new_store()
        for turn in range(10):
            await commit(other if turn % 2 else store, Unit(appends=(Append("s", records(2)),)))
        stream = await store.log.read_stream("s")
        assert [r.stream_version for r in stream] == list(range(1, 21))

    async def test_handles_that_commit_at_once_lose_nothing(self, store: Store, new_store: NewStore) -> None:
        handles = [store, await new_store(), await new_store()]

        async def write(handle: Store, name: str) -> None:
            for _ in range(20):
                unit = Unit(appends=(Append("shared", records(1)), Append(name, records(1))))
                outcomes = await handle.commit([unit, plain()], patient=True)
                assert len(is_kind(outcomes, Committed)) == 2, outcomes

        await asyncio.gather(*(write(handle, f"own-{n}") for n, handle in enumerate(handles)))
        assert [r.stream_version for r in await store.log.read_stream("shared")] == list(range(1, 61))
        log = await store.log.read(0, 1_000)
        assert len(log) == 180
        shared = [r.stream_version for r in log if r.stream == "shared"]
        assert shared == sorted(filter(None, shared)), "versions rise with the position"

    async def test_an_append_without_records_only_compares(self, store: Store) -> None:
        await commit(store, Unit(appends=(Append("s", records(2)),)))
        fits, fails = await store.commit([Unit(appends=(Append("s", (), 2),)), Unit(appends=(Append("t", (), 1),))])
        assert isinstance(fits, Committed)
        assert fits.versions == (2,)
        assert isinstance(fails, Conflict)

    async def test_one_unit_may_append_to_a_stream_twice(self, store: Store) -> None:
        unit = Unit(appends=(Append("s", records(1), NEW), Append("s", records(2), 1)))
        assert (await commit(store, unit))[0].versions == (1, 3)
        assert [r.stream_version for r in await store.log.read_stream("s")] == [1, 2, 3]

    async def test_tags_are_compared_and_only_bumped_ones_rise(self, store: Store) -> None:
        await commit(store, Unit(tags=(Tag("read", expected=0), Tag("written", expected=0, bump=True))))
        await commit(store, Unit(tags=(Tag("written", bump=True),)))
        assert await store.log.versions(["tag:read", "tag:written"]) == {"tag:read": 0, "tag:written": 2}

    async def test_streams_and_tags_of_one_name_are_apart(self, store: Store) -> None:
        await commit(store, Unit(appends=(Append("x", records(2)),), tags=(Tag("x", bump=True),)))
        assert await store.log.versions(["stream:x", "tag:x"]) == {"stream:x": 2, "tag:x": 1}

    async def test_a_fence_lets_write_until_it_is_deleted(self, store: Store, new_store: NewStore) -> None:
        await place_fence(store, "p")
        await place_fence(store, "q")
        await commit(store, Unit(fence="p", events=records(1)))
        other = await new_store()
        async with other.transaction() as tx:
            assert await tx.execute("DELETE FROM skald_fences WHERE process = :p", p="p") == 1
        late, fine = await store.commit([Unit(fence="p", events=records(1)), Unit(fence="q", events=records(1))])
        assert isinstance(late, Fenced)
        assert late.process == "p"
        assert isinstance(fine, Committed)

    async def test_a_record_that_cannot_be_stored_fails_alone(self, store: Store) -> None:
        broken = Unit(events=(record(payload=None),), appends=(Append("s", records(1)),))  # type: ignore[arg-type]
        before, failed, after = await store.commit([plain(), broken, plain()])
        assert isinstance(before, Committed)
        assert isinstance(after, Committed)
        assert isinstance(failed, Rejection)
        assert len(await store.log.read(0, 10)) == 2
        assert await store.log.versions(["stream:s"]) == {"stream:s": 0}

    @pytest.mark.parametrize("payload", [b"", b"\x00", b"a\x00b\xff\xfe", bytes(range(256)), b"\x00" * (1 << 20)])
    async def test_payloads_come_back_byte_for_byte(self, store: Store, payload: bytes) -> None:
        sent = record(payload=payload)
        await commit(store, Unit(events=(sent,), messages=(record(payload=payload),), deliveries=()))
        fact, message = await store.log.read(0, 10)
        assert fact.payload == message.payload == payload

    async def test_a_large_group_is_committed(self, store: Store) -> None:
        outcomes = await commit(store, *(Unit(appends=(Append(f"s-{n}", records(2)),)) for n in range(600)))
        positions = [position for outcome in outcomes for position in outcome.positions]
        assert len(positions) == 1200
        assert positions == sorted(set(positions))
