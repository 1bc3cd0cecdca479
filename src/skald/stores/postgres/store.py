"""One service's store in one schema of PostgreSQL.

Connections of a process: one commits groups, one reads logs and one listens and notifies (both shared by all logs of
the same address), up to four, opened when needed, run transactions of user code, and the heartbeat has its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from skald.errors import ConfigurationError, Rejection
from skald.store import Finding, Log, Membership, StoreFeatures, Transaction
from skald.stores.postgres.committer import Committer
from skald.stores.postgres.connecting import check_url
from skald.stores.postgres.diagnose import diagnose
from skald.stores.postgres.failures import boundary
from skald.stores.postgres.log import Bell, PostgresLog
from skald.stores.postgres.members import PostgresMembership
from skald.stores.postgres.migrate import Migrator
from skald.stores.postgres.patience import WaitingRoom
from skald.stores.postgres.sessions import Opener, SessionTransaction, opener_for
from skald.stores.postgres.statements import statements
from skald.stores.postgres.transaction import Pool, PostgresTransaction, Row, fetch, roll_back
from skald.unit import Committed, Unit, calls_somebody

FEATURES = StoreFeatures(
    commits_at_once=False,
    exclusive_transactions=False,
    writers=2,
    for_update="FOR UPDATE SKIP LOCKED",
    external_sessions=True,
)


class PostgresStore:
    features = FEATURES

    def __init__(
        self, url: str, service: str, *, schema: str | None = None, lease: float = 5.0, sessions: Any = None
    ) -> None:
        """``sessions``: the user's SQLAlchemy sessionmaker or psycopg pool, in which all transactions then run."""
        check_url(url)
        self._opener = opener_for(sessions) if sessions is not None else None
        self.service = service
        self._url, self._schema, self._lease = url, schema or service, lease
        if len(self._schema.encode()) > 57:
            raise ConfigurationError(f"the schema's name {self._schema!r} is longer than 57 bytes")
        self._log = PostgresLog(url, self._schema)
        self.log: Log = self._log
        self.workflows = Bell(self._log, f"wf_{self._schema}")
        self._committers = [Committer(url, self._schema, service, lease) for _ in range(FEATURES.writers)]
        self._waiting = WaitingRoom(self._commit, lease)
        self._pool = Pool(url, service, self._schema, lease)
        self._migrator = Migrator(url, self._schema, service)

    async def open(self) -> None:
        try:
            for committer in self._committers:
                await committer.open()
            await self._log.open()
            self._pool.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._waiting.close()
        await self._pool.close()
        await self._log.close()
        for committer in self._committers:
            await committer.close()

    async def commit(self, units: Sequence[Unit], *, patient: bool = False) -> list[Committed | Rejection]:
        if not units:
            return []
        return await (self._waiting.commit(units) if patient else self._commit(units))

    async def _commit(self, units: Sequence[Unit]) -> list[Committed | Rejection]:
        with boundary():
            outcomes = await min(self._committers, key=len).commit(units)
        if any([isinstance(outcome, Committed) and outcome.positions for outcome in outcomes]):
            self.ring()
        if any([unit.workflows is not None and calls_somebody(unit) for unit in units]):
            self.workflows.ring()
        return outcomes

    def commit_at_once(self, units: Sequence[Unit]) -> list[Committed | Rejection] | None:
        """Never: there is always a connection to wait for."""
        return None

    def ensure_free(self) -> None:
        """Nothing here waits for itself: what an open transaction holds is ``Busy`` to everybody else."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        return self._own_transaction() if self._opener is None else self._session_transaction(self._opener)

    @asynccontextmanager
    async def _session_transaction(self, opener: Opener) -> AsyncIterator[Transaction]:
        mine: SessionTransaction | None = None
        try:
            async with opener() as carrier:
                mine = SessionTransaction(carrier, self._schema)
                await mine.begin()
                yield mine
        finally:
            self._ring_for(mine)

    @asynccontextmanager
    async def _own_transaction(self) -> AsyncIterator[Transaction]:
        mine: PostgresTransaction | None = None
        try:
            async with self._pool.connection(reset=True) as connection:
                mine = PostgresTransaction(connection, self._schema, self._lease)
                with boundary():
                    outer = connection.transaction(isolation="read_committed")
                    await outer.start()
                try:
                    yield mine
                except BaseException:
                    mine.is_open = False
                    await roll_back(outer, connection)
                    raise
                mine.is_open = False
                with boundary():
                    await outer.commit()
        finally:
            self._ring_for(mine)

    def _ring_for(self, ended: PostgresTransaction | SessionTransaction | None) -> None:
        """Rolled back, too: what others have appended above it could not be read until now."""
        if ended is not None and ended.appended:
            self.ring()
        if ended is not None and ended.calls_somebody:
            self.workflows.ring()

    async def fetch(self, sql: str, /, **values: Any) -> list[Row]:
        return await fetch(self._pool, sql, values)

    def ring(self) -> None:
        self._log.ring()

    async def now(self) -> int:
        async with self._pool.connection(reset=False) as connection:
            with boundary():
                return int(await connection.fetchval(statements("commit", self._schema)["now"]))

    def membership(self) -> Membership:
        return PostgresMembership(self._url, self.service, self._schema, self._lease)

    async def migrate(self, directory: Path | None = None) -> list[str]:
        return await self._migrator.migrate(directory)

    async def pending_migrations(self, directory: Path | None = None) -> list[tuple[str, str]]:
        return [(m.name, m.text) for m in await self._migrator.pending(directory)]

    async def diagnose(self) -> list[Finding]:
        return await diagnose(self._url, self._schema, self.service)

    async def tidy(self) -> int:
        """Answers of groups that are older than a day: whoever lost a reply has looked it up long ago."""
        async with self._pool.connection(reset=False) as connection:
            with boundary():
                status: str = await connection.execute(statements("commit", self._schema)["forget_old"])
        return int(status.rpartition(" ")[2])
