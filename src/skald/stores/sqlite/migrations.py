"""Numbered SQL files, applied in order, each in a transaction of its own, remembered with their checksums.

Two owners: ``skald`` (this package's files) and ``service`` (the user's folder). A database may be newer than
this code as long as its newest file says so with a first line ``-- compatible: N``: the oldest code that may
still run beside it knows file N. That is how versions N and N+1 run side by side during a deployment;
migrations only add.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import apsw
import msgspec

from skald.clock import Clock
from skald.errors import SchemaMismatch
from skald.sql import blocks
from skald.stores.sqlite.connect import close_quietly, connect_reader, connect_writer
from skald.stores.sqlite.failures import translated
from skald.stores.sqlite.foreign import FileWatch

PATIENCE = 60.0
"""Seconds; as many processes may start at once, and each waits for the ones before it."""

_SQL = blocks(__package__, "migrations")
_FILE = re.compile(r"^(\d{4})_(\w+)\.sql$")
_COMPATIBLE = re.compile(r"^-- compatible: (\d+)\s*$", re.MULTILINE)
_KEYS = {"skald": "compatible", "service": "service_compatible"}
_RANKS = tuple(_KEYS)


class Migration(msgspec.Struct, frozen=True):
    """One file."""

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
    """The files of this package."""
    return _numbered("skald", files(__package__).joinpath("migrations").iterdir())


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
        match = _FILE.match(file.name)
        if match is None:
            raise SchemaMismatch(f"{file.name}: a migration is named 0001_name.sql")
        if int(match[1]) != len(migrations) + 1:
            raise SchemaMismatch(
                f"{file.name}: number {len(migrations) + 1:04} is expected here, without gaps and doubles"
            )
        migrations.append(Migration(owner, int(match[1]), file.name, file.read_text(encoding="utf-8")))
    return migrations


# --- applying -----------------------------------------------------------------------------------------------


def migrate(path: Path, directory: Path | None, clock: Clock) -> list[str]:
    """Applies what is missing; returns the names applied by this call. Blocking."""
    wanted = all_migrations(directory)
    FileWatch(path).before_opening()
    with translated(path), _connection(path) as connection:
        return [file.name for file in wanted if _apply(connection, path, file, wanted, clock)]


def _apply(connection: apsw.Connection, path: Path, file: Migration, wanted: list[Migration], clock: Clock) -> bool:
    with _immediate(connection):
        connection.execute(_SQL["create_migrations"])
        if file not in missing(connection, path, wanted):
            return False
        with _no_transaction_control(connection):
            try:
                connection.execute(file.text).fetchall()  # to the end: it stops at each row of a SELECT
            except apsw.Error as error:
                raise SchemaMismatch(f"{path}: {file.name} failed and was rolled back: {error}") from error
        values = (file.owner, file.number, file.name, file.checksum, clock.now())
        connection.execute(_SQL["remember"], values)
        key = _KEYS[file.owner]
        connection.execute(_SQL["set_compatible"], (key, str(max(file.compatible, _compatible(connection, key)))))
        return True


def _compatible(connection: apsw.Connection, key: str) -> int:
    return int(connection.execute(_SQL["compatible"], (key,)).get or 0)


def missing(connection: apsw.Connection, path: Path, wanted: list[Migration]) -> list[Migration]:
    """What is still to apply; raises ``SchemaMismatch`` if what was applied does not fit."""
    if connection.execute(_SQL["has_migrations"]).get is None:
        return wanted
    left: list[Migration] = []
    for owner in _RANKS:
        left += _missing_of(connection, path, owner, [file for file in wanted if file.owner == owner])
    return left


def _missing_of(connection: apsw.Connection, path: Path, owner: str, wanted: list[Migration]) -> list[Migration]:
    if owner == "service" and not wanted:
        return []  # nobody named the user's folder, so nothing can be said about it
    applied = {number: (name, checksum) for number, name, checksum in connection.execute(_SQL["applied"], (owner,))}
    for file in wanted:
        name, checksum = applied.get(file.number, (file.name, file.checksum))
        if checksum != file.checksum:
            raise SchemaMismatch(
                f"{path}: {name} was changed after it was applied ({file.name} here): put the old text back, "
                "and write the change as a new file"
            )
    newest, known = max(applied, default=0), len(wanted)
    if newest > known and known < _compatible(connection, _KEYS[owner]):
        raise SchemaMismatch(
            f"{path} has seen {applied[newest][0]}, and this code only knows up to number {known:04} of the "
            f"{owner}'s migrations: run the newer version"
        )
    return [file for file in wanted if file.number not in applied]


def missing_from_file(path: Path, wanted: list[Migration]) -> list[Migration]:
    """The same, read-only."""
    with translated(path):
        connection = connect_reader(path)
        try:
            return missing(connection, path, wanted)
        finally:
            close_quietly(connection)


def require_current(path: Path) -> None:
    """Refuses a database that lacks the library's tables or has newer ones than this code can work with."""
    left = missing_from_file(path, library_migrations())
    if left:
        raise SchemaMismatch(f"{path} lacks {', '.join(file.name for file in left)}: run `skald migrate`")


@contextmanager
def _connection(path: Path) -> Iterator[apsw.Connection]:
    connection = connect_writer(path, create=True, patience=PATIENCE)
    try:
        yield connection
    finally:
        close_quietly(connection)


@contextmanager
def _immediate(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if not connection.get_autocommit():
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _no_transaction_control(connection: apsw.Connection) -> Iterator[None]:
    """A COMMIT in a file would end the transaction that makes it all or nothing."""

    def deny(operation: int, *_: str | None) -> int:
        return apsw.SQLITE_DENY if operation in (apsw.SQLITE_TRANSACTION, apsw.SQLITE_ATTACH) else apsw.SQLITE_OK

    connection.set_authorizer(deny)
    try:
        yield
    finally:
        connection.set_authorizer(None)
