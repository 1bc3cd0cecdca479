"""A store in plain dicts, and random histories that compare a real one with it.

The model is the contract in its shortest form: a unit is committed if and only if no guard of it fails. Where
several fail at once it is open which of them is named. Every history has names of its own, so that one
database serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from skald.errors import Conflict, CursorMoved, DeliveryGone, Fenced, MarkMoved, Rejection
from skald.message import Record
from skald.store import Store
from skald.testing.samples import START, record
from skald.unit import Append, Committed, CursorMove, Delivery, DeliveryState, Mark, MarkKind, Resolve, Tag, Unit

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]
Place = tuple[str, str, str, int]

_histories = count(1)


@dataclass
class Cursor:
    """One lane's row."""

    position: int = 0
    version: int = 0
    owner: str = "p0"
    message_id: str | None = None


@dataclass
class ModelStore:
    """The state of a store. ``log`` has (position, id, type, stream, stream version) of each record."""

    heads: dict[str, int] = field(default_factory=dict)
    fences: set[str] = field(default_factory=set)
    cursors: dict[tuple[str, str, int], Cursor] = field(default_factory=dict)
    deliveries: dict[Place, Delivery] = field(default_factory=dict)
    marks: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Version and state, by key."""
    log: list[tuple[int, str, str, str | None, int | None]] = field(default_factory=list)

    def failing(self, unit: Unit) -> set[type[Rejection]]:
        """The kinds of all guards that fail."""
        kinds: set[type[Rejection]] = set()
        if unit.fence is not None and unit.fence not in self.fences:
            kinds.add(Fenced)
        if unit.cursor is not None and not self._cursor_fits(unit.cursor):
            kinds.add(CursorMoved)
        if not all(self._delivery_fits(resolve) for resolve in unit.resolves):
            kinds.add(DeliveryGone)
        if not all(self.heads.get(key, 0) == expected for key, expected in _expected(unit)):
            kinds.add(Conflict)
        if not all(self.marks.get(mark.key, (0, ""))[0] == mark.expected for mark in unit.marks):
            kinds.add(MarkMoved)
        return kinds

    def apply(self, unit: Unit, committed: Committed) -> None:
        """Takes over a unit of which no guard fails, and checks what the store says that it got."""
        assert len(committed.positions) == len(unit.events) + len(unit.messages) + _appended(unit)
        positions = iter(committed.positions)
        for event in unit.events:
            self._log(next(positions), event)
        assert committed.versions == tuple(self._append(append, positions) for append in unit.appends)
        for message in unit.messages:
            self._log(next(positions), message)
        for tag in unit.tags:
            self.heads[f"tag:{tag.tag}"] = self.heads.get(f"tag:{tag.tag}", 0) + tag.bump
        for resolve in unit.resolves:
            self.deliveries.pop(_place(resolve), None)
        for delivery in unit.deliveries:
            self.deliveries[delivery.group, delivery.handler, delivery.origin, delivery.record.position] = delivery
        for mark in unit.marks:
            self.marks[mark.key] = mark.expected + 1, mark.state
        if unit.cursor is not None:
            cursor = self.cursors[unit.cursor.group, unit.cursor.origin, unit.cursor.lane]
            cursor.position, cursor.message_id = unit.cursor.to_position, unit.cursor.to_id

    def _append(self, append: Append, positions: Any) -> int:
        key = f"stream:{append.stream}"
        for one in append.records:
            self.heads[key] = self.heads.get(key, 0) + 1
            self._log(next(positions), one, append.stream, self.heads[key])
        return self.heads.get(key, 0)

    def _log(self, position: int, one: Record, stream: str | None = None, version: int | None = None) -> None:
        assert not self.log or position > self.log[-1][0], "positions rise"
        self.log.append((position, one.id, one.type, stream, version))

    def _cursor_fits(self, move: CursorMove) -> bool:
        cursor = self.cursors.get((move.group, move.origin, move.lane))
        return cursor is not None and (cursor.position, cursor.version, cursor.owner) == (
            move.position,
            move.version,
            move.owner,
        )

    def _delivery_fits(self, resolve: Resolve) -> bool:
        found = self.deliveries.get(_place(resolve))
        if not resolve.required:
            return True
        return found is not None and (resolve.owner is None or resolve.owner == found.owner)


def _place(resolve: Resolve) -> Place:
    return resolve.group, resolve.handler, resolve.origin, resolve.position


def _appended(unit: Unit) -> int:
    return sum(len(append.records) for append in unit.appends)


def _expected(unit: Unit) -> list[tuple[str, int]]:
    found = [(f"stream:{append.stream}", append.expected) for append in unit.appends]
    found += [(f"tag:{tag.tag}", tag.expected) for tag in unit.tags]
    return [(key, expected) for key, expected in found if expected is not None]


# --- random units -------------------------------------------------------------------------------------------

small = st.integers(0, 3)
version_is = st.sampled_from(["any", "right", "wrong"])
# Hypothesis draws only shapes; the machine fills in ids and what the guards of a live system would name.
shapes = st.fixed_dictionaries(
    {
        "events": st.integers(0, 2),
        "messages": st.integers(0, 2),
        "appends": st.dictionaries(small, st.tuples(st.integers(0, 3), version_is), max_size=2),
        "tags": st.dictionaries(small, st.tuples(version_is, st.booleans()), max_size=2),
        "fence": st.none() | small,
        "cursor": st.none() | st.tuples(small, st.sampled_from(["right", "right", "position", "version", "owner"])),
        "deliveries": st.lists(small, max_size=2, unique=True),
        "resolves": st.dictionaries(small, st.sampled_from(["none", "right", "wrong", "anyway"]), max_size=2),
        "marks": st.dictionaries(small, st.sampled_from(["right", "right", "wrong", "new"]), max_size=2),
    }
)


class StoreMachine(RuleBasedStateMachine):
    """One history: groups of units, takeovers and resets, on the store and on the model."""

    def __init__(self, run: Run[Any], store: Store) -> None:
        super().__init__()
        self.run = run
        self.store = store
        self.name = f"history{next(_histories)}"
        self.model = ModelStore()

    @initialize()
    def begin(self) -> None:
        self.start = self.run(self.store.log.end())[0]

    @rule(group=st.lists(shapes, min_size=1, max_size=8))
    def commit(self, group: list[dict[str, Any]]) -> None:
        """A group; units that share a key with an earlier one are left out, as a committer would do."""
        units: list[Unit] = []
        used: set[str] = set()
        for shape in group:
            unit = self._unit(shape)
            keys = {*unit.keys(), *(f"delivery:{d.record.position}" for d in unit.deliveries)}
            keys |= {f"delivery:{r.position}" for r in unit.resolves}
            if not used & keys:
                used |= keys
                units.append(unit)
        self._compare(units, self.run(self.store.commit(units)))

    @rule(shape=shapes)
    def apply(self, shape: dict[str, Any]) -> None:
        """The same by a transaction of the user's."""
        unit = self._unit(shape)
        self._compare([unit], [self.run(self._apply(unit))])

    @rule(process=small)
    def fence(self, process: int) -> None:
        """A process begins to write, or is taken over from."""
        name = self._called("p", process)
        if name in self.model.fences:
            self.model.fences.remove(name)
            self._execute("DELETE FROM skald_fences WHERE process = :p", p=name)
        else:
            self.model.fences.add(name)
            self._execute("INSERT INTO skald_fences (process) VALUES (:p)", p=name)

    @rule(lane=small, owner=small)
    def take(self, lane: int, owner: int) -> None:
        """A lane gets its first owner, or another one, or is reset by its version."""
        place = (self.name, "origin", lane)
        name = self._called("p", owner)
        cursor = self.model.cursors.get(place)
        where = {"g": self.name, "lane": lane, "owner": name}
        if cursor is None:
            self.model.cursors[place] = Cursor(owner=name)
            sql = "INSERT INTO skald_cursors (group_name, origin, lane, position, owner)"
            self._execute(f"{sql} VALUES (:g, 'origin', :lane, 0, :owner)", **where)
        else:
            cursor.owner, cursor.version = name, cursor.version + 1
            sql = "UPDATE skald_cursors SET owner = :owner, version = version + 1"
            self._execute(f"{sql} WHERE group_name = :g AND origin = 'origin' AND lane = :lane", **where)

    @invariant()
    def agree(self) -> None:
        """Log, heads, cursors, deliveries and marks are what the model says."""
        if not hasattr(self, "start"):
            return
        log = self.run(self.store.log.read(self.start + 1, 10_000))
        assert [(r.position, r.id, r.type, r.stream, r.stream_version) for r in log] == self.model.log
        assert self.run(self.store.log.versions(list(self.model.heads))) == self.model.heads
        assert self._cursors() == {place: (c.position, c.message_id) for place, c in self.model.cursors.items()}
        wanted = {place: (d.state.value, d.owner, d.record.id) for place, d in self.model.deliveries.items()}
        assert self._deliveries() == wanted
        assert self._marks() == self.model.marks

    # --- units ----------------------------------------------------------------------------------------------

    def _unit(self, shape: dict[str, Any]) -> Unit:
        return Unit(
            events=tuple(record("Fact") for _ in range(shape["events"])),
            messages=tuple(record("Command") for _ in range(shape["messages"])),
            appends=tuple(self._append(n, *how) for n, how in shape["appends"].items()),
            tags=tuple(self._tag(n, *how) for n, how in shape["tags"].items()),
            fence=None if shape["fence"] is None else self._called("p", shape["fence"]),
            cursor=None if shape["cursor"] is None else self._move(*shape["cursor"]),
            deliveries=tuple(self._delivery(n) for n in shape["deliveries"]),
            resolves=tuple(self._resolve(n, how) for n, how in shape["resolves"].items()),
            marks=tuple(self._mark(n, how) for n, how in shape["marks"].items()),
        )

    def _called(self, what: str, number: int) -> str:
        return f"{self.name}-{what}{number}"

    def _expect(self, key: str, how: str) -> int | None:
        actual = self.model.heads.get(key, 0)
        return None if how == "any" else actual + (how == "wrong")

    def _append(self, number: int, records: int, how: str) -> Append:
        stream = self._called("s", number)
        return Append(stream, tuple(record("Fact") for _ in range(records)), self._expect(f"stream:{stream}", how))

    def _tag(self, number: int, how: str, bump: bool) -> Tag:
        tag = self._called("t", number)
        return Tag(tag, self._expect(f"tag:{tag}", how), bump)

    def _move(self, lane: int, wrong: str) -> CursorMove:
        cursor = self.model.cursors.get((self.name, "origin", lane)) or Cursor()
        position = cursor.position + (wrong == "position")
        owner = "nobody" if wrong == "owner" else cursor.owner
        version = cursor.version + (wrong == "version")
        to = cursor.position + 3
        return CursorMove(self.name, "origin", lane, owner, position, version, to, f"message-{to}")

    def _delivery(self, number: int) -> Delivery:
        owner = self._called("p", number) if number % 2 else None
        copied = replace(record(), position=number)
        return Delivery(self.name, "h", "origin", 0, DeliveryState.DELAYED, copied, owner=owner)

    def _resolve(self, number: int, how: str) -> Resolve:
        found = self.model.deliveries.get((self.name, "h", "origin", number))
        right = found.owner if found is not None else None
        owner = {"none": None, "anyway": None, "right": right, "wrong": "nobody"}[how]
        return Resolve(self.name, "h", "origin", number, owner, how != "anyway")

    def _mark(self, number: int, how: str) -> Mark:
        key = self._called("k", number)
        actual = self.model.marks.get(key, (0, ""))[0]
        expected = {"right": actual, "wrong": actual + 1, "new": 0}[how]
        return Mark(MarkKind.EFFECT, self.name, key, expected, f"state{actual}", START)

    # --- the store ------------------------------------------------------------------------------------------

    def _compare(self, units: list[Unit], outcomes: list[Committed | Rejection]) -> None:
        assert len(units) == len(outcomes)
        for unit, outcome in zip(units, outcomes, strict=True):
            kinds = self.model.failing(unit)
            if isinstance(outcome, Committed):
                assert not kinds, f"{unit} was committed in spite of {kinds}"
                self.model.apply(unit, outcome)
            else:
                assert type(outcome) in kinds, f"{unit}: {outcome!r} is none of {kinds}"

    async def _apply(self, unit: Unit) -> Committed | Rejection:
        async with self.store.transaction() as tx:
            try:
                return await tx.apply(unit)
            except Rejection as rejection:
                return rejection

    def _execute(self, sql: str, **values: Any) -> None:
        async def execute() -> None:
            async with self.store.transaction() as tx:
                assert await tx.execute(sql, **values) == 1

        self.run(execute())

    def _cursors(self) -> dict[tuple[str, str, int], tuple[int, str | None]]:
        sql = "SELECT lane, position, message_id FROM skald_cursors WHERE group_name = :g"
        rows = self.run(self.store.fetch(sql, g=self.name))
        return {(self.name, "origin", row["lane"]): (row["position"], row["message_id"]) for row in rows}

    def _deliveries(self) -> dict[Place, tuple[str, str | None, str]]:
        sql = "SELECT handler, position, state, owner, id FROM skald_deliveries WHERE group_name = :g"
        rows = self.run(self.store.fetch(sql, g=self.name))
        return {
            (self.name, row["handler"], "origin", row["position"]): (
                row["state"],
                row["owner"],
                str(row["id"]),
            )
            for row in rows
        }

    def _marks(self) -> dict[str, tuple[int, str]]:
        rows = self.run(self.store.fetch("SELECT key, version, state FROM skald_marks WHERE name = :g", g=self.name))
        return {row["key"]: (row["version"], row["state"]) for row in rows}


def check_against_model(run: Run[Any], store: Store, examples: int, shrink: bool) -> None:
    """Runs random histories against an open store; raises with one that disagrees.

    ``shrink`` looks for the shortest such one, which takes minutes.
    """

    class Machine(StoreMachine):
        def __init__(self) -> None:
            super().__init__(run, store)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            phases=[Phase.generate] + [Phase.shrink] * shrink,
            suppress_health_check=[
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
                HealthCheck.filter_too_much,
            ],
        ),
    )
