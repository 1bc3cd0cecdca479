"""Several processes on one file, and processes that are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skald.errors import StoreUnavailable
from skald.stores.sqlite import SqliteStore
from skald.testing.samples import commit, plain, records
from skald.unit import Append, Committed, Unit

WRITER = """
import asyncio, sys
from pathlib import Path
from skald.stores.sqlite import SqliteStore
from skald.testing.samples import records
from skald.unit import Append, Committed, Unit

async def main(path, name, groups):
    store = SqliteStore(Path(path), "orders")
    await store.migrate()
    await store.open()
    print("open", flush=True)
    done = 0
    while done < int(groups):
        units = [Unit(appends=(Append(f"{name}-{n}", records(2)),)) for n in range(5)]
        units.append(Unit(appends=(Append("all", records(1)),)))
        outcomes = await store.commit(units, patient=True)
        assert all(isinstance(outcome, Committed) for outcome in outcomes), outcomes
        done += 1
        print(max(p for outcome in outcomes for p in outcome.positions), flush=True)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def start(path: Path, name: str, groups: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(groups)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_processes_that_start_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    processes = [start(path, f"p{n}", 30) for n in range(4)]
    outputs = [await asyncio.to_thread(process.communicate) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs

    store = SqliteStore(path, "orders")
    await store.open()
    log = await store.log.read(0, 10_000)
    assert [r.position for r in log] == list(range(1, 4 * 30 * 11 + 1))
    assert [r.stream_version for r in await store.log.read_stream("all")] == list(range(1, 121))
    await store.close()


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    for round in range(3):
        process = start(path, f"p{round}", 10**9)
        assert process.stdout is not None
        acknowledged = 0
        for _ in range(40):
            line = await asyncio.to_thread(process.stdout.readline)
            acknowledged = acknowledged if line == "open\n" else int(line)
        process.send_signal(signal.SIGKILL)
        rest, _ = await asyncio.to_thread(process.communicate)
        for line in rest.split("\n")[:-1]:
            acknowledged = int(line)

        store = SqliteStore(path, "orders")
        await store.open()
        log = await store.log.read(0, 100_000)
        assert log[-1].position >= acknowledged
        assert len(log) % 11 == 0, "half a group"
        await commit(store, plain(11))
        await store.close()


async def test_a_fork_does_not_write_with_its_parents_connection(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "orders.db", "orders")
    await store.migrate()
    await store.open()
    store._writer._process = os.getpid() + 1  # as a child would find it
    with pytest.raises(StoreUnavailable, match="fork"):
        await store.commit([plain()])
    await store.close()


async def test_a_large_group_leaves_the_loop_free(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "orders.db", "orders")
    await store.migrate()
    await store.open()
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.to_thread(lambda: None)

    turning = asyncio.create_task(turn())
    outcomes = await commit(store, *(Unit(appends=(Append(f"s-{n}", records(3)),)) for n in range(2_000)))
    turning.cancel()
    assert len(outcomes) == 2_000
    assert turns > 1
    await store.close()


async def test_a_cancelled_commit_is_whole_or_not_at_all_and_the_next_one_works(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "orders.db", "orders")
    await store.migrate()
    await store.open()
    for _ in range(10):
        before = len(await store.log.read(0, 100_000))
        group = [Unit(appends=(Append(f"s-{n}", records(1)),)) for n in range(600)]
        task = asyncio.create_task(store.commit(group))
        await asyncio.to_thread(lambda: None)
        task.cancel()
        await asyncio.wait([task])
        assert len(await store.log.read(0, 100_000)) - before in (0, 600)
        assert isinstance((await store.commit([plain(600)]))[0], Committed)
    await store.close()
