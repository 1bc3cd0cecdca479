"""Bare PostgreSQL in the library's own migrated tables, with the same columns and indexes: append, read, fill."""

from __future__ import annotations

import asyncio
import time
from itertools import cycle
from typing import Any

import asyncpg
import msgspec

from benchmarks.harness.child import Channel
from benchmarks.spine.limits.rows import event_rows
from benchmarks.spine.messages import OrderPlaced

RUN = 500
_APPEND = """
INSERT INTO orders.skald_events
SELECT nextval('orders.skald_position'), a.* FROM unnest(
    $1::uuid[], $2::text[], $3::text[], $4::smallint[], $5::text[], $6::integer[], $7::bigint[], $8::text[],
    $9::text[], $10::text[], $11::bytea[], $12::text[], $13::bigint[]) AS a
"""
_APPEND_STREAMS = f"""
WITH heads AS (INSERT INTO orders.skald_heads SELECT 'stream:' || name, 1 FROM unnest($12::text[]) AS name)
{_APPEND}
"""
_READ = "SELECT * FROM orders.skald_events WHERE position > $1 ORDER BY position LIMIT $2"
_FILL = """
INSERT INTO orders.skald_events
SELECT nextval('orders.skald_position'), e.id, 'orders', 'order-' || n, n % 256, 'OrderPlaced', 1, n, e.id::text, NULL,
       '00-' || replace(e.id::text, '-', '') || '-' || right(e.id::text, 12) || '0000-01', $3, 'order-' || e.id, 1
FROM (SELECT n, orders.skald_uuid7() AS id FROM generate_series($1::bigint, $2::bigint) AS n OFFSET 0) AS e
"""
_HEADS = """
INSERT INTO orders.skald_heads SELECT 'stream:' || stream, 1 FROM orders.skald_events WHERE position BETWEEN $1 AND $2
"""


async def append(channel: Channel, url: str, streams: bool) -> None:
    """Groups of 100 prepared rows for some seconds, as often as asked; with ``streams`` also the head of each."""
    connection, first = await asyncpg.connect(url), 0
    statement = await connection.prepare(_APPEND_STREAMS if streams else _APPEND)
    while True:
        seconds = (await channel.heard())["seconds"]
        groups, count = cycle(_groups(20_000, streams)), 0
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            group = next(groups)
            if streams:  # a name of its own for each, since the prepared ones come again
                group[11] = [f"order-{first + n}" for n in range(100)]
            await statement.fetch(*group)
            count, first = count + 100, first + 100
        channel.say(rate=count / (time.monotonic() - began))


def _groups(count: int, streams: bool) -> list[list[Any]]:
    rows = event_rows(count, streams)
    return [list(zip(*rows[start : start + 100], strict=True)) for start in range(0, count, 100)]


async def fill(channel: Channel, url: str, count: int) -> None:
    """Many events in streams, as quickly as they can be written."""
    connection = await asyncpg.connect(url)
    payload = event_rows(1, True)[0][10]
    for first in range(1, count + 1, 100_000):
        last = min(first + 99_999, count)
        await connection.execute(_FILL, first, last, payload)
        await connection.execute(_HEADS, first, last)
    for statement in ("VACUUM ANALYZE orders.skald_events", "VACUUM ANALYZE orders.skald_heads", "CHECKPOINT"):
        await connection.execute(statement)
    channel.say(filled=count)
    await connection.close()


async def read(channel: Channel, url: str) -> None:
    """All events from the start, 500 at a time, with their whole envelope; each payload decoded."""
    decode = msgspec.json.Decoder(OrderPlaced).decode
    connection = await asyncpg.connect(url)
    while True:
        await channel.heard()
        position, count, began = 0, 0, time.monotonic()
        while rows := await connection.fetch(_READ, position, RUN):
            for row in rows:
                decode(row[11])
            position, count = rows[-1][0], count + len(rows)
        channel.say(rate=count / (time.monotonic() - began))


async def hold_snapshot(channel: Channel, url: str) -> None:
    """A transaction with a snapshot that stays open until this process is told to end."""
    connection = await asyncpg.connect(url)
    async with connection.transaction(isolation="repeatable_read"):
        await connection.fetch("SELECT count(*) FROM orders.skald_cursors")
        channel.say(held=True)
        await asyncio.sleep(0)
        await channel.heard()


_WALKS = """
SELECT coalesce(sum(seq_scan), 0) FROM pg_stat_user_tables
WHERE schemaname = 'orders' AND relname IN ('skald_events', 'skald_messages', 'skald_heads', 'skald_deliveries')
"""


async def watch_plans(channel: Channel, url: str) -> None:
    """How often a large table was walked from end to end, by the server's own count, until asked."""
    connection = await asyncpg.connect(url)
    before = await connection.fetchval(_WALKS)
    channel.say(ready=True)
    await channel.heard()
    await asyncio.sleep(1.5)  # the server writes its counts down once a second
    channel.say(walks=int(await connection.fetchval(_WALKS) - before))
