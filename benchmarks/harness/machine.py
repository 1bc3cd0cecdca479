"""Facts of the machine without which no figure means anything."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import apsw


def facts(folder: Path) -> dict[str, str]:
    return {
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, load {os.getloadavg()[0]:.2f}",
        "disk": f"{file_system(folder)}, fsync {1000 * sync_seconds(folder):.2f} ms",
        "versions": f"Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}, {_packages()}",
    }


def sync_seconds(folder: Path, times: int = 200) -> float:
    """The median of writing 4 KiB and waiting until the disk has them."""
    path, taken = folder / "fsync", []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(b"x" * 4096)
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(taken)


def file_system(folder: Path) -> str:
    """Its type, as far as the system tells."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown file system"
    holding = [m for m in mounts if folder.resolve().is_relative_to(m[0].replace("\\040", " "))]
    return max(holding, key=lambda mount: len(mount[0]))[1]


def _packages() -> str:
    found = []
    for name in ("apsw", "msgspec", "asyncpg"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
