"""Turns messages into records: topic, key, lane slot and trace are fixed here, once, at the sender."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

import msgspec

from skald.clock import Clock
from skald.codec import codec_for
from skald.errors import InvalidMessage, UndeclaredMessage
from skald.message import Message, Record, child_traceparent, message_type, new_id, slot_of
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
        self._service, self._topics, self._clock, self._max_body = service, topics, clock, max_body
        self._plans: dict[type, _Plan] = {}

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
        plan = self._plans.get(type(message)) or self._plan(type(message))
        payload = plan.encode(message)
        id = new_id()
        correlation: str = cause.correlation_id if cause else id
        if key is None:
            key = self._key(plan, message, cause, correlation)
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
            cause.id if cause else None,
            child_traceparent(cause.traceparent if cause else None, correlation, id),
            payload,
            stream,
            None,
            priority,
            round(delay * 1e6),
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
        drafts = [self.draft(m, cause, key=key, priority=priority, delay=delay) for m in messages]
        return Unit(
            events=tuple(record for is_fact, record in drafts if is_fact),
            messages=tuple(record for is_fact, record in drafts if not is_fact),
        )

    def append(
        self, stream: str, events: Iterable[Message], expected: int | None, tags: Iterable[Tag] = ()
    ) -> Unit:
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

    def _key(self, plan: _Plan, message: Message, cause: Cause | None, correlation: str) -> str:
        if plan.key is None:
            return (cause.key if cause else None) or correlation
        value = plan.key(message)
        key = value if type(value) is str else str(value)
        if not key or len(key) > 512:
            raise InvalidMessage(plan.name, str(plan.key_name), "the key must have 1 to 512 characters")
        return key

    def _plan(self, cls: type) -> _Plan:
        kind = message_type(cls)
        topic = self._topics.get(cls)
        if topic is None:
            raise UndeclaredMessage(
                f"{self._service} does not declare to publish {kind.name}: name it in Service({self._service!r}, "
                f"publishes=[{kind.name}]) or in the return annotation of a handler"
            )
        plan = _Plan(
            encode=codec_for(cls, self._max_body).encode,
            name=kind.name,
            version=kind.version,
            topic=topic,
            key=attrgetter(kind.key) if kind.key else None,
            key_name=kind.key,
            is_fact=kind.kind != "command",
        )
        self._plans[cls] = plan
        return plan
