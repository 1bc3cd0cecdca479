"""PURE. Lays a group of units out as the arrays of ``skald_commit_1``, and reads its answer.

A column per argument and a row per record, head, cursor … (see ``columns``). Heads that must not exist yet (``n_*``)
are kept apart from all others (``h_*``), because they are inserted without a look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import astuple

from skald.errors import Busy, Conflict, CursorMoved, DeliveryGone, Fenced, MarkMoved, Rejection
from skald.message import Record
from skald.stores.postgres.columns import CURSORS, DELIVERIES, HEADS, MARKS, NEW_HEADS, RECORDS, RESOLVES
from skald.stores.postgres.workflows import EXISTS, KEY_TAKEN, WorkflowGroup, rejection
from skald.unit import Committed, CursorMove, Delivery, Mark, Resolve, Unit, mark_key

EVENT, APPENDED, MESSAGE = 0, 1, 2
CONFLICT, BUSY, FENCED, MOVED, GONE, MARK_MOVED, REFUSED = 1, 2, 3, 4, 5, 8, 9

Place = tuple[int, int | None]
"""The version after an append: a number, to which that of a head is added (its index) if the answer must tell it."""


class Group:
    """The rows of a group, and for each unit where its records and heads stand in them."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        self.rejected: dict[int, Rejection] = {}
        self.spans: list[tuple[int, int]] = []
        self.places: list[tuple[Place, ...]] = []
        self.new_heads: list[tuple[Any, ...]] = []
        self.heads: list[tuple[Any, ...]] = []
        self.processes: dict[str, int] = {}
        self.fences: list[tuple[int, int]] = []
        self.cursors: list[tuple[Any, ...]] = []
        self.resolves: list[tuple[Any, ...]] = []
        self.deliveries: list[tuple[Any, ...]] = []
        self.marks: list[tuple[Any, ...]] = []
        self.records: list[Record] = []
        self.rows: list[tuple[Any, ...]] = []
        self.workflows: WorkflowGroup | None = None
        self.has_messages = self.has_appends = False
        for index, unit in enumerate(units):
            self._add(index, unit)

    def _add(self, index: int, unit: Unit) -> None:
        if unit.marks and (twice := _twice(unit.marks)) is not None:
            self._refuse(index, MarkMoved(twice.kind.value, twice.name, twice.key))
            return
        start = len(self.records)
        places: tuple[Place, ...] = ()
        if unit.events:
            self.records += unit.events
            self.rows += [(index, EVENT, None, None, None)] * len(unit.events)
        if unit.appends or unit.tags:
            self.has_appends = True
            places = self._add_heads(index, unit)
            if index in self.rejected:
                del self.records[start:], self.rows[start:]
                self._refuse(index, self.rejected[index])
                return
        if unit.messages:
            self.has_messages = True
            self.records += unit.messages
            self.rows += [(index, MESSAGE, None, None, None)] * len(unit.messages)
        self.spans.append((start, len(self.records)))
        self.places.append(places)
        if unit.fence is not None:
            self.fences.append((index, self.processes.setdefault(unit.fence, len(self.processes) + 1)))
        if unit.cursor is not None:
            self.cursors.append((index, *_cursor_row(unit.cursor)))
        for resolve in unit.resolves:
            self.resolves.append((index, *astuple(resolve)))
        for delivery in unit.deliveries:
            self.deliveries.append((index, *_delivery_row(delivery)))
        for mark in unit.marks:
            self.marks.append((index, mark.kind.value, *astuple(mark)[1:]))
        if unit.workflows is not None:
            self.workflows = self.workflows or WorkflowGroup()
            self.workflows.add(index, unit.workflows)

    def _refuse(self, index: int, rejection: Rejection) -> None:
        self.rejected[index] = rejection
        self.spans.append((len(self.records), len(self.records)))
        self.places.append(())

    def _add_heads(self, index: int, unit: Unit) -> tuple[Place, ...]:
        """One row per key, however often the unit names it; the records of its appends with their place in it."""
        wanted: dict[str, tuple[int | None, int]] = {}
        before: list[int] = []
        for append in unit.appends:
            before.append(wanted.get("stream:" + append.stream, (None, 0))[1])
            self._want(index, wanted, "stream:" + append.stream, append.expected, len(append.records))
        for tag in unit.tags:
            self._want(index, wanted, "tag:" + tag.tag, tag.expected, 1 if tag.bump else 0, once=True)
        if index in self.rejected:
            return ()
        base: dict[str, tuple[int, int | None]] = {}
        for key, (expected, bump) in wanted.items():
            if expected == 0:
                self.new_heads.append((index, key, bump))
                base[key] = (0, None)
            else:
                self.heads.append((index, key, expected, bump))
                base[key] = (expected, None) if expected is not None else (0, len(self.heads))
        places = []
        for append, offset in zip(unit.appends, before, strict=True):
            known, head = base["stream:" + append.stream]
            self.records += append.records
            first = known + offset
            self.rows += [(index, APPENDED, append.stream, head, first + n + 1) for n in range(len(append.records))]
            places.append((first + len(append.records), head))
        return tuple(places)

    def _want(
        self,
        index: int,
        wanted: dict[str, tuple[int | None, int]],
        key: str,
        expected: int | None,
        bump: int,
        once: bool = False,
    ) -> None:
        if key not in wanted:
            wanted[key] = (expected, bump)
            return
        known, so_far = wanted[key]
        start = expected if expected is None or once else expected - so_far
        if known is not None and start is not None and known != start:
            self.rejected[index] = Conflict(key, expected or 0, known + (0 if once else so_far))
        wanted[key] = (known if known is not None else start, max(so_far, bump) if once else so_far + bump)

    def suspects(self) -> list[str]:
        """The keys that somebody may be inserting right now."""
        return sorted([row[1] for row in self.new_heads] + [row[1] for row in self.heads if not row[2]])

    def arguments(self) -> dict[str, Sequence[Any]]:
        """The arguments by name; sections that nobody uses are left out."""
        found: dict[str, Sequence[Any]] = {}
        if self.fences:
            found["f_unit"], found["f_of"] = zip(*self.fences, strict=True)
            found["f_process"] = list(self.processes)
        # One order for all committers, so that two of them never wait for each other.
        self.new_heads.sort(key=_second)
        for names, rows in (
            (CURSORS, self.cursors),
            (RESOLVES, self.resolves),
            (NEW_HEADS, self.new_heads),
            (HEADS, self.heads),
            (DELIVERIES, self.deliveries),
            (MARKS, self.marks),
        ):
            if rows:
                found.update(zip(names, zip(*rows, strict=True), strict=True))
        if self.records:
            self._add_records(found)
        if self.workflows is not None:
            found.update(self.workflows.arguments())
        return found

    def _add_records(self, found: dict[str, Sequence[Any]]) -> None:
        units, kinds, *places = zip(*self.rows, strict=True)
        found["r_unit"] = units
        columns = list(zip(*map(astuple, self.records), strict=True))
        found.update(zip(RECORDS, columns[1:12], strict=True))
        if self.has_messages:
            found["r_kind"], found["r_priority"], found["r_delay"] = kinds, columns[14], columns[15]
        if self.has_appends:
            found["r_stream"], found["r_head"], found["r_seq"] = places

    def outcomes(self, answer: Mapping[str, Any]) -> list[Committed | Rejection]:
        """One outcome per unit, from the row that the function returned."""
        bad = dict(self.rejected)
        for place, unit in enumerate(answer["bad_unit"] or ()):
            if unit not in bad:
                bad[unit] = self._rejection(
                    self.units[unit],
                    answer["bad_code"][place],
                    answer["bad_key"][place],
                    answer["bad_actual"][place],
                )
        positions, versions, lo = answer["positions"], answer["versions"], answer["lo"]
        outcomes: list[Committed | Rejection] = []
        for index, (start, stop) in enumerate(self.spans):
            if index in bad:
                outcomes.append(bad[index])
                continue
            drawn: tuple[int, ...] = ()
            if stop > start:
                drawn = tuple(range(lo + start, lo + stop)) if positions is None else tuple(positions[start:stop])
            places = self.places[index]
            outcomes.append(Committed(drawn, tuple([_version(place, versions) for place in places]) if places else ()))
        return outcomes

    def _rejection(self, unit: Unit, code: int, key: str, actual: int | None) -> Rejection:
        if code == REFUSED:
            return Rejection(f"the unit cannot be written: {key}")
        if code == CONFLICT:
            return Conflict(key, _expected(unit, key), actual or 0)
        if code == FENCED:
            return Fenced(unit.fence or "")
        if code == MOVED and unit.cursor is not None:
            return CursorMoved(unit.cursor.group, unit.cursor.origin, unit.cursor.lane)
        if code == GONE:
            found = next(r for r in unit.resolves if _delivery_key(r) == key)
            return DeliveryGone(found.handler, found.origin, found.position)
        if code == MARK_MOVED:
            mark = next(mark for mark in unit.marks if mark_key(mark) == key)
            return MarkMoved(mark.kind.value, mark.name, mark.key)
        if code in (EXISTS, KEY_TAKEN):
            return rejection(code, key)
        return Busy(key)


def _twice(marks: Sequence[Mark]) -> Mark | None:
    seen: set[tuple[str, str, str]] = set()
    for mark in marks:
        if mark.place in seen:
            return mark
        seen.add(mark.place)
    return None


def _second(row: tuple[Any, ...]) -> Any:
    return row[1]


def _version(place: Place, versions: Sequence[int | None] | None) -> int:
    known, head = place
    if head is None or versions is None:
        return known
    return known + (versions[head - 1] or 0)


def _expected(unit: Unit, key: str) -> int:
    """What the unit expected of a key: of the first append or tag that names it with a version."""
    for append in unit.appends:
        if "stream:" + append.stream == key and append.expected is not None:
            return append.expected
    for tag in unit.tags:
        if "tag:" + tag.tag == key and tag.expected is not None:
            return tag.expected
    return 0


def _delivery_key(resolve: Resolve) -> str:
    return f"delivery:{resolve.group}:{resolve.handler}:{resolve.origin}:{resolve.position}"


def _cursor_row(move: CursorMove) -> tuple[Any, ...]:
    return (
        move.group, move.origin, move.lane, move.owner, move.position, move.version, move.to_position, move.to_id,
    )  # fmt: skip


def _delivery_row(delivery: Delivery) -> tuple[Any, ...]:
    record = astuple(delivery.record)
    return (
        delivery.group, delivery.handler, delivery.origin, delivery.lane, delivery.state.value, delivery.attempts,
        delivery.due, delivery.error, delivery.owner, *record[:12], record[14], record[15],
    )  # fmt: skip


def units_to_json(units: Sequence[Unit]) -> str:
    """The argument of ``SELECT skald_apply_1(…)`` for a session of another driver: bytes are base64.

    Raises ``Rejection`` for text that no database stores: with NUL, or with half a surrogate pair.
    """
    return _as_json(Group(units))


def _as_json(group: Group) -> str:
    arguments = group.arguments()
    try:
        text = msgspec.json.encode(arguments).decode()
    except (TypeError, ValueError) as error:
        raise Rejection(f"the unit cannot be written: {error}") from error
    if "\\u0000" in text and any(isinstance(v, str) and "\0" in v for column in arguments.values() for v in column):
        raise Rejection("the unit cannot be written: PostgreSQL stores no NUL in text")
    return text


async def applied(units: Sequence[Unit], apply: Callable[[str], Awaitable[str]]) -> list[Committed]:
    """What ``skald_apply_1`` makes of units: all of them, or the first ``Rejection``. ``apply`` calls it."""
    group = Group(units)
    for refused in group.rejected.values():
        raise refused
    answer = msgspec.json.decode(await apply(_as_json(group)))
    committed = []
    for outcome in group.outcomes({"bad_unit": (), "positions": None, "versions": None, "lo": None, **answer}):
        if isinstance(outcome, Rejection):
            raise outcome
        committed.append(outcome)
    return committed
