"""Changes the number of a stopped service's lanes, without doubling an effect and without skipping a message.

A lane is a range of slots, and each lane has its own position. A new lane can stand at the highest position of the old
ones that it takes slots from, but only if none of those has a message for these slots, of a handled type, between its
own position and that one: then moving it is what its owner would have done, reading on and finding nothing. Splitting
lanes (4 to 8) is therefore always possible; joining them is once they have been read to the same place. Deliveries
move to the lane of their slot. Everything happens in one transaction that refuses lanes which somebody owns.
"""

from __future__ import annotations

import msgspec

from skald.app import App
from skald.errors import LogForked
from skald.message import SLOTS
from skald.messaging import cursor
from skald.messaging.router import Subscription, lane_of
from skald.operations.access import OperationRefused, change, chosen, members, opened, opened_log
from skald.operations.subscriptions import subscription_of
from skald.sql import blocks
from skald.store import Log, Row, Store, Transaction

_SQL = blocks("skald.operations", "subscriptions")
PAGE = 1_000


class Relaned(msgspec.Struct, frozen=True):
    group: str
    origin: str
    before: int
    after: int


class _Lane(msgspec.Struct, frozen=True):
    position: int
    message_id: str | None


async def relane_subscriptions(app: App, group: str, origin: str | None = None) -> list[Relaned]:
    """Gives the group's subscriptions as many lanes as ``Service(…, lanes=)`` says; returns those that were changed.

    Raises ``OperationRefused`` while a process of the service runs, a lane is stopped, or lanes that would be joined
    have messages between their positions.
    """
    chosen(app, [group])
    wanted = [subscription_of(app, group, origin)] if origin else list(app.topology.subscriptions[group])
    async with opened(app, group) as store:
        await _require_stopped(store)
        rows = await cursor.lanes(store, group)
        done: list[Relaned] = []
        for subscription in wanted:
            before = sum(row.origin == subscription.origin for row in rows)
            if before not in (0, subscription.lanes):
                await _relane(app, store, subscription, before)
                done.append(Relaned(group, subscription.origin, before, subscription.lanes))
        return done


async def _require_stopped(store: Store) -> None:
    """Whoever is dead is taken over from first: that ends its right to write."""
    for member, gone in await members(store):
        if gone is None:
            raise OperationRefused(
                f"process {member.pid} of {store.service} is running (or its lease has not run out): stop all its "
                "processes first"
            )
    rows = await cursor.lanes(store, store.service)
    for owner in {row.owner for row in rows if row.owner is not None}:
        await cursor.take_over(store, owner)


async def _relane(app: App, store: Store, subscription: Subscription, before: int) -> None:
    where = {"group": subscription.group, "origin": subscription.origin}
    rows = [row for row in await cursor.lanes(store, store.service) if row.origin == subscription.origin]
    lanes = [_Lane(row.position, row.message_id) for row in rows]
    async with opened_log(app, subscription.origin) as log:
        await _check_history(log, subscription, lanes)
        await _check_unread(log, subscription, lanes)
    targets = [max(parents, key=lambda lane: lane.position) for parents in _parents(lanes, subscription.lanes)]

    async def work(tx: Transaction) -> None:
        rows = await tx.fetch(_SQL["claimed"].format(for_update=_lock(store)), **where)
        _check_unchanged(subscription, rows, lanes)
        version = 1 + max(row["version"] for row in rows)
        await tx.execute(_SQL["remove"], **where)
        for number, lane in enumerate(targets):
            place = {"position": lane.position, "message_id": lane.message_id, "version": version}
            await tx.execute(_SQL["insert"], lane=number, **place, **where)
        await tx.execute(_SQL["rehome"], lanes=subscription.lanes, **where)

    await change(store, work)


def _lock(store: Store) -> str:
    """Rows that somebody is claiming at this moment must be waited for, not left out."""
    return store.features.for_update.removesuffix(" SKIP LOCKED")


def _parents(lanes: list[_Lane], count: int) -> list[list[_Lane]]:
    """For each new lane the old ones that it takes slots from."""
    found: list[dict[int, _Lane]] = [{} for _ in range(count)]
    for slot in range(SLOTS):
        old = lane_of(slot, len(lanes))
        found[lane_of(slot, count)][old] = lanes[old]
    return [list(parents.values()) for parents in found]


def _check_unchanged(subscription: Subscription, rows: list[Row], lanes: list[_Lane]) -> None:
    for row in rows:
        if row["owner"] is not None:
            raise OperationRefused(f"a process of {subscription.group} has just been started: stop it first")
        if row["stopped"] is not None:
            raise OperationRefused(
                f"lane {row['lane']} of {subscription.group} on {subscription.origin} is stopped ({row['stopped']}): "
                "mend that first"
            )
    if [(row["position"]) for row in rows] != [lane.position for lane in lanes]:
        raise OperationRefused(f"{subscription.group} has run meanwhile; nothing was changed, try again")


async def _check_history(log: Log, subscription: Subscription, lanes: list[_Lane]) -> None:
    for number, lane in enumerate(lanes):
        if lane.message_id is None:
            continue
        found = await log.read(lane.position, 1, types=())
        there = found[0].id if found and found[0].position == lane.position else None
        if there != lane.message_id:
            group, origin = subscription.group, subscription.origin
            raise LogForked(group, origin, number, lane.position, lane.message_id, there)


async def _check_unread(log: Log, subscription: Subscription, lanes: list[_Lane]) -> None:
    count = subscription.lanes
    targets = [max(lane.position for lane in parents) for parents in _parents(lanes, count)]
    position, end = min(lane.position for lane in lanes) + 1, max(targets)
    while position <= end and (records := await log.read(position, PAGE, types=(), upto=end)):
        for record in records:
            old = lane_of(record.slot, len(lanes))
            if not lanes[old].position < record.position <= targets[lane_of(record.slot, count)]:
                continue
            if record.type in subscription.handlers and record.topic in subscription.topics:
                raise OperationRefused(_unread(subscription, len(lanes), old, record.position))
        position = records[-1].position + 1


def _unread(subscription: Subscription, before: int, lane: int, position: int) -> str:
    group, origin = subscription.group, subscription.origin
    return (
        f"lane {lane} of {group} has not yet handled message {position} of {origin}, and a lane that it would be "
        f"joined with is further: start the service once more with lanes={before} until 'skald subscriptions list' "
        "shows no lag, stop it, and try again"
    )
