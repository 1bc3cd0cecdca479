"""Migrations of SQLite files: what the suite cannot say for every store."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from skald.errors import SchemaMismatch, StoreUnavailable, UnsafeSettings
from skald.stores.sqlite import SqliteStore, connect, migrations
from skald.testing.samples import commit, plain

MIGRATE = """
import asyncio, sys
from pathlib import Path
from skald.stores.sqlite import SqliteStore
print(asyncio.run(SqliteStore(Path(sys.argv[1]), "orders").migrate()))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


async def test_sixteen_processes_may_start_at_once(path: Path) -> None:
    command = [sys.executable, "-c", MIGRATE, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(16)]
    outputs = [(await asyncio.to_thread(process.communicate))[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 16
    # Each file is a transaction of its own, so that two processes may share them; none is applied twice.
    applied = [name for output in outputs for name in ast.literal_eval(output)]
    assert sorted(applied) == [file.name for file in migrations.library_migrations()]


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "BEGIN", "END", "ATTACH 'x.db' AS x"])
async def test_a_file_cannot_end_its_transaction(path: Path, tmp_path: Path, statement: str) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_bad.sql").write_text(f"CREATE TABLE a (id TEXT); {statement}; CREATE TABLE b (id TEXT);")
    store = SqliteStore(path, "orders")
    with pytest.raises(SchemaMismatch, match="0001_bad"):
        await store.migrate(folder)
    await store.open()
    assert await store.fetch("SELECT name FROM sqlite_schema WHERE name IN ('a', 'b')") == []
    await store.close()


@pytest.mark.parametrize("name", ["1_short.sql", "0001-dash.sql", "orders.sql", "0002_gap.sql"])
async def test_odd_names_are_refused(path: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / name).write_text("SELECT 1;")
    with pytest.raises(SchemaMismatch, match=name):
        await SqliteStore(path, "orders").migrate(folder)
    assert not path.exists()


async def test_a_folder_that_does_not_exist_is_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match="nowhere"):
        await SqliteStore(path, "orders").migrate(tmp_path / "nowhere")


async def test_a_file_says_which_older_code_may_run_beside_it(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_a.sql").write_text("CREATE TABLE a (id TEXT);")
    (folder / "0002_b.sql").write_text("-- compatible: 1\nCREATE TABLE b (id TEXT);")
    await SqliteStore(path, "orders").migrate(folder)
    (folder / "0002_b.sql").unlink()
    assert await SqliteStore(path, "orders").migrate(folder) == []  # the older code

    (folder / "0002_b.sql").write_text("-- compatible: 1\nCREATE TABLE b (id TEXT);")
    (folder / "0003_c.sql").write_text("-- compatible: 3\nDROP TABLE b;")
    await SqliteStore(path, "orders").migrate(folder)
    (folder / "0003_c.sql").unlink()
    with pytest.raises(SchemaMismatch, match="0003_c"):
        await SqliteStore(path, "orders").migrate(folder)


async def test_a_copy_without_a_wal_gets_one_and_a_foreign_file_is_left_alone(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path, "orders")
    await store.migrate()
    copy = tmp_path / "copy.db"
    connection = apsw.Connection(str(path))
    connection.execute("VACUUM INTO ?", (str(copy),))
    connection.close()
    restored = SqliteStore(copy, "orders")
    await restored.open()
    await commit(restored, plain())
    await restored.close()

    other = tmp_path / "other.db"
    connection = apsw.Connection(str(other))
    connection.execute("CREATE TABLE theirs (id)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(SchemaMismatch):
        await SqliteStore(other, "orders").open()
    assert other.read_bytes() == before
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at " * 50)
    with pytest.raises(StoreUnavailable, match="not a SQLite database"):
        await SqliteStore(tmp_path / "text.db", "orders").open()


async def test_the_settings_are_durable(path: Path) -> None:
    store = SqliteStore(path, "orders")
    await store.migrate()
    await store.open()
    async with store.transaction() as tx:
        settings = ["journal_mode", "synchronous", "foreign_keys", "mmap_size", "trusted_schema"]
        found = [tx.connection.execute(f"PRAGMA {name}").get for name in settings]
    assert found == ["wal", 2, 1, 0, 0]
    await store.close()


@pytest.mark.parametrize(("version", "fits"), [("3.51.2", False), ("3.46.0", False), ("3.51.3", True), ("4.0.0", True)])
def test_a_sqlite_that_corrupts_files_is_refused(version: str, fits: bool) -> None:
    if fits:
        connect.require_sqlite(version)
    else:
        with pytest.raises(UnsafeSettings, match=version):
            connect.require_sqlite(version)
