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
