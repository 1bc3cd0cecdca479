"""Processes in a service's database: the state before a message, and what is written with the one after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from skald.clock import Clock
from skald.message import Record, child_traceparent, message_type, new_id, slot_of
from skald.messaging.marks import SQL, Marks, Plan
from skald.messaging.outcome import Done, Item, Place, Remembered
from skald.messaging.processes import (
    ENDED,
    RUNNING,
    Opened,
    ProcessNotFound,
    ProcessNotStarted,
    Role,
    TimeoutDue,
    reopened,
    started,
)
from skald.messaging.transaction import Transaction
from skald.store import Store
from skald.unit import Delivery, DeliveryState, Resolve
from skald.workflows.databaseclock import DatabaseClock

_DUE = message_type(TimeoutDue)
AGAIN = 10.0
"""Seconds after which the database is asked for the time again."""


class Proceeding:
    def __init__(self, group: str, clock: Clock, marks: Marks, store: Store) -> None:
        self._group, self._clock, self._marks = group, clock, marks
        self._store, self._due = store, DatabaseClock(store, clock)

    async def plan(
        self, item: Item, origin: str, role: Role, place: Place, message: Any, transaction: Transaction | None
    ) -> Plan:
        """Reads the state and prepares the call. Raises ``UnreadableMessage`` and ``ProcessNotFound``."""
        found = await self._marks.find(item, place, transaction)
        plan = Plan()
        if found.state == RUNNING:
            opened = reopened(role.process, found.payload)
            if role.timeout is not None and opened.timeouts.get(role.timeout) != item.record.position:
                return plan.skipped()
        elif role.timeout is not None:
            return plan.skipped()
        elif role.starts and not found.version:
            opened = started(role.process, message)
        else:
            if not found.version:
                await self._check_start(item, origin, role, place, transaction)
                if item.blocked is None and (await self._marks.find(item, place, transaction)).version:
                    # It has started between the two looks.
                    return await self.plan(item, origin, role, place, message, transaction)
            return _not_found(role, place, plan)
        if role.process.timeouts:
            # Another machine may be the one that takes them.
            await self._due.synchronise(AGAIN, None if transaction is None else transaction.now)
        plan.identity = f"{place[1]}:{place[2]}:{item.record.id}"
        plan.positional = (opened.state,) if role.timeout is not None else (opened.state, message)
        plan.then = lambda done, gave_up: self._moved_on(item, role, place, found, opened, done)
        return plan

    async def _check_start(
        self, item: Item, origin: str, role: Role, place: Place, transaction: Transaction | None
    ) -> None:
        """The order of a key is kept also where the message before it, which starts the process, is slow or fails."""
        record = item.record
        fetch: Callable[..., Any] = self._store.fetch if transaction is None else transaction.fetch
        for name in role.process.starts:
            if item.blocked is not None:
                if (name, record.key) in item.blocked:
                    raise ProcessNotStarted(place[1], place[2])
                continue
            where = {"group": self._group, "handler": name, "origin": origin, "key": record.key}
            for row in await fetch(SQL["before"], position=record.position, **where):
                if row["state"] == DeliveryState.PARKED:
                    raise ProcessNotFound(place[1], place[2])
                raise ProcessNotStarted(place[1], place[2], row["due"])

    def _moved_on(self, item: Item, role: Role, place: Place, found: Remembered, opened: Opened, done: Done) -> Done:
        gone, made = opened.take_timeouts(role.timeout)
        state = ENDED if opened.changes.ended else RUNNING
        mark = self._marks.mark(item, place, found, state, opened.kept(), opened.step)
        names, where = role.process.timeouts, _origin(place)
        return msgspec.structs.replace(
            done,
            marks=(*done.marks, mark),
            cancelled=tuple(Resolve(self._group, names[name], where, n, required=False) for name, n in gone),
            timeouts=tuple(
                self._timeout(item, place, names[name], name, number, seconds) for name, number, seconds in made
            ),
        )

    def _timeout(self, item: Item, place: Place, handler: str, name: str, number: int, seconds: float) -> Delivery:
        key, id, cause, now = place[2], new_id(), item.record, self._clock.now()
        trace = child_traceparent(cause.traceparent, cause.correlation_id, id)
        record = Record(
            number, id, f"{self._group}.timeouts", key, slot_of(key), _DUE.name, _DUE.version, now,
            cause.correlation_id, cause.id, trace, msgspec.json.encode(TimeoutDue(name)),
        )  # fmt: skip
        due = self._due.now() + round(seconds * 1e6)
        return Delivery(self._group, handler, _origin(place), 0, DeliveryState.QUEUED, record, due=due)


def _origin(place: Place) -> str:
    """Timeouts come from no log, but from a process; each has a number of its own there."""
    return f"{place[1]}:{place[2]}"


def _not_found(role: Role, place: Place, plan: Plan) -> Plan:
    if role.not_found == "ignore":
        return plan.skipped()
    if role.not_found == "park":
        raise ProcessNotFound(place[1], place[2])
    assert callable(role.not_found)
    plan.function = role.not_found
    return plan
