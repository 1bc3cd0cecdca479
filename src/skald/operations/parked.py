"""Parked messages: which they are and whom they hold up; and discarding them. The other way on is ``redrive``.

Both ways raise the version of the lane in the same transaction, so that the process that owns it reads it again; at
most ``BATCH`` of one lane are changed per transaction, so that an operator's thousands hold nobody up for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec

from skald.app import App
from skald.clock import to_rfc3339
from skald.message import Envelope
from skald.messaging import parking
from skald.operations.access import NotFound, change, chosen, opened, scrubbed, unknown
from skald.operations.events import readable
from skald.sql import blocks
from skald.store import Store, Transaction
from skald.unit import Delivery

_SQL = blocks("skald.operations", "parked")
BATCH = 500


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which parked messages are meant; what is not given does not matter. ``error`` is a part of the error's text."""

    services: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    handler: str | None = None
    origin: str | None = None
    type: str | None = None
    key: str | None = None
    error: str | None = None

    @property
    def is_everything(self) -> bool:
        return not any((self.ids, self.handler, self.origin, self.type, self.key, self.error))


ALL = Selection()


class ParkedMessage(msgspec.Struct, frozen=True):
    """``waiting``: later messages of the key that wait behind it."""

    service: str
    handler: str
    origin: str
    position: int
    id: str
    type: str
    key: str
    attempts: int
    error: str | None
    parked_at: str
    waiting: int


class ParkedDetail(msgspec.Struct, frozen=True):
    parked: ParkedMessage
    envelope: dict[str, str]
    payload: Any


class ParkedList(msgspec.Struct, frozen=True):
    """``total`` also counts those beyond the limit."""

    total: int
    parked: list[ParkedMessage]


class Discarded(msgspec.Struct, frozen=True):
    service: str
    discarded: int


class ParkedPlace(msgspec.Struct, frozen=True):
    handler: str
    origin: str
    lane: int
    position: int
    key: str

    def values(self, group: str) -> dict[str, Any]:
        return {"group": group, "handler": self.handler, "origin": self.origin, "position": self.position}


# --- looking ----------------------------------------------------------------------------------------------------------


async def list_parked(app: App, selection: Selection = ALL, *, limit: int = 100) -> ParkedList:
    """The oldest of each service first, at most ``limit`` together."""
    total, found = 0, list[ParkedMessage]()
    for name in chosen(app, selection.services):
        async with opened(app, name) as store:
            total += await _count(store, name, selection)
            found += [_message(d, waiting) for d, waiting in await _rows(store, name, selection, limit - len(found))]
    if not total:
        require_known(app, selection)
    return ParkedList(total, found)


async def show_parked(app: App, selection: Selection) -> list[ParkedDetail]:
    """Every selected one with its envelope and its decoded payload; a message may be parked at several handlers."""
    found: list[ParkedDetail] = []
    for name in chosen(app, selection.services):
        async with opened(app, name) as store:
            for delivery, waiting in await _rows(store, name, selection, 100):
                record = delivery.record
                envelope = Envelope(record, delivery.origin).attributes()
                found.append(ParkedDetail(_message(delivery, waiting), envelope, readable(record.payload or b"")))
    if not found:
        require_known(app, selection)
        raise NotFound("no parked message fits; see them all with: skald parked list")
    return found


async def _count(store: Store, group: str, selection: Selection) -> int:
    sql, values = _selecting("count", selection)
    return int((await store.fetch(sql, group=group, **values))[0]["n"])


async def _rows(store: Store, group: str, selection: Selection, limit: int) -> list[tuple[Delivery, int]]:
    if limit <= 0:
        return []
    sql, values = _selecting("list", selection)
    rows = await store.fetch(sql, group=group, limit=limit, **values)
    return [(parking.from_row(group, row), row["waiting"]) for row in rows]


async def places_of(store: Store, group: str, selection: Selection) -> list[ParkedPlace]:
    sql, values = _selecting("places", selection)
    rows = await store.fetch(sql, group=group, **values)
    return [ParkedPlace(r["handler"], r["origin"], r["lane"], r["position"], r["aggregateid"]) for r in rows]


def _selecting(block: str, selection: Selection) -> tuple[str, dict[str, Any]]:
    columns = {
        "handler": ("handler", selection.handler),
        "origin": ("origin", selection.origin),
        "type": ("type", selection.type),
        "key": ("aggregateid", selection.key),
    }
    conditions = [f"AND {column} = :{name}" for name, (column, value) in columns.items() if value is not None]
    values: dict[str, Any] = {name: value for name, (_, value) in columns.items() if value is not None}
    if selection.ids:
        names = [f"id{n}" for n in range(len(selection.ids))]
        conditions.append(f"AND CAST(id AS TEXT) IN ({', '.join(f':{name}' for name in names)})")
        values |= dict(zip(names, selection.ids, strict=True))
    if selection.error is not None:
        conditions.append("AND lower(error) LIKE :error ESCAPE '!'")
        text = selection.error.lower()
        for special in "!%_":
            text = text.replace(special, f"!{special}")
        values["error"] = f"%{text}%"
    return _SQL[block].format(conditions=" ".join(conditions)), values


def _message(delivery: Delivery, waiting: int) -> ParkedMessage:
    record = delivery.record
    return ParkedMessage(
        service=delivery.group,
        handler=delivery.handler,
        origin=delivery.origin,
        position=record.position,
        id=record.id,
        type=record.type,
        key=record.key,
        attempts=delivery.attempts,
        error=None if delivery.error is None else scrubbed(delivery.error),
        parked_at=to_rfc3339(delivery.due),
        waiting=waiting,
    )


# --- discard ----------------------------------------------------------------------------------------------------------


async def discard(app: App, selection: Selection) -> list[Discarded]:
    """Deletes parked messages for good; what waits behind them goes on."""
    results: list[Discarded] = []
    for name in chosen(app, selection.services):
        async with opened(app, name) as store:
            places = sorted(await places_of(store, name, selection), key=lambda p: (p.origin, p.lane, p.position))
            gone = 0
            for batch in by_lane(places):
                gone += await change(store, _deleting(name, batch))
            if gone:
                results.append(Discarded(name, gone))
    if not results:
        require_known(app, selection)
    return results


def _deleting(group: str, places: Sequence[ParkedPlace]) -> Callable[[Transaction], Any]:
    async def work(tx: Transaction) -> int:
        await tx.execute(_SQL["bump"], group=group, origin=places[0].origin, lane=places[0].lane)
        return sum([await tx.execute(_SQL["discard"], **place.values(group)) for place in places])

    return work


def by_lane(places: Sequence[ParkedPlace]) -> Iterator[list[ParkedPlace]]:
    for _, group in groupby(places, key=lambda place: (place.origin, place.lane)):
        found = list(group)
        for start in range(0, len(found), BATCH):
            yield found[start : start + BATCH]


def require_known(app: App, selection: Selection) -> None:
    """When nothing fits: a name that does not exist is said to be wrong. A stored one may be gone from the code."""
    handlers = {h.name for name in chosen(app, selection.services) for h in app.service(name).handlers}
    if selection.handler is not None and selection.handler not in handlers:
        raise unknown("handler", selection.handler, handlers)
    if selection.origin is not None and selection.origin not in app.services:
        raise unknown("service", selection.origin, app.services)
    if selection.type is not None and selection.type not in app.topology.owners:
        raise unknown("message type", selection.type, app.topology.owners)
