"""Migrations and the life of a handle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from skald.errors import SchemaMismatch, SkaldError
from skald.store import Store
from skald.testing.samples import plain
from skald.unit import Committed

NewHandle = Callable[[], Store]
NewStore = Callable[[], Awaitable[Store]]
FIRST = "CREATE TABLE orders (id TEXT PRIMARY KEY);\nINSERT INTO orders VALUES ('a;b');\n"
SECOND = "-- a comment; with a semicolon\nSELECT 1;\nALTER TABLE orders ADD COLUMN total INTEGER;\n"


class SchemaConformance:
    """``Store.migrate``, ``open`` and ``close``."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The user's migrations: two files."""
        folder = tmp_path / "migrations"
        folder.mkdir()
        (folder / "0001_orders.sql").write_text(FIRST)
        (folder / "0002_total.sql").write_text(SECOND)
        return folder

    async def test_a_database_without_tables_is_not_opened(self, new_handle: NewHandle) -> None:
        store = new_handle()
        with pytest.raises(SchemaMismatch, match="migrate"):
            await store.open()
        await store.close()
        assert await store.pending_migrations()

    async def test_a_healthy_store_has_no_errors_and_nothing_to_tidy(self, new_handle: NewHandle) -> None:
        store = new_handle()
        await store.diagnose()  # also before there is anything
        await store.migrate()
        assert [finding for finding in await store.diagnose() if finding.level == "error"] == []
        await store.open()
        await store.commit([plain()])
        assert [finding for finding in await store.diagnose() if finding.level == "error"] == []
        assert await store.tidy() == 0
        await store.close()

    async def test_closing_is_legal_at_any_time_and_twice(self, new_handle: NewHandle) -> None:
        store = new_handle()
        await store.close()
        await store.migrate()
        await store.open()
        await store.close()
        await store.close()
        with pytest.raises(SkaldError):
            await store.commit([plain()])

    async def test_a_closed_store_opens_again(self, new_handle: NewHandle) -> None:
        store = new_handle()
        await store.migrate()
        for _ in range(2):
            await store.open()
            assert isinstance((await store.commit([plain()]))[0], Committed)
            await store.close()

    async def test_migrating_applies_each_file_once(self, new_handle: NewHandle, folder: Path) -> None:
        store = new_handle()
        pending = [name for name, _ in await store.pending_migrations(folder)]
        assert pending[-2:] == ["0001_orders.sql", "0002_total.sql"]
        assert (await store.pending_migrations(folder))[-1][1] == SECOND
        assert await store.migrate(folder) == pending
        assert await store.migrate(folder) == []
        assert await new_handle().migrate(folder) == []
        assert await new_handle().pending_migrations(folder) == []
        await store.open()
        assert await store.fetch("SELECT id, total FROM orders") == [{"id": "a;b", "total": None}]
        await store.close()

    async def test_a_later_file_is_applied_later(self, new_handle: NewHandle, folder: Path) -> None:
        await new_handle().migrate(folder)
        (folder / "0003_more.sql").write_text("CREATE TABLE more (id TEXT);")
        assert [name for name, _ in await new_handle().pending_migrations(folder)] == ["0003_more.sql"]
        assert await new_handle().migrate(folder) == ["0003_more.sql"]

    async def test_a_failed_file_leaves_nothing_and_the_ones_before_it_stay(
        self, new_handle: NewHandle, folder: Path
    ) -> None:
        bad = folder / "0003_bad.sql"
        bad.write_text("CREATE TABLE half (id TEXT); CREATE TABLE orders (id TEXT);")
        with pytest.raises(SkaldError, match="0003_bad"):
            await new_handle().migrate(folder)
        assert [name for name, _ in await new_handle().pending_migrations(folder)] == ["0003_bad.sql"]
        bad.write_text("CREATE TABLE half (id TEXT);")
        assert await new_handle().migrate(folder) == ["0003_bad.sql"]

    @pytest.mark.parametrize(
        ("old", "new", "text"),
        [
            pytest.param("0002_total.sql", "0002_total.sql", SECOND + "-- changed", id="changed"),
            pytest.param("0002_total.sql", "0003_total.sql", SECOND, id="gap"),
            pytest.param(None, "0002_again.sql", SECOND, id="double"),
            pytest.param("0002_total.sql", None, "", id="the database has seen more"),
        ],
    )
    async def test_files_that_do_not_fit_are_refused(
        self, new_handle: NewHandle, folder: Path, old: str | None, new: str | None, text: str
    ) -> None:
        await new_handle().migrate(folder)
        if old is not None:
            (folder / old).unlink()
        if new is not None:
            (folder / new).write_text(text)
        with pytest.raises(SchemaMismatch):
            await new_handle().migrate(folder)
        with pytest.raises(SchemaMismatch):
            await new_handle().pending_migrations(folder)

    @pytest.mark.parametrize(("compatible", "refused"), [(9999, True), (1, False)])
    async def test_a_newer_schema_is_refused_unless_it_says_otherwise(
        self, new_handle: NewHandle, store: Store, compatible: int, refused: bool
    ) -> None:
        async with store.transaction() as tx:
            await tx.execute(
                "INSERT INTO skald_migrations (owner, number, name, checksum) "
                "VALUES ('skald', 9999, '9999_later.sql', 'x')"
            )
            await tx.execute(
                "INSERT INTO skald_meta (key, value) VALUES ('compatible', :n) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                n=str(compatible),
            )
        late = new_handle()
        try:
            if refused:
                with pytest.raises(SchemaMismatch):
                    await late.open()
                with pytest.raises(SchemaMismatch):
                    await late.migrate()
            else:
                await late.open()
                assert await late.migrate() == []
        finally:
            await late.close()

    async def test_many_may_migrate_at_once(self, new_handle: NewHandle, folder: Path) -> None:
        wanted = [name for name, _ in await new_handle().pending_migrations(folder)]
        applied = await asyncio.gather(*(new_handle().migrate(folder) for _ in range(16)))
        assert sorted(name for names in applied for name in names) == sorted(wanted)
        store = new_handle()
        await store.open()
        assert await store.fetch("SELECT COUNT(*) AS n FROM orders") == [{"n": 1}]
        await store.close()
