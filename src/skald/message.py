"""Messages: what a service tells others. Frozen, typed, and without behaviour.

An ``Event`` is a fact that carries the state others need; a ``Notification`` is a bare event whose reader fetches the
details; a ``Command`` asks one service to do something. Each class has a wire name, a version and a key field:

    class OrderPlaced(Event, key="order_id"):
        order_id: str
        total: int

pydantic models and dataclasses take part through ``@event(key=…)`` and ``@command(key=…)``.

A ``Record`` is a message as it stands in a log: encoded, with its envelope. Everything in it is fixed when it is
appended and never computed again, so that a later change of the code cannot move an old message to another topic,
key or lane.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, dataclass_transform

import msgspec

from skald.clock import to_rfc3339

Kind = Literal["event", "notification", "command"]
T = TypeVar("T", bound=type)
if TYPE_CHECKING:
    R = TypeVar("R", default=Any)  # at run time typing knows defaults from Python 3.13 on
else:
    R = TypeVar("R")

SLOTS = 256
MAX_KEY = 512
"""Characters."""


class MessageType(msgspec.Struct, frozen=True):
    """What a class declares about its messages."""

    cls: type
    name: str
    version: int
    key: str | None
    kind: Kind


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class _MessageMeta(msgspec.StructMeta):
    """Takes ``key=``, ``name=`` and ``version=`` out of the class line before msgspec sees it."""

    def __new__(
        mcls,
        cls_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        key: str | None = None,
        name: str | None = None,
        version: int = 1,
        **config: Any,
    ) -> type:
        config.setdefault("frozen", True)
        cls = super().__new__(mcls, cls_name, bases, namespace, **config)
        kind = next((b.__kind__ for b in bases if hasattr(b, "__kind__")), None)
        if kind is not None:
            _declare(cls, name or cls_name, version, key, kind, getattr(cls, "__struct_fields__", ()))
        return cls


def _declare(cls: type, name: str, version: int, key: str | None, kind: Kind, fields: tuple[str, ...]) -> None:
    inherited = getattr(cls, "__message__", None)
    key = key or (inherited.key if inherited else None)
    if key is not None and key not in fields:
        raise TypeError(f"{cls.__name__}: key={key!r} is not one of its fields ({', '.join(fields)})")
    if version < 1:
        raise TypeError(f"{cls.__name__}: version={version} must be at least 1")
    cls.__message__ = MessageType(cls, name, version, key, kind)  # type: ignore[attr-defined]


class Event(msgspec.Struct, metaclass=_MessageMeta, frozen=True):
    """A fact, with the state that its readers need (event-carried state transfer)."""


class Notification(Event):
    """A bare fact: something changed, and whoever cares fetches the details by the key."""


class Command(msgspec.Struct, Generic[R], metaclass=_MessageMeta, frozen=True):
    """A request that exactly one service handles. ``Command[InventoryReserved]``: what a workflow that calls it gets;
    anything else that the handler answers is a rejection."""


# Set after the classes exist, so that only their subclasses are declared as messages.
for _base, _kind in ((Event, "event"), (Notification, "notification"), (Command, "command")):
    setattr(_base, "__kind__", _kind)  # noqa: B010 (msgspec's classes declare no such attribute)

Message = Any
"""An instance of an ``Event`` or ``Command``, or of a class declared with ``@event`` or ``@command``."""


def _field_names(cls: type) -> tuple[str, ...]:
    names = getattr(cls, "model_fields", getattr(cls, "__dataclass_fields__", None))
    if names is None:
        raise TypeError(
            f"{cls.__name__} is neither a dataclass nor a pydantic model: subclass Event or Command instead"
        )
    return tuple(names)


def _decorator(kind: Kind, key: str | None, name: str | None, version: int) -> Callable[[T], T]:
    def declare(cls: T) -> T:
        _declare(cls, name or cls.__name__, version, key, kind, _field_names(cls))
        return cls

    return declare


def event(*, key: str | None = None, name: str | None = None, version: int = 1) -> Callable[[T], T]:
    """Declares a dataclass or a pydantic model as an event."""
    return _decorator("event", key, name, version)


def notification(*, key: str | None = None, name: str | None = None, version: int = 1) -> Callable[[T], T]:
    """Declares a dataclass or a pydantic model as a bare notification."""
    return _decorator("notification", key, name, version)


def command(*, key: str | None = None, name: str | None = None, version: int = 1) -> Callable[[T], T]:
    """Declares a dataclass or a pydantic model as a command."""
    return _decorator("command", key, name, version)


def message_type(cls: type) -> MessageType:
    """The declaration of a message class; a class that is none gets a ``TypeError`` that says how to declare it."""
    # From the class's own dict: a subclass of a declared class is not declared by inheritance unless it says so.
    found: MessageType | None = cls.__dict__.get("__message__")
    if found is None:
        raise TypeError(
            f"{getattr(cls, '__name__', cls)!s} is not a message: subclass Event, Notification or Command, "
            "or decorate a dataclass or pydantic model with @event or @command"
        )
    return found


class Record(msgspec.Struct, frozen=True, gc=False):
    """A message in a log. The fields stand in the order of the columns that every reader selects.

    ``position`` is 0 until the store has drawn one. ``topic`` and ``key`` are the columns ``aggregatetype`` and
    ``aggregateid`` (the names that Debezium's outbox router expects). Times are microseconds since 1970.
    """

    position: int
    id: str
    topic: str
    key: str
    slot: int
    type: str
    version: int
    time: int
    correlation_id: str
    causation_id: str | None
    traceparent: str | None
    payload: bytes | None
    stream: str | None = None
    stream_version: int | None = None
    priority: int = 0
    delay: int = 0


class Envelope(msgspec.Struct, frozen=True):
    """What a handler may ask for beside the message: its CloudEvents 1.0 attributes."""

    record: Record
    source: str

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def position(self) -> int:
        return self.record.position

    @property
    def correlation_id(self) -> str:
        return self.record.correlation_id

    @property
    def causation_id(self) -> str | None:
        return self.record.causation_id

    def attributes(self) -> dict[str, str]:
        """CloudEvents attributes, with the extensions correlation, partitioning, sequence and tracing."""
        r = self.record
        attributes = {
            "specversion": "1.0",
            "id": r.id,
            "source": self.source,
            "type": r.type,
            "subject": r.stream or r.key,
            "time": to_rfc3339(r.time),
            "datacontenttype": "application/json",
            "dataschema": f"{r.type}/{r.version}",
            "correlationid": r.correlation_id,
            "partitionkey": r.key,
            "sequence": f"{r.position:020d}",
        }
        if r.causation_id:
            attributes["causationid"] = r.causation_id
        if r.traceparent:
            attributes["traceparent"] = r.traceparent
        return attributes


def is_key(text: str) -> bool:
    """Whether every store can keep it."""
    if not 0 < len(text) <= MAX_KEY or "\0" in text:
        return False
    return text.isprintable() or not any("\ud800" <= c <= "\udfff" for c in text)


@lru_cache(maxsize=8_192)
def slot_of(key: str) -> int:
    """The slot (0–255) of a key: the first byte of its SHA-256, which PostgreSQL can compute as well."""
    return sha256(key.encode()).digest()[0]


class _Ids:
    """UUIDv7 (RFC 9562) with a 12-bit counter, so that ids of one process are ordered within a millisecond.

    When the counter runs out, or the wall clock steps back, the time part runs ahead of the clock instead of repeating
    itself (RFC 9562, section 6.2). The random parts are drawn and formatted 256 at a time, anew in a forked child.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        self._milliseconds = -1
        self._head = ""
        self._tails: list[str] = []
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock = threading.Lock()
        self._tails = []

    def __call__(self) -> str:
        with self._lock:
            now = (time.time_ns() // 1_000_000) << 12
            self._last = last = now if now > self._last else self._last + 1
            if last >> 12 != self._milliseconds:
                self._milliseconds = last >> 12
                text = f"{self._milliseconds:012x}"
                self._head = f"{text[:8]}-{text[8:]}-7"
            if not self._tails:
                self._tails = _random_tails()
            return f"{self._head}{last & 0xFFF:03x}{self._tails.pop()}"


def _random_tails() -> list[str]:
    noise = os.urandom(2048).hex()
    # The first digit carries the variant, 10 in its two high bits.
    return [
        f"-{'89ab'[int(noise[i], 16) & 3]}{noise[i + 1 : i + 4]}-{noise[i + 4 : i + 16]}" for i in range(0, 4096, 16)
    ]


new_id: Callable[[], str] = _Ids()
"""A new UUIDv7 as text."""


_TRACE_ID = re.compile("(?!0{32})[0-9a-f]{32}")
_TRACEPARENT = re.compile("(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def root_traceparent(id: str) -> str:
    """W3C traceparent of a message that nothing caused: the trace is named after its id."""
    trace = id.replace("-", "")
    return f"00-{trace}-{trace[16:]}-01"


def child_traceparent(parent: str | None, correlation_id: str, id: str) -> str:
    """W3C traceparent of a message: the trace of its cause, or one named after its correlation id."""
    span = id.replace("-", "")[16:]
    if parent is not None and _TRACEPARENT.fullmatch(parent):
        return f"{parent[:36]}{span}{parent[52:]}"
    return f"00-{_trace_of(correlation_id)}-{span}-01"


@lru_cache(1024)
def _trace_of(correlation_id: str) -> str:
    trace = correlation_id.replace("-", "")
    return trace if _TRACE_ID.fullmatch(trace) else sha256(correlation_id.encode()).hexdigest()[:32]
