"""The leases of a group's processes, in ``SERVICE.lease.db``: no open transaction delays a heartbeat.

``synchronous=NORMAL``, unlike the file itself: power loss ends every process of this machine, and all a lost
heartbeat can do is make a lease look older than it was. What a process may still write is decided by its
fence, which is in the file itself. Blocking and safe to use from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from skald.clock import Clock
from skald.sql import blocks
from skald.store import Member
from skald.stores.sqlite.connect import close_quietly, connect_writer
from skald.stores.sqlite.failures import translated

_SQL = blocks(__package__, "membership")
_PATIENCE = 5.0  # seconds; less than any lease


def lease_path(path: Path) -> Path:
    """Where the leases of a database are: ``orders.db`` has ``orders.lease.db``."""
    return path.with_name(f"{path.stem}.lease{path.suffix or '.db'}")


class SqliteMembership:
    """See ``skald.store.Membership``. The file is made at the first use."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = lease_path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: apsw.Connection | None = None

    def join(self, member: Member, lease: float) -> None:
        m = member
        with self._alone() as connection:
            values = (m.id, m.group, m.boot_id, m.pid_namespace, m.pid, m.start_time, self._until(lease))
            connection.execute(_SQL["join"], values)

    def beat(self, id: str, lease: float) -> bool:
        """Prolongs the lease; false if somebody has removed the member."""
        with self._alone() as connection:
            connection.execute(_SQL["beat"], (id, self._until(lease)))
            return connection.changes() == 1

    def members(self, group: str) -> tuple[int, list[Member]]:
        """The time, and everyone who has joined and was not removed."""
        with self._alone() as connection:
            rows: list[tuple[Any, ...]] = connection.execute(_SQL["members"], (group,)).fetchall()
            return self._clock.now(), [Member(*row) for row in rows]

    def remove(self, id: str) -> None:
        with self._alone() as connection:
            connection.execute(_SQL["remove"], (id,))

    def close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                close_quietly(connection)

    def _until(self, lease: float) -> int:
        return self._clock.now() + round(lease * 1e6)

    @contextmanager
    def _alone(self) -> Iterator[apsw.Connection]:
        with self._lock, translated(self._path):
            yield self._ready()

    def _ready(self) -> apsw.Connection:
        if self._connection is None:
            connection = connect_writer(self._path, create=True, patience=_PATIENCE)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_SQL["create_members"])
            self._connection = connection
        return self._connection
