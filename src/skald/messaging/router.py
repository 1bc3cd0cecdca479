"""PURE. Who publishes what to whom: the topology of the services of one application, checked before it starts.

An event belongs to exactly one service and goes to the topic named after it. A command goes to the command topic of
the one service that handles it (``payments.commands``), from whichever service declares to send it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from skald.errors import ConfigurationError
from skald.message import SLOTS, MessageType
from skald.messaging.definition import Handler


class Declaration(msgspec.Struct, frozen=True):
    """What the router needs to know of a service."""

    name: str
    handlers: tuple[Handler, ...]
    publishes: tuple[MessageType, ...]
    lanes: int


class Subscription(msgspec.Struct, frozen=True):
    """The message types that one service reads from one origin."""

    group: str
    origin: str
    lanes: int
    handlers: dict[str, tuple[Handler, ...]]
    """By wire name."""
    topics: frozenset[str]


class Topology(msgspec.Struct, frozen=True):
    topics: dict[type, str]
    owners: dict[str, tuple[str, ...]]
    """Wire name to the services that publish it."""
    subscriptions: dict[str, tuple[Subscription, ...]]
    """Service to what it reads."""


def lane_of(slot: int, lanes: int) -> int:
    return slot * lanes // SLOTS


def topology(declarations: Iterable[Declaration]) -> Topology:
    """Connects the services, or raises a ``ConfigurationError`` that names what does not fit and how to mend it."""
    services = {declaration.name: declaration for declaration in declarations}
    known = _wire_names(services)
    owners = {name: tuple(s.name for s in services.values() if known[name] in published(s)) for name in known}
    handled = {
        name: tuple(s.name for s in services.values() if any(known[name] in h.types for h in s.handlers))
        for name in known
    }
    topics = {kind.cls: _topic(kind, owners[name], handled[name]) for name, kind in known.items()}
    return Topology(topics, owners, {s.name: _subscriptions(s, owners, topics) for s in services.values()})


def published(service: Declaration) -> set[MessageType]:
    """Everything a service declares to publish: in ``publishes=`` and by the annotations of its handlers."""
    return set(service.publishes).union(*(handler.returns for handler in service.handlers))


def _wire_names(services: dict[str, Declaration]) -> dict[str, MessageType]:
    known: dict[str, MessageType] = {}
    for service in services.values():
        for kind in [*published(service), *(t for h in service.handlers for t in h.types)]:
            other = known.setdefault(kind.name, kind)
            if other.cls is not kind.cls:
                raise ConfigurationError(
                    f"two classes share the wire name {kind.name!r}: {_path(other.cls)} and {_path(kind.cls)}; "
                    "give one of them another with name="
                )
    return known


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _topic(kind: MessageType, owners: tuple[str, ...], handlers: tuple[str, ...]) -> str:
    if kind.kind == "command":
        if len(handlers) != 1:
            what = f"handled by {' and '.join(handlers)}" if handlers else "handled by no service of this application"
            raise ConfigurationError(f"command {kind.name} is {what}; exactly one service handles a command")
        return f"{handlers[0]}.commands"
    if not owners:
        raise ConfigurationError(
            f"{handlers[0]} handles {kind.name}, which no service publishes: declare it with "
            f"Service(..., publishes=[{kind.name}]) at its owner"
        )
    if len(owners) > 1:
        raise ConfigurationError(f"{kind.name} is published by {' and '.join(owners)}; an event has one owner")
    return owners[0]


def _subscriptions(
    service: Declaration, owners: dict[str, tuple[str, ...]], topics: dict[type, str]
) -> tuple[Subscription, ...]:
    by_origin: dict[str, dict[str, tuple[Handler, ...]]] = {}
    for handler in service.handlers:
        for kind in handler.types:
            for origin in owners[kind.name]:
                handlers = by_origin.setdefault(origin, {})
                handlers[kind.name] = (*handlers.get(kind.name, ()), handler)
    return tuple(
        Subscription(
            group=service.name,
            origin=origin,
            lanes=service.lanes,
            handlers=handlers,
            topics=frozenset(topics[kind.cls] for hs in handlers.values() for h in hs for kind in h.types),
        )
        for origin, handlers in by_origin.items()
    )
