"""Databases that are put back to an earlier moment, in the ways in which people do it.

Each way says where an application keeps its data, takes a copy of one service's database, and puts it back.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import apsw
import psycopg

from tests.postgres_server import account, find_binaries


class Copies(Protocol):
    def url(self, service: str) -> str:
        """Where the service keeps its data; the same after ``restore``."""
        ...

    async def take(self, service: str) -> None: ...

    async def restore(self, service: str) -> None: ...

    async def close(self) -> None: ...


class FileCopies:
    """SQLite: the file and its WAL, copied while nothing is written."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._copies = folder / "data", folder / "copies"
        self._copies.mkdir()

    def url(self, service: str) -> str:
        return f"sqlite:{self._folder}"

    async def take(self, service: str) -> None:
        for name in (f"{service}.db", f"{service}.db-wal"):
            if (self._folder / name).exists():
                shutil.copy(self._folder / name, self._copies / name)

    async def restore(self, service: str) -> None:
        for ending in ("", "-wal", "-shm"):
            (self._folder / f"{service}.db{ending}").unlink(missing_ok=True)
        # The database last: whoever finds it finds its WAL.
        for name in (f"{service}.db-wal", f"{service}.db"):
            if (self._copies / name).exists():
                shutil.copy(self._copies / name, self._folder / f"{name}.new")
                (self._folder / f"{name}.new").rename(self._folder / name)

    async def close(self) -> None:
        pass


class VacuumCopies(FileCopies):
    """SQLite: ``VACUUM INTO``, which may run beside everything else."""

    async def take(self, service: str) -> None:
        connection = apsw.Connection(str(self._folder / f"{service}.db"), flags=apsw.SQLITE_OPEN_READWRITE)
        (self._copies / f"{service}.db").unlink(missing_ok=True)
        connection.execute("VACUUM INTO ?", (str(self._copies / f"{service}.db"),))
        connection.close()


class OverwrittenCopies(VacuumCopies):
    """SQLite: the file's content overwritten in its place (``cp``), its WAL removed before."""

    async def restore(self, service: str) -> None:
        for ending in ("-wal", "-shm"):
            (self._folder / f"{service}.db{ending}").unlink(missing_ok=True)
        shutil.copyfile(self._copies / f"{service}.db", self._folder / f"{service}.db")


class DumpCopies:
    """PostgreSQL: ``pg_dump`` of a service's own database; restored into one that is made anew."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        self._made: set[str] = set()

    def url(self, service: str) -> str:
        name = self._name(service)
        if service not in self._made:
            self._made.add(service)
            with psycopg.connect(self._url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        return urlsplit(self._url)._replace(path=f"/{name}").geturl()

    def _name(self, service: str) -> str:
        return f"{urlsplit(self._url).path.removeprefix('/')}_{service}"

    async def take(self, service: str) -> None:
        await _program("pg_dump", "-d", self.url(service), "-f", str(self._folder / f"{service}.sql"))

    async def restore(self, service: str) -> None:
        await asyncio.to_thread(self._renew, self._name(service))
        dump = str(self._folder / f"{service}.sql")
        await _program("psql", "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", self.url(service), "-f", dump)

    def _renew(self, name: str) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]

    async def close(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            for service in self._made:
                connection.execute(f"DROP DATABASE {self._name(service)} WITH (FORCE)")  # type: ignore[arg-type]


class SchemaCopies:
    """PostgreSQL: one service's schema, dropped and restored under whoever is connected."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder

    def url(self, service: str) -> str:
        return self._url

    async def take(self, service: str) -> None:
        dump = str(self._folder / f"{service}.sql")
        await _program("pg_dump", "-d", self._url, "-n", service, "--clean", "--if-exists", "-f", dump)

    async def restore(self, service: str) -> None:
        dump = self._folder / f"{service}.sql"
        text = dump.read_text().replace(f"DROP SCHEMA IF EXISTS {service};", f"DROP SCHEMA {service} CASCADE;")
        dump.write_text(text)
        while True:
            try:
                await _program("psql", "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", self._url, "-f", str(dump))
            except AssertionError as error:
                # Readers lock its tables in an order of their own. It was one transaction: it is done once more.
                if "deadlock detected" not in str(error):
                    raise
            else:
                return

    async def close(self) -> None:
        pass


async def _program(name: str, *arguments: str) -> None:
    binaries = await asyncio.to_thread(find_binaries, account())
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    process = await asyncio.create_subprocess_exec(
        binaries / name, *arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
