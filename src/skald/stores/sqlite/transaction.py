"""A transaction of the user's code: statements run at once, on the writing connection, on the event loop.

It keeps every other writer of the file out, so a timer of the loop rolls it back when it has been open for
too long. A loop that does not turn cannot fire it; what blocks the loop is the heartbeat's business.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import apsw

from skald.clock import Clock
from skald.errors import StoreError, StoreUnavailable, TransactionTooLong
from skald.store import Row
from skald.stores.sqlite.failures import translated
from skald.stores.sqlite.units import write_whole
from skald.stores.sqlite.values import fetch_rows, run
from skald.unit import Committed, Unit, calls_somebody

_LIBRARY = str(Path(__file__).parents[2])
_TESTING = str(Path(_LIBRARY, "testing"))


def calling_line() -> str:
    """``file:line`` of the first frame outside the library (its test kit counts as outside)."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if (not name.startswith(_LIBRARY) or name.startswith(_TESTING)) and not name.endswith("contextlib.py"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "an unknown line"


class SqliteTransaction:
    """See ``skald.store.Transaction``. ``connection`` is the ``apsw.Connection``."""

    def __init__(self, connection: apsw.Connection, path: Path, clock: Clock, opened_at: str, limit: float) -> None:
        self._connection = connection
        self._path = path
        self._clock = clock
        self.opened_at = opened_at
        self._limit = limit
        self._names = count(1)
        self.is_open = True
        self.expired = False
        self.appended = self.calls_somebody = False

    @property
    def connection(self) -> apsw.Connection:
        self.require_open()
        return self._connection

    async def execute(self, sql: str, /, **values: Any) -> int:
        """Runs one statement and returns the number of rows it changed."""
        self.require_open()
        with translated(self._path):
            before = self._connection.total_changes()
            run(self._connection, sql, values).fetchall()
            # changes() would repeat the count of the statement before one that changes nothing.
            changed = self._connection.total_changes() != before
            return self._connection.changes() if changed else 0

    async def fetch(self, sql: str, /, **values: Any) -> list[Row]:
        """Runs one statement and returns its rows."""
        self.require_open()
        with translated(self._path):
            return fetch_rows(self._connection, sql, values)

    async def apply(self, unit: Unit) -> Committed:
        """Writes the unit, or raises its ``Rejection`` and leaves the transaction as it was."""
        return (await self.apply_all([unit]))[0]

    async def apply_all(self, units: Sequence[Unit]) -> list[Committed]:
        self.require_open()
        with translated(self._path):
            committed, appended = write_whole(self._connection, units)
        self.appended |= appended
        self.calls_somebody |= any(calls_somebody(unit) for unit in units)
        return committed

    async def now(self) -> int:
        """Microseconds since 1970, by the machine's clock: all processes of a file are on one machine."""
        self.require_open()
        return self._clock.now()

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undoes what the block did if it raises, and only that."""
        self.require_open()
        name = f"skald_{next(self._names)}"
        with translated(self._path):
            self._connection.execute(f"SAVEPOINT {name}")
        try:
            yield
        except BaseException:
            if self.is_open and not self._connection.get_autocommit():
                self._connection.execute(f"ROLLBACK TO {name}; RELEASE {name}")
            raise
        self.require_open()
        with translated(self._path):
            self._connection.execute(f"RELEASE {name}")

    def too_long(self) -> TransactionTooLong:
        return TransactionTooLong(
            f"the transaction opened at {self.opened_at} was open for more than {self._limit:g} s and has "
            f"been rolled back: it keeps every other writer of {self._path} out. Do slow work before it, "
            "or raise transaction_limit"
        )

    def require_open(self) -> None:
        if self.expired:
            raise self.too_long()
        if not self.is_open:
            raise StoreError(f"the transaction opened at {self.opened_at} has ended")
        if self._connection.get_autocommit():
            raise StoreUnavailable(
                f"the transaction opened at {self.opened_at} was ended by a failure of the disk, or by a "
                "COMMIT or ROLLBACK of yours: leave both to the block"
            )
