"""Where benchmarks keep data: on a real disk, under ``.skald/bench`` of the checkout, gone afterwards.

Each place gives out as many empty stores as are asked for, by URL: a folder on SQLite, a database on PostgreSQL, of the
server that ``SKALD_TEST_POSTGRES`` names or of a durable one of our own.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import apsw

from benchmarks.harness.child import ROOT
from benchmarks.harness.machine import file_system

BENCH = ROOT / ".skald" / "bench"


class Place(Protocol):
    name: str

    def version(self) -> str: ...

    def fresh(self) -> str:
        """The URL of an empty store."""
        ...

    def drop(self, url: str) -> None: ...


class SqlitePlace:
    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def version(self) -> str:
        return f"SQLite {apsw.sqlite_lib_version()}"

    def fresh(self) -> str:
        return f"sqlite:{self._folder / secrets.token_hex(4)}"

    def drop(self, url: str) -> None:
        shutil.rmtree(url.removeprefix("sqlite:"), ignore_errors=True)


class PostgresPlace:
    name = "postgres"

    def __init__(self, url: str) -> None:
        self._url = url
        self._made: list[str] = []

    def version(self) -> str:
        return f"PostgreSQL {self.execute('SHOW server_version')}"

    def fresh(self) -> str:
        database = f"skald_bench_{secrets.token_hex(4)}"
        self.execute(f"CREATE DATABASE {database}")
        url = urlunsplit(urlsplit(self._url)._replace(path=f"/{database}"))
        self._made.append(url)
        return url

    def drop(self, url: str) -> None:
        self._made.remove(url)
        self.execute(f"DROP DATABASE {urlsplit(url).path[1:]} WITH (FORCE)")

    def close(self) -> None:
        for url in tuple(self._made):
            with suppress(Exception):
                self.drop(url)

    def execute(self, sql: str) -> Any:
        """Runs a statement in the server's own database; returns its first value, if it has one."""
        return asyncio.run(_execute(self._url, sql))


async def _execute(url: str, sql: str) -> Any:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@contextmanager
def places(wanted: tuple[str, ...]) -> Iterator[list[Place]]:
    """The wanted places, and what else is needed for them; everything is gone at the end of the block."""
    BENCH.parent.mkdir(exist_ok=True)
    with _alone(BENCH.parent):
        _clear()
        BENCH.mkdir()
        try:
            yield from _places(wanted)
        finally:
            _clear()


def _places(wanted: tuple[str, ...]) -> Iterator[list[Place]]:
    if file_system(BENCH) in ("tmpfs", "ramfs"):
        raise SystemExit(f"{BENCH} is in memory: durable commits cannot be measured there")
    found: list[Place] = [SqlitePlace(BENCH)] if "sqlite" in wanted else []
    if "postgres" not in wanted:
        yield found
        return
    with _server() as url:
        place = PostgresPlace(url)
        try:
            yield [*found, place]
        finally:
            place.close()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two benchmarks at once would measure each other, and delete each other's data."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SystemExit("another benchmark is running in this checkout") from error
        yield
    finally:
        os.close(handle)


def _clear() -> None:
    """Also what a run that was killed has left behind, its server first."""
    if (BENCH / "postgres" / "data").exists():
        from tests.postgres_server import PostgresServer

        PostgresServer(BENCH / "postgres").stop()
    shutil.rmtree(BENCH, ignore_errors=True)


@contextmanager
def _server() -> Iterator[str]:
    """The URL of the server that the environment names, or of one that runs as long as the block."""
    named = os.environ.get("SKALD_TEST_POSTGRES")
    if named:
        yield named
        return
    from tests.postgres_server import PostgresServer, account, reachable

    BENCH.chmod(0o755)
    folder = BENCH / "postgres"
    folder.mkdir()
    user = account()
    if user:
        shutil.chown(folder, user)
    # As root, in a checkout that the server's user may not enter, the data go to the temporary folder.
    server = PostgresServer(folder if reachable(folder, user) else None)
    if file_system(server.folder) in ("tmpfs", "ramfs"):
        raise SystemExit(f"{server.folder} is in memory: name a durable server in SKALD_TEST_POSTGRES")
    try:
        yield server.start().url
    finally:
        server.stop()
