"""What a workflow of four steps costs the database: rows written, bytes of WAL, and statements that read.

Rows are inserted and updated ones: as PostgreSQL counts them, and by triggers on SQLite. The bar is for the tables of
workflows; what groups of commits and leases write depends on time and company, and stands beside it.

WAL is asked of pg_waldump, which knows how much of it are images of full pages (they depend on when the last checkpoint
was, and do not count). Where it cannot read the server's folder, each image counts as 8 KiB in pg_stat_wal: more than
most have, so what is left is a lower bound then, and the name of the figure says so.

Statements are counted where the library makes them, at the store, by ``counting``: pg_stat_statements has to be loaded
by the server, and no server of a benchmark has it. The executor's look around, once a second, does not count.
"""

from __future__ import annotations

import re
import subprocess
from typing import Any

from benchmarks.harness.child import Children
from benchmarks.harness.figures import Figure, at_most, plain
from benchmarks.harness.places import Place
from benchmarks.workflows.counting import OURS
from benchmarks.workflows.order import order, place_order
from benchmarks.workflows.sizes import Sizes
from benchmarks.workflows.tables import Tables, tables, until

MOST_ROWS, MOST_BYTES = 6.0, 2_000.0
PAGE = 8_192
WARM = 200
"""Orders before it is counted what is read, because a process that starts looks around."""


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    if len(place_order.signature.encode((order(0),), {})) >= 100:
        raise RuntimeError("the input is to have less than 100 bytes")
    url, orders = place.fresh(), WARM + sizes.orders
    beside = tables(url)
    try:
        if place.name == "sqlite":
            _count_by_triggers(beside)
        before, begun = _written(beside, place), _wal(beside, place)
        with Children() as start:
            child = start("benchmarks.workflows.counting:run", url=url)
            child.hear()
            child.ask(orders=WARM)
            reads = child.ask(orders=sizes.orders)["reads"]
        # A session tells its statistics at its end at the latest.
        until(lambda: _written(beside, place).get("skald_journal", 0) >= 4 * orders)
        written = {table: number - before.get(table, 0) for table, number in _written(beside, place).items()}
        figures = [_bytes(beside, place, begun, _wal(beside, place), orders)] if place.name == "postgres" else []
    finally:
        beside.close()
        place.drop(url)
    ours = sum(written.get(table, 0) for table in OURS) / orders
    others = sum(number for table, number in written.items() if table not in OURS) / orders
    return [
        at_most(f"rows per workflow {place.name}", (ours, MOST_ROWS), "rows", 1.0),
        plain(f"rows per workflow, in all other tables {place.name}", others, "rows"),
        *figures,
        Figure(
            f"statements that read rows, of {sizes.orders:,} executions {place.name}", reads, "", bar=0, ok=not reads
        ),
    ]


# --- rows -------------------------------------------------------------------------------------------------------------


def _count_by_triggers(beside: Tables) -> None:
    beside.rows("CREATE TABLE bench_written (name TEXT PRIMARY KEY, number INTEGER)")
    for (name,) in beside.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'skald%'"):
        beside.rows(f"INSERT INTO bench_written VALUES ('{name}', 0)")
        for what in ("INSERT", "UPDATE"):
            count = f"UPDATE bench_written SET number = number + 1 WHERE name = '{name}'"
            beside.rows(f"CREATE TRIGGER bench_{name}_{what} AFTER {what} ON {name} BEGIN {count}; END")


_STATISTICS = "SELECT relname, n_tup_ins + n_tup_upd FROM pg_stat_user_tables WHERE schemaname = 'orders'"


def _written(beside: Tables, place: Place) -> dict[str, int]:
    """By table."""
    return dict(beside.rows("SELECT name, number FROM bench_written" if place.name == "sqlite" else _STATISTICS))


# --- WAL --------------------------------------------------------------------------------------------------------------


Wal = tuple[Any, ...]
"""Where its end is, its bytes, and its full pages."""


def _wal(beside: Tables, place: Place) -> Wal:
    if place.name == "sqlite":
        return ()
    return beside.rows("SELECT pg_current_wal_insert_lsn()::text, wal_bytes::bigint, wal_fpi FROM pg_stat_wal")[0]


def _bytes(beside: Tables, place: Place, begun: Wal, ended: Wal, orders: int) -> Figure:
    name, number = f"rows: WAL per workflow {place.name}", _dumped(beside, begun[0], ended[0])
    if number is None:
        name, number = f"{name} (at least)", ended[1] - begun[1] - PAGE * (ended[2] - begun[2])
    return at_most(name, (number / orders, MOST_BYTES), "bytes", 1.0)


def _dumped(beside: Tables, begin: str, end: str) -> int | None:
    from tests.postgres_server import PostgresError, find_binaries

    [(folder, version)] = beside.rows("SELECT current_setting('data_directory'), current_setting('server_version_num')")
    try:
        program = find_binaries(None, str(int(version) // 10_000)) / "pg_waldump"
        asked = [str(program), "--stats", "-p", f"{folder}/pg_wal", "-s", begin, "-e", end]
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    except (PostgresError, OSError, subprocess.CalledProcessError):
        return None
    # "Total  NUMBER  RECORD-BYTES [12.34%]  IMAGE-BYTES [87.66%]  COMBINED [100%]"
    total = re.search(r"^Total\s+\d+\s+(\d+) ", told, re.MULTILINE)
    return int(total[1]) if total else None
