"""Bare SQLite: groups of whatever has gathered, a WAL with synchronous=FULL, and nothing else.

The ceiling writes the same rows into the library's own migrated tables, ids and indexes included; ``plain`` has one
table with two columns for its key and two more, which is as little as a journal can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.harness.child import Channel
from benchmarks.spine.limits.rows import Row
from benchmarks.spine.limits.sqlite import folder_of, open_writer
from benchmarks.workflows.load import bare_group, by_hand, serve
from benchmarks.workflows.order import application

_PLAIN = (
    "CREATE TABLE plain (workflow TEXT, position INTEGER, name TEXT, payload BLOB, PRIMARY KEY (workflow, position))"
)
_START = "INSERT INTO skald_workflows (run, id, workflow, state, input, started_at) VALUES (?, ?, ?, 'running', ?, ?)"
_STEP = "INSERT INTO skald_journal VALUES (?, ?, 0, ?, ?, 1, ?, ?)"
_END = "UPDATE skald_workflows SET state = 'completed', outcome = ?, ended_at = ? WHERE run = ?"


async def run(channel: Channel, url: str) -> None:
    await application(url).migrate()
    connection = open_writer(folder_of(url) / "orders.db")
    connection.execute(f"{_PLAIN} WITHOUT ROWID")

    async def write(rows: Sequence[Row]) -> None:
        """Rows of any kind: a start, a step, or the last step with the end."""
        with connection:
            if starts := [row for row in rows if len(row) == 5]:
                connection.executemany(_START, starts)
            if steps := [row[:6] for row in rows if len(row) >= 6]:
                connection.executemany(_STEP, steps)
            if ends := [row[6:] for row in rows if len(row) == 9]:
                connection.executemany(_END, ends)

    async def write_plain(rows: Sequence[Row]) -> None:
        with connection:
            connection.executemany("INSERT INTO plain VALUES (?, ?, ?, ?)", rows)

    encode = msgspec.json.Encoder().encode
    hand, plain = by_hand(encode)
    with bare_group(write) as group, bare_group(write_plain) as plain_group:
        await serve(channel, {"order": lambda n: hand(group, n), "plain": lambda n: plain(plain_group, n)})
