"""Who reads what, how far, and how a reader is set to another place.

A reset moves the lanes of a group on one origin, raises their version (so that an owner notices), lets a stopped lane
run again, and takes back the deliveries of messages that will now be read once more: each of them would otherwise be
both behind the cursor and before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec

from skald.app import App
from skald.errors import BelowFloor, SkaldError
from skald.messaging import cursor
from skald.messaging.router import Subscription
from skald.messaging.starting import Place, starting_point
from skald.operations.access import (
    NotFound,
    OperationRefused,
    change,
    chosen,
    members,
    opened,
    opened_log,
    scrubbed,
    unknown,
)
from skald.sql import blocks
from skald.store import Log, Store, Transaction

_SQL = blocks("skald.operations", "subscriptions")
Target = str | int | datetime
"""``"start"``, ``"now"``, ``"here"`` (where each lane stands), a position, or a time."""
_WORDS = ("start", "now", "here")


class LaneView(msgspec.Struct, frozen=True):
    """``lag``: positions between the lane and the end of the log; ``None`` if the log cannot be read. ``owner`` is a
    process; ``alive`` says whether it still holds its lease."""

    lane: int
    position: int
    message_id: str | None
    lag: int | None
    owner: str | None
    pid: int | None
    alive: bool
    stopped: str | None


class SubscriptionView(msgspec.Struct, frozen=True):
    """``declared``: lanes according to the code; ``None`` if the group does not read this origin any more. Without
    ``lanes`` it has never read it."""

    group: str
    origin: str
    declared: int | None
    end: int | None
    lanes: list[LaneView]
    error: str | None = None


class Reset(msgspec.Struct, frozen=True):
    """``position`` is the lowest of the lanes that were moved. ``kept``: lanes that were not stopped and stay where
    they are. ``dropped``: deliveries of messages that are read again."""

    group: str
    origin: str
    position: int
    lanes: list[int]
    kept: list[int]
    dropped: int
    running: bool


# --- looking ----------------------------------------------------------------------------------------------------------


async def list_subscriptions(app: App, groups: Iterable[str] = (), origin: str | None = None) -> list[SubscriptionView]:
    """Every group's lanes; what cannot be read is a view with an ``error``, so that one database hides no other."""
    if origin is not None and origin not in app.services:
        raise unknown("service", origin, app.services)
    found: list[SubscriptionView] = []
    for group in chosen(app, groups):
        try:
            async with opened(app, group) as store:
                found += await _of_group(app, store, group, origin)
        except SkaldError as error:
            declared = [s for s in app.topology.subscriptions[group] if origin in (None, s.origin)]
            found += [SubscriptionView(group, s.origin, s.lanes, None, [], scrubbed(str(error))) for s in declared]
    return found


async def _of_group(app: App, store: Store, group: str, origin: str | None) -> list[SubscriptionView]:
    rows = await cursor.lanes(store, group)
    processes = {member.id: (member.pid, gone is None) for member, gone in await members(store)}
    declared = {s.origin: s.lanes for s in app.topology.subscriptions[group]}
    origins = dict.fromkeys([*declared, *(row.origin for row in rows)])
    views = []
    for name in origins:
        if origin in (None, name):
            end, error = await _end(app, name)
            lanes = [_lane(row, end, processes) for row in rows if row.origin == name]
            views.append(SubscriptionView(group, name, declared.get(name), end, lanes, error))
    return views


async def _end(app: App, origin: str) -> tuple[int | None, str | None]:
    if origin not in app.services:
        return None, "not a service of this application"
    try:
        async with opened_log(app, origin) as log:
            return (await log.end())[0], None
    except SkaldError as error:
        return None, scrubbed(str(error))


def _lane(row: cursor.LaneRow, end: int | None, processes: dict[str, tuple[int, bool]]) -> LaneView:
    pid, alive = processes.get(row.owner or "", (None, False))
    return LaneView(
        lane=row.lane,
        position=row.position,
        message_id=row.message_id,
        lag=None if end is None else end - row.position,
        owner=row.owner,
        pid=pid,
        alive=alive,
        stopped=row.stopped,
    )


# --- reset ------------------------------------------------------------------------------------------------------------


async def reset_subscription(app: App, group: str, origin: str, to: Target, *, every_lane: bool = False) -> Reset:
    """Sets a group's lanes to another place in an origin's log; what lies behind it is handled from there on.

    If some lanes are stopped, only those are moved (the others have gone on by themselves), unless ``every_lane``.
    Raises ``BelowFloor`` for a place whose messages retention has deleted; ``"start"`` and ``"here"`` take what is
    left.
    """
    subscription = subscription_of(app, group, origin)
    if isinstance(to, str) and to not in _WORDS:
        raise OperationRefused(f"{to!r} is neither start, now, here, a position, nor a time with its zone")
    async with opened_log(app, origin) as log, opened(app, group) as store:
        rows = [row for row in await cursor.lanes(store, group) if row.origin == origin]
        if not rows:
            raise OperationRefused(
                f"{group} has never read {origin}, so there is nothing to reset: where it begins is said by "
                f"Service({group!r}, start=…)"
            )
        stopped = [row for row in rows if row.stopped is not None]
        wanted = rows if every_lane or not stopped else stopped
        places = {row.lane: await _target(log, subscription, row.position if to == "here" else to) for row in wanted}
        if to not in ("start", "here"):
            _require_complete(subscription, places.values())
        dropped = await change(store, lambda tx: _move(tx, group, origin, places))
        running = any(gone is None for _, gone in await members(store))
        # Retention may have gone on meanwhile, up to where the group stood before.
        await _require_accepted(log, subscription, places.values())
    kept = [row.lane for row in rows if row.lane not in places]
    return Reset(group, origin, min(p.position for p in places.values()), list(places), kept, dropped, running)


def subscription_of(app: App, group: str, origin: str) -> Subscription:
    chosen(app, [group])
    found = {s.origin: s for s in app.topology.subscriptions[group]}
    if origin not in found:
        if origin not in app.services:
            raise unknown("service", origin, app.services)
        raise NotFound(f"{group} does not read {origin}; it reads: {', '.join(sorted(found)) or 'nothing'}")
    return found[origin]


async def _target(log: Log, subscription: Subscription, to: Target) -> Place:
    end, _ = await log.end()
    if isinstance(to, int) and not 0 <= to <= end:
        raise OperationRefused(f"the log of {subscription.origin} ends at position {end}, and {to} was asked for")
    return await starting_point(log, to, subscription.handlers)  # type: ignore[arg-type]


def _require_complete(subscription: Subscription, places: Iterable[Place]) -> None:
    for place in places:
        if place.accepted:
            raise BelowFloor(subscription.origin, place.position, place.accepted)


async def _require_accepted(log: Log, subscription: Subscription, places: Iterable[Place]) -> None:
    floor = await log.floor(subscription.handlers)
    for place in places:
        if floor > max(place.position, place.accepted):
            raise BelowFloor(subscription.origin, place.position, floor)


async def _move(tx: Transaction, group: str, origin: str, places: dict[int, Place]) -> int:
    dropped = 0
    for lane, place in places.items():
        where = {"group": group, "origin": origin, "lane": lane}
        await tx.execute(_SQL["move"], position=place.position, message_id=place.message_id, **where)
        dropped += await tx.execute(_SQL["take_back"], position=place.position, **where)
    await cursor.accept(tx, origin, max(place.accepted for place in places.values()))
    return dropped
