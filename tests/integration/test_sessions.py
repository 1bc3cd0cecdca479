"""Transactions in sessions that users hold, and publishing from any driver by one SQL function (PostgreSQL)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from skald import App, Event, Service, Transaction
from skald.errors import ConfigurationError


class OrderPlaced(Event, key="order_id"):
    order_id: str
    total: int


class PaymentProcessed(Event, key="order_id"):
    order_id: str


@asynccontextmanager
async def alchemy_async(url: str) -> AsyncIterator[Any]:
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    yield async_sessionmaker(engine)
    await engine.dispose()


@asynccontextmanager
async def alchemy_sync(url: str) -> AsyncIterator[Any]:
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    yield sessionmaker(engine)
    engine.dispose()


@asynccontextmanager
async def psycopg_async(url: str) -> AsyncIterator[Any]:
    async with psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=4, open=False) as pool:
        yield pool


@asynccontextmanager
async def psycopg_sync(url: str) -> AsyncIterator[Any]:
    with psycopg_pool.ConnectionPool(url, min_size=1, max_size=4, open=True) as pool:
        yield pool


SOURCES = [alchemy_async, alchemy_sync, psycopg_async, psycopg_sync]


def shop(url: str, sessions: Any) -> tuple[App, Service, Service, asyncio.Event, list[object]]:
    orders = Service("orders", publishes=[OrderPlaced])
    payments = Service("payments", transactions=sessions)
    paid, connections = asyncio.Event(), list[object]()

    @payments.on(OrderPlaced)
    async def charge(event: OrderPlaced, tx: Transaction) -> PaymentProcessed:
        connections.append(tx.connection)
        await tx.execute("INSERT INTO charges (id, total) VALUES (:id, :total)", id=event.order_id, total=event.total)
        if event.total < 0 and len(connections) < 3:
            raise ValueError("at the third attempt only")
        return PaymentProcessed(event.order_id)

    @orders.on(PaymentProcessed)
    async def confirm(event: PaymentProcessed) -> None:
        if event.order_id == "last":
            paid.set()

    return App(orders, payments, store=url), orders, payments, paid, connections


@pytest.mark.parametrize("source", SOURCES)
async def test_handlers_run_in_the_users_session(source: Callable[[str], Any], postgres_url: str) -> None:
    async with AsyncExitStack() as stack:
        sessions = await stack.enter_async_context(source(postgres_url))
        app, orders, payments, paid, connections = shop(postgres_url, sessions)
        await app.migrate()
        async with app.run():
            async with payments.transaction() as tx:
                await tx.execute("CREATE TABLE charges (id text PRIMARY KEY, total bigint)")
            # A failed attempt leaves no row behind: the third one could not insert the same key otherwise.
            await orders.publish(OrderPlaced("first", -1), OrderPlaced("last", 2))
            async with asyncio.timeout(30):
                await paid.wait()
            rows = await payments.fetch("SELECT id, total FROM charges ORDER BY id")
        assert rows == [{"id": "first", "total": -1}, {"id": "last", "total": 2}]
        kinds = {type(connection).__module__.partition(".")[0] for connection in connections}
        assert kinds == {"sqlalchemy" if "alchemy" in source.__name__ else "psycopg"}


async def test_on_sqlite_sessions_are_refused() -> None:
    app, *_ = shop("sqlite::memory:", sessionmaker())
    with pytest.raises(ConfigurationError, match="transactions= needs PostgreSQL"):
        await app.migrate()


async def test_anything_else_is_refused(postgres_url: str) -> None:
    app, *_ = shop(postgres_url, object())
    with pytest.raises(ConfigurationError, match="sessionmaker"):
        await app.migrate()


PUBLISH = "SELECT orders.skald_publish('OrderPlaced', {}, {})"


async def by_asyncpg(url: str) -> None:
    connection = await asyncpg.connect(url)
    async with connection.transaction():
        sql = PUBLISH.format("$1", "$2::text::jsonb")
        await connection.fetchval(sql, "last", '{"order_id": "last", "total": 7}')
    await connection.close()


async def by_psycopg(url: str) -> None:
    def publish() -> None:
        with psycopg.connect(url) as connection:
            connection.execute(PUBLISH.format("%s", "%s::jsonb"), ("last", '{"order_id": "last", "total": 7}'))

    await asyncio.to_thread(publish)


async def by_alchemy(url: str) -> None:
    sql = sqlalchemy.text(PUBLISH.format(":key", "CAST(:payload AS jsonb)"))

    def publish() -> None:
        engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            connection.execute(sql, {"key": "last", "payload": '{"order_id": "last", "total": 7}'})
        engine.dispose()

    await asyncio.to_thread(publish)


async def by_alchemy_async(url: str) -> None:
    sql = sqlalchemy.text(PUBLISH.format(":key", "CAST(:payload AS jsonb)"))
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.begin() as connection:
        await connection.execute(sql, {"key": "last", "payload": '{"order_id": "last", "total": 7}'})
    await engine.dispose()


@pytest.mark.parametrize("publish", [by_asyncpg, by_psycopg, by_alchemy, by_alchemy_async])
async def test_any_driver_publishes_with_one_sql_function(publish: Callable[[str], Any], postgres_url: str) -> None:
    app, _, payments, paid, _ = shop(postgres_url, None)
    await app.migrate()
    async with app.run():
        async with payments.transaction() as tx:
            await tx.execute("CREATE TABLE charges (id text PRIMARY KEY, total bigint)")
        await publish(postgres_url)
        async with asyncio.timeout(30):
            await paid.wait()
        assert await payments.fetch("SELECT total FROM charges") == [{"total": 7}]
