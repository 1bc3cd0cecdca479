"""Facts of the machine without which no figure means anything."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def facts(folder: Path, stores: Sequence[str]) -> dict[str, str]:
    """``stores`` are the databases with their versions."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, load {os.getloadavg()[0]:.2f}",
        "disk": f"{file_system(folder)}, fsync {1000 * sync_seconds(folder):.2f} ms",
        "versions": ", ".join([f"Python {platform.python_version()}", *stores, *_packages()]),
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


def _packages() -> list[str]:
    found = []
    for name in ("apsw", "msgspec", "asyncpg"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
