"""PURE. What becomes of one message at one handler, and of a run of messages: data and decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from skald.errors import UnreadableMessage
from skald.message import Record
from skald.messaging.definition import Handler
from skald.retry import rule_for
from skald.unit import CursorMove, Delivery, DeliveryState, Resolve, Unit

MAX_ERROR = 2_000
"""Characters of an error's text that are stored."""


class ProcessEnded(Exception):
    """Stands for an attempt that ended with its process."""

    def __init__(self) -> None:
        super().__init__("the process ended while handling it")


class Done(msgspec.Struct, frozen=True, gc=False):
    """Handled: what is to be published with it."""

    events: tuple[Record, ...] = ()
    messages: tuple[Record, ...] = ()


class Taken(msgspec.Struct, frozen=True, gc=False):
    """Not finished: responsibility is recorded as a delivery."""

    state: DeliveryState
    attempts: int = 0
    due: int = 0
    error: str | None = None


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
    """So many of the next messages may have been begun before: by an owner that died, or in a run that was dropped."""

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
    for item in items:
        outcome = item.outcome
        if isinstance(outcome, Done):
            events += outcome.events
            messages += outcome.messages
        elif outcome is not None:
            deliveries.append(delivery(lane, item, outcome))
    return Unit(
        events=tuple(events),
        messages=tuple(messages),
        deliveries=tuple(deliveries),
        fence=lane.owner,
        cursor=lane.move(last),
    )


def resolve_unit(owner: str, old: Delivery, outcome: Outcome) -> Unit:
    """The unit that ends a delivery, or writes down how far it has got."""
    gone = Resolve(old.group, old.handler, old.origin, old.record.position, old.owner)
    if isinstance(outcome, Done):
        return Unit(fence=owner, resolves=(gone,), events=outcome.events, messages=outcome.messages)
    changed = msgspec.structs.replace(
        old, state=outcome.state, attempts=outcome.attempts, due=outcome.due, error=outcome.error, owner=None
    )
    return Unit(fence=owner, resolves=(gone,), deliveries=(changed,))


def cut(items: Sequence[Item]) -> int:
    """How many items from the front can run as one segment: those without a transaction at once, then the others.

    A handler without a transaction must not run before one with a transaction that has an earlier message of its key.
    """
    held: set[str] = set()
    for index, item in enumerate(items):
        if item.handler.transaction is not None:
            held.add(item.record.key)
        elif item.record.key in held:
            return index
    return len(items)
