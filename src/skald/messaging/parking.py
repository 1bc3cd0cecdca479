"""Deliveries as stored: what is delayed, waits behind its key, runs long, is parked, or queued as work."""

from __future__ import annotations

from typing import Any

import msgspec

from skald.message import Record
from skald.messaging.outcome import LaneState
from skald.sql import blocks
from skald.store import Store
from skald.unit import Delivery, DeliveryState

_SQL = blocks("skald.messaging", "deliveries")

Place = tuple[str, str, int]
"""Handler, origin, position: with the group, a delivery's primary key."""


class Blocked(msgspec.Struct, frozen=True):
    """A delivery of a lane without its message: enough to know whom it blocks, and when it is due."""

    handler: str
    position: int
    key: str
    state: DeliveryState
    due: int


async def of_lane(store: Store, lane: LaneState) -> list[Blocked]:
    rows = await store.fetch(_SQL["blocked"], group=lane.group, origin=lane.origin, lane=lane.lane)
    return [
        Blocked(row["handler"], row["position"], row["aggregateid"], DeliveryState(row["state"]), row["due"])
        for row in rows
    ]


async def get(store: Store, group: str, place: Place) -> Delivery | None:
    handler, origin, position = place
    rows = await store.fetch(_SQL["get"], group=group, handler=handler, origin=origin, position=position)
    return from_row(group, rows[0]) if rows else None


async def next_waiting(store: Store, lane: LaneState, handler: str, key: str) -> int | None:
    rows = await store.fetch(
        _SQL["next_waiting"], group=lane.group, handler=handler, origin=lane.origin, lane=lane.lane, key=key
    )
    return int(rows[0]["position"]) if rows else None


async def claim_work(store: Store, group: str, handler: str, owner: str, limit: int) -> list[Delivery]:
    """Takes due work of a queue, the highest priority first; nobody else gets it while this owner lives."""
    sql = _SQL["claim_work"].format(for_update=store.features.for_update)
    async with store.transaction() as tx:
        now = await tx.now()
        rows = await tx.fetch(sql, group=group, handler=handler, owner=owner, now=now, limit=limit)
    claimed = [from_row(group, row) for row in rows]
    return sorted(claimed, key=lambda d: (-d.record.priority, d.due, d.record.position))


async def next_work(store: Store, group: str, handler: str) -> int | None:
    """When the next unclaimed work of a queue is due; ``None`` if there is none."""
    rows = await store.fetch(_SQL["next_work"], group=group, handler=handler)
    due: int | None = rows[0]["due"]
    return due


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
