"""The SQLite store: one file per service; what is asked of it is in ``skald.store``.

    writer.py       the writing connection, group commit       units.py       guards and writes
    transaction.py  a transaction of the user's code           reader.py      read snapshots
    log.py          the log                                    doorbell.py    who hears of an append
    membership.py   leases, in a file of their own             migrations.py  numbered SQL files
    foreign.py      refuses a second copy of SQLite            connect.py     durable settings
    turn.py         several processes write by turns           checkpoints.py when the WAL is copied
    diagnose.py     for its operator

Reads and small commits run on the event loop, because they are shorter than a hop to a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from skald.clock import Clock, SystemClock
from skald.errors import NestedCommit, Rejection, SchemaMismatch, StoreUnavailable
from skald.store import Finding, Row, StoreFeatures
from skald.stores.sqlite import migrations
from skald.stores.sqlite.diagnose import diagnose
from skald.stores.sqlite.doorbell import Doorbell
from skald.stores.sqlite.foreign import FileWatch
from skald.stores.sqlite.log import SqliteLog
from skald.stores.sqlite.membership import SqliteMembership
from skald.stores.sqlite.reader import Reader
from skald.stores.sqlite.transaction import SqliteTransaction, calling_line
from skald.stores.sqlite.writer import Writer
from skald.unit import Committed, Unit, calls_somebody


class SqliteStore:
    """See ``skald.store.Store``. ``transaction_limit`` (seconds) bounds a transaction of the user's code."""

    features = StoreFeatures(
        exclusive_transactions=True, commits_at_once=True, writers=1, for_update="", external_sessions=False
    )

    def __init__(self, path: Path, service: str, *, transaction_limit: float = 1.0, clock: Clock | None = None) -> None:
        self.service = service
        self._path = Path(path)
        self._clock = clock or SystemClock()
        self._reader = Reader(self._path)
        self._writer = Writer(self._path, self._clock, transaction_limit, self._reader.reset)
        self._bell = Doorbell(self._path)
        self.workflows = Doorbell(self._path.with_name(f"{self._path.stem}-workflows"))
        self.log = SqliteLog(self._path, reader=self._reader)
        # Per store, and inherited by the tasks that a block starts: to wait for those is to wait for oneself.
        self._inside: ContextVar[SqliteTransaction | None] = ContextVar("skald_transaction", default=None)

    async def open(self) -> None:
        """Refuses unsafe settings, a foreign handle, and a schema that does not fit; changes nothing."""
        if not self._path.exists():
            raise SchemaMismatch(f"{self._path} does not exist: run `skald migrate`")
        if self._writer.is_open:
            return
        FileWatch(self._path).before_opening()
        migrations.require_current(self._path)
        try:
            self._writer.open()
            self._reader.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self.log.close()
        await self._writer.close()
        self._bell.close()
        self.workflows.close()

    async def commit(self, units: Sequence[Unit], *, patient: bool = False) -> list[Committed | Rejection]:
        """One outcome per unit, in order; see the contract."""
        self.ensure_free()
        if not units:
            return []
        outcomes, appended = await self._writer.commit(units, patient)
        self._ring_for(units, appended)
        return outcomes

    def commit_at_once(self, units: Sequence[Unit]) -> list[Committed | Rejection] | None:
        """See the contract."""
        found = self._writer.commit_at_once(units)
        if found is None:
            return None
        outcomes, appended = found
        self._ring_for(units, appended)
        return outcomes

    def _ring_for(self, units: Sequence[Unit], appended: bool) -> None:
        if appended:
            self._bell.ring()
        if any([calls_somebody(unit) for unit in units if unit.workflows is not None]):
            self.workflows.ring()

    def transaction(self) -> AbstractAsyncContextManager[SqliteTransaction]:
        """Keeps every other writer out until the block ends, or until ``transaction_limit`` is over."""
        self.ensure_free()
        return self._transaction(calling_line())

    @asynccontextmanager
    async def _transaction(self, opened_at: str) -> AsyncIterator[SqliteTransaction]:
        async with self._writer.transaction(opened_at) as tx:
            self._inside.set(tx)
            yield tx
        if tx.appended:
            self._bell.ring()
        if tx.calls_somebody:
            self.workflows.ring()

    def ensure_free(self) -> None:
        """Raises ``NestedCommit`` inside an open transaction of this store, also in tasks started there."""
        tx = self._inside.get()
        if tx is not None and tx.is_open:
            raise NestedCommit(
                f"a commit inside the transaction opened at {tx.opened_at} would wait for itself: "
                f"{self._path} has one writer at a time. Use tx.apply(unit) or tx.publish(message), or "
                "move it behind the block"
            )

    async def fetch(self, sql: str, /, **values: Any) -> list[Row]:
        """Reads committed rows; runs on the event loop, so keep it short."""
        return self._reader.fetch(sql, values)

    def ring(self) -> None:
        self._bell.ring()

    async def now(self) -> int:
        return self._clock.now()

    def membership(self) -> SqliteMembership:
        return SqliteMembership(self._path, self._clock)

    async def migrate(self, directory: Path | None = None) -> list[str]:
        """Makes the file if there is none; see the contract."""
        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"the folder {folder} of {self._path.name} cannot be made: {error.strerror}"
            ) from error
        return await asyncio.to_thread(migrations.migrate, self._path, directory, self._clock)

    async def pending_migrations(self, directory: Path | None = None) -> list[tuple[str, str]]:
        files = await asyncio.to_thread(self._missing, directory)
        return [(file.name, file.text) for file in files]

    async def diagnose(self) -> list[Finding]:
        return await asyncio.to_thread(diagnose, self._path)

    async def tidy(self) -> int:
        """Nothing: commits leave no record of their own here."""
        return 0

    def _missing(self, directory: Path | None) -> list[migrations.Migration]:
        wanted = migrations.all_migrations(directory)
        if not self._path.exists():
            return wanted
        return migrations.missing_from_file(self._path, wanted)
