"""Membership: blocking, so each story runs on one thread here, as it does in a service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from skald.store import Member, Membership, Store
from skald.testing.samples import plain

NewStore = Callable[[], Awaitable[Store]]


def member(id: str, group: str = "g") -> Member:
    return Member(id, group, "boot", "namespace", 42, 1234)


@contextmanager
def membership(store: Store) -> Iterator[Membership]:
    opened = store.membership()
    try:
        yield opened
    finally:
        opened.close()
        opened.close()


class MembersConformance:
    """``Store.membership``: who is there, and until when."""

    async def test_members_join_beat_expire_and_are_removed(self, store: Store) -> None:
        def story() -> None:
            with membership(store) as members:
                assert members.members("g")[1] == []
                members.join(member("p"), 60)
                members.join(member("q"), -60)
                members.join(member("r", "other"), 60)
                now, found = members.members("g")
                p, q = sorted(found, key=lambda m: m.id)
                assert (p.boot_id, p.pid_namespace, p.pid, p.start_time) == ("boot", "namespace", 42, 1234)
                assert p.expires_at > now > q.expires_at
                assert abs(p.expires_at - now - 60_000_000) < 30_000_000

                assert members.beat("q", 60)
                assert all(m.expires_at > now for m in members.members("g")[1])
                members.remove("q")
                members.remove("q")
                assert not members.beat("q", 60)
                assert [m.id for m in members.members("g")[1]] == ["p"]
                assert [m.id for m in members.members("other")[1]] == ["r"]

        await asyncio.to_thread(story)

    async def test_who_joins_again_is_the_same_member(self, store: Store) -> None:
        def story() -> None:
            with membership(store) as members:
                members.join(member("p"), -60)
                members.join(member("p"), 60)
                now, [p] = members.members("g")
                assert p.expires_at > now

        await asyncio.to_thread(story)

    async def test_handles_see_each_other(self, store: Store, new_store: NewStore) -> None:
        other = await new_store()

        def story() -> None:
            with membership(store) as here, membership(other) as there:
                here.join(member("p"), 60)
                there.join(member("q"), 60)
                assert [m.id for m in here.members("g")[1]] == [m.id for m in there.members("g")[1]] == ["p", "q"]
                there.remove("p")
                assert not here.beat("p", 60)

        await asyncio.to_thread(story)

    async def test_no_open_transaction_delays_a_heartbeat(self, store: Store) -> None:
        def story() -> None:
            with membership(store) as members:
                members.join(member("p"), 60)
                assert members.beat("p", 60)

        async with store.transaction() as tx:
            await tx.apply(plain())
            async with asyncio.timeout(5):
                await asyncio.to_thread(story)
