"""Acknowledged is durable on SQLite: power cuts at any write, torn pages, and a disk that fills up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from skald.errors import StoreError
from skald.message import Record, new_id, slot_of
from skald.stores.sqlite import SqliteStore
from skald.unit import Append, Committed, CursorMove, Unit
from tests.simulation.disk import Disk

COMMITS = 30


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.unregister()


def record(key: str, size: int) -> Record:
    id = new_id()
    return Record(0, id, "orders", key, slot_of(key), "OrderPlaced", 1, 1, id, None, None, b"x" * size)


class Run:
    """Commits random groups and notes what was acknowledged: ids of events, and how far a cursor was moved."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.acknowledged: list[str] = []
        self.cursor = 0
        self.versions: dict[str, int] = {}
        self.attempted: set[str] = set()

    def group(self) -> list[Unit]:
        units = []
        for _ in range(self.rng.randrange(1, 6)):
            events = tuple(record(f"k{n}", self.rng.choice((20, 300, 9_000))) for n in range(self.rng.randrange(1, 4)))
            stream = f"s{len(units)}"
            if self.rng.random() < 0.5:
                units.append(Unit(events=events))
            else:
                append = Append(stream, events, self.versions.get(stream, 0))
                units.append(Unit(appends=(append,)))
            self.attempted |= {event.id for event in events}
        moved = CursorMove("g", "o", 0, "me", self.cursor, 0, self.cursor + 1, new_id())
        mark = record("c", 50)
        self.attempted.add(mark.id)
        return [*units, Unit(cursor=moved, events=(mark,))]

    def note(self, group: list[Unit], outcomes: list[Committed | Exception]) -> None:
        for unit, outcome in zip(group, outcomes, strict=True):
            assert isinstance(outcome, Committed), outcome
            self.acknowledged += [event.id for event in unit.events]
            for append in unit.appends:
                self.acknowledged += [event.id for event in append.records]
                self.versions[append.stream] = outcome.versions[0]
            if unit.cursor is not None:
                self.cursor = unit.cursor.to_position


async def prepared(path: Path) -> SqliteStore:
    store = SqliteStore(path, "orders")
    await store.migrate()
    await store.open()
    async with store.transaction() as tx:
        await tx.execute(
            "INSERT INTO skald_cursors (group_name, origin, lane, position, owner) VALUES ('g', 'o', 0, 0, 'me')"
        )
    return store


def check(folder: Path, acknowledged: list[str], cursor: int, attempted: set[str]) -> None:
    """Everything acknowledged is there, whole; nothing is there that was never attempted; the file is sound."""
    connection = apsw.Connection(str(folder / "orders.db"), vfs="unix")
    try:
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        rows = connection.execute("SELECT id, position, length(payload) FROM skald_events ORDER BY position").fetchall()
        ids = {row[0] for row in rows}
        missing = [id for id in acknowledged if id not in ids]
        assert not missing, f"acknowledged and lost: {missing}"
        assert ids <= attempted
        stored = connection.execute("SELECT position FROM skald_cursors").get
        assert stored in (cursor, cursor + 1)
        moves = sum(1 for row in rows if row[2] == 50)
        assert moves == stored, "a cursor and the effect that moved with it came apart"
    finally:
        connection.close()


async def cut(disk: Disk, folder: Path, seed: int, images: int) -> int:
    """A run in which the power is cut at random operations; returns how many images were checked."""
    print(f"seed {seed}")
    run = Run(seed)
    store = await prepared(folder / "orders.db")
    taken: list[tuple[Path, list[str], int]] = []

    def maybe(_: str) -> None:
        if len(taken) < images and run.rng.random() < 0.08:
            place = folder / f"image{len(taken)}"
            disk.image(place, run.rng)
            taken.append((place, list(run.acknowledged), run.cursor))

    disk.on_operation = maybe
    try:
        for index in range(COMMITS):
            group = run.group()
            run.note(group, await store.commit(group))
            if index % 10 == 9:
                checkpoint(folder / "orders.db")
    finally:
        disk.on_operation = lambda _: None
        await store.close()
    for place, acknowledged, cursor in taken:
        check(place, acknowledged, cursor, run.attempted)
    return len(taken)


def checkpoint(path: Path) -> None:
    """Brings pages of the WAL into the file, so that those writes are cut as well."""
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    connection.close()


@pytest.mark.parametrize("seed", range(5))
async def test_a_power_cut_loses_nothing_acknowledged(disk: Disk, tmp_path: Path, seed: int) -> None:
    assert await cut(disk, tmp_path, seed, images=12) > 3


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(100, 200))
async def test_power_cuts_sweep(disk: Disk, tmp_path: Path, seed: int) -> None:
    assert await cut(disk, tmp_path, seed, images=20) > 3


async def test_a_store_that_does_not_sync_is_caught(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: with ``synchronous=OFF`` the same check must find losses."""
    from skald.stores.sqlite import connect

    true = connect._pragmas
    monkeypatch.setattr(connect, "_pragmas", lambda c, **s: true(c, **{**s, "synchronous": "OFF"}))
    found = 0
    for seed in range(6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            await cut(disk, folder, seed, images=12)
        except (AssertionError, apsw.Error):
            found += 1
    assert found > 0


@pytest.mark.parametrize("seed", range(10))
async def test_a_full_disk_refuses_and_recovers(disk: Disk, tmp_path: Path, seed: int) -> None:
    """ENOSPC at any write: the group is refused whole, and once there is space again commits go on."""
    print(f"seed {seed}")
    run = Run(seed)
    store = await prepared(tmp_path / "orders.db")
    reasons: list[str] = []
    for _ in range(COMMITS):
        group = run.group()
        disk.writes_left = run.rng.choice((None, run.rng.randrange(0, 12)))
        try:
            run.note(group, await store.commit(group))
        except StoreError as error:
            reasons.append(str(error))
        finally:
            disk.writes_left = None
    assert reasons
    assert all("space" in reason or "full" in reason for reason in reasons)
    await store.close()
    folder = tmp_path / "after"
    disk.image(folder, random.Random(0))
    check(folder, run.acknowledged, run.cursor, run.attempted)
