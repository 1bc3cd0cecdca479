"""Notices that the program's own files have changed, by looking at their times; works everywhere, needs nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable
from pathlib import Path

PERIOD = 0.4
_FOREIGN = {"site-packages", "dist-packages", "node_modules", "__pycache__"}

Times = dict[str, int]


def imported_files(below: Path) -> list[str]:
    """The files of the modules that were imported from below a folder, without installed packages."""
    root = below.resolve()
    found = []
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if isinstance(name, str) and _is_ours(Path(name), root):
            found.append(name)
    return found


def all_files(below: Path) -> list[str]:
    """Every Python file below a folder: what to look at when the import itself has failed."""
    found: list[str] = []
    for folder, folders, files in os.walk(below):
        is_environment = "pyvenv.cfg" in files
        folders[:] = [] if is_environment else [f for f in folders if f not in _FOREIGN and not f.startswith(".")]
        found += [os.path.join(folder, name) for name in files if name.endswith(".py") and not is_environment]
    return found


def _is_ours(file: Path, root: Path) -> bool:
    path = file.resolve()
    return path.is_relative_to(root) and not _FOREIGN.intersection(path.relative_to(root).parts)


def times_of(files: Iterable[str]) -> Times:
    """When each was changed last; 0 for one that is gone."""
    times: Times = {}
    for name in files:
        try:
            times[name] = os.stat(name).st_mtime_ns
        except OSError:
            times[name] = 0
    return times


class Watch:
    """``files`` are looked at, and every ``.sql`` file in the folders. ``before`` are times from before the files were
    read, so that a change while they were being imported counts too."""

    def __init__(self, files: Iterable[str], folders: Iterable[Path] = (), before: Times | None = None) -> None:
        self._files, self._folders = sorted(set(files)), list(folders)
        self._times = self._look()
        self._times.update({name: time for name, time in (before or {}).items() if name in self._times})

    def _look(self) -> Times:
        return times_of([*self._files, *(str(p) for folder in self._folders for p in folder.glob("*.sql"))])

    def changed(self) -> list[str]:
        """The files that differ from the last look."""
        now = self._look()
        names = [name for name in {**self._times, **now} if self._times.get(name) != now.get(name)]
        self._times = now
        return sorted(names)

    async def wait(self) -> list[str]:
        """Until something has changed, and nothing any more for one period: editors write in several steps."""
        found: set[str] = set()
        while True:
            await asyncio.sleep(PERIOD)
            changed = self.changed()
            if not changed and found:
                return sorted(found)
            found.update(changed)


def start_again() -> None:
    """Replaces this process by a new one with the same command line; it keeps its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
