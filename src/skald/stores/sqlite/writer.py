"""The one writing connection of this process, and the lock that makes its users take turns.

A small group is written on the event loop: a hop to a thread costs more than its fsync. If another process
holds the file, or the group is large, one dedicated thread does it. There are never two writers at once in
the process.

Fail-stop: after an error of the disk nothing that the connection remembers is trusted. SQLite itself goes on
after a failed fsync, and the next commit would succeed on top of pages that the kernel has dropped; so all
connections are closed, and opening them again reads what is really in the file.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import apsw

from skald.clock import Clock
from skald.errors import Busy, StoreError, StoreUnavailable
from skald.stores.sqlite.connect import close_quietly, connect_writer
from skald.stores.sqlite.failures import BAD_VALUE, DEVICE, translate
from skald.stores.sqlite.foreign import FileWatch
from skald.stores.sqlite.transaction import SqliteTransaction
from skald.stores.sqlite.turn import Turn
from skald.stores.sqlite.units import Outcome, write_units, write_units_singly
from skald.unit import Unit

T = TypeVar("T")

INLINE = 1_280
"""Microseconds (see ``_cost``): a larger group goes to the thread, so that the event loop turns meanwhile."""
WAIT = 0.05
"""Seconds that a commit waits for the file before its units are ``Busy``."""
PATIENCE = 10.0
"""Seconds that a patient commit, or the beginning of a transaction, waits for the file."""
WAL_LIMIT = 64 << 20
"""Bytes; beyond it the WAL is truncated, for which all readers must be done for a moment."""


class Writer:
    """Owns the connection; every public method takes the lock."""

    def __init__(self, path: Path, clock: Clock, limit: float, reopened: Callable[[], None]) -> None:
        self._path = path
        self._clock = clock
        self._limit = limit
        self._reopened = reopened
        self._lock = asyncio.Lock()
        self._watch = FileWatch(path)
        self._turn = Turn(path)
        self._thread: ThreadPoolExecutor | None = None
        self._connection: apsw.Connection | None = None
        self.is_open = False
        self._process = 0
        self._next_look = 0.0

    def open(self) -> None:
        """Opens the connection, and switches the file to a WAL if it is a copy without one."""
        self._lock = asyncio.Lock()  # of this event loop: an earlier one may have been another's
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="skald-sqlite")
        self._turn.open()
        self._process = os.getpid()
        self.is_open = True
        self._connect()

    async def close(self) -> None:
        """Waits for what is under way; does nothing if it is not open."""
        if not self.is_open:
            return
        async with self._lock:
            self.is_open = False
            if self._thread is not None:
                self._thread.shutdown()
            self._turn.close()
            self._disconnect()

    async def commit(self, units: Sequence[Unit], patient: bool) -> tuple[list[Outcome], bool]:
        """One outcome per unit, and whether anything was appended."""
        wait = PATIENCE if patient else WAIT
        deadline = time.monotonic() + wait
        if not await self._acquire(wait):
            return self._busy(units), False
        try:
            connection = await self._ready()
            inline = _cost(units) <= INLINE
            return await self._run(lambda: _commit(connection, units), inline, deadline)
        except apsw.BusyError:
            return self._busy(units), False
        except apsw.Error as error:
            raise self._failed(error) from error
        finally:
            self._lock.release()

    def commit_at_once(self, units: Sequence[Unit]) -> tuple[list[Outcome], bool] | None:
        """The same on the event loop without a turn of it; ``None`` if anything is in the way, or it is much."""
        connection = self._connection
        if connection is None or self._lock.locked() or not self.is_open or self._process != os.getpid():
            return None
        if time.monotonic() >= self._next_look or _cost(units) > INLINE:
            return None
        self._watch.check()
        if not self._turn.begin():
            return None
        connection.set_busy_timeout(0)
        try:
            return _commit(connection, units)
        except apsw.BusyError:
            return None
        except apsw.Error as error:
            raise self._failed(error) from error
        finally:
            self._turn.end()

    @asynccontextmanager
    async def transaction(self, opened_at: str) -> AsyncIterator[SqliteTransaction]:
        """Commits at the end of the block, unless the block raises or was open for too long."""
        deadline = time.monotonic() + PATIENCE
        if not await self._acquire(PATIENCE):
            raise StoreUnavailable(f"{self._path}: the file was held for {PATIENCE:g} s; try again")
        try:
            connection = await self._ready()
            await self._begin(connection, deadline)
        except BaseException:
            self._lock.release()
            raise
        tx = SqliteTransaction(connection, self._path, self._clock, opened_at, self._limit)
        timer = asyncio.get_running_loop().call_later(self._limit, self._expire, tx)
        try:
            yield tx
            tx.require_open()
            self._commit_transaction(connection)
        except StoreError as error:
            if isinstance(error.__cause__, DEVICE):
                self._failed(error.__cause__)
            raise
        finally:
            timer.cancel()
            self._end(tx)

    # --- transactions ---------------------------------------------------------------------------------------

    async def _begin(self, connection: apsw.Connection, deadline: float) -> None:
        try:
            await self._run(lambda: connection.execute("BEGIN IMMEDIATE"), True, deadline)
        except asyncio.CancelledError:
            _roll_back(connection)
            raise
        except apsw.Error as error:
            raise self._failed(error) from error

    def _commit_transaction(self, connection: apsw.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except apsw.Error as error:
            raise translate(error, self._path) from error

    def _expire(self, tx: SqliteTransaction) -> None:
        tx.expired = True
        self._end(tx)

    def _end(self, tx: SqliteTransaction) -> None:
        """Rolls back what is not committed and lets the next one in; once per transaction."""
        if tx.is_open:
            tx.is_open = False
            if self._connection is not None:
                _roll_back(self._connection)
            self._lock.release()

    # --- the connection -------------------------------------------------------------------------------------

    async def _ready(self) -> apsw.Connection:
        if not self.is_open:
            raise StoreUnavailable(f"{self._path} is not open: await store.open() first")
        if self._process != os.getpid():
            raise StoreUnavailable(f"{self._path} was opened before this process was forked: open it here instead")
        if self._connection is None:
            return self._connect()
        self._watch.check()
        await self._bound_wal(self._connection)
        return self._connection

    def _connect(self) -> apsw.Connection:
        try:
            connection = connect_writer(self._path)
            connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        except apsw.Error as error:
            raise translate(error, self._path) from error
        self._connection = connection
        self._watch.opened()
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            close_quietly(connection)

    def _failed(self, error: apsw.Error) -> StoreError:
        if isinstance(error, DEVICE):
            self._disconnect()
            self._reopened()
        return translate(error, self._path)

    async def _bound_wal(self, connection: apsw.Connection) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + 1.0
        with suppress(OSError, apsw.Error):  # a reader is in the way: the next look is in a second
            if Path(f"{self._path}-wal").stat().st_size > WAL_LIMIT:
                connection.set_busy_timeout(0)
                await self._in_thread(lambda: connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE))

    # --- turns ----------------------------------------------------------------------------------------------

    async def _acquire(self, wait: float) -> bool:
        if not self._lock.locked():  # without a timer, which would cost more than all the rest
            return await self._lock.acquire()
        try:
            async with asyncio.timeout(wait):
                await self._lock.acquire()
        except TimeoutError:
            return False
        return True

    async def _run(self, job: Callable[[], T], inline: bool, deadline: float) -> T:
        """Runs the job here, or on the thread if the file is held; ``BusyError`` when the time is over."""
        assert self._connection is not None
        if inline and self._turn.begin():
            self._connection.set_busy_timeout(0)
            try:
                return job()
            except apsw.BusyError:
                pass
            finally:
                self._turn.end()
        # Short waits one after another, so that a cancelled caller does not hold the lock for long.
        while True:
            self._connection.set_busy_handler(_impatient(time.monotonic() + 2 * WAIT))
            try:
                with suppress(TimeoutError):
                    return await self._turn.run(job, WAIT)
                return await self._in_thread(job)
            except apsw.BusyError:
                if time.monotonic() >= deadline:
                    raise

    async def _in_thread(self, job: Callable[[], T]) -> T:
        """A cancelled caller waits for the job all the same, because the connection is in its hands."""
        assert self._thread is not None
        future = asyncio.get_running_loop().run_in_executor(self._thread, job)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            future.exception()
            raise cancelled
        return future.result()

    def _busy(self, units: Sequence[Unit]) -> list[Outcome]:
        return [Busy(f"the file {self._path}") for _ in units]


def _impatient(until: float) -> Callable[[int], bool]:
    """Looks for the file again after a fraction of a commit. SQLite's own pauses grow to many times one, and leave the
    file idle while several processes wait for it."""

    def wait(tries: int) -> bool:
        time.sleep(min(0.0002 * (tries + 1), 0.002))
        return time.monotonic() < until

    return wait


def _cost(units: Sequence[Unit]) -> int:
    """What the units cost, in microseconds: so much for a row of each kind, as it was measured, and 5 for 4 KiB."""
    rows = size = 0
    for unit in units:
        for event in unit.events:
            rows, size = rows + 5, size + len(event.payload or b"")
        if (writes := unit.workflows) is not None:
            rows += 3 * len(writes.journal) + 8 * len(writes.starts) + 5 * len(writes.ends) + 10 * len(writes.letters)
            size += sum([len(entry.payload or b"") for entry in writes.journal])
            size += sum([len(start.input) for start in writes.starts])
            size += sum([len(end.outcome) for end in writes.ends])
            size += sum([len(letter.payload) for letter in writes.letters])
        if unit.messages or unit.deliveries or unit.appends or unit.marks:
            records = [*unit.messages, *[delivery.record for delivery in unit.deliveries]]
            records += [record for append in unit.appends for record in append.records]
            rows += 10 * (len(records) + len(unit.marks))
            size += sum([len(record.payload or b"") for record in records])
            size += sum([len(mark.payload) for mark in unit.marks])
    return rows + size * 5 // 4096


def _commit(connection: apsw.Connection, units: Sequence[Unit]) -> tuple[list[Outcome], bool]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        try:
            result = write_units(connection, units)
        except BAD_VALUE:
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            result = write_units_singly(connection, units)
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise
    return result


def _roll_back(connection: apsw.Connection) -> None:
    with suppress(apsw.Error):  # a failing disk has rolled back already, or will when it is opened again
        if not connection.get_autocommit():
            connection.execute("ROLLBACK")
