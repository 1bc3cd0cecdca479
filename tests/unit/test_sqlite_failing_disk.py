"""Nothing is acknowledged that a failing disk did not take, and the store goes on from what is in the file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import apsw
import pytest
import pytest_asyncio

from skald.errors import StoreUnavailable
from skald.stores.sqlite import SqliteStore
from skald.testing.samples import commit, plain, records
from skald.unit import Append, Unit

Fault = Callable[[str, str], None]


class FaultyFile(apsw.VFSFile):
    """Asks before it writes or syncs."""

    def __init__(self, vfs: FaultyDisk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._vfs = vfs
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name or ""
        super().__init__("unix", name, flags)

    def xSync(self, flags: int) -> None:
        self._vfs.fault(self._name, "sync")
        super().xSync(flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._vfs.fault(self._name, "write")
        super().xWrite(data, offset)


class FaultyDisk(apsw.VFS):
    """The default file system of all new connections, as long as it is registered."""

    def __init__(self) -> None:
        self.fault: Fault = lambda name, act: None
        super().__init__("faulty", "unix", makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> FaultyFile:
        return FaultyFile(self, name, flags)


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    disk = FaultyDisk()
    yield disk
    disk.unregister()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


@pytest_asyncio.fixture
async def store(disk: FaultyDisk, path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, "orders")
    await store.migrate()
    await store.open()
    yield store
    await store.close()


def failing(error: type[apsw.Error], where: str, act: str) -> Fault:
    def fault(name: str, what: str) -> None:
        if name.endswith(where) and what == act:
            raise error("injected")

    return fault


FAULTS = [
    pytest.param(failing(apsw.IOError, "-wal", "sync"), "disk failed", id="fsync fails"),
    pytest.param(failing(apsw.FullError, "-wal", "write"), "free some space", id="the disk is full"),
    pytest.param(failing(apsw.IOError, "-wal", "write"), "disk failed", id="writes fail"),
]


@pytest.mark.parametrize(("fault", "remedy"), FAULTS)
async def test_a_failed_commit_is_not_acknowledged_and_the_next_one_is(
    disk: FaultyDisk, store: SqliteStore, path: Path, fault: Fault, remedy: str
) -> None:
    acknowledged = list((await commit(store, plain(3)))[0].positions)
    disk.fault = fault
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match=remedy):
            await store.commit([plain(2)])
    disk.fault = lambda name, act: None
    acknowledged += (await commit(store, plain(4)))[0].positions

    await store.close()
    again = SqliteStore(path, "orders")
    await again.open()
    found = [r.position for r in await again.log.read(0, 100)]
    await again.close()
    # A commit that failed may be there, but then as a whole; one that was acknowledged is there.
    assert set(acknowledged) <= set(found)
    assert found == sorted(set(found))
    assert (len(found) - 7) % 2 == 0


@pytest.mark.parametrize(("fault", "remedy"), FAULTS)
async def test_a_failed_commit_of_a_transaction(
    disk: FaultyDisk, store: SqliteStore, fault: Fault, remedy: str
) -> None:
    async def write() -> None:
        async with store.transaction() as tx:
            await tx.apply(Unit(appends=(Append("s", records(2)),)))

    await write()
    disk.fault = fault
    with pytest.raises(StoreUnavailable, match=remedy):
        await write()
    disk.fault = lambda name, act: None
    await write()
    versions = [r.stream_version for r in await store.log.read_stream("s")]
    assert versions == list(range(1, len(versions) + 1))


async def test_after_a_failure_everything_is_read_from_the_file_again(disk: FaultyDisk, store: SqliteStore) -> None:
    await commit(store, plain())
    opened: list[str] = []
    xOpen = disk.xOpen

    def spy(name: str | apsw.URIFilename | None, flags: list[int]) -> FaultyFile:
        file = xOpen(name, flags)
        opened.append(Path(file._name).name)
        return file

    disk.fault = failing(apsw.IOError, "-wal", "sync")
    with pytest.raises(StoreUnavailable):
        await store.commit([plain()])
    disk.fault = lambda name, act: None
    disk.xOpen = spy  # type: ignore[method-assign]
    await commit(store, plain())
    assert {"orders.db", "orders.db-wal"} <= set(opened)


async def test_a_failing_checkpoint_loses_nothing(disk: FaultyDisk, store: SqliteStore) -> None:
    acknowledged: set[int] = set()
    disk.fault = failing(apsw.IOError, "orders.db", "sync")
    for _ in range(60):  # some megabytes: the checkpoint is tried many times
        with suppress(StoreUnavailable):  # SQLite would not tell, but apsw reports an exception of its files
            acknowledged |= set((await commit(store, Unit(events=records(500))))[0].positions)
    disk.fault = lambda name, act: None
    acknowledged |= set((await commit(store, plain()))[0].positions)
    found = {r.position for r in await store.log.read(0, 100_000)}
    assert acknowledged <= found
    assert len(acknowledged) > 5_000
