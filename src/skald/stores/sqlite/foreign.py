"""Refuses a second copy of SQLite on our file in this process, because it loses committed data.

POSIX locks belong to the process: two copies of the library do not see each other's, both write, and the one
that closes first drops the locks of both and deletes the WAL under the other. The library has one descriptor
of the ``-shm`` file per process, however many connections it has; a second one is another copy's.
(Descriptors of the database itself cannot be counted while we use it: SQLite keeps those of closed
connections until all are closed.)
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from skald.errors import ForeignHandle, StoreUnavailable
from skald.stores.sqlite.connect import open_files, registering

_FOLDER = "/dev/fd"  # of this process, on Linux and macOS
_PERIOD = 1.0

Identity = tuple[int, int]


def identity(path: Path | str) -> Identity | None:
    """Device and inode of a file, or ``None`` if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _descriptors(wanted: Identity | None) -> int:
    """How many open descriptors of this process lead to the file; 0 where the system does not tell."""
    if wanted is None:
        return 0
    try:
        names = os.listdir(_FOLDER)
    except OSError:
        return 0
    count = 0
    for name in names:
        try:
            found = os.fstat(int(name))
        except (OSError, ValueError):
            continue  # closed meanwhile
        count += (found.st_dev, found.st_ino) == wanted
    return count


def _ours(path: Path) -> bool:
    """Whether a connection of our own library has the file open."""
    wanted = identity(path)
    return any(name and identity(name) == wanted for name in open_files())


class FileWatch:
    """Watches over one database file as long as we write to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database, self._shm = str(path), f"{path}-shm"
        self._seen: tuple[Identity | None, Identity | None] | None = None
        self._next = 0.0

    def before_opening(self) -> None:
        """Refuses a file that this process has open already, unless through our own library."""
        with registering:
            if _descriptors(identity(self._path)) and not _ours(self._path):
                raise self._foreign()

    def opened(self) -> None:
        """Remembers which files are ours; to be called when the connection has read once."""
        self._seen = (identity(self._path), identity(self._shm))
        self._next = 0.0
        self.check()

    def check(self) -> None:
        """Two ``stat`` calls, and once a second a look at all descriptors."""
        database, shm = identity(self._database), identity(self._shm)
        if self._seen is not None and database != self._seen[0]:
            raise StoreUnavailable(
                f"{self._path} was deleted or replaced while it was open; nothing was written: restart the service"
            )
        if self._seen is not None and shm != self._seen[1]:
            raise self._foreign()
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PERIOD
            if _descriptors(shm) > 1:
                raise self._foreign()

    def _foreign(self) -> ForeignHandle:
        return ForeignHandle(
            f"{self._path} is open in this process through another library (sqlite3, SQLAlchemy, open()). "
            "Two copies of SQLite in one process do not see each other's locks and lose committed data: "
            "close it, and use the transaction that Skald gives you (`tx`, or store.transaction())"
        )
