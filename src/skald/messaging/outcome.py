"""PURE. What becomes of one message at one handler, and of a run of messages: data and decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from skald.errors import UnreadableMessage
from skald.message import Record
from skald.messaging.definition import Handler
from skald.messaging.processes import ProcessNotStarted
from skald.retry import rule_for
from skald.unit import CursorMove, Delivery, DeliveryState, Mark, MarkKind, Reply, Resolve, Unit, WorkflowWrites

NOT_YET = 1_000_000
"""Microseconds after which is looked again whether a process has started."""
MAX_ERROR = 2_000
"""Characters of an error's text that are stored."""


class ProcessEnded(Exception):
    """Stands for an attempt that ended with its process."""

    def __init__(self) -> None:
        super().__init__("the process ended while handling it")


class Done(msgspec.Struct, frozen=True, gc=False):
    """Handled: what is to be published with it, and remembered."""

    events: tuple[Record, ...] = ()
    messages: tuple[Record, ...] = ()
    marks: tuple[Mark, ...] = ()
    timeouts: tuple[Delivery, ...] = ()
    """Those that are set."""
    cancelled: tuple[Resolve, ...] = ()
    """Those that do not come any more."""
    replies: tuple[Reply, ...] = ()
    """To calls of workflows."""


class Taken(msgspec.Struct, frozen=True, gc=False):
    """Not finished: responsibility is recorded as a delivery."""

    state: DeliveryState
    attempts: int = 0
    due: int = 0
    error: str | None = None
    events: tuple[Record, ...] = ()
    """What is published with it."""
    marks: tuple[Mark, ...] = ()
    """What it depends on."""


Outcome = Done | Taken
NOTHING = Done()
WAITING = Taken(DeliveryState.WAITING)


class Again(msgspec.Struct, frozen=True):
    """Try at once."""


class Exhausted(msgspec.Struct, frozen=True):
    """No attempt is left, and the handler names a function that decides what happens instead of parking."""


def after_failure(handler: Handler, error: BaseException, attempts: int, now: int) -> Again | Exhausted | Taken:
    """What to do when so many attempts have failed, the last one with ``error``."""
    text = describe(error)
    if isinstance(error, UnreadableMessage):
        return Taken(DeliveryState.PARKED, attempts, now, text)
    if isinstance(error, ProcessNotStarted):
        return Taken(DeliveryState.DELAYED, attempts - 1, max(now + NOT_YET, error.due), text)
    delay = rule_for(handler.retry, error).after(attempts)
    if delay == 0:
        return Again()
    if delay is not None:
        return Taken(DeliveryState.DELAYED, attempts, now + round(delay * 1e6), text)
    if handler.exhausted is not None:
        return Exhausted()
    return Taken(DeliveryState.PARKED, attempts, now, text)


def describe(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        # An error whose own text fails is still an error of its handler, and not ours.
        text = type(error).__name__
    # Errors come from anywhere: what the database cannot store (NUL, lone surrogates) must not stop the parking.
    return text.encode("utf-8", "replace").decode().replace("\0", "\\0")[:MAX_ERROR]


ENDED = ProcessEnded.__name__
"""The error of a queue's delivery whose last attempt ended with its process, until that has been decided on."""
SUSPICIOUS = f"{ENDED}%"
"""The pattern of this error, before and after."""
HANDED_OVER = "HandedOver: it was cancelled, because its process gave up the lane"
"""The error of a delivery whose last attempt does not count, and has no known outcome."""


Place = tuple[MarkKind, str, str]
"""Of a mark: kind, name and key."""


class Remembered(msgspec.Struct, frozen=True, gc=False):
    """A mark as it stands; version 0 for one that does not."""

    version: int = 0
    state: str = ""
    payload: bytes = b""


class Ledger(msgspec.Struct):
    """What a stretch knows of marks: as they were read before it, and which of its items may have written them since.

    A hint: what it says is compared when it is written. It must only not say the same wrong thing twice.
    """

    read: dict[Place, Remembered] = msgspec.field(default_factory=dict)
    written: dict[Place, list[Item]] = msgspec.field(default_factory=dict)

    def find(self, place: Place) -> Remembered | None:
        for item in reversed(self.written.get(place, ())):
            for mark in item.outcome.marks if item.outcome is not None else ():
                if mark.place == place:
                    return Remembered(mark.expected + 1, mark.state, mark.payload)
        return self.read.get(place)

    def supposes(self, place: Place) -> bool:
        """Whether what is found there may be something that is not written yet."""
        return place in self.written

    def settled(self) -> None:
        """What was written is committed, or was dropped: it is read again."""
        for place in self.written:
            self.read.pop(place, None)
        self.written.clear()

    def doubt(self) -> None:
        """Something that was read is not so any more."""
        self.read.clear()
        self.written.clear()


class Item(msgspec.Struct):
    """One message at one handler, on its way through a run."""

    record: Record
    handler: Handler
    lane: int
    outcome: Outcome | None = None
    attempts: int = 0
    unknown: bool = False
    """An earlier attempt may have been begun, and nobody knows how it ended."""
    rescued: bool = False
    """``exhausted=`` has had its chance."""
    ledger: Ledger | None = None
    blocked: set[tuple[str, str]] | None = None
    """What its lane has not finished, as long as it is in a stretch."""
    ran: Done | None = None
    """What its handler did without a transaction, and what could not be written because a mark had moved."""


class LaneState(msgspec.Struct):
    """An owned lane as its owner knows it. ``position``, ``id`` and ``version`` are what is committed."""

    group: str
    origin: str
    lane: int
    owner: str
    position: int
    id: str | None
    version: int
    takeovers: int = 0
    scanned: int = 0
    scanned_id: str | None = None
    """Read up to here; everything between ``position`` and this was not for this lane."""
    blocked: set[tuple[str, str]] = msgspec.field(default_factory=set)
    """(handler, key) whose messages have to wait."""
    suspects: int = 0
    """What may have been begun before, by an owner that died or in a run that was dropped, is within so many messages
    of the log: from the lane's own next one on, because it was begun in one stretch."""
    counted: bool = False
    """That one has been met."""

    def doubt(self, begun: int) -> None:
        if begun:
            self.suspects, self.counted = max(self.suspects, begun), False

    def passed(self, records: Sequence[Record], own: int | None) -> None:
        """Of a stretch of the log all is handled; ``own`` is the position of the lane's first message there."""
        if self.suspects and (self.counted or own is not None):
            since = 0 if self.counted or own is None else own
            self.suspects = max(0, self.suspects - sum(record.position >= since for record in records))
            self.counted = self.suspects > 0

    def move(self, record: Record) -> CursorMove:
        return CursorMove(
            self.group, self.origin, self.lane, self.owner, self.position, self.version, record.position, record.id
        )


def delivery(lane: LaneState, item: Item, taken: Taken) -> Delivery:
    return Delivery(
        group=lane.group,
        handler=item.handler.name,
        origin=lane.origin,
        lane=lane.lane,
        state=taken.state,
        record=item.record,
        attempts=taken.attempts,
        due=taken.due,
        error=taken.error,
    )


def run_unit(lane: LaneState, items: Iterable[Item], last: Record) -> Unit:
    """The unit of a contiguous run of one lane: all its effects, and its cursor moved to the run's last message."""
    events: list[Record] = []
    messages: list[Record] = []
    deliveries: list[Delivery] = []
    marks: list[Mark] = []
    resolves: list[Resolve] = []
    replies: list[Reply] = []
    for item in items:
        outcome = item.outcome
        if isinstance(outcome, Done):
            events += outcome.events
            messages += outcome.messages
            if outcome.replies:
                replies += outcome.replies
            if outcome.marks:
                marks += outcome.marks
                for cancelled in outcome.cancelled:
                    # One that was set in this unit is not stored yet.
                    deliveries = [one for one in deliveries if not _is_for(cancelled, one)]
                    resolves.append(cancelled)
                deliveries += outcome.timeouts
        elif outcome is not None:
            deliveries.append(delivery(lane, item, outcome))
            if outcome.events:
                events += outcome.events
            if outcome.marks:
                marks += outcome.marks
    return Unit(
        events=tuple(events),
        messages=tuple(messages),
        deliveries=tuple(deliveries),
        resolves=tuple(resolves),
        marks=merged(marks) if marks else (),
        workflows=WorkflowWrites(replies=tuple(replies)) if replies else None,
        fence=lane.owner,
        cursor=lane.move(last),
    )


def by_lane(lanes: dict[int, LaneState], items: Iterable[Item]) -> list[tuple[LaneState, list[Item]]]:
    found: dict[int, list[Item]] = {}
    for item in items:
        found.setdefault(item.lane, []).append(item)
    return [(lanes[number], own) for number, own in found.items()]


def share_marks(units: Sequence[Unit]) -> bool:
    """Messages of several lanes may be for one process."""
    places = [mark.place for unit in units for mark in unit.marks]
    return len(units) > 1 and len(set(places)) < len(places)


def _is_for(resolve: Resolve, delivery: Delivery) -> bool:
    place = (delivery.group, delivery.handler, delivery.origin, delivery.record.position)
    return place == (resolve.group, resolve.handler, resolve.origin, resolve.position)


def release(items: Sequence[Item]) -> None:
    """What a handler has just parked, and a compensation of the same unit has cancelled, is due: it will be refused."""
    cancelled = {
        mark.place
        for item in items
        if isinstance(item.outcome, Done)
        for mark in item.outcome.marks
        if mark.kind is MarkKind.EFFECT and mark.expected == 0
    }
    for item in items:
        taken, place = item.outcome, (MarkKind.EFFECT, item.handler.name, item.record.key)
        if isinstance(taken, Taken) and taken.state is DeliveryState.PARKED and place in cancelled:
            item.outcome = msgspec.structs.replace(taken, state=DeliveryState.DELAYED)


def merged(marks: Iterable[Mark]) -> tuple[Mark, ...]:
    """One mark per place: of several that follow each other, the last one over the version of the first one.

    One that does not follow was decided on something else: it stays double, and so its unit is rejected.
    """
    found: dict[Place, tuple[int, Mark]] = {}
    double: list[Mark] = []
    for mark in marks:
        first, last = found.get(mark.place, (mark.expected, None))
        if last is None or mark.expected == last.expected + 1:
            found[mark.place] = first, mark
        else:
            double.append(mark)
    return (*(msgspec.structs.replace(mark, expected=first) for first, mark in found.values()), *double)


def resolve_unit(owner: str, old: Delivery, outcome: Outcome) -> Unit:
    """The unit that ends a delivery, or writes down how far it has got."""
    gone = Resolve(old.group, old.handler, old.origin, old.record.position, old.owner)
    if isinstance(outcome, Done):
        return Unit(
            fence=owner, resolves=(gone, *outcome.cancelled), deliveries=outcome.timeouts, events=outcome.events,
            messages=outcome.messages, marks=outcome.marks,
            workflows=WorkflowWrites(replies=outcome.replies) if outcome.replies else None,
        )  # fmt: skip
    changed = msgspec.structs.replace(
        old, state=outcome.state, attempts=outcome.attempts, due=outcome.due, error=outcome.error, owner=None
    )
    return Unit(fence=owner, resolves=(gone,), deliveries=(changed,), events=outcome.events, marks=outcome.marks)


def cut(items: Sequence[Item]) -> int:
    """How many items from the front can run as one segment: those without a transaction at once, then the others.

    A handler without a transaction must not run before one with a transaction that has an earlier message of its key.
    The handlers of one message stay together, because the cursor passes it with the first of them.
    """
    held: set[str] = set()
    start = 0
    transactional = False
    for index, item in enumerate(items):
        record = item.record
        if record.position != items[start].record.position:
            if transactional:
                held.add(items[start].record.key)
            start, transactional = index, False
        if item.handler.transaction is not None:
            transactional = True
        elif record.key in held:
            return start
    return len(items)
