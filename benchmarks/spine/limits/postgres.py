"""Bare PostgreSQL: asyncpg, one statement per group, a low-water mark, NOTIFY on a connection of its own, nothing else.

The pair keeps a log of its own with just what it needs, a schema per service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import asyncpg

from benchmarks.harness.child import Channel
from benchmarks.harness.rounds import percentiles
from benchmarks.spine.limits.group import Group, hundred_callers, steadily
from benchmarks.spine.limits.rows import Row, answer_to, order_rows
from benchmarks.spine.messages import now

RUN = 500

# Positions are drawn before their transaction commits. So each append first announces the last one drawn, as a lock
# that goes with the transaction, and readers stay at or below every announcement.
_LOG = """
CREATE SCHEMA limit_{name};
SET search_path = limit_{name};
CREATE SEQUENCE drawn MINVALUE 0 START 0;
SELECT nextval('drawn');
CREATE TABLE log (
    position bigint PRIMARY KEY, id uuid NOT NULL, type text NOT NULL, key text NOT NULL, payload bytea NOT NULL
);
CREATE TABLE cursor (origin text PRIMARY KEY, position bigint NOT NULL) WITH (fillfactor = 50);
INSERT INTO cursor VALUES ('orders', 0);
CREATE FUNCTION append(ids uuid[], types text[], keys text[], payloads bytea[]) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(({tag}::bigint << 48) | (SELECT last_value FROM drawn));
    INSERT INTO log SELECT nextval('drawn'), a.* FROM unnest(ids, types, keys, payloads) AS a;
END $$;
CREATE FUNCTION answer(before bigint, after bigint, ids uuid[], types text[], keys text[], payloads bytea[])
RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE cursor SET position = after WHERE origin = 'orders' AND position = before;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'somebody else has moved the cursor';
    END IF;
    PERFORM append(ids, types, keys, payloads);
END $$;
"""
_TAGS = {"orders": 101, "payments": 102}
_APPEND = "SELECT limit_orders.append($1, $2, $3, $4)"
_ANSWER = "SELECT limit_payments.answer($1, $2, $3, $4, $5, $6)"
_DRAWN = "SELECT last_value FROM limit_orders.drawn"
_ANNOUNCED = """
SELECT min(((classid::bigint & 65535) << 32) | objid::bigint) FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 1 AND classid::bigint >> 16 = 101
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_READ = """
SELECT position, id::text, payload FROM limit_orders.log
WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3
"""


async def _prepare(url: str) -> None:
    connection = await asyncpg.connect(url)
    for name, tag in _TAGS.items():
        await connection.execute(_LOG.replace("{name}", name).replace("{tag}", str(tag)))
    await connection.close()


def prepare(url: str) -> None:
    asyncio.run(_prepare(url))


class Bell:
    """NOTIFY after the commit on a connection of its own, one in flight; what gathers meanwhile goes as one."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def run(self) -> None:
        while True:
            await self._rung.wait()
            self._rung.clear()
            await self._connection.execute("NOTIFY limit_orders")


async def produce(channel: Channel, url: str, count: int, per_second: float | None = None) -> None:
    """100 callers commit one event each, grouped; or at a fixed rate."""
    connection, bell = await asyncpg.connect(url), Bell(await asyncpg.connect(url))

    async def write(rows: Sequence[Row]) -> None:
        await connection.execute(_APPEND, *zip(*rows, strict=True))
        bell.ring()

    group = Group(write)
    tasks = [asyncio.create_task(group.run()), asyncio.create_task(bell.run())]
    channel.say(ready=True)
    await channel.heard()
    began, rows = time.monotonic(), order_rows(count)
    await (steadily(group, rows, per_second) if per_second else hundred_callers(group, rows))
    channel.say(began=began, ended=time.monotonic())
    for task in tasks:
        task.cancel()


class Origin:
    """The other service's log, up to the low-water mark."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._mark = 0
        self.rung = asyncio.Event()

    def heard(self, *_: Any) -> None:
        self.rung.set()

    async def read(self, position: int) -> list[Any]:
        """The next run behind a position, as soon as there is one. A mark once reached serves until it is used up."""
        while True:
            self.rung.clear()
            if self._mark < position + RUN:
                drawn = await self._reader.fetchval(_DRAWN)
                announced = await self._reader.fetchval(_ANNOUNCED)
                self._mark = drawn if announced is None else min(drawn, announced)
            if self._mark > position:
                rows: list[Any] = await self._reader.fetch(_READ, position, self._mark, RUN)
                if rows:
                    return rows
            await self.rung.wait()


async def consume(channel: Channel, url: str, count: int) -> None:
    """Reads the other's log, answers every message, and commits the answers together with the cursor."""
    origin, own = Origin(await asyncpg.connect(url)), await asyncpg.connect(url)
    listening = await asyncpg.connect(url)
    await listening.add_listener("limit_orders", origin.heard)
    channel.say(ready=True)
    began, position, handled, latencies = time.monotonic(), 0, 0, []
    reading = asyncio.create_task(origin.read(position))
    while handled < count:
        rows = await reading
        answers, sent = zip(*[answer_to(id, payload) for _, id, payload in rows], strict=True)
        last, handled = rows[-1][0], handled + len(rows)
        reading = asyncio.create_task(origin.read(last))  # while the answers are being committed
        await own.execute(_ANSWER, position, last, *zip(*answers, strict=True))
        committed = now()
        latencies += [committed - at for at in sent]
        position = last
    channel.say(began=began, ended=time.monotonic(), **percentiles(latencies))
    reading.cancel()
