"""Opening the file, with the settings under which an acknowledged commit is durable.

WAL with ``synchronous=FULL``: every commit is an fsync of the WAL before it is acknowledged. No memory map,
because an I/O error in one is a signal and not an error. SQLite before 3.51.3 is refused: a race of its WAL
reset corrupts files.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import apsw

from skald.errors import UnsafeSettings
from skald.stores.sqlite.checkpoints import Checkpoints

OLDEST = (3, 51, 3)
READER_PATIENCE = 1_000
"""Milliseconds: a reader waits only while another process recovers the WAL, or opens or closes the file."""

COMMON = {"mmap_size": "0", "cache_size": "-4000", "trusted_schema": "OFF"}
"""Of every connection; the cache has 4 MB."""

_paths: WeakKeyDictionary[apsw.Connection, str] = WeakKeyDictionary()
registering = threading.RLock()
"""Held while a connection is opened and entered in the list, so that whoever holds it finds every one there."""


def require_sqlite(version: str = apsw.sqlite_lib_version()) -> None:
    """Refuses a SQLite that can corrupt a file in WAL mode."""
    if tuple(int(part) for part in version.split(".")[:3]) < OLDEST:
        raise UnsafeSettings(
            f"apsw brings SQLite {version}, which can corrupt a database in WAL mode; "
            f"{'.'.join(map(str, OLDEST))} or newer is needed: pip install -U apsw"
        )


def connect_writer(path: Path, *, create: bool = False, patience: float = 5.0) -> apsw.Connection:
    """A connection that may write; ``patience`` (seconds) bounds the wait for the switch to WAL."""
    require_sqlite()
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    connection = _connect(path, flags)
    try:
        connection.set_busy_timeout(round(patience * 1000))
        _use_wal(connection, path, patience)
        _pragmas(connection, **COMMON)
        _pragmas(connection, synchronous="FULL", foreign_keys="ON")
        connection.set_wal_hook(Checkpoints())
        if sys.platform == "darwin":
            # There fsync leaves the data in the drive's cache; F_FULLFSYNC does not.
            _pragmas(connection, fullfsync="ON", checkpoint_fullfsync="ON")
    except BaseException:
        close_quietly(connection)
        raise
    return connection


def connect_reader(path: Path) -> apsw.Connection:
    """A connection that can only read; the file must exist."""
    require_sqlite()
    connection = _connect(path, apsw.SQLITE_OPEN_READONLY)
    try:
        connection.set_busy_timeout(READER_PATIENCE)
        _pragmas(connection, **COMMON)
    except BaseException:
        close_quietly(connection)
        raise
    return connection


def open_files() -> list[str]:
    """The paths of everything that this process has open through apsw, ours and the user's."""
    with registering:
        ours = dict(_paths)
    # Ours are not asked, because they may be at work in another thread, and apsw refuses two at once.
    others = [connection for connection in apsw.connections() if connection not in ours]
    found = list(ours.values())
    for connection in others:
        with suppress(apsw.Error):
            found.append(connection.db_filename("main"))
    return found


def close_quietly(connection: apsw.Connection) -> None:
    """Closes a connection of which nothing is awaited any more; a failing disk may make that fail."""
    with suppress(apsw.Error):
        connection.close()
    with registering:
        _paths.pop(connection, None)


def _connect(path: Path, flags: int) -> apsw.Connection:
    with registering:
        connection = apsw.Connection(str(path), flags=flags)
        _paths[connection] = str(path)
    return connection


def _pragmas(connection: apsw.Connection, **settings: str) -> None:
    for name, value in settings.items():
        connection.execute(f"PRAGMA {name} = {value}").fetchall()


def _use_wal(connection: apsw.Connection, path: Path, patience: float) -> None:
    # The switch needs the file alone and does not use the busy handler for it, so it is repeated here.
    deadline = time.monotonic() + patience
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").get
        except apsw.BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
            continue
        if mode != "wal":
            raise UnsafeSettings(f"{path}: SQLite cannot use a WAL here (mode {mode}): use a local file system")
        return
