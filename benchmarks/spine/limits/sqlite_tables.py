"""Bare SQLite in the library's own migrated tables, with the same columns and indexes: append, read, fill."""

from __future__ import annotations

import re
import time
from itertools import cycle, islice

import apsw
import msgspec

from benchmarks.harness.child import Channel
from benchmarks.spine.limits.rows import Row, event_rows
from benchmarks.spine.limits.sqlite import RUN, folder_of, open_reader, open_writer, rows_of
from benchmarks.spine.messages import OrderPlaced
from skald.sql import blocks

_APPEND = f"INSERT INTO skald_events VALUES ({', '.join('?' * 14)})"


def append(channel: Channel, url: str, streams: bool) -> None:
    """Groups of 100 prepared rows for some seconds, as often as asked; with ``streams`` also the head of each."""
    connection = open_writer(folder_of(url) / "orders.db")
    position = 0
    while True:
        seconds = channel.hear()["seconds"]
        rows = cycle(event_rows(20_000, streams))
        first, began = position, time.monotonic()
        while time.monotonic() < began + seconds:
            group = [(position + n, *row) for n, row in enumerate(islice(rows, 100), 1)]
            if streams:  # a name of its own for each, since the prepared ones come again
                group = [(*row[:12], f"order-{row[0]}", 1) for row in group]
            position += 100
            with connection:
                connection.executemany(_APPEND, group)
                if streams:
                    connection.executemany(
                        "INSERT INTO skald_heads VALUES (?, 1)", [(f"stream:{r[12]}",) for r in group]
                    )
        channel.say(rate=(position - first) / (time.monotonic() - began))


def fill(channel: Channel, url: str, count: int) -> None:
    """Many events in streams, as quickly as they can be written."""
    connection = open_writer(folder_of(url) / "orders.db")
    connection.execute("PRAGMA synchronous = OFF")
    for start in range(0, count, 50_000):
        rows = event_rows(min(50_000, count - start), True)
        with connection:
            connection.executemany(_APPEND, [(start + n, *row) for n, row in enumerate(rows, 1)])
            connection.executemany("INSERT INTO skald_heads VALUES (?, 1)", [(f"stream:{row[11]}",) for row in rows])
    connection.execute("UPDATE skald_sequence SET position = ?", (count,))
    connection.execute("PRAGMA synchronous = FULL")
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    channel.say(filled=count)


def read(channel: Channel, url: str) -> None:
    """All events from the start, 500 at a time, with their whole envelope; each payload decoded."""
    decode = msgspec.json.Decoder(OrderPlaced).decode
    connection = open_reader(folder_of(url) / "orders.db")
    sql = "SELECT * FROM skald_events WHERE position > ? ORDER BY position LIMIT ?"
    while True:
        channel.hear()
        position, count, began = 0, 0, time.monotonic()
        while rows := rows_of(connection, sql, position, RUN):
            for row in rows:
                decode(row[11])
            position, count = rows[-1][0], count + len(rows)
        channel.say(rate=count / (time.monotonic() - began))


def hold_snapshot(channel: Channel, url: str) -> None:
    """A read transaction that stays open until this process is told to end."""
    connection = open_reader(folder_of(url) / "orders.db")
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM skald_cursors").fetchall()
    channel.say(held=True)
    channel.hear()


_WALK = re.compile(r"SCAN skald_(events|messages|heads|deliveries)\b")


def watch_plans(channel: Channel, url: str) -> None:
    """How many of the library's writing statements walk a large table, by EXPLAIN QUERY PLAN."""
    connection = open_reader(folder_of(url) / "orders.db")
    channel.say(ready=True)
    channel.hear()
    plans = [row for sql in blocks("skald.stores.sqlite", "unit").values() for row in _explained(connection, sql)]
    channel.say(walks=sum(bool(_WALK.search(detail)) for *_, detail in plans))


def _explained(connection: apsw.Connection, sql: str) -> list[Row]:
    return rows_of(connection, f"EXPLAIN QUERY PLAN {sql}", *(None,) * sql.count("?"))
