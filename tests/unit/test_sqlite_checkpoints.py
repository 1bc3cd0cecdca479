"""The WAL is copied into the file as it grows, and a snapshot that stays open does not make every commit try."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from skald.stores.sqlite.checkpoints import PAGES, Checkpoints
from skald.stores.sqlite.connect import connect_reader, connect_writer


class Wal:
    """Plays the connection: a WAL of which only so much can be copied."""

    def __init__(self, limit: int | None = None) -> None:
        self.tries: list[int] = []
        self.limit, self.pages = limit, 0

    def wal_checkpoint(self, name: str, mode: int) -> tuple[int, int]:
        self.tries.append(self.pages)
        if self.limit == 0:
            raise apsw.BusyError("a reader is in the way")
        return self.pages, self.pages if self.limit is None else min(self.limit, self.pages)

    def grow_to(self, hook: Checkpoints, pages: int, step: int = 50) -> None:
        while self.pages < pages:
            self.pages += step
            assert hook(self, "main", self.pages) == apsw.SQLITE_OK  # type: ignore[arg-type]


def _fill(connection: apsw.Connection) -> None:
    """One commit of 50 pages."""
    with connection:
        connection.executemany("INSERT INTO t VALUES (randomblob(?))", [(4000,)] * 50)


@pytest.mark.parametrize("limit", [0, 500])
def test_tries_become_rare_while_a_snapshot_stays_open(limit: int) -> None:
    wal, hook = Wal(limit), Checkpoints()
    wal.grow_to(hook, 1_000 * PAGES)
    assert wal.tries[0] == PAGES
    assert len(wal.tries) < 20
    assert all(later >= 1.4 * earlier for earlier, later in zip(wal.tries, wal.tries[1:], strict=False))


def test_after_the_snapshot_all_is_as_before() -> None:
    wal, hook = Wal(0), Checkpoints()
    wal.grow_to(hook, 100 * PAGES)
    wal.pages, wal.tries, wal.limit = 0, [], None  # the WAL was truncated, and is begun anew
    wal.grow_to(hook, 3 * PAGES)
    assert wal.tries == [PAGES, 2 * PAGES, 3 * PAGES]


def test_a_wal_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    connection = connect_writer(path, create=True)
    connection.execute("CREATE TABLE t (x BLOB)")
    for _ in range(20 * PAGES // 50):
        _fill(connection)
    assert Path(f"{path}-wal").stat().st_size < 2 * PAGES * 4096 < path.stat().st_size
    connection.close()


def test_commits_go_on_beside_an_open_snapshot_and_the_wal_is_copied_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    connection = connect_writer(path, create=True)
    connection.execute("CREATE TABLE t (x BLOB)")
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    reader = connect_reader(path)
    reader.execute("BEGIN; SELECT count(*) FROM t").fetchall()
    for _ in range(100):
        _fill(connection)
    assert Path(f"{path}-wal").stat().st_size > 5_000 * 4096
    reader.close()
    for _ in range(100):
        _fill(connection)
    assert path.stat().st_size > 5_000 * 4096
    assert connection.execute("SELECT count(*) FROM t").get == 10_000
    connection.close()
