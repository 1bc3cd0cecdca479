"""The doorbell: both sides compute one place, the dead are removed, and nothing ever waits."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from skald.stores.sqlite import doorbell
from skald.stores.sqlite.doorbell import LONGEST, Doorbell, bells_folder, listen


async def heard(path: Path, ring: Doorbell) -> None:
    event = asyncio.Event()
    stop = listen(path, event.set)
    ring.ring()
    async with asyncio.timeout(5):
        await event.wait()
    stop()
    ring.close()


async def test_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    if len(os.fsencode(tmp_path)) < 60:
        assert bells_folder(path) == tmp_path / ".bells" / "o"
    await heard(path, Doorbell(path))


def long_path(tmp_path: Path) -> Path:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    return folder / "orders.db"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system names no descriptors")
async def test_a_long_path_has_its_bells_beside_the_file_too(tmp_path: Path) -> None:
    path = long_path(tmp_path)
    assert bells_folder(path) == path.parent / ".bells" / "orders"
    before = len(os.listdir("/proc/self/fd"))
    await heard(path, Doorbell(path))
    assert list(bells_folder(path).iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


async def test_where_descriptors_have_no_names_a_long_path_has_its_bells_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorbell, "_DESCRIPTORS", "/nowhere")
    path = long_path(tmp_path)
    assert len(os.fsencode(bells_folder(path))) < LONGEST
    assert path.parent not in bells_folder(path).parents
    await heard(path, Doorbell(path))
    bells_folder(path).rmdir()


async def test_both_sides_compute_one_place_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert bells_folder(tmp_path / "link" / "a.db") == bells_folder(tmp_path / "real" / "a.db")
    await heard(tmp_path / "real" / "a.db", Doorbell(tmp_path / "link" / "a.db"))


async def test_the_folder_is_private(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    stop = listen(path, lambda: None)
    assert stat.S_IMODE(bells_folder(path).stat().st_mode) == 0o700
    assert len(list(bells_folder(path).iterdir())) == 1
    stop()
    assert list(bells_folder(path).iterdir()) == []


async def test_dead_sockets_are_removed_and_others_hear(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    folder = bells_folder(path)
    folder.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(folder / "1-dead.sock"))
    (folder / "a file").write_text("")
    await heard(path, Doorbell(path))
    assert [file.name for file in folder.iterdir() if file.name.endswith("sock")] == []


async def test_a_full_queue_is_a_lost_hint(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    calls: list[None] = []
    stop = listen(path, lambda: calls.append(None))
    bell = Doorbell(path)
    for _ in range(2_000):  # the loop does not turn meanwhile
        bell.ring()
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    await event.wait()
    await asyncio.to_thread(lambda: None)
    assert len(calls) == 1
    stop()
    bell.close()


async def test_without_a_folder_that_can_be_made_nobody_fails(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    (tmp_path / ".bells").write_text("in the way")
    stop = listen(path, lambda: None)
    Doorbell(path).ring()
    stop()
    stop()


def test_without_a_loop_and_listeners_it_rings_all_the_same(tmp_path: Path) -> None:
    bell = Doorbell(tmp_path / "o.db")
    bell.ring()
    bell.close()
    bell.close()


@pytest.mark.parametrize("long", [False, True])
async def test_another_process_is_heard(tmp_path: Path, long: bool) -> None:
    path = long_path(tmp_path) if long else tmp_path / "o.db"
    event = asyncio.Event()
    stop = listen(path, event.set)
    code = (
        "import sys; from pathlib import Path; from skald.stores.sqlite.doorbell import Doorbell; "
        "Doorbell(Path(sys.argv[1])).ring()"
    )
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, str(path)], check=True)
    async with asyncio.timeout(5):
        await event.wait()
    stop()
