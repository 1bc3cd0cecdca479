"""Marks in a service's database, and what becomes of a message because of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from skald import store as contract
from skald.clock import Clock
from skald.errors import MarkMoved, StoreUnavailable
from skald.messaging.outcome import NOTHING, Done, Item, Place, Remembered
from skald.messaging.transaction import Transaction
from skald.sql import blocks
from skald.store import Row, Store
from skald.unit import Mark, MarkKind

SQL = blocks("skald.messaging", "marks")
NOTHING_YET = Remembered()
_SIZES = (1, 8, 64)
"""Keys of one query: few sizes, so that few statements are prepared."""


class Aside(MarkMoved):
    """Something has to be written by itself, outside of the transaction that is open, before this can be decided on."""


class TooEarly(Aside):
    """And what it is decided on is not written itself: it can be asked again when that is."""


class Undecided(StoreUnavailable):
    """The database could not be asked what is remembered: trouble of its own, and no attempt of a handler."""


class Plan(msgspec.Struct):
    """What becomes of a message: it is skipped, or its handler runs and ``finish`` adds what is to be remembered."""

    skip: Done | None = None
    marks: tuple[Mark, ...] = ()
    identity: str | None = None
    """What stands in the idempotency key instead of the message's id."""
    function: Callable[..., Any] | None = None
    """Is called instead of the handler's own."""
    positional: tuple[Any, ...] | None = None
    """Instead of the message alone."""
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    then: Callable[[Done, bool], Done] | None = None
    """Adds what depends on what the handler did; told whether it gave up."""
    answered: bool = False
    """It was handled before, and its answer was published then."""

    def finish(self, done: Done, gave_up: bool = False) -> Done:
        done = msgspec.structs.replace(done, marks=self.marks)
        return self.then(done, gave_up) if self.then is not None else done

    def called_with(self, parameter: str | None, argument: Any, mark: Mark) -> Plan:
        """The handler runs, and takes this where it has asked for it."""
        if parameter is not None:
            self.arguments[parameter] = argument
        self.marks += (mark,)
        return self

    def skipped(self, *marks: Mark) -> Plan:
        self.skip = Done(marks=(*self.marks, *marks)) if self.marks or marks else NOTHING
        return self


class Marks:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def find(
        self, item: Item, place: Place, transaction: Transaction | contract.Transaction | None
    ) -> Remembered:
        known = item.ledger.find(place) if item.ledger is not None else None
        if known is not None:
            return known
        fetch: Callable[..., Any] = self._store.fetch if transaction is None else transaction.fetch
        rows = await fetch(SQL["one"], kind=place[0].value, name=place[1], key=place[2])
        return _remembered(rows[0]) if rows else NOTHING_YET

    async def read(self, kind: MarkKind, name: str, keys: Sequence[str]) -> dict[Place, Remembered]:
        found = {(kind, name, key): NOTHING_YET for key in keys}
        start = 0
        while start < len(keys):
            size = next((size for size in _SIZES if size >= len(keys) - start), _SIZES[-1])
            some = keys[start : start + size]
            start += size
            values = {f"key{n}": some[min(n, len(some) - 1)] for n in range(size)}
            sql = SQL["many"].format(keys=", ".join(f":{each}" for each in values))
            for row in await self._store.fetch(sql, kind=kind.value, name=name, **values):
                found[kind, name, row["key"]] = _remembered(row)
        return found

    def mark(
        self, item: Item, place: Place, over: Remembered, state: str, payload: bytes = b"", step: str | None = None
    ) -> Mark:
        """What an item writes over what was found."""
        kind, name, key = place
        return Mark(kind, name, key, over.version, state, self._clock.now(), payload, step, item.record.correlation_id)


def _remembered(row: Row) -> Remembered:
    return Remembered(row["version"], row["state"], bytes(row["payload"]))
