"""Turns messages into records: topic, key, lane slot and trace are fixed here, once, at the sender."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

import msgspec

from skald.clock import Clock
from skald.codec import codec_for
from skald.errors import InvalidMessage, UndeclaredMessage
from skald.message import MAX_KEY, Message, Record, child_traceparent, message_type, new_id, root_traceparent, slot_of
from skald.messaging.context import Cause, current_cause
from skald.unit import Append, Tag, Unit


class _Plan(msgspec.Struct, frozen=True):
    """What is the same for all messages of a class."""

    encode: Callable[[Any], bytes]
    name: str
    version: int
    topic: str
    key: Callable[[Any], Any] | None
    key_name: str | None
    is_fact: bool


class Publisher:
    """Drafts the records of one service. ``topics`` holds what it declares to publish, by class."""

    def __init__(self, service: str, topics: Mapping[type, str], clock: Clock, max_body: int = 1 << 20) -> None:
        self._service, self._topics, self._clock, self.max_body = service, topics, clock, max_body
        self._plans: dict[type, _Plan] = {}

    def now(self) -> int:
        """The time that its records carry."""
        return self._clock.now()

    def draft(
        self,
        message: Message,
        cause: Cause | None = None,
        *,
        key: str | None = None,
        stream: str | None = None,
        priority: int = 0,
        delay: float = 0,
    ) -> tuple[bool, Record]:
        """The record of a message, and whether it is a fact (an event) or a request (a command)."""
        plan = self._plans.get(message.__class__)
        if plan is None:
            plan = self._plan(message.__class__)
        payload = plan.encode(message)
        id = new_id()
        if key is None:
            key = plan.key(message) if plan.key is not None else (cause.key if cause is not None else None) or id
            # What stands in a field has been checked with the body; NUL is text in JSON, and none in PostgreSQL.
            if key.__class__ is not str or not 0 < len(key) <= MAX_KEY or "\0" in key:
                key = _checked_key(plan, key)
        else:
            key = _checked_key(plan, key)
        if cause is None:
            correlation, caused_by, trace = id, None, root_traceparent(id)
        else:
            correlation, caused_by = cause.correlation_id, cause.id
            trace = child_traceparent(cause.traceparent, correlation, id)
        return plan.is_fact, Record(
            0,
            id,
            plan.topic,
            key,
            slot_of(key),
            plan.name,
            plan.version,
            self._clock.now(),
            correlation,
            caused_by,
            trace,
            payload,
            stream,
            None,
            priority,
            round(delay * 1e6) if delay else 0,
        )

    def unit(
        self,
        messages: Iterable[Message],
        *,
        key: str | None = None,
        priority: int = 0,
        delay: float = 0,
    ) -> Unit:
        cause = current_cause.get()
        events: list[Record] = []
        requests: list[Record] = []
        for message in messages:
            is_fact, record = self.draft(message, cause, key=key, priority=priority, delay=delay)
            (events if is_fact else requests).append(record)
        return Unit(events=tuple(events), messages=tuple(requests))

    def append(self, stream: str, events: Iterable[Message], expected: int | None, tags: Iterable[Tag] = ()) -> Unit:
        cause = current_cause.get()
        records = []
        for event in events:
            is_fact, record = self.draft(event, cause, stream=stream)
            if not is_fact:
                raise InvalidMessage(record.type, "$", "a stream holds events; publish a command instead")
            records.append(record)
        if not records:
            raise ValueError(f"nothing to append to {stream!r}")
        return Unit(appends=(Append(stream, tuple(records), expected),), tags=tuple(tags))

    def _plan(self, cls: type) -> _Plan:
        kind = message_type(cls)
        topic = self._topics.get(cls)
        if topic is None:
            raise UndeclaredMessage(
                f"{self._service} does not declare to publish {kind.name}: name it in Service({self._service!r}, "
                f"publishes=[{kind.name}]) or in the return annotation of a handler"
            )
        plan = _Plan(
            encode=codec_for(cls, self.max_body).encode,
            name=kind.name,
            version=kind.version,
            topic=topic,
            key=attrgetter(kind.key) if kind.key else None,
            key_name=kind.key,
            is_fact=kind.kind != "command",
        )
        self._plans[cls] = plan
        return plan


def _checked_key(plan: _Plan, value: object) -> str:
    field = plan.key_name or "key"
    if value is None:
        raise InvalidMessage(plan.name, field, "the key must not be None")
    key = str(value)
    if not 0 < len(key) <= MAX_KEY:
        raise InvalidMessage(plan.name, field, f"the key must have 1 to {MAX_KEY} characters")
    if "\0" in key or (not key.isprintable() and any("\ud800" <= c <= "\udfff" for c in key)):
        raise InvalidMessage(plan.name, field, "the key must not hold NUL or lone surrogates")
    return key
