"""The SQLite store passes the suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from skald.stores.sqlite import SqliteStore
from skald.testing.conformance import NewHandle, StoreConformance, StoreModelConformance


@pytest.fixture
def new_handle(tmp_path: Path) -> NewHandle:
    return lambda: SqliteStore(tmp_path / "origin.db", "origin", transaction_limit=10.0)


class TestSqlite(StoreConformance):
    pass


class TestSqliteAgainstTheModel(StoreModelConformance):
    pass
