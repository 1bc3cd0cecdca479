"""The inbox: one row per (group, origin, lane). Claimed by a process, moved by its units, released or taken over.

A lane's ``version`` rises whenever anyone but its own run changes it (a reset, a redrive, a discard), so the owner's
next compare-and-swap fails and it reads the lane again. ``takeovers`` counts owners that died without any progress,
or says that one has left messages behind that it may have begun.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from skald import failpoints
from skald.messaging.outcome import ENDED, LaneState
from skald.messaging.starting import Place
from skald.sql import blocks
from skald.store import Store, Transaction
from skald.unit import Unit

_SQL = blocks("skald.messaging", "cursors")


class LaneRow(msgspec.Struct, frozen=True):
    origin: str
    lane: int
    position: int
    message_id: str | None
    version: int
    owner: str | None
    takeovers: int
    stopped: str | None


async def lanes(store: Store, group: str) -> list[LaneRow]:
    return [_row(row) for row in await store.fetch(_SQL["lanes"], group=group)]


def _row(row: dict[str, object]) -> LaneRow:
    id = row["message_id"]
    return msgspec.convert({**row, "message_id": None if id is None else str(id)}, LaneRow)


async def create(store: Store, group: str, origin: str, count: int, place: Place) -> None:
    """Makes the lanes of an origin that was never read, all at one place; existing ones stay."""
    where = {"position": place.position, "message_id": place.message_id}
    async with store.transaction() as tx:
        for lane in range(count):
            await tx.execute(_SQL["create"], group=group, origin=origin, lane=lane, **where)
        await accept(tx, origin, place.accepted)


async def slowest(store: Store, group: str, origin: str) -> int:
    """The position of the lane that is furthest behind; 0 for an origin that was never read."""
    rows = await store.fetch(_SQL["slowest"], group=group, origin=origin)
    return int(rows[0]["position"] or 0)


async def accept(tx: Transaction, origin: str, position: int) -> None:
    """Writes down what this service accepts as gone from an origin (see ``starting``)."""
    if position:
        await tx.execute(_SQL["accept"], key=f"accepted:{origin}", position=str(position))


async def accepted(store: Store, origin: str) -> int:
    rows = await store.fetch(_SQL["accepted"], key=f"accepted:{origin}")
    return int(rows[0]["value"]) if rows else 0


async def claim(store: Store, group: str, wanted: Iterable[tuple[str, int]], owner: str) -> list[LaneState]:
    """Claims those of the wanted lanes that nobody else owns.

    Raises ``Fenced`` if this process has been taken over: what it claimed now, nobody would free again.
    """
    claimed = []
    async with store.transaction() as tx:
        await tx.apply(Unit(fence=owner))
        for origin, lane in wanted:
            rows = await tx.fetch(_SQL["claim"], group=group, origin=origin, lane=lane, owner=owner)
            claimed += [_state(row, group, origin, lane, owner) for row in rows]
        failpoints.hit("claim.before")
    failpoints.hit("claim.after")
    return claimed


async def owned(store: Store, group: str, origin: str, owner: str) -> dict[int, LaneState]:
    """The lanes of an origin that this process owns, as they now are, by number."""
    rows = await store.fetch(_SQL["owned"], group=group, origin=origin, owner=owner)
    return {row["lane"]: _state(row, group, origin, row["lane"], owner) for row in rows}


def _state(row: dict[str, object], group: str, origin: str, lane: int, owner: str) -> LaneState:
    position, id = row["position"], row["message_id"]
    assert isinstance(position, int)
    version, takeovers = row["version"], row["takeovers"]
    assert isinstance(version, int)
    assert isinstance(takeovers, int)
    text = None if id is None else str(id)
    return LaneState(
        group=group,
        origin=origin,
        lane=lane,
        owner=owner,
        position=position,
        id=text,
        version=version,
        takeovers=takeovers,
        scanned=position,
        scanned_id=text,
    )


async def release(store: Store, group: str, origin: str, lane: int, owner: str, *, begun: bool = False) -> None:
    """``begun``: messages of the lane that are read again may have been begun."""
    place = {"group": group, "origin": origin, "lane": lane, "owner": owner}
    async with store.transaction() as tx:
        if begun:
            await tx.execute(_SQL["begun"], **place)
        await tx.execute(_SQL["release"], **place)


async def stop(store: Store, lane: LaneState, reason: str) -> None:
    """Stops a lane by name; ``skald subscriptions reset`` starts it again."""
    async with store.transaction() as tx:
        await tx.execute(
            _SQL["stop"], group=lane.group, origin=lane.origin, lane=lane.lane, owner=lane.owner, reason=reason
        )


async def fence(store: Store, process: str) -> None:
    async with store.transaction() as tx:
        await tx.execute(_SQL["fence"], process=process)


async def owners(store: Store) -> set[str]:
    """The processes that may write, or own a lane."""
    return {str(row["process"]) for row in await store.fetch(_SQL["owners"])}


async def take_over(store: Store, process: str) -> int:
    """Ends a dead process's right to write, then frees its work. Deleting the fence waits for what is in flight."""
    async with store.transaction() as tx:
        await tx.execute(_SQL["unfence"], process=process)
        failpoints.hit("take_over.unfenced")
        freed = await tx.execute(_SQL["orphan_lanes"], process=process)
        failpoints.hit("take_over.lanes")
        freed += await tx.execute(_SQL["orphan_workflows"], process=process)
        return freed + await tx.execute(_SQL["orphan_deliveries"], process=process, error=ENDED)


async def hand_over(store: Store, group: str, process: str, begun: Iterable[tuple[str, int]] = ()) -> int:
    """The same for a process that stops in order: nothing counts as an attempt. ``begun`` as for ``release``."""
    async with store.transaction() as tx:
        await tx.execute(_SQL["unfence"], process=process)
        for origin, lane in begun:
            await tx.execute(_SQL["begun"], group=group, origin=origin, lane=lane, owner=process)
        failpoints.hit("hand_over.unfenced")
        freed = await tx.execute(_SQL["hand_over_lanes"], process=process)
        freed += await tx.execute(_SQL["hand_over_workflows"], process=process)
        return freed + await tx.execute(_SQL["hand_over_deliveries"], process=process)
