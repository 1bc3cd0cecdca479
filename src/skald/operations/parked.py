"""Parked messages: which they are and whom they hold up, and the two ways on, redrive and discard.

A redrive keeps the order: of a key's messages the first one is tried at once, and the others wait behind it as they
did. Both ways raise the version of the lane in the same transaction, so that the process that owns it reads it again;
one lane is changed per transaction, so that an operator's thousands hold nobody up for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec

from skald.app import App
from skald.clock import to_rfc3339
from skald.message import Envelope
from skald.messaging import parking
from skald.messaging.service import Service
from skald.operations.access import NotFound, OperationRefused, change, chosen, members, opened, unknown
from skald.operations.events import readable
from skald.sql import blocks
from skald.store import Store, Transaction
from skald.unit import Delivery, DeliveryState

_SQL = blocks("skald.operations", "parked")
BATCH = 500
LOOK = 0.1
"""Seconds between looks at a canary."""


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


class Redriven(msgspec.Struct, frozen=True):
    """``stopped`` says why the rest was left parked. ``running``: the service has a process that takes them up now."""

    service: str
    redriven: int
    left: int
    running: bool
    stopped: str | None = None


class Discarded(msgspec.Struct, frozen=True):
    service: str
    discarded: int


class _Place(msgspec.Struct, frozen=True):
    handler: str
    origin: str
    lane: int
    position: int
    key: str

    def values(self, group: str) -> dict[str, Any]:
        return {"group": group, "handler": self.handler, "origin": self.origin, "position": self.position}


# --- looking ----------------------------------------------------------------------------------------------------------


async def list_parked(app: App, selection: Selection = Selection(), *, limit: int = 100) -> ParkedList:
    """The oldest of each service first, at most ``limit`` together."""
    total, found = 0, list[ParkedMessage]()
    for name in chosen(app, selection.services):
        async with opened(app, name) as store:
            total += await _count(store, name, selection)
            found += [_message(d, waiting) for d, waiting in await _rows(store, name, selection, limit - len(found))]
    if not total:
        _require_known(app, selection)
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
        _require_known(app, selection)
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


async def _places(store: Store, group: str, selection: Selection) -> list[_Place]:
    sql, values = _selecting("places", selection)
    rows = await store.fetch(sql, group=group, **values)
    return [_Place(r["handler"], r["origin"], r["lane"], r["position"], r["aggregateid"]) for r in rows]


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
        error=delivery.error,
        parked_at=to_rfc3339(delivery.due),
        waiting=waiting,
    )


# --- redrive ----------------------------------------------------------------------------------------------------------


async def redrive(app: App, selection: Selection, *, canary: int = 0, timeout: float = 60.0) -> list[Redriven]:
    """Tries parked messages again, each key's in order, with all their attempts.

    The first ``canary`` ones are tried alone, one after another; unless each succeeds within ``timeout`` seconds, the
    rest is left parked. Raises ``OperationRefused`` for a message whose handler does not exist any more.
    """
    results: list[Redriven] = []
    for name in chosen(app, selection.services):
        async with opened(app, name) as store:
            places = await _places(store, name, selection)
            if places:
                run = _Redrive(store, app.service(name), places)
                results.append(await run(canary, timeout))
                if results[-1].stopped is not None:
                    break
    if not results:
        _require_known(app, selection)
    return results


class _Redrive:
    """One service's parked messages on their way back."""

    def __init__(self, store: Store, service: Service, places: list[_Place]) -> None:
        self._store, self._group, self._places = store, service.name, places
        self._queues = {handler.name: handler.queue is not None for handler in service.handlers}
        for place in places:
            if place.handler not in self._queues:
                raise OperationRefused(
                    f"{service.name} has no handler {place.handler!r} any more, and only it can take message "
                    f"{place.position} of {place.origin}: bring it back, give another one name={place.handler!r}, "
                    f"or discard: skald parked discard --service {service.name} --handler {place.handler}"
                )

    async def __call__(self, canary: int, timeout: float) -> Redriven:
        done = 0
        places = sorted(self._places, key=lambda p: (p.position, p.origin, p.handler)) if canary else self._places
        for place in places[:canary]:
            done += await self._put_back([place])
            failed = await self._watch(place, timeout)
            if failed is not None:
                return await self._result(done, failed)
        rest = sorted(places[canary:], key=lambda p: (p.origin, p.lane, p.position))
        for batch in _by_lane(rest):
            done += await self._put_back(batch)
        return await self._result(done, None)

    async def _result(self, done: int, stopped: str | None) -> Redriven:
        running = any(gone is None for _, gone in await members(self._store))
        return Redriven(self._group, done, len(self._places) - done, running, stopped)

    async def _put_back(self, places: Sequence[_Place]) -> int:
        """Of one lane."""

        async def work(tx: Transaction) -> int:
            lane = {"group": self._group, "origin": places[0].origin, "lane": places[0].lane}
            await tx.execute(_SQL["bump"], **lane)
            first = {(r["handler"], r["aggregateid"]): r["first"] for r in await tx.fetch(_SQL["of_lane"], **lane)}
            changed = 0
            for place in places:
                state = self._state(place, first.get((place.handler, place.key)))
                changed += await tx.execute(_SQL["redrive"], state=state, **place.values(self._group))
            return changed

        changed = await change(self._store, work)
        # Workers of queues listen to the service's own log.
        self._store.ring()
        return changed

    def _state(self, place: _Place, first: int | None) -> str:
        if self._queues[place.handler]:
            return DeliveryState.QUEUED.value
        # Whatever stands before it in its key, parked or not, goes first.
        behind = first is not None and first < place.position
        return (DeliveryState.WAITING if behind else DeliveryState.DELAYED).value

    async def _watch(self, place: _Place, timeout: float) -> str | None:
        """Waits for the end of a canary; ``None`` if it was handled, otherwise why the rest must wait."""
        end = asyncio.get_running_loop().time() + timeout
        where = f"the canary, message {place.position} of {place.origin} at {place.handler},"
        while True:
            rows = await self._store.fetch(_SQL["state"], **place.values(self._group))
            if not rows:
                return None
            verdict = await self._verdict(place, rows[0])
            if verdict is not None:
                return f"{where} {verdict}"
            if asyncio.get_running_loop().time() >= end:
                return f"{where} was not finished within {timeout:g} s: is {self._group} running?"
            await asyncio.sleep(LOOK)

    async def _verdict(self, place: _Place, row: dict[str, Any]) -> str | None:
        state = row["state"]
        if state == DeliveryState.PARKED or (row["attempts"] and state in (DeliveryState.DELAYED, DeliveryState.QUEUED)):
            return f"failed again: {row['error']}"
        if state == DeliveryState.WAITING:
            lane = {"lane": place.lane, "key": place.key}
            found = await self._store.fetch(_SQL["parked_before"], **lane, **place.values(self._group))
            if found[0]["position"] is not None:
                return f"waits behind message {found[0]['position']} of the same key, which is parked too"
        return None


# --- discard ----------------------------------------------------------------------------------------------------------


async def discard(app: App, selection: Selection) -> list[Discarded]:
    """Deletes parked messages for good; what waits behind them goes on."""
    results: list[Discarded] = []
    for name in chosen(app, selection.services):
        async with opened(app, name) as store:
            places = sorted(await _places(store, name, selection), key=lambda p: (p.origin, p.lane, p.position))
            gone = 0
            for batch in _by_lane(places):
                gone += await change(store, _deleting(name, batch))
            if gone:
                results.append(Discarded(name, gone))
    if not results:
        _require_known(app, selection)
    return results


def _deleting(group: str, places: Sequence[_Place]) -> Callable[[Transaction], Any]:
    async def work(tx: Transaction) -> int:
        await tx.execute(_SQL["bump"], group=group, origin=places[0].origin, lane=places[0].lane)
        return sum([await tx.execute(_SQL["discard"], **place.values(group)) for place in places])

    return work


def _by_lane(places: Sequence[_Place]) -> Iterator[list[_Place]]:
    for _, group in groupby(places, key=lambda place: (place.origin, place.lane)):
        found = list(group)
        for start in range(0, len(found), BATCH):
            yield found[start : start + BATCH]


def _require_known(app: App, selection: Selection) -> None:
    """When nothing fits: a name that does not exist is said to be wrong. A stored one may be gone from the code."""
    handlers = {h.name for name in chosen(app, selection.services) for h in app.service(name).handlers}
    if selection.handler is not None and selection.handler not in handlers:
        raise unknown("handler", selection.handler, handlers)
    if selection.origin is not None and selection.origin not in app.services:
        raise unknown("service", selection.origin, app.services)
    if selection.type is not None and selection.type not in app.topology.owners:
        raise unknown("message type", selection.type, app.topology.owners)
