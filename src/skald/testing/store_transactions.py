"""Transactions of the user's code, and what they keep others from."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from skald.errors import Busy, Conflict, NestedCommit, StoreError
from skald.store import Store, Transaction
from skald.testing.samples import commit, plain, records
from skald.unit import NEW, Append, Committed, Unit

NewStore = Callable[[], Awaitable[Store]]
# Words that both dialects understand: SQLite takes any name of a type.
TABLE = "CREATE TABLE things (id TEXT PRIMARY KEY, n BIGINT, x DOUBLE PRECISION, b BYTEA, yes BOOLEAN, doc JSON)"
KEEP = "INSERT INTO things (id, n) VALUES (:id, :n)"


async def make_table(store: Store) -> None:
    """A table of the user's own."""
    async with store.transaction() as tx:
        await tx.execute(TABLE)


async def names(store: Store) -> list[str]:
    return [row["id"] for row in await store.fetch("SELECT id FROM things ORDER BY id")]


class Oops(Exception):
    """Raised by the tests."""


class TransactionConformance:
    """``Store.transaction``: rows and units together, and portable SQL."""

    async def test_rows_and_units_commit_together(self, store: Store, new_store: NewStore) -> None:
        await make_table(store)
        async with store.transaction() as tx:
            assert await tx.execute(KEEP, id="a", n=1) == 1
            committed = await tx.apply(Unit(appends=(Append("s", records(2), NEW),), events=records(1)))
            assert committed.versions == (2,)
            assert len(committed.positions) == 3
        other = await new_store()
        assert await names(other) == ["a"]
        assert len(await other.log.read(0, 10)) == 3

    async def test_a_block_that_raises_leaves_nothing(self, store: Store) -> None:
        await make_table(store)

        async def fail() -> None:
            async with store.transaction() as tx:
                await tx.execute(KEEP, id="a", n=1)
                await tx.apply(plain())
                raise Oops

        with pytest.raises(Oops):
            await fail()
        assert await names(store) == []
        assert await store.log.end() == (0, None)
        assert isinstance((await store.commit([plain()]))[0], Committed)

    async def test_a_cancelled_block_leaves_nothing(self, store: Store) -> None:
        await make_table(store)
        inside = asyncio.Event()

        async def wait_for_ever() -> None:
            async with store.transaction() as tx:
                await tx.execute(KEEP, id="a", n=1)
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(wait_for_ever())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await names(store) == []
        assert isinstance((await store.commit([plain()], patient=True))[0], Committed)

    async def test_nobody_sees_an_open_transaction(self, store: Store, new_store: NewStore) -> None:
        await make_table(store)
        other = await new_store()
        async with store.transaction() as tx:
            await tx.execute(KEEP, id="a", n=1)
            await tx.apply(plain())
            assert await names(other) == await names(store) == []
            assert await other.log.end() == (0, None)

    async def test_units_are_applied_together_or_not_at_all(self, store: Store) -> None:
        first, second = Unit(appends=(Append("a", records(1)),)), Unit(appends=(Append("b", records(2)),))
        async with store.transaction() as tx:
            committed = await tx.apply_all([first, plain(), second])
            assert [one.versions for one in committed] == [(1,), (), (2,)]
            assert len({position for one in committed for position in one.positions}) == 4
            wrong = Unit(appends=(Append("b", records(1), expected=7),))
            with pytest.raises(Conflict):
                await tx.apply_all([first, wrong])
            assert (await tx.apply(first)).versions == (2,), "nothing of the refused ones was applied"
        assert await store.fetch("SELECT count(*) AS n FROM skald_events") == [{"n": 5}]

    async def test_a_savepoint_undoes_its_block_only(self, store: Store) -> None:
        await make_table(store)

        async def fail(tx: Transaction) -> None:
            async with tx.savepoint():
                await tx.execute(KEEP, id="b", n=1)
                async with tx.savepoint():
                    await tx.execute(KEEP, id="c", n=1)
                raise Oops

        async with store.transaction() as tx:
            await tx.execute(KEEP, id="a", n=1)
            with pytest.raises(Oops):
                await fail(tx)
            async with tx.savepoint():
                await tx.execute(KEEP, id="d", n=1)
        assert await names(store) == ["a", "d"]

    async def test_a_savepoint_makes_a_failed_statement_harmless(self, store: Store) -> None:
        await make_table(store)
        async with store.transaction() as tx:
            await tx.execute(KEEP, id="a", n=1)
            with pytest.raises(StoreError):
                async with tx.savepoint():
                    await tx.execute(KEEP, id="a", n=2)
            await tx.execute(KEEP, id="b", n=1)
        assert await names(store) == ["a", "b"]

    async def test_a_rejected_unit_leaves_the_transaction_usable(self, store: Store) -> None:
        await make_table(store)
        await commit(store, Unit(appends=(Append("s", records(1)),)))
        async with store.transaction() as tx:
            await tx.execute(KEEP, id="a", n=1)
            with pytest.raises(Conflict):
                await tx.apply(Unit(events=records(1), appends=(Append("s", records(1), NEW),)))
            await tx.apply(Unit(appends=(Append("s", records(1), 1),)))
            await tx.execute(KEEP, id="b", n=1)
        assert await names(store) == ["a", "b"]
        assert await store.log.versions(["stream:s"]) == {"stream:s": 2}
        assert len(await store.log.read(0, 10)) == 2

    async def test_units_of_one_transaction_see_each_other(self, store: Store) -> None:
        async with store.transaction() as tx:
            first = await tx.apply(Unit(appends=(Append("s", records(1), NEW),)))
            second = await tx.apply(Unit(appends=(Append("s", records(1), 1),)))
        assert second.positions[0] > first.positions[0]
        assert [r.stream_version for r in await store.log.read_stream("s")] == [1, 2]

    async def test_a_unit_in_an_undone_savepoint_is_undone(self, store: Store) -> None:
        async def fail(tx: Transaction) -> None:
            async with tx.savepoint():
                await tx.apply(Unit(appends=(Append("s", records(1), NEW),)))
                raise Oops

        async with store.transaction() as tx:
            with pytest.raises(Oops):
                await fail(tx)
            await tx.apply(Unit(appends=(Append("s", records(1), NEW),)))
        assert len(await store.log.read(0, 10)) == 1

    async def test_portable_values(self, store: Store) -> None:
        await make_table(store)
        doc = {"list": [1, "zwei", None], "deep": {"yes": True}}
        values = {"id": "ä'b", "n": 2**40, "x": 0.5, "b": b"\x00\xff", "yes": True, "doc": doc}
        async with store.transaction() as tx:
            sql = "INSERT INTO things (id, n, x, b, yes, doc) VALUES (:id, :n, :x, :b, :yes, :doc)"
            await tx.execute(sql, **values)
            await tx.execute(sql, id="nothing", n=None, x=None, b=None, yes=None, doc=None)
            assert (await tx.fetch("SELECT * FROM things WHERE id = :id", id="ä'b"))[0] == values
        rows = {row["id"]: row for row in await store.fetch("SELECT id, n, x, b, yes, doc FROM things")}
        assert rows["ä'b"] == values
        assert rows["ä'b"]["yes"] is True
        assert rows["nothing"] == {"id": "nothing", "n": None, "x": None, "b": None, "yes": None, "doc": None}

    async def test_portable_statements(self, store: Store) -> None:
        await make_table(store)
        upsert = (
            "INSERT INTO things (id, n) VALUES (:id, :n) ON CONFLICT (id) DO UPDATE SET n = excluded.n RETURNING id, n"
        )
        async with store.transaction() as tx:
            assert await tx.fetch(upsert, id="a", n=1) == [{"id": "a", "n": 1}]
            assert await tx.fetch(upsert, id="a", n=2) == [{"id": "a", "n": 2}]
            await tx.execute(KEEP, id="b", n=5)
            assert await tx.execute("UPDATE things SET n = n + :by", by=1) == 2
            assert await tx.execute("UPDATE things SET n = 0 WHERE id = :id", id="nobody") == 0
            assert await tx.fetch("SELECT id FROM things WHERE id = :id", id="nobody") == []
            sql = "WITH big AS (SELECT id FROM things WHERE n > :n) SELECT id FROM big ORDER BY id LIMIT :limit"
            assert await tx.fetch(sql, n=0, limit=1) == [{"id": "a"}]
            assert await tx.execute("DELETE FROM things WHERE id = :id AND n > :n", id="b", n=0) == 1
        assert await names(store) == ["a"]

    async def test_a_colon_in_a_text_is_no_parameter(self, store: Store) -> None:
        rows = await store.fetch("SELECT ':n' AS a, :n AS b", n="x")
        assert rows == [{"a": ":n", "b": "x"}]

    async def test_now_is_a_time_of_this_century(self, store: Store) -> None:
        async with store.transaction() as tx:
            first = await tx.now()
            second = await tx.now()
        assert 946_684_800_000_000 < first <= second < 4_102_444_800_000_000

    async def test_an_ended_transaction_refuses_statements(self, store: Store) -> None:
        async with store.transaction() as tx:
            pass
        with pytest.raises(StoreError):
            await tx.execute("SELECT 1")

    # --- beside others --------------------------------------------------------------------------------------

    async def test_a_commit_that_would_wait_for_its_own_transaction_raises(self, store: Store) -> None:
        store.ensure_free()
        async with store.transaction() as tx:
            if store.features.exclusive_transactions:
                with pytest.raises(NestedCommit):
                    store.ensure_free()
                with pytest.raises(NestedCommit):
                    await store.commit([plain()])
                with pytest.raises(NestedCommit):
                    async with store.transaction():
                        pass
            await tx.apply(plain())
        store.ensure_free()
        assert isinstance((await store.commit([plain()]))[0], Committed)

    async def test_a_held_key_is_busy(self, store: Store, new_store: NewStore) -> None:
        other = await new_store()
        held = Unit(appends=(Append("held", records(1)),))
        for is_new in (True, False):
            async with store.transaction() as tx:
                await tx.apply(held)
                outcomes = await other.commit([plain(), held, plain()])
                assert isinstance(outcomes[1], Busy)
                if not store.features.exclusive_transactions:
                    assert isinstance(outcomes[0], Committed)
                    assert isinstance(outcomes[2], Committed)
            assert isinstance((await other.commit([held], patient=True))[0], Committed), is_new

    async def test_a_patient_commit_waits_for_the_key(self, store: Store, new_store: NewStore) -> None:
        other = await new_store()
        held = Unit(appends=(Append("held", records(1)),))
        async with store.transaction() as tx:
            await tx.apply(held)
            waiting = asyncio.create_task(other.commit([held], patient=True))
            done, _ = await asyncio.wait([waiting], timeout=0.12)  # longer than an impatient one would wait
            assert not done
        async with asyncio.timeout(10):
            [outcome] = await waiting
        assert isinstance(outcome, Committed)
        assert outcome.versions == (2,)

    async def test_transactions_of_two_handles_lose_nothing(self, store: Store, new_store: NewStore) -> None:
        await make_table(store)
        await commit_row(store, "count", 0)
        handles = [store, await new_store(), await new_store()]

        async def raise_by_one(handle: Store) -> None:
            async with handle.transaction() as tx:
                await tx.execute("UPDATE things SET n = n + 1 WHERE id = 'count'")
                await tx.apply(Unit(appends=(Append("s", records(1)),)))

        await asyncio.gather(*(raise_by_one(handle) for handle in handles for _ in range(10)))
        assert await store.fetch("SELECT n FROM things") == [{"n": 30}]
        assert await store.log.versions(["stream:s"]) == {"stream:s": 30}


async def commit_row(store: Store, id: str, n: int) -> None:
    async with store.transaction() as tx:
        await tx.execute(KEEP, id=id, n=n)
