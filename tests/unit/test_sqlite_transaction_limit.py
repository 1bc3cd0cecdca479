"""A write transaction keeps every other writer out, so it is bounded and its line is named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from skald.errors import Busy, NestedCommit, StoreError, StoreUnavailable, TransactionTooLong
from skald.stores.sqlite import SqliteStore
from skald.testing.samples import commit, plain
from skald.unit import Committed


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "orders.db", "orders", transaction_limit=0.02)
    await store.migrate()
    await store.open()
    yield store
    await store.close()


async def overstay(store: SqliteStore) -> None:
    async with store.transaction() as tx:  # this line is named
        await tx.apply(plain())
        waiting = asyncio.create_task(store_commit_outside(store))
        assert isinstance((await waiting)[0], Committed)  # let in by the rollback
        await tx.apply(plain())


async def store_commit_outside(store: SqliteStore) -> list[object]:
    # As a task of somebody else would: it does not inherit the transaction.
    store._inside.set(None)
    return list(await store.commit([plain()], patient=True))


async def test_it_is_rolled_back_others_go_on_and_the_line_is_named(store: SqliteStore) -> None:
    with pytest.raises(TransactionTooLong) as raised:
        await overstay(store)
    line = overstay.__code__.co_firstlineno + 1
    assert f"{Path(__file__).name}:{line}" in str(raised.value)
    assert len(await store.log.read(0, 10)) == 1
    await commit(store, plain())


async def test_a_block_that_ends_too_late_raises_even_without_another_statement(store: SqliteStore) -> None:
    async def late() -> None:
        async with store.transaction() as tx:
            await tx.apply(plain())
            ended = asyncio.create_task(store_commit_outside(store))
            await ended

    with pytest.raises(TransactionTooLong):
        await late()
    assert len(await store.log.read(0, 10)) == 1


async def test_a_task_started_inside_cannot_commit_either(store: SqliteStore) -> None:
    async with store.transaction():
        with pytest.raises(NestedCommit, match=Path(__file__).name):
            await asyncio.create_task(store.commit([plain()]))  # type: ignore[arg-type]


async def test_a_task_started_inside_commits_when_the_block_is_over(store: SqliteStore) -> None:
    over = asyncio.Event()

    async def later() -> list[object]:
        await over.wait()
        return list(await store.commit([plain()]))

    async with store.transaction():
        task = asyncio.create_task(later())
    over.set()
    assert isinstance((await task)[0], Committed)


async def test_two_stores_do_not_mistake_each_other(store: SqliteStore, tmp_path: Path) -> None:
    other = SqliteStore(tmp_path / "stock.db", "stock")
    await other.migrate()
    await other.open()
    async with store.transaction() as tx:
        await commit(other, plain())
        async with other.transaction() as theirs:
            await theirs.apply(plain())
        await tx.apply(plain())
        with pytest.raises(NestedCommit):
            store.ensure_free()
    await other.close()


async def test_commit_and_rollback_belong_to_the_block(store: SqliteStore) -> None:
    async def end_it() -> None:
        async with store.transaction() as tx:
            await tx.execute("COMMIT")

    with pytest.raises(StoreUnavailable, match="leave both to the block"):
        await end_it()
    await commit(store, plain())


async def test_a_missing_parameter_is_named(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match=":process"):
        await store.fetch("SELECT :process AS p", proces="x")


async def test_an_impatient_commit_does_not_wait_for_a_transaction(store: SqliteStore) -> None:
    held = SqliteStore(store._path, "orders", transaction_limit=5.0)
    await held.open()
    async with held.transaction() as tx:
        await tx.apply(plain())
        started = asyncio.get_running_loop().time()
        assert isinstance((await store.commit([plain()]))[0], Busy)
        assert asyncio.get_running_loop().time() - started < 1.0
    await held.close()
