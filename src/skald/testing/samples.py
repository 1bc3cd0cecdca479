"""Records and units for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from msgspec.structs import replace

from skald.errors import Rejection
from skald.message import Record, new_id, slot_of
from skald.store import Store
from skald.unit import Committed, CursorMove, Delivery, DeliveryState, Unit

T = TypeVar("T")
START = 1_700_000_000_000_000


def record(type: str = "Happened", key: str = "k", payload: bytes = b"{}", *, time: int = START) -> Record:
    """A record as a sender would make it: without a position."""
    id = new_id()
    return Record(0, id, "origin", key, slot_of(key), type, 1, time, id, None, None, payload)


def records(count: int, type: str = "Happened") -> tuple[Record, ...]:
    return tuple(record(type) for _ in range(count))


def plain(count: int = 1) -> Unit:
    """A unit that nothing guards."""
    return Unit(events=records(count))


def delivery(position: int = 1, *, owner: str | None = None, handler: str = "h", **rest: object) -> Delivery:
    """A delivery of group ``g`` from lane 0 of ``origin``."""
    copied = replace(record(), position=position)
    return Delivery("g", handler, "origin", 0, DeliveryState.PARKED, copied, owner=owner, **rest)  # type: ignore[arg-type]


def move(position: int = 0, to: int = 1, *, version: int = 0, owner: str = "p", lane: int = 0) -> CursorMove:
    """A move of the cursor of group ``g`` on ``origin``."""
    return CursorMove("g", "origin", lane, owner, position, version, to, f"message-{to}")


async def commit(store: Store, *units: Unit) -> list[Committed]:
    """Commits units of which none may be rejected."""
    outcomes = await store.commit(units)
    for outcome in outcomes:
        if isinstance(outcome, Rejection):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Committed)]


async def place_cursor(store: Store, lane: int = 0, owner: str = "p") -> None:
    """The row of a cursor, as a process makes it that has taken the lane."""
    sql = (
        "INSERT INTO skald_cursors (group_name, origin, lane, position, owner) VALUES ('g', 'origin', :lane, 0, :owner)"
    )
    async with store.transaction() as tx:
        await tx.execute(sql, lane=lane, owner=owner)


async def place_fence(store: Store, process: str) -> None:
    """The row of a fence, as a process makes it that begins to write."""
    async with store.transaction() as tx:
        await tx.execute("INSERT INTO skald_fences (process) VALUES (:process)", process=process)


def is_kind(outcomes: Sequence[object], kind: type[T]) -> list[T]:
    """The outcomes of one kind."""
    return [outcome for outcome in outcomes if isinstance(outcome, kind)]
