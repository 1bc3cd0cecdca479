"""The tables of a store beside the library: counts, and rows by the hundred thousand that no library had to make."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import apsw
import asyncpg
import msgspec

from benchmarks.spine.limits.sqlite import folder_of
from benchmarks.workflows import waits

DAY = 86_400_000_000


class Tables(Protocol):
    series: str
    """A table expression with a column n from 1 to {count}."""
    run: str
    """A UUIDv7 of the milliseconds {ms} and of n."""
    tidy: tuple[str, ...]
    """After many rows were inserted: what would otherwise be done in the middle of what is measured."""

    def rows(self, sql: str) -> list[tuple[Any, ...]]: ...

    def now(self) -> int:
        """The database's clock, microseconds since 1970."""
        ...

    def blob(self, value: bytes) -> str: ...

    def close(self) -> None: ...


class SqliteTables:
    series = "(WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count}) SELECT n FROM s)"
    run = "printf('%08x-%04x-7000-8000-%012x', ({ms}) >> 16, ({ms}) & 65535, n)"
    tidy: tuple[str, ...] = ("PRAGMA wal_checkpoint(TRUNCATE)",)

    def __init__(self, url: str) -> None:
        self._connection = apsw.Connection(str(folder_of(url) / "orders.db"))
        self._connection.set_busy_timeout(30_000)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return list(self._connection.execute(sql))

    def now(self) -> int:
        return time.time_ns() // 1000

    def blob(self, value: bytes) -> str:
        return f"x'{value.hex()}'"

    def close(self) -> None:
        self._connection.close()


class PostgresTables:
    series = "generate_series(1::bigint, {count}) AS s (n)"
    run = "(lpad(to_hex(({ms})::bigint), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid"
    tidy: tuple[str, ...] = ("VACUUM ANALYZE skald_workflows", "VACUUM ANALYZE skald_journal", "CHECKPOINT")

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        settings = {"search_path": "orders", "synchronous_commit": "off"}
        self._connection: Any = self._runner.run(asyncpg.connect(url, server_settings=settings))

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._runner.run(self._connection.fetch(sql))]

    def now(self) -> int:
        return int(self.rows("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")[0][0])

    def blob(self, value: bytes) -> str:
        return f"'\\x{value.hex()}'::bytea"

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


def tables(url: str) -> Tables:
    """Of a store that has been migrated here."""
    asyncio.run(waits.application(url).migrate())
    return SqliteTables(url) if url.startswith("sqlite:") else PostgresTables(url)


def count(found: Tables, what: str) -> int:
    """``what`` follows FROM."""
    return int(found.rows(f"SELECT count(*) FROM {what}")[0][0])


def until(check: Callable[[], bool], seconds: float = 60.0, every: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {seconds} s")
        time.sleep(every)


_WORKFLOWS = """
INSERT INTO skald_workflows (run, id, workflow, state, wake_at, input, outcome, started_at, ended_at)
SELECT {run}, '{name}-' || n, '{workflow}', '{state}', {wake_at}, {input}, {outcome}, {began}, {ended} FROM {series}
"""
_JOURNAL = """
INSERT INTO skald_journal (run, position, kind, name, digest, occurrence, time, payload)
SELECT {run}, 1, 0, 'move', {digest}, 1, {time}, {payload} FROM {series}
"""


def add_sleeping(found: Tables, number: int, due: int, seconds: float) -> None:
    """Naps of so many seconds that nobody owns; they began so long before, and are due evenly within one second from
    ``due``, microseconds since 1970."""
    slept = f"{due} + n * 1000000 / {number} - {round(seconds * 1e6)}"
    wake_at = f"{due} + n * 1000000 / {number} + 1"  # as the library rounds it
    began = f"{slept} - 1000"
    _add(found, number, "nap", "running", waits.nap.signature.encode((seconds,), {}), began, slept, wake_at=wake_at)


def add_finished(found: Tables, number: int) -> None:
    """Rides that have ended in the last twenty days, which is too early for them to be deleted."""
    ended = f"{found.now() - 20 * DAY} + n * {19 * DAY // number}"
    outcome = found.blob(msgspec.json.encode("driver_paid"))
    input = waits.ride.signature.encode((12345678,), {})
    _add(found, number, "ride", "completed", input, f"{ended} - 600000", ended, ended=ended, outcome=outcome)


def _add(
    found: Tables, number: int, workflow: str, state: str, input: bytes, began: str, time: str, **columns: str
) -> None:
    _, digest, _ = waits.move.signature.called((0, "asleep"), {})
    series, run = found.series.format(count=number), found.run.format(ms=f"({began}) / 1000")
    values = {
        "run": run, "name": f"old-{workflow}", "workflow": workflow, "state": state, "began": began, "series": series,
        "wake_at": "NULL", "outcome": "NULL", "ended": "NULL", "input": found.blob(input),
    } | columns  # fmt: skip
    found.rows(_WORKFLOWS.format_map(values))
    payload = found.blob(waits.move.signature.result.encode("asleep"))
    found.rows(_JOURNAL.format(run=run, digest=found.blob(digest), time=time, payload=payload, series=series))
    for sql in found.tidy:
        found.rows(sql)
