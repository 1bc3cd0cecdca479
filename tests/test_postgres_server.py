"""The server of the tests keeps what was committed, whatever happens to it, and leaves nothing behind."""

from __future__ import annotations

import asyncpg
import psycopg
import pytest

from tests.postgres_server import PostgresServer


def test_what_was_committed_survives_a_kill() -> None:
    with PostgresServer() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            connection.execute("INSERT INTO kept VALUES (7)")
            first = server.pid
            server.kill()
            assert server.pid is None
            assert not server.is_ready()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")

        server.start()

        assert server.pid not in (None, first)
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT n FROM kept").fetchall() == [(7,)]
        server.crash()
        server.start()
        server.restart()
        assert server.is_ready()
    assert server.pid is None
    assert not server.folder.exists()


async def test_each_test_has_a_database_of_its_own(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM pg_stat_user_tables") == 0
        settings = ["fsync", "synchronous_commit", "full_page_writes"]
        assert [await connection.fetchval(f"SHOW {name}") for name in settings] == ["on", "on", "on"]
    finally:
        await connection.close()
