"""By hand on SQLite: a row of the outbox per commit; a relay polls it and handles 100 messages per transaction."""

from __future__ import annotations

import asyncio
import time

from benchmarks.harness.child import Channel
from benchmarks.spine.limits.rows import Row, answer_to, order_rows
from benchmarks.spine.limits.sqlite import folder_of, open_reader, open_writer, rows_of

POLL = 0.02
_OUTBOX = """
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY, message_id TEXT NOT NULL, type TEXT NOT NULL, key TEXT NOT NULL, payload BLOB NOT NULL
);
CREATE TABLE inbox (message_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE relayed (id INTEGER NOT NULL);
INSERT INTO relayed VALUES (0);
"""
_INSERT = "INSERT INTO outbox (message_id, type, key, payload) VALUES (?, ?, ?, ?)"
_READ = "SELECT id, message_id, payload FROM outbox WHERE id > ? ORDER BY id LIMIT 100"


def prepare(url: str) -> None:
    folder_of(url).mkdir(parents=True)
    for name in ("orders", "payments"):
        connection = open_writer(folder_of(url) / f"{name}.outbox")
        connection.execute(_OUTBOX)
        connection.close()


async def produce(channel: Channel, url: str, count: int) -> None:
    connection = open_writer(folder_of(url) / "orders.outbox")
    rows = order_rows(count)
    channel.say(ready=True)
    await channel.heard()
    began = time.monotonic()

    async def caller() -> None:
        for row in rows:
            with connection:
                connection.execute(_INSERT, row)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as callers:
        for _ in range(100):
            callers.create_task(caller())
    channel.say(began=began, ended=time.monotonic())


def consume(channel: Channel, url: str, count: int) -> None:
    outbox, own = open_reader(folder_of(url) / "orders.outbox"), open_writer(folder_of(url) / "payments.outbox")
    channel.say(ready=True)
    handled = 0
    while handled < count:
        last = own.execute("SELECT id FROM relayed").get
        rows = rows_of(outbox, _READ, last)
        if not rows:
            time.sleep(POLL)
            continue
        with own:
            for _, id, payload in rows:
                own.execute("INSERT INTO inbox VALUES (?) ON CONFLICT DO NOTHING", (id,))
                if own.changes():
                    own.execute(_INSERT, _answer(id, payload))
            own.execute("UPDATE relayed SET id = ?", (rows[-1][0],))
        handled += len(rows)
    channel.say(ended=time.monotonic())


def _answer(id: str, payload: bytes) -> Row:
    answer, _ = answer_to(id, payload)
    return answer
