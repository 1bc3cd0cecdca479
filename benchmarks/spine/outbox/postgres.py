"""By hand on PostgreSQL: a row of the outbox per transaction, from a pool; a relay polls it, 100 per transaction."""

from __future__ import annotations

import asyncio
import time

import asyncpg

from benchmarks.harness.child import Channel
from benchmarks.spine.limits.rows import answer_to, order_rows

POLL = 0.02
POOL = 16
_OUTBOX = """
CREATE SCHEMA {name};
CREATE TABLE {name}.outbox (
    id bigserial PRIMARY KEY, message_id uuid NOT NULL, type text NOT NULL, key text NOT NULL, payload bytea NOT NULL
);
CREATE TABLE {name}.inbox (message_id uuid PRIMARY KEY);
"""
_INSERT = "INSERT INTO {name}.outbox (message_id, type, key, payload) VALUES ($1, $2, $3, $4)"
_TAKE = """
SELECT id, message_id::text, payload FROM by_hand_orders.outbox ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED
"""


def prepare(url: str) -> None:
    async def create() -> None:
        connection = await asyncpg.connect(url)
        for name in ("by_hand_orders", "by_hand_payments"):
            await connection.execute(_OUTBOX.replace("{name}", name))
        await connection.close()

    asyncio.run(create())


async def produce(channel: Channel, url: str, count: int) -> None:
    pool = await asyncpg.create_pool(url, min_size=POOL, max_size=POOL)
    rows, sql = order_rows(count), _INSERT.replace("{name}", "by_hand_orders")
    channel.say(ready=True)
    await channel.heard()
    began = time.monotonic()

    async def caller() -> None:
        for row in rows:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(sql, *row)

    async with asyncio.TaskGroup() as callers:
        for _ in range(100):
            callers.create_task(caller())
    channel.say(began=began, ended=time.monotonic())


async def consume(channel: Channel, url: str, count: int) -> None:
    connection = await asyncpg.connect(url)
    insert = _INSERT.replace("{name}", "by_hand_payments")
    channel.say(ready=True)
    handled = 0
    while handled < count:
        async with connection.transaction():
            rows = await connection.fetch(_TAKE)
            ids = [row[1] for row in rows]
            fresh = await connection.fetch(
                "INSERT INTO by_hand_payments.inbox SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING "
                "RETURNING message_id::text",
                ids,
            )
            new = {row[0] for row in fresh}
            await connection.executemany(insert, [answer_to(r[1], r[2])[0] for r in rows if r[1] in new])
            await connection.execute(
                "DELETE FROM by_hand_orders.outbox WHERE id = ANY ($1::bigint[])", [row[0] for row in rows]
            )
        handled += len(rows)
        if not rows:
            await asyncio.sleep(POLL)
    channel.say(ended=time.monotonic())
