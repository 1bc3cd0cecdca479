"""Deliveries as stored: what is delayed, waits behind its key, runs long, is parked, or queued as work."""

from __future__ import annotations

from typing import Any

import msgspec

from skald import failpoints
from skald.message import Record
from skald.messaging.outcome import ENDED, SUSPICIOUS, LaneState
from skald.sql import blocks
from skald.store import Store
from skald.unit import Delivery, DeliveryState, Unit

_SQL = blocks("skald.messaging", "deliveries")


class Head(msgspec.Struct, frozen=True):
    """The first delivery of a key, without its message: enough to know whom it blocks, and when it is due."""

    handler: str
    lane: int
    position: int
    key: str
    state: DeliveryState
    attempts: int
    due: int
    error: str | None


def is_suspect(head: Head | Delivery) -> bool:
    """Whether it may be what ends processes: at least one attempt at it has ended with its process."""
    return (head.error or "").startswith(ENDED) or (head.state is DeliveryState.RUNNING and head.attempts > 1)


async def heads(store: Store, group: str, origin: str) -> list[Head]:
    """Of all keys of an origin that have deliveries, in whatever lane."""
    rows = await store.fetch(_SQL["heads"], group=group, origin=origin)
    return [msgspec.convert(row, Head) for row in rows]


async def head(store: Store, lane: LaneState, handler: str, key: str) -> Delivery | None:
    """The first delivery of a key, with its message."""
    rows = await store.fetch(
        _SQL["head"], group=lane.group, handler=handler, origin=lane.origin, lane=lane.lane, key=key
    )
    return from_row(lane.group, rows[0]) if rows else None


async def claim_work(
    store: Store, group: str, handler: str, owner: str, limit: int, *, suspects: bool = False
) -> list[Delivery]:
    """Takes due work of a queue, the highest priority first; nobody else gets it while this owner lives.

    ``suspects``: what ended with its process at its last attempt, instead of everything else. Raises ``Fenced`` if
    this owner has been taken over: what it took now, nobody would free again.
    """
    sql = _SQL["claim_work"].format(for_update=store.features.for_update)
    async with store.transaction() as tx:
        await tx.apply(Unit(fence=owner))
        now = await tx.now()
        which = {"suspicious": SUSPICIOUS, "suspects": int(suspects)}
        rows = await tx.fetch(sql, group=group, handler=handler, owner=owner, now=now, limit=limit, **which)
    if rows:
        failpoints.hit("work.claimed")
    claimed = [from_row(group, row) for row in rows]
    return sorted(claimed, key=lambda d: (-d.record.priority, d.due, d.record.position))


async def owned_work(store: Store, group: str, handler: str, owner: str) -> list[Delivery]:
    """The work of a queue that this owner has taken."""
    rows = await store.fetch(_SQL["owned_work"], group=group, handler=handler, owner=owner)
    return [from_row(group, row) for row in rows]


async def next_work(store: Store, group: str, handler: str) -> tuple[int | None, bool]:
    """When the next unclaimed work of a queue is due (``None`` if there is none), and whether there are suspects."""
    rows = await store.fetch(_SQL["next_work"], group=group, handler=handler, suspicious=SUSPICIOUS)
    return rows[0]["due"], bool(rows[0]["suspects"])


def from_row(group: str, row: dict[str, Any]) -> Delivery:
    record = Record(
        position=row["position"],
        id=row["id"],
        topic=row["aggregatetype"],
        key=row["aggregateid"],
        slot=row["slot"],
        type=row["type"],
        version=row["version"],
        time=row["time"],
        correlation_id=row["correlation_id"],
        causation_id=row["causation_id"],
        traceparent=row["traceparent"],
        payload=bytes(row["payload"]),
        priority=row["priority"],
        delay=row["delay"],
    )
    return Delivery(
        group=group,
        handler=row["handler"],
        origin=row["origin"],
        lane=row["lane"],
        state=DeliveryState(row["state"]),
        record=record,
        attempts=row["attempts"],
        due=row["due"],
        error=row["error"],
        owner=row["owner"],
    )
