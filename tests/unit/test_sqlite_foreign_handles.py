"""A second copy of SQLite on our file in this process is refused by name, because it loses committed data."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
import pytest_asyncio

from skald.errors import ForeignHandle, StoreUnavailable
from skald.stores.sqlite import SqliteLog, SqliteStore
from skald.stores.sqlite import foreign as watching
from skald.testing.samples import commit, plain


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


@pytest_asyncio.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, "orders")
    await store.migrate()
    yield store
    await store.close()


@pytest.fixture
def always_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at all descriptors comes once a second; here before every commit."""
    monkeypatch.setattr(watching, "_PERIOD", 0.0)


async def test_a_handle_that_was_there_before_is_refused(store: SqliteStore, path: Path) -> None:
    with closing(sqlite3.connect(path)):
        with pytest.raises(ForeignHandle, match=r"orders\.db.*tx"):
            await store.open()
        with pytest.raises(ForeignHandle):
            await store.migrate()
    await store.open()
    await commit(store, plain())


@pytest.mark.usefixtures("always_looking")
async def test_a_handle_that_comes_later_is_refused_before_anything_is_written(store: SqliteStore, path: Path) -> None:
    await store.open()
    await commit(store, plain())
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM skald_events").fetchone() == (1,)
        with pytest.raises(ForeignHandle):
            await store.commit([plain()])
        with pytest.raises(ForeignHandle):
            async with store.transaction():
                pass
    assert len(await store.log.read(0, 10)) == 1


async def test_a_handle_that_was_closed_again_has_taken_our_wal_with_it(store: SqliteStore, path: Path) -> None:
    await store.open()
    await commit(store, plain())
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT count(*) FROM skald_events").fetchone()
    with pytest.raises(ForeignHandle):
        await store.commit([plain()])


@pytest.mark.usefixtures("always_looking")
async def test_our_own_library_is_welcome(store: SqliteStore, path: Path) -> None:
    await store.open()
    others = [apsw.Connection(str(path)) for _ in range(3)]
    for other in others:
        assert other.execute("SELECT count(*) FROM skald_events").get == 0
    log = SqliteLog(path)
    await log.open()
    await commit(store, plain())
    others.pop().close()  # SQLite keeps its descriptor open
    await log.close()
    second = SqliteStore(path, "orders")
    await second.open()
    await commit(store, plain())
    await commit(second, plain())
    await second.close()
    for other in others:
        other.close()
    await commit(store, plain())


async def test_a_replaced_file_is_not_written(store: SqliteStore, path: Path) -> None:
    await store.open()
    await commit(store, plain())
    path.rename(path.with_name("old.db"))
    with pytest.raises(StoreUnavailable, match="replaced"):
        await store.commit([plain()])
