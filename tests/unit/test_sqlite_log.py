"""Logs of other services: read-only, waited for, and noticed when they are replaced."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
import pytest_asyncio

from skald.errors import StoreError, StoreUnavailable
from skald.sql import blocks
from skald.stores.sqlite import SqliteLog, SqliteStore
from skald.testing.samples import commit, plain, record, records
from skald.unit import Append, Unit


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


@pytest_asyncio.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, "orders")
    await store.migrate()
    await store.open()
    yield store
    await store.close()


async def test_a_file_that_does_not_exist_yet_is_named(path: Path) -> None:
    log = SqliteLog(path)
    with pytest.raises(StoreUnavailable, match=r"orders\.db"):
        await log.open()
    assert not path.exists()
    store = SqliteStore(path, "orders")
    await store.migrate()
    await log.open()
    assert await log.end() == (0, None)
    await log.close()
    with pytest.raises(StoreUnavailable):
        await log.end()


async def test_a_file_without_tables_is_no_log_yet(path: Path) -> None:
    apsw.Connection(str(path)).close()
    log = SqliteLog(path)
    with pytest.raises(StoreUnavailable, match="migrate"):
        await log.open()
    await log.close()


async def test_a_reader_sees_what_was_committed_after_it_opened(store: SqliteStore, path: Path) -> None:
    log = SqliteLog(path)
    await log.open()
    for n in range(1, 4):
        await commit(store, plain())
        assert len(await log.read(0, 10)) == n
    await log.close()


async def test_a_reader_survives_the_writer(store: SqliteStore, path: Path) -> None:
    await commit(store, plain(2))
    log = SqliteLog(path)
    await log.open()
    await store.close()
    assert len(await log.read(0, 10)) == 2
    await log.close()
    assert len(await read_all(path)) == 2


async def read_all(path: Path) -> list[object]:
    log = SqliteLog(path)
    await log.open()
    try:
        return list(await log.read(0, 100))
    finally:
        await log.close()


async def test_a_reader_cannot_write(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="transaction"):
        await store.fetch("DELETE FROM skald_events RETURNING position")


async def test_a_replaced_file_is_read_anew(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    await commit(store, plain(2))
    await store.close()
    shutil.copy(path, tmp_path / "backup.db")
    await store.open()
    await commit(store, plain(3))
    log = SqliteLog(path)
    await log.open()
    assert (await log.end())[0] == 5
    await store.close()
    for file in tmp_path.glob("orders.db*"):
        file.unlink()
    with pytest.raises(StoreUnavailable):
        await log.end()
    (tmp_path / "backup.db").rename(path)
    assert (await log.end())[0] == 2
    await log.close()


async def test_no_read_keeps_the_wal_from_being_truncated(store: SqliteStore, path: Path) -> None:
    log = SqliteLog(path)
    await log.open()
    await commit(store, Unit(events=records(50), appends=(Append("s", records(50)),)))
    await log.read(0, 10)
    await log.read(0, 10, types=["x"])
    await log.read_stream("s", limit=3)
    await log.versions(["stream:s"])
    await log.end()
    await store.fetch("SELECT * FROM skald_events LIMIT 3")
    third = apsw.Connection(str(path))
    third.execute("SELECT 1 FROM sqlite_schema").fetchall()
    third.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)  # raises BusyError if anybody reads
    third.close()
    assert path.with_name("orders.db-wal").stat().st_size == 0
    await log.close()


async def test_the_wal_is_truncated_when_it_is_long(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skald.stores.sqlite.writer.WAL_LIMIT", 1 << 20)
    await commit(store, *(Unit(events=(record(payload=bytes(1 << 19)),)) for _ in range(8)))
    store._writer._next_look = 0.0
    await commit(store, plain())
    assert path.with_name("orders.db-wal").stat().st_size < 1 << 20


READS = ["read_log", "read_log_of_types", "read_stream", "read_stream_backwards", "versions", "end"]


@pytest.mark.parametrize("name", READS)
async def test_no_read_sorts_or_walks_a_table(store: SqliteStore, path: Path, name: str) -> None:
    connection = apsw.Connection(str(path))
    sql = blocks("skald.stores.sqlite", "log")[name]
    count = max((int(number) for number in re.findall(r"\?(\d)", sql)), default=0)
    plan = [str(row[3]) for row in connection.execute("EXPLAIN QUERY PLAN " + sql, ("1",) * count)]
    connection.close()
    assert not [line for line in plan if line.startswith("SCAN skald") and "USING" not in line and name != "end"]
    if name != "end":  # which sorts two rows
        assert not [line for line in plan if "TEMP B-TREE" in line]
