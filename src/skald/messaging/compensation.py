"""PURE. Compensation without a coordinator: what a handler did for a key, and what that means for what comes next.

A handler that can be compensated acts once per key of its messages. What it did is an *effect*: a mark of the handler
and the key, written with what the handler itself wrote. A compensation undoes the effect once, whatever message asks
for it and however often. One that finds no effect has overtaken the handler, and leaves a tombstone: the message that
comes too late is refused, by name.

A handler may be in work at the moment in which the tombstone is written. Nobody waits for it: its unit is then
rejected, because the mark has moved. What it did outside cannot be taken back by a rollback, so its effect is recorded
after all, and the message that asked for the compensation, which the tombstone holds, is delivered once more.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Generic, TypeVar

import msgspec

from skald.message import Event, Record

T = TypeVar("T")


class Done(msgspec.Struct, Generic[T], frozen=True):
    """What the compensated handler did: a compensation asks for it as ``done: Done[PaymentProcessed]``, and is called
    only if the handler published such a message."""

    message: T
    """The first one of these types that it published."""
    id: str
    """The id of that message."""
    messages: tuple[T, ...]
    attempt: str
    """The idempotency key of the handler's attempts, by which somebody outside knows what it did."""


class Unknown(msgspec.Struct, frozen=True):
    """Whether the handler did it is not known: it was tried, and never finished. A compensation that takes ``done:
    Done[PaymentProcessed] | Unknown`` looks it up; one that does not is not called then."""

    attempt: str
    """The idempotency key of the handler's attempts."""


class CompensationFailed(Event, key="key"):
    """A compensation has no attempt left and is parked: a person has to look. Published by the service itself, in the
    commit that parks it; once more if it is redriven and fails again."""

    service: str
    handler: str
    compensates: str
    key: str
    error: str
    """The type of the error. Its text is in ``skald parked show``."""
    message_id: str
    """Of the message that asked for the compensation."""


class EffectState(StrEnum):
    DONE = "done"
    FAILED = "failed"
    """It gave up, and ``exhausted=`` has decided; what was tried outside may have been done."""
    CANCELLED = "cancelled"
    """A tombstone: the compensation came first."""
    UNKNOWN = "unknown"
    """A tombstone, for something that had been tried: the compensation has yet to look."""
    UNDONE = "undone"


class Happening(StrEnum):
    FINISHED = "the handler finished"
    GAVE_UP = "the handler gave up"
    FINISHED_LATE = "the handler finished behind the tombstone"
    TRIED = "the handler turns out to have been tried"
    OVERTOOK = "the compensation found nothing"
    COMPENSATED = "the compensation finished"


TRANSITIONS: dict[tuple[EffectState | None, Happening], EffectState] = {
    (None, Happening.FINISHED): EffectState.DONE,
    (None, Happening.GAVE_UP): EffectState.FAILED,
    (None, Happening.OVERTOOK): EffectState.CANCELLED,
    (None, Happening.TRIED): EffectState.UNKNOWN,
    (EffectState.DONE, Happening.COMPENSATED): EffectState.UNDONE,
    (EffectState.FAILED, Happening.COMPENSATED): EffectState.UNDONE,
    (EffectState.CANCELLED, Happening.TRIED): EffectState.UNKNOWN,
    (EffectState.CANCELLED, Happening.FINISHED_LATE): EffectState.DONE,
    (EffectState.UNKNOWN, Happening.FINISHED_LATE): EffectState.DONE,
    (EffectState.UNKNOWN, Happening.COMPENSATED): EffectState.UNDONE,
    (EffectState.UNDONE, Happening.FINISHED_LATE): EffectState.DONE,
}
"""The life of an effect; ``None`` before it. Everything else leaves it as it is."""


class Published(msgspec.Struct, frozen=True):
    """A message that the handler published."""

    id: str
    type: str
    body: msgspec.Raw


class Trigger(msgspec.Struct, frozen=True):
    """The message that asked for the compensation, and where it came from."""

    handler: str
    origin: str
    record: Record


class Effect(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the mark of an effect holds beside its state."""

    of: str | None = None
    """The id of the message that was handled or tried."""
    attempt: str = ""
    """The idempotency key of its attempts."""
    published: tuple[Published, ...] = ()
    by: Trigger | None = None
    """Who asked for the compensation."""
    refused: tuple[str, ...] = ()
    """Ids of messages that came too late, or once more."""
    finished: bool = False
    """What the handler did is written: nothing of it comes late."""


MAX_REFUSED = 20
"""Ids that an effect holds."""


def effect_of(payload: bytes) -> Effect:
    return msgspec.json.decode(payload, type=Effect) if payload else Effect()


def after(state: str, happening: Happening) -> EffectState:
    """The next state; ``""`` for an effect that is not there. Raises ``ValueError`` for what cannot happen."""
    known = EffectState(state) if state else None
    following = TRANSITIONS.get((known, happening))
    if following is None:
        raise ValueError(f"an effect that is {known or 'not there'} cannot go on: {happening.value}")
    return following


def finished_late(state: str, effect: Effect, id: str) -> bool:
    """Whether a handler that has run, and whose effect could not be written, has to be compensated now. Otherwise what
    it did is the effect that is there already."""
    if state == EffectState.UNDONE:
        return effect.of == id and not effect.finished
    return state in (EffectState.CANCELLED, EffectState.UNKNOWN)


def refusing(effect: Effect, id: str) -> Effect:
    if id in effect.refused or len(effect.refused) >= MAX_REFUSED:
        return effect
    return msgspec.structs.replace(effect, refused=(*effect.refused, id))


def published(records: tuple[Record, ...]) -> tuple[Published, ...]:
    return tuple(Published(record.id, record.type, msgspec.Raw(record.payload or b"null")) for record in records)
