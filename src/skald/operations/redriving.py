"""Trying parked messages again, each key's in order.

Of a key's messages the first one is tried at once, and the others wait behind it as they did; work of a queue, which
has no order, goes back into its queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from skald.app import App
from skald.messaging.outcome import HANDED_OVER
from skald.messaging.service import Service
from skald.operations.access import OperationRefused, change, chosen, members, opened, scrubbed
from skald.operations.parked import ParkedPlace, Selection, by_lane, places_of, require_known
from skald.sql import blocks
from skald.store import Store, Transaction
from skald.unit import DeliveryState

_SQL = blocks("skald.operations", "parked")
LOOK = 0.1
"""Seconds between looks at a canary."""


class Redriven(msgspec.Struct, frozen=True):
    """``stopped`` says why the rest was left parked. ``running``: the service has a process that takes them up now."""

    service: str
    redriven: int
    left: int
    running: bool
    stopped: str | None = None


async def redrive(app: App, selection: Selection, *, canary: int = 0, timeout: float = 60.0) -> list[Redriven]:
    """Tries parked messages again, each key's in order, with all their attempts.

    The first ``canary`` ones are tried alone, one after another; unless each succeeds within ``timeout`` seconds, the
    rest is left parked. Raises ``OperationRefused`` for a message whose handler does not exist any more.
    """
    results: list[Redriven] = []
    for name in chosen(app, selection.services):
        async with opened(app, name) as store:
            places = await places_of(store, name, selection)
            if places:
                run = _Redrive(store, app.service(name), places)
                results.append(await run(canary, timeout))
                if results[-1].stopped is not None:
                    break
    if not results:
        require_known(app, selection)
    return results


class _Redrive:
    """One service's parked messages on their way back."""

    def __init__(self, store: Store, service: Service, places: list[ParkedPlace]) -> None:
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
        for batch in by_lane(rest):
            done += await self._put_back(batch)
        return await self._result(done, None)

    async def _result(self, done: int, stopped: str | None) -> Redriven:
        running = any(gone is None for _, gone in await members(self._store))
        return Redriven(self._group, done, len(self._places) - done, running, stopped)

    async def _put_back(self, places: Sequence[ParkedPlace]) -> int:
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

    def _state(self, place: ParkedPlace, first: int | None) -> str:
        if self._queues[place.handler]:
            return DeliveryState.QUEUED.value
        # Whatever stands before it in its key, parked or not, goes first.
        behind = first is not None and first < place.position
        return (DeliveryState.WAITING if behind else DeliveryState.DELAYED).value

    async def _watch(self, place: ParkedPlace, timeout: float) -> str | None:
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

    async def _verdict(self, place: ParkedPlace, row: dict[str, Any]) -> str | None:
        state = row["state"]
        # One that its process gave up in order when it stopped has not failed.
        tried = (
            bool(row["attempts"])
            and row["error"] != HANDED_OVER
            and state in (DeliveryState.DELAYED, DeliveryState.QUEUED)
        )
        if tried or state == DeliveryState.PARKED:
            return f"failed again: {scrubbed(row['error'] or '')}"
        if state == DeliveryState.WAITING:
            lane = {"lane": place.lane, "key": place.key}
            found = await self._store.fetch(_SQL["parked_before"], **lane, **place.values(self._group))
            if found[0]["position"] is not None:
                return f"waits behind message {found[0]['position']} of the same key, which is parked too"
        return None
