"""The origin's data are put back while its own process, and everybody else, goes on running."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import psycopg
import pytest

from skald import App, Service, Transaction, operations
from skald.errors import StoreUnavailable
from skald.stores.postgres import PostgresLog
from tests.postgres_server import PostgresServer
from tests.simulation.restoring import DumpCopies, FileCopies, SchemaCopies
from tests.simulation.stage import MIGRATIONS, QUICK, Placed, caught_up, cursors, effect, eventually

KEPT, LOST, NEW = range(10), range(10, 15), range(100, 112)


def stage(source_url: str, sink_url: str) -> tuple[App, Service, Service]:
    source, sink = Service("source", publishes=[Placed]), Service("sink", migrations=MIGRATIONS)

    @sink.on(Placed)
    async def note(event: Placed, tx: Transaction) -> None:
        await effect(tx, "note", str(event.n), event.key, event.n)

    return App(source, sink, stores={"source": source_url, "sink": sink_url}, settings=QUICK), source, sink


async def publish(source: Service, numbers: range) -> None:
    await source.publish(*(Placed(f"k{n % 5}", n) for n in numbers))


async def noted(sink: Service) -> list[int]:
    return sorted(row["n"] for row in await sink.fetch("SELECT n FROM effects"))


async def read(source: Service, sink: Service, numbers: range) -> None:
    await publish(source, numbers)
    assert await eventually(lambda: caught_up(sink, source))


async def all_stopped(sink: Service) -> bool:
    return all("has forked" in (row["stopped"] or "") for row in await cursors(sink))


async def goes_on(app: App, source: Service, sink: Service) -> None:
    assert await eventually(lambda: all_stopped(sink))
    assert await noted(sink) == [*KEPT, *LOST]
    await operations.reset_subscription(app, "sink", "source", len(KEPT))

    async def look() -> None:
        assert await noted(sink) == [*KEPT, *LOST, *NEW]

    await eventually(look)


async def test_a_file_that_is_replaced_under_its_service_is_refused_until_it_starts_again(tmp_path: Path) -> None:
    """Nothing is acknowledged into the file that is gone, and nothing is written beside the WAL of another."""
    copies = FileCopies(tmp_path)
    app, source, sink = stage(copies.url("source"), copies.url("sink"))
    await app.migrate()
    async with app.run("sink"):
        async with app.run("source"):
            await read(source, sink, KEPT)
            await copies.take("source")
            await read(source, sink, LOST)
            await copies.restore("source")
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match="replaced while it was open; nothing was written: restart"):
                    await publish(source, NEW)
            with pytest.raises(StoreUnavailable, match="replaced"):
                async with source.transaction():
                    pass
            assert await eventually(lambda: all_stopped(sink))
        # Closing the old file has not taken the new one's WAL with it.
        async with app.run("source"):
            assert (await source.store.log.end())[0] == len(KEPT)
            await publish(source, NEW)
            await goes_on(app, source, sink)


async def test_a_server_that_starts_again_with_old_data_is_seen_by_all_who_are_connected(postgres_url: str) -> None:
    """The sink's database is elsewhere; the origin's processes reconnect and go on publishing."""
    with PostgresServer() as server:
        app, source, sink = stage(server.url, postgres_url)
        await app.migrate()
        async with app.run("sink"), app.connect("source"):
            await read(source, sink, KEPT)
            await asyncio.to_thread(put_away, server)
            await eventually(lambda: publishes(source, LOST))
            assert await eventually(lambda: caught_up(sink, source))
            await asyncio.to_thread(put_back, server)
            await eventually(lambda: publishes(source, NEW))
            await goes_on(app, source, sink)


def put_away(server: PostgresServer) -> None:
    server.crash()
    shutil.copytree(server.data, server.folder / "copy", symlinks=True)
    for path in [server.folder / "copy", *(server.folder / "copy").rglob("*")]:
        same_owner(server.data, path)
    server.start()


def put_back(server: PostgresServer) -> None:
    server.crash()
    shutil.rmtree(server.data)
    (server.folder / "copy").rename(server.data)
    server.start()


def same_owner(like: Path, path: Path) -> None:
    found = like.stat()
    shutil.chown(path, found.st_uid, found.st_gid)


async def publishes(source: Service, numbers: range) -> bool:
    """Once; a connection that was lost is found at its next use, before anything was sent."""
    before, _ = await source.store.log.end()
    try:
        await publish(source, numbers)
    except StoreUnavailable:
        assert (await source.store.log.end())[0] == before, "refused, and written all the same"
        return False
    return True


@pytest.mark.parametrize("way", [SchemaCopies, DumpCopies])
async def test_what_was_readable_before_is_not_taken_for_readable_now(
    way: type[SchemaCopies | DumpCopies], postgres_url: str, tmp_path: Path
) -> None:
    """A reader remembers how far it may read without looking. After a restore that is beyond the log's end, where
    positions are drawn again: one of an open transaction would be passed over, and its message lost."""
    copies = way(postgres_url, tmp_path)
    try:
        await _passes_over_nothing(copies)
    finally:
        await copies.close()


async def _passes_over_nothing(copies: SchemaCopies | DumpCopies) -> None:
    url = copies.url("source")
    app, source, _ = stage(url, copies.url("sink"))
    await app.migrate()
    log = PostgresLog(url, "source")
    await log.open()
    async with app.connect("source"):
        await publish(source, KEPT)
        await copies.take("source")
        await publish(source, range(1000))
        assert (await log.end())[0] == 1010
    await copies.restore("source")
    async with app.connect("source"):
        with psycopg.connect(url) as late:
            late.execute("SELECT source.skald_publish('Placed', 'late', '{\"key\": \"late\", \"n\": 1}')")
            await publish(source, NEW)
            # As a reader that lags would ask: far below what was readable once.
            assert [record.position for record in await log.read(10, 20)] == [10]
            late.commit()
        assert [record.position for record in await log.read(10, 20)] == [*range(10, 24)]
    await log.close()
