"""Units inside an open write transaction: every guard is compared first, and only then is anything written.

So a unit that fails its guards has nothing to undo, and needs no savepoint. What later units of the group may
depend on is visible to them: cursors and deliveries are written at once, versions of heads are kept here
until the end. Positions are drawn for the whole group at its end, in the order of its units.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import apsw
from msgspec.structs import astuple

from skald.errors import Conflict, CursorMoved, DeliveryGone, Fenced, MarkMoved, Rejection
from skald.message import Record
from skald.sql import blocks
from skald.stores.sqlite.failures import BAD_VALUE
from skald.stores.sqlite.workflows import WorkflowGroup
from skald.unit import Committed, CursorMove, Delivery, Mark, Resolve, Unit

_SQL = blocks(__package__, "unit")
_HEAD, _HEADS, _SET_HEAD, _FENCE = _SQL["head"], _SQL["heads"], _SQL["set_head"], _SQL["fence"]
_CURSOR, _MOVE_CURSOR = _SQL["cursor"], _SQL["move_cursor"]
_OWNER, _RESOLVE, _DELIVER = _SQL["delivery_owner"], _SQL["resolve"], _SQL["deliver"]
_MARK, _SET_MARK = _SQL["mark"], _SQL["set_mark"]
_LAST, _DRAW = _SQL["last_position"], _SQL["draw_positions"]
_EVENTS, _MESSAGES = _SQL["append_events"], _SQL["append_messages"]

Outcome = Committed | Rejection


class Group:
    """The writes of one group; ``add`` each unit, then ``write`` what they append."""

    def __init__(self, connection: apsw.Connection, units: Sequence[Unit]) -> None:
        self._execute = connection.execute
        self._executemany = connection.executemany
        # Units of workflows mostly append nothing.
        appends = any(unit.events or unit.messages or unit.appends for unit in units)
        self._start: int = self._execute(_LAST).get if appends else 0
        self._last: int = self._start
        self._heads: dict[str, int] = {}
        self._raised: dict[str, int] = {}
        self._fences: set[str] = set()
        self._events: list[tuple[Any, ...]] = []
        self._messages: list[tuple[Any, ...]] = []
        self._workflows: WorkflowGroup | None = None

    @property
    def appended(self) -> bool:
        return self._last > self._start

    def look_up(self, units: Sequence[Unit]) -> None:
        """Reads the heads of all units at once; what is not found has version 0."""
        # Once through all of them: most units have nothing but events.
        units = [unit for unit in units if unit.appends or unit.tags or unit.workflows]
        keys = [f"stream:{append.stream}" for unit in units for append in unit.appends]
        keys += [f"tag:{tag.tag}" for unit in units for tag in unit.tags]
        if keys:
            self._heads = dict.fromkeys(keys, 0)
            found: list[Any] = self._execute(_HEADS, (json.dumps(keys),)).fetchall()
            self._heads.update(found)
        starts = [start for unit in units if unit.workflows is not None for start in unit.workflows.starts]
        if starts:
            self._workflows = WorkflowGroup(self._execute, self._executemany)
            self._workflows.look_up(starts)

    def add(self, unit: Unit) -> Committed:
        """Compares the unit's guards and takes its writes; raises the ``Rejection`` with nothing taken."""
        versions: tuple[int, ...] = ()
        if not (
            unit.fence is not None
            or unit.cursor
            or unit.messages
            or unit.appends
            or unit.tags
            or unit.resolves
            or unit.marks
            or unit.workflows
        ):
            if not unit.deliveries:
                return self._take(unit.events)
        elif unit.fence is not None or unit.guarded:
            versions, heads = self._check(unit)
            if heads:
                self._raised.update(heads)
                self._heads.update(heads)
        if unit.workflows is not None:
            self._of_workflows().take(unit.workflows)
        if unit.resolves or unit.deliveries or unit.cursor is not None:
            self._write_inbox(unit)
        if unit.marks:
            self._executemany(_SET_MARK, [(mark.kind.value, *astuple(mark)[1:]) for mark in unit.marks])
        first = self._last + 1
        for record in unit.events:
            self._last = position = self._last + 1
            self._events.append((position, *astuple(record)[1:12], None, None))
        for append, version in zip(unit.appends, versions, strict=True):
            self._append(append.stream, append.records, version - len(append.records))
        for record in unit.messages:
            self._last = position = self._last + 1
            self._messages.append((position, *astuple(record)[1:12], record.priority, record.delay))
        return Committed(tuple(range(first, self._last + 1)), versions)

    def _take(self, events: tuple[Record, ...]) -> Committed:
        """What most units are: events and nothing else."""
        first = self._last + 1
        if len(events) == 1:
            self._last = first
            self._events.append((first, *astuple(events[0])[1:12], None, None))
            return Committed((first,))
        for record in events:
            self._last = position = self._last + 1
            self._events.append((position, *astuple(record)[1:12], None, None))
        return Committed(tuple(range(first, self._last + 1)))

    def write(self) -> None:
        """Writes what was taken; the tables are written in bulk, in the order of positions."""
        if self._raised:
            self._executemany(_SET_HEAD, self._raised.items())
        if self._events:
            self._executemany(_EVENTS, self._events)
        if self._messages:
            self._executemany(_MESSAGES, self._messages)
        if self._workflows is not None:
            self._workflows.write()
        if self.appended:
            self._execute(_DRAW, (self._last,))

    def _append(self, stream: str, records: Iterable[Record], version: int) -> None:
        for record in records:
            self._last = position = self._last + 1
            version += 1
            self._events.append((position, *astuple(record)[1:12], stream, version))

    # --- guards ---------------------------------------------------------------------------------------------

    def _check(self, unit: Unit) -> tuple[tuple[int, ...], dict[str, int]]:
        """The versions of the unit's streams after it, and the heads it raises."""
        if unit.fence is not None and unit.fence not in self._fences:
            self._check_fence(unit.fence)
        if unit.cursor is not None:
            self._check_cursor(unit.cursor)
        for resolve in unit.resolves:
            if resolve.required:
                self._check_resolve(resolve)
        if unit.marks:
            self._check_marks(unit.marks)
        if unit.workflows is not None and unit.workflows.starts:
            self._of_workflows().check(unit.workflows)
        heads: dict[str, int] = {}
        versions: list[int] = []
        for append in unit.appends:
            version = self._expect(f"stream:{append.stream}", append.expected, len(append.records), heads)
            versions.append(version)
        for tag in unit.tags:
            self._expect(f"tag:{tag.tag}", tag.expected, int(tag.bump), heads)
        return tuple(versions), heads

    def _expect(self, key: str, expected: int | None, raised_by: int, heads: dict[str, int]) -> int:
        actual = heads[key] if key in heads else self._head(key)
        if expected is not None and expected != actual:
            raise Conflict(key, expected, actual)
        if raised_by:
            heads[key] = actual = actual + raised_by
        return actual

    def _head(self, key: str) -> int:
        version = self._heads.get(key)
        if version is None:
            self._heads[key] = version = self._execute(_HEAD, (key,)).get or 0
        return version

    def _check_fence(self, process: str) -> None:
        if self._execute(_FENCE, (process,)).get is None:
            raise Fenced(process)
        self._fences.add(process)

    def _check_cursor(self, move: CursorMove) -> None:
        found = self._execute(_CURSOR, (move.group, move.origin, move.lane)).fetchone()
        if found != (move.position, move.version, move.owner):
            raise CursorMoved(move.group, move.origin, move.lane)

    def _check_resolve(self, resolve: Resolve) -> None:
        key = (resolve.group, resolve.handler, resolve.origin, resolve.position)
        found = self._execute(_OWNER, key).fetchone()
        if found is None or (resolve.owner is not None and found[0] != resolve.owner):
            raise DeliveryGone(resolve.handler, resolve.origin, resolve.position)

    def _check_marks(self, marks: Sequence[Mark]) -> None:
        seen: set[tuple[str, str, str]] = set()
        for mark in marks:
            place = (mark.kind.value, mark.name, mark.key)
            if place in seen or (self._execute(_MARK, place).get or 0) != mark.expected:
                raise MarkMoved(*place)
            seen.add(place)

    def _of_workflows(self) -> WorkflowGroup:
        if self._workflows is None:
            self._workflows = WorkflowGroup(self._execute, self._executemany)
        return self._workflows

    # --- inbox ----------------------------------------------------------------------------------------------

    def _write_inbox(self, unit: Unit) -> None:
        # Resolved before delivered, so that one unit can hand a delivery on: its row is replaced whole.
        for r in unit.resolves:
            self._execute(_RESOLVE, (r.group, r.handler, r.origin, r.position))
        if unit.deliveries:
            self._executemany(_DELIVER, [_delivery_row(delivery) for delivery in unit.deliveries])
        move = unit.cursor
        if move is not None:
            self._execute(_MOVE_CURSOR, (move.group, move.origin, move.lane, move.to_position, move.to_id))


def _delivery_row(delivery: Delivery) -> tuple[Any, ...]:
    d, r = delivery, delivery.record
    place = (d.group, d.handler, d.origin, d.lane, d.state.value, d.attempts, d.due, d.error, d.owner)
    return (*place, *astuple(r)[:12], r.priority, r.delay)


def write_units(connection: apsw.Connection, units: Sequence[Unit]) -> tuple[list[Outcome], bool]:
    """One outcome per unit, and whether anything was appended; raises what concerns the whole group."""
    group = Group(connection, units)
    group.look_up(units)
    outcomes: list[Outcome] = []
    for unit in units:
        try:
            outcomes.append(group.add(unit))
        except Rejection as rejection:
            outcomes.append(rejection)
    group.write()
    return outcomes, group.appended


def write_units_singly(connection: apsw.Connection, units: Sequence[Unit]) -> tuple[list[Outcome], bool]:
    """The same with a savepoint per unit: for a group in which one unit's data could not be written."""
    outcomes: list[Outcome] = []
    appended = False
    for unit in units:
        try:
            [committed], wrote = write_whole(connection, [unit])
            outcomes.append(committed)
            appended |= wrote
        except Rejection as rejection:
            outcomes.append(rejection)
    return outcomes, appended


def write_whole(connection: apsw.Connection, units: Sequence[Unit]) -> tuple[list[Committed], bool]:
    """Units behind a savepoint; raises the first ``Rejection`` with everything undone."""
    connection.execute("SAVEPOINT skald_unit")
    try:
        group = Group(connection, units)
        committed = [group.add(unit) for unit in units]
        group.write()
    except BaseException as error:
        if not connection.get_autocommit():  # a failing disk ends the whole transaction
            connection.execute("ROLLBACK TO skald_unit; RELEASE skald_unit")
        if isinstance(error, BAD_VALUE):
            raise Rejection(f"the unit cannot be written: {error}") from error
        raise
    connection.execute("RELEASE skald_unit")
    return committed, group.appended
