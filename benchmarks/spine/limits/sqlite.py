"""Bare SQLite: apsw, a WAL with synchronous=FULL, a file per service, a datagram as doorbell, and nothing else.

The pair keeps a log of its own with just what it needs.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw

from benchmarks.harness.child import Channel
from benchmarks.harness.rounds import percentiles
from benchmarks.spine.limits.group import Group, hundred_callers, steadily
from benchmarks.spine.limits.rows import Row, answer_to, order_rows
from benchmarks.spine.messages import now

RUN = 500
_LOG = """
CREATE TABLE log (
    position INTEGER PRIMARY KEY, id TEXT NOT NULL, type TEXT NOT NULL, key TEXT NOT NULL, payload BLOB NOT NULL
);
CREATE TABLE cursor (origin TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO cursor VALUES ('orders', 0);
"""
_INSERT = "INSERT INTO log (id, type, key, payload) VALUES (?, ?, ?, ?)"
_READ = "SELECT position, id, payload FROM log WHERE position > ? ORDER BY position LIMIT ?"
_MOVE = "UPDATE cursor SET position = ? WHERE origin = 'orders' AND position = ?"


def folder_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:"))


def open_writer(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(5_000)
    connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -16000").fetchall()
    return connection


def open_reader(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(5_000)  # the last one to close the file keeps it to itself for a moment
    return connection


def rows_of(connection: apsw.Connection, sql: str, *values: Any) -> list[Row]:
    rows: list[Row] = connection.execute(sql, values).fetchall()
    return rows


def prepare(url: str) -> None:
    folder_of(url).mkdir(parents=True)
    for name in ("orders", "payments"):
        connection = open_writer(folder_of(url) / f"{name}.limit")
        connection.execute(_LOG)
        connection.close()


def _bell(url: str) -> str:
    """Relative to the checkout, because the path of a socket may not be longer than 100 bytes."""
    return os.path.relpath(folder_of(url) / "bell")


async def produce(channel: Channel, url: str, count: int, per_second: float | None = None) -> None:
    """100 callers commit one event each, grouped; or at a fixed rate."""
    connection = open_writer(folder_of(url) / "orders.limit")
    bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bell.setblocking(False)
    address = _bell(url)

    async def write(rows: Sequence[Row]) -> None:
        with connection:
            connection.executemany(_INSERT, rows)
        with suppress(OSError):  # nobody listens, or its queue is full
            bell.sendto(b"!", address)

    group = Group(write)
    committer = asyncio.create_task(group.run())
    channel.say(ready=True)
    await channel.heard()
    began, rows = time.monotonic(), order_rows(count)
    await (steadily(group, rows, per_second) if per_second else hundred_callers(group, rows))
    channel.say(began=began, ended=time.monotonic())
    committer.cancel()


def consume(channel: Channel, url: str, count: int) -> None:
    """Reads the other's log, answers every message, and commits the answers together with the cursor."""
    bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bell.bind(_bell(url))
    origin = open_reader(folder_of(url) / "orders.limit")
    own = open_writer(folder_of(url) / "payments.limit")
    channel.say(ready=True)
    began, position, handled, latencies = time.monotonic(), 0, 0, []
    while handled < count:
        rows = rows_of(origin, _READ, position, RUN)
        if not rows:
            bell.recv(16)
            continue
        answers, sent = zip(*[answer_to(id, payload) for _, id, payload in rows], strict=True)
        with own:
            own.execute(_MOVE, (rows[-1][0], position))
            assert own.changes() == 1, "somebody else has moved the cursor"
            own.executemany(_INSERT, answers)
        committed = now()
        latencies += [committed - at for at in sent]
        position, handled = rows[-1][0], handled + len(rows)
    channel.say(began=began, ended=time.monotonic(), **percentiles(latencies))
