"""Order under torture on a real server: nothing is skipped, reordered, lost or risen from the dead."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterator
from uuid import uuid4

import asyncpg
import pytest

from skald.message import Record
from skald.store import Log, Store, Transaction
from skald.stores.postgres import PostgresLog, PostgresStore
from skald.testing.torture import Report, torture
from skald.unit import Append, Unit
from tests.postgres_server import PostgresServer


class PostgresRig:
    """A schema of its own, a prepared transaction now and then, connections that are cut, a neighbour that stalls."""

    notes = "INSERT INTO notes (n) VALUES (:n)"

    def __init__(self, url: str) -> None:
        self.url = url
        self.schema = f"torture_{uuid4().hex[:12]}"
        self.neighbour = f"neighbour_{uuid4().hex[:12]}"
        self._neighbour_store: PostgresStore | None = None
        self._held: asyncio.Task[None] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"url": self.url, "schema": self.schema, "neighbour": self.neighbour}

    def store(self) -> Store:
        return PostgresStore(self.url, self.schema, lease=1.0)

    def log(self) -> Log:
        return PostgresLog(self.url, self.schema)

    async def build(self) -> None:
        store = PostgresStore(self.url, self.schema)
        await store.migrate()
        connection = await asyncpg.connect(self.url)
        await connection.execute(f"CREATE TABLE {self.schema}.notes (n bigint)")
        await connection.execute(f"CREATE DATABASE {self.neighbour}")
        await connection.close()
        self._held = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        """The same schema in another database, with the same tag, and a transaction there that stays open."""
        store = PostgresStore(self.url.rsplit("/", 1)[0] + f"/{self.neighbour}", self.schema, lease=60)
        await store.migrate()
        await store.open()
        try:
            async with store.transaction() as tx:
                await tx.fetch("SELECT skald_publish('T', 'k', '{}'::jsonb)")
                await asyncio.sleep(60)  # sleep: stalls until it is killed
        finally:
            await store.close()

    async def demolish(self) -> None:
        if self._held is not None:
            self._held.cancel()
            await asyncio.gather(self._held, return_exceptions=True)
        connection = await asyncpg.connect(self.url)
        await connection.execute(f"DROP DATABASE {self.neighbour} WITH (FORCE)")
        await connection.execute(f"DROP SCHEMA {self.schema} CASCADE")
        await connection.close()

    async def harm(self, store: Store, rng: random.Random) -> None:
        """Cuts one connection of the service: a committer's, in the middle of whatever it does, or any other's."""
        await store.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND (application_name = :name OR application_name IN ('skald:reader', :tx)) "
            "ORDER BY random() LIMIT 2",
            name=f"skald:{self.schema}",
            tx=f"skald:{self.schema}:tx",
        )

    async def special(self, tx: Transaction, record: Record, rng: random.Random) -> Callable[[], bool] | None:
        if rng.random() < 0.5:
            await tx.fetch("SELECT skald_publish('T', 'k', '{}'::jsonb)")
            return None
        await tx.apply(Unit(appends=(Append(f"s{rng.randrange(5)}", (record,)),)))
        name = f"{self.schema}-{record.id}"
        await tx.execute(f"PREPARE TRANSACTION '{name}'")
        await asyncio.sleep(rng.uniform(0, 0.1))  # sleep: a writer's own pace
        keep = rng.random() < 0.5
        await tx.execute(f"{'COMMIT' if keep else 'ROLLBACK'} PREPARED '{name}'")
        return lambda: keep

    async def settle(self) -> None:
        connection = await asyncpg.connect(self.url)
        rows = await connection.fetch("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE $1", f"{self.schema}-%")
        for row in rows:
            await connection.execute(f"ROLLBACK PREPARED '{row['gid']}'")
        await connection.close()


class NaiveLog(PostgresLog):
    """Reads whatever is visible, as if positions became visible in their order."""

    async def _raise_mark(self) -> None:
        self._mark = 1 << 62

    async def _read_anew(
        self, position: int, limit: int, types: Collection[str] | None, upto: int | None
    ) -> list[Record]:
        await self._raise_mark()
        return await self._read(position, limit, types, upto)

    def _is_current(self) -> bool:
        return True


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with PostgresServer(settings={"max_prepared_transactions": "50"}) as server:
        yield server.url


def run(url: str, seed: int, *, naive: bool = False) -> Report:
    rig = PostgresRig(url)
    report = asyncio.run(torture(rig, seed, log=NaiveLog(url, rig.schema) if naive else None))
    print(report)
    return report


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_skipped_or_reordered(url: str, seed: int) -> None:
    report = run(url, seed)
    assert not report.violations, f"seed {seed}: {report}"
    assert report.acknowledged > 0


def test_a_reader_without_the_mark_is_caught(url: str) -> None:
    caught = [violation for seed in range(5) for violation in run(url, seed, naive=True).violations]
    assert any(violation.startswith("nothing late") for violation in caught)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(1_000, 1_200))
def test_sweep(url: str, seed: int) -> None:
    report = run(url, seed)
    assert not report.violations, f"seed {seed}: {report}"
