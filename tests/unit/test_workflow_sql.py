"""What workflows ask of the database stays quick when millions of them have ended."""

from __future__ import annotations

import re
from pathlib import Path

import apsw
import pytest

from skald.stores.sqlite import SqliteStore
from skald.workflows.journal import SQL

WALKS = {"prune_letters": ["SCAN l"]}
"""Once in a while, through those that nobody has read yet."""


INSERT = (
    "INSERT INTO skald_workflows (run, id, workflow, latest, state, wake_at, input, started_at, ended_at)"
    " VALUES (?, 'chain', 'long', ?, ?, ?, ?, 1, ?)"
)


@pytest.mark.parametrize("name", SQL)
async def test_no_statement_walks_a_table(tmp_path: Path, name: str) -> None:
    await SqliteStore(tmp_path / "jobs.db", "jobs").migrate()
    connection = apsw.Connection(str(tmp_path / "jobs.db"))
    sql = SQL[name].replace("{for_update}", "").replace("{runs}", ":r0")
    values = dict.fromkeys(re.findall(r":(\w+)", sql), "1")
    plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    connection.close()
    assert plan or sql.startswith("INSERT INTO skald_journal"), "of single rows there is none"
    assert [line for line in plan if re.match(r"SCAN (?!CONSTANT|\()", line)] == WALKS.get(name, [])


async def test_what_is_asked_of_a_chain_grows_no_faster_than_the_chain(tmp_path: Path) -> None:
    """Of the runs of one id, each of which went on as new."""
    await SqliteStore(tmp_path / "jobs.db", "jobs").migrate()
    connection = apsw.Connection(str(tmp_path / "jobs.db"))
    steps = [0]

    def count() -> bool:
        steps[0] += 1
        return False

    def asked(name: str, length: int, **values: object) -> int:
        with connection:
            connection.execute("DELETE FROM skald_workflows")
            for run in range(length):
                last = run == length - 1
                state, due, ended = ("running", None, None) if last else ("continued", -7, 1)
                row = (f"{run:05}", last, state, due, b"%d" % run, ended)
                connection.execute(INSERT, row)
            steps[0] = 0
            connection.set_progress_handler(count, 10)
            connection.execute(SQL[name], values).fetchall()
            connection.set_progress_handler(None)
        return steps[0]

    known = {"id": "chain", "workflow": "long", "input": b"other", "token": -7, "before": 1, "now": 1}
    for name in ("started_with", "inputs", "choose_before", "spare_first"):
        values = {one: known[one] for one in re.findall(r":(\w+)", SQL[name])}
        assert asked(name, 800, **values) < 3 * asked(name, 400, **values), name
    connection.close()
