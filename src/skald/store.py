"""CONTRACT of a store: one service's database, with its log, its cursors and the service's own tables.

Two implementations (``stores/sqlite``, ``stores/postgres``) pass one suite, ``skald.testing.conformance``. Everything
that is not needed on the hot path is written once, in portable SQL, on ``fetch`` and ``transaction``.

Atomicity   A unit is committed whole or rejected whole, and alone: ``commit`` answers one outcome per unit, in order.
            What it answers ``Committed`` survives ``kill -9`` and power loss.
Order       Positions rise in the order in which they become readable: a reader that has seen position p will never
            later see a new one at or below p. Within a stream versions are 1, 2, 3 … and rise with the position.
Guards      Compared under locks that last until the commit. A guard that fails rejects its unit; a key held by
            somebody's open transaction makes its unit ``Busy``, and no other unit waits for it.
Outcome     A commit whose reply was lost is looked up by the group's number and answered as it happened. A unit
            whose outcome cannot be known raises ``StoreUnavailable`` from ``commit`` itself.
Time        Is an argument; where machines must agree, ``Transaction.now`` asks the database.
Cancelling  Cancelling ``commit`` leaves the outcome unknown to the caller; it is still whole or not at all.
Closing     Whoever opens a store closes it; closing twice, or before opening, does nothing.

Portable SQL: ``:name`` parameters; text, int, float, bytes, bool, None, JSON as dict or list, times as ISO text. Rows
are dicts. ``RETURNING``, ``ON CONFLICT``, ``LIMIT`` and common table expressions are alike on both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from skald.errors import Rejection
from skald.message import Record
from skald.unit import Committed, Unit

Row = dict[str, Any]


class StoreFeatures(msgspec.Struct, frozen=True):
    """What a store can do that another cannot; suite and runtime read this record and never ask for a name."""

    exclusive_transactions: bool
    """An open write transaction keeps every other writer out (and is therefore bounded in time)."""
    commits_at_once: bool
    """A small group is committed by ``commit_at_once``, which is quicker than any turn of the loop."""
    writers: int
    """How many groups a process commits at once: while the database works on one, the next is put together."""
    for_update: str
    """What to append to a ``SELECT`` that claims rows: ``FOR UPDATE SKIP LOCKED``, or nothing."""
    external_sessions: bool
    """A session or connection of the user's own driver can carry units (SQLAlchemy, psycopg, ``publish`` in SQL)."""


class Transaction(Protocol):
    """An open transaction in which the user's rows and the library's units commit together.

    Apply units last: the locks they take are held until the transaction ends. ``connection`` is the driver's own.
    """

    @property
    def connection(self) -> Any: ...

    async def execute(self, sql: str, /, **values: Any) -> int:
        """Runs one statement and returns the number of rows it changed."""
        ...

    async def fetch(self, sql: str, /, **values: Any) -> list[Row]: ...

    async def apply(self, unit: Unit) -> Committed:
        """Raises the ``Rejection`` of a unit that fails its guards; the transaction itself goes on unharmed."""
        ...

    async def apply_all(self, units: Sequence[Unit]) -> list[Committed]:
        """As ``apply``, in one go: all of them, or none. No two of them share a key."""
        ...

    async def now(self) -> int:
        """The database's clock, microseconds since 1970."""
        ...

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """Undoes what the block did if it raises, and only that."""
        ...


class Log(Protocol):
    """The readable part of one origin's log. Needs read access to its tables and nothing else."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def read(
        self, position: int, limit: int, *, types: Collection[str] | None = None, upto: int | None = None
    ) -> list[Record]:
        """At most ``limit`` records from ``position`` (inclusive) to ``upto`` (inclusive), in order.

        Only what no open transaction can still precede. With ``types`` the payloads of all others are ``None`` and
        not transferred; their rows come all the same, so that a reader knows how far it has got.
        """
        ...

    async def read_stream(
        self, stream: str, *, after: int = 0, limit: int = 1_000, backwards: bool = False
    ) -> list[Record]:
        """Versions above ``after`` upwards, or with ``backwards`` from the last one down (``after`` then is the
        version to stay below; 0 for the end)."""
        ...

    async def versions(self, keys: Collection[str]) -> dict[str, int]:
        """Versions of streams and tags, by the keys ``stream:…`` and ``tag:…``; 0 for unknown ones."""
        ...

    async def find(self, id: str) -> Record | None: ...

    async def end(self) -> tuple[int, str | None]:
        """Position and id of the last readable record; ``(0, None)`` for an empty log."""
        ...

    async def position_at(self, time: int) -> int:
        """The position before the first record that was appended at ``time`` (microseconds) or later."""
        ...

    async def floor(self, types: Collection[str] | None = None) -> int:
        """Retention has deleted messages at or below this position, of these types or of any; 0 if it never did."""
        ...

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        """Calls ``heard`` on the event loop soon after something was appended; a hint that may be lost or doubled.

        Returns what stops it.
        """
        ...


class Member(msgspec.Struct, frozen=True):
    """A process that owns work of a group. The identity tells on the same machine whether it still exists."""

    id: str
    group: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_time: int
    expires_at: int = 0


class Finding(msgspec.Struct, frozen=True):
    """Something about a database that its operator should know."""

    level: Literal["error", "warning", "info"]
    what: str
    """A short name that stays the same: ``horizon``, ``wal_size``."""
    detail: str
    remedy: str = ""


class Membership(Protocol):
    """The leases of a group's processes. Blocking, because the heartbeat has a thread of its own; times in seconds.

    Kept apart from the units (on SQLite in another file), so that no open transaction delays a heartbeat.
    """

    def join(self, member: Member, lease: float) -> None: ...

    def beat(self, id: str, lease: float) -> bool:
        """Prolongs the lease by the database's clock; false if somebody has removed the member."""
        ...

    def members(self, group: str) -> tuple[int, list[Member]]:
        """The database's time, and everyone who has joined and was not removed, whether expired or not."""
        ...

    def remove(self, id: str) -> None: ...

    def close(self) -> None: ...


class Bell(Protocol):
    """Tells other processes of something; a hint that may be lost or doubled."""

    def ring(self) -> None:
        """Coalesced, and never waits."""
        ...

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        """Calls ``heard`` on the event loop soon after somebody rang. Returns what stops it."""
        ...


class Store(Protocol):
    service: str
    features: StoreFeatures

    @property
    def workflows(self) -> Bell:
        """Rung by the store itself for a unit that calls somebody (``WorkflowWrites.calls_somebody``)."""
        ...

    @property
    def log(self) -> Log:
        """This service's own log."""
        ...

    async def open(self) -> None:
        """Connects, refuses unsafe settings and a schema that does not fit, and changes nothing."""
        ...

    async def close(self) -> None: ...

    async def commit(self, units: Sequence[Unit], *, patient: bool = False) -> list[Committed | Rejection]:
        """Commits a group in one database transaction. No two units of a group share a key (``Unit.keys``).

        Never waits for a lock longer than 50 ms; with ``patient`` a busy unit is waited for up to the lease.
        Raises ``StoreUnavailable`` if nothing is known to be committed.
        """
        ...

    def commit_at_once(self, units: Sequence[Unit]) -> list[Committed | Rejection] | None:
        """The same without waiting for anything; ``None`` if that cannot be, and nothing was done then."""
        ...

    def ensure_free(self) -> None:
        """Raises ``NestedCommit`` if the calling code holds a transaction that its own commit would wait for."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Commits at the end of the block, rolls back if it raises."""
        ...

    async def fetch(self, sql: str, /, **values: Any) -> list[Row]:
        """Reads committed rows outside of any transaction."""
        ...

    def ring(self) -> None:
        """Tells the log's listeners that something was appended. Coalesced, never waits, may be lost."""
        ...

    async def now(self) -> int:
        """The database's clock, microseconds since 1970."""
        ...

    def membership(self) -> Membership: ...

    async def migrate(self, directory: Path | None = None) -> list[str]:
        """Applies the library's numbered SQL files, then those in ``directory``; returns the names applied now.

        Safe when many processes start at once. Each file is applied in a transaction of its own and remembered with
        its checksum; a file that changed after it was applied is refused, and so is a database that has seen more.
        """
        ...

    async def pending_migrations(self, directory: Path | None = None) -> list[tuple[str, str]]:
        """Names and texts of the SQL files that ``migrate`` would apply."""
        ...

    async def diagnose(self) -> list[Finding]:
        """What is wrong, or soon will be, with this database itself. Also for a store that could not be opened."""
        ...

    async def tidy(self) -> int:
        """Deletes what the store keeps for itself and nobody needs any more; returns the number of rows."""
        ...
