"""Numbered SQL files, each applied once in a transaction of its own and remembered with its checksum.

A file may say ``-- compatible: N`` on a line of its own: code whose newest file is N or later may run beside it;
without it N is the file itself. The highest N is kept in ``skald_meta``, and code that is older than that is refused.
That is how versions N and N+1 run side by side during a deployment; migrations only add.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import asyncpg
import msgspec

from skald.errors import SchemaMismatch
from skald.stores.postgres.connecting import Connection, close, connect
from skald.stores.postgres.failures import boundary
from skald.stores.postgres.statements import quoted, statements

_NAME = re.compile(r"^(\d{4})_(\w+)\.sql$")
_COMPATIBLE = re.compile(r"^-- compatible: (\d+)\s*$", re.MULTILINE)
_KEYS = {"skald": "compatible", "service": "service_compatible"}


class Migration(msgspec.Struct, frozen=True):
    owner: str
    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return sha256(self.text.encode()).hexdigest()

    @property
    def compatible(self) -> int:
        """The newest file that the oldest code knows which may run beside this one."""
        found = _COMPATIBLE.search(self.text)
        return int(found[1]) if found else self.number


def library_migrations() -> list[Migration]:
    return _numbered("skald", (files(__package__) / "migrations").iterdir())


def all_migrations(directory: Path | None) -> list[Migration]:
    """The library's files, then the user's; gaps, double numbers and odd names are refused."""
    if directory is None:
        return library_migrations()
    if not directory.is_dir():
        raise SchemaMismatch(f"{directory} is not a folder of migrations (0001_name.sql, 0002_…)")
    return library_migrations() + _numbered("service", directory.iterdir())


def _numbered(owner: str, found: Iterable[Traversable | Path]) -> list[Migration]:
    migrations: list[Migration] = []
    for file in sorted((file for file in found if file.name.endswith(".sql")), key=lambda file: file.name):
        match = _NAME.match(file.name)
        if match is None:
            raise SchemaMismatch(f"{file.name}: a migration is named 0001_name.sql")
        if int(match[1]) != len(migrations) + 1:
            raise SchemaMismatch(
                f"{file.name}: number {len(migrations) + 1:04} is expected here; numbers have neither gaps nor doubles"
            )
        migrations.append(Migration(owner, int(match[1]), file.name, file.read_text(encoding="utf-8")))
    return migrations


class Migrator:
    """The migrations of one schema; each call has a connection of its own."""

    def __init__(self, url: str, schema: str, service: str) -> None:
        self._url, self._schema, self._service = url, schema, service
        self._sql = statements("migrate", schema)

    async def pending(self, directory: Path | None) -> list[Migration]:
        wanted = all_migrations(directory)
        async with self._connection() as connection:
            return await missing(connection, self._schema, wanted)

    async def migrate(self, directory: Path | None) -> list[str]:
        wanted = all_migrations(directory)
        async with self._connection() as connection:
            # Held across the files' own transactions; whoever comes second finds nothing left to do.
            await connection.execute(self._sql["lock"], self._schema)
            await connection.execute(self._sql["begin"])
            pending = await missing(connection, self._schema, wanted)
            for migration in pending:
                await self._apply(connection, migration)
            return [migration.name for migration in pending]

    async def _apply(self, connection: Connection, migration: Migration) -> None:
        async with connection.transaction():
            try:
                await connection.execute(migration.text)
            except asyncpg.PostgresError as error:
                raise SchemaMismatch(f"{migration.name} failed and was rolled back: {error}") from error
            await connection.execute(
                self._sql["remember"], migration.owner, migration.number, migration.name, migration.checksum
            )
            oldest = max(migration.compatible, await _compatible(connection, self._schema, migration.owner))
            await connection.execute(self._sql["note"], _KEYS[migration.owner], str(oldest))
            await connection.execute(self._sql["note"], "service", self._service)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        with boundary():
            settings = {"search_path": f"{quoted(self._schema)}, public", "TimeZone": "UTC"}
            connection = await connect(self._url, f"{self._service}:migrate", settings=settings, timeout=3600.0)
            try:
                yield connection
            finally:
                await close(connection)


async def missing(connection: Connection, schema: str, wanted: list[Migration]) -> list[Migration]:
    """What is still to apply; raises ``SchemaMismatch`` if what was applied does not fit."""
    if not await connection.fetchval(statements("migrate", schema)["exists"], quoted(schema)):
        return wanted
    left: list[Migration] = []
    for owner in _KEYS:
        left += await _missing_of(connection, schema, owner, [file for file in wanted if file.owner == owner])
    return left


async def _missing_of(connection: Connection, schema: str, owner: str, wanted: list[Migration]) -> list[Migration]:
    if not wanted:
        return []  # nobody named the user's folder, so nothing can be said about it
    rows = await connection.fetch(statements("migrate", schema)["applied"], owner)
    applied = {row["number"]: row for row in rows}
    for file in wanted:
        row = applied.get(file.number)
        if row is not None and row["checksum"] != file.checksum:
            raise SchemaMismatch(
                f"schema {schema}: {row['name']} was changed after it was applied ({file.name} here): put the old text "
                "back, and write the change as a new file"
            )
    newest, known = max(applied, default=0), len(wanted)
    if newest > known and known < await _compatible(connection, schema, owner):
        raise SchemaMismatch(
            f"schema {schema} has seen {applied[newest]['name']}, and this code only knows up to number {known:04} of "
            f"the {owner}'s migrations: run the newer version"
        )
    return [file for file in wanted if file.number not in applied]


async def _compatible(connection: Connection, schema: str, owner: str) -> int:
    """The newest file that code must know to run here; 0 before the first."""
    return await connection.fetchval(statements("migrate", schema)["compatible"], _KEYS[owner]) or 0


async def require_current(connection: Connection, schema: str) -> None:
    """Refuses a schema that lacks the library's tables or has newer ones than this code can work with."""
    left = await missing(connection, schema, library_migrations())
    if left:
        raise SchemaMismatch(f"schema {schema} lacks {', '.join(file.name for file in left)}: run `skald migrate`")
