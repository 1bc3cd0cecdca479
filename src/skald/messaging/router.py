"""PURE. Who publishes what to whom: the topology of the services of one application, checked before it starts.

An event belongs to exactly one service and goes to the topic named after it. A command goes to the command topic of
the one service that handles it (``payments.commands``), from whichever service declares to send it; one that workflows
call to a topic beside it (``payments.calls``), and their service reads what the handler answers. The library's own
events are published by every service that compensates (``CompensationFailed``) or handles commands (``Handled``).
"""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType

import msgspec

from skald.errors import ConfigurationError
from skald.message import SLOTS, MessageType, message_type
from skald.messaging.calls import TOPIC as CALLS
from skald.messaging.calls import Handled
from skald.messaging.compensation import CompensationFailed
from skald.messaging.definition import Handler, define
from skald.workflows.calling import Route, results

LIBRARY = "skald"
"""The topic of the library's own events."""
_OWN = (CompensationFailed, Handled)


def answers(event: Handled) -> None:
    """Stands for what takes the answers to the calls of a service, and is not called (see ``consumer``)."""


ANSWERS = msgspec.structs.replace(define(answers, name="skald.answers"), answers=True)


class Declaration(msgspec.Struct, frozen=True):
    """What the router needs to know of a service."""

    name: str
    handlers: tuple[Handler, ...]
    publishes: tuple[MessageType, ...]
    lanes: int
    calls: tuple[MessageType, ...] = ()
    """What its workflows call."""


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
    calls: dict[str, dict[type, Route]]
    """Service to what its workflows call."""


def lane_of(slot: int, lanes: int) -> int:
    return slot * lanes // SLOTS


def topology(declarations: Iterable[Declaration]) -> Topology:
    """Connects the services, or raises a ``ConfigurationError`` that names what does not fit and how to mend it."""
    services = {declaration.name: declaration for declaration in declarations}
    called = dict.fromkeys(kind for service in services.values() for kind in service.calls)
    published = {service.name: published_by(service) for service in services.values()}
    known = _wire_names(services, published)
    owners = {name: tuple(s for s in services if kind in published[s]) for name, kind in known.items()}
    handled = {
        name: tuple(s.name for s in services.values() if any(known[name] in h.types for h in s.handlers))
        for name in known
    }
    topics = {kind.cls: _topic(kind, owners[name], handled[name]) for name, kind in known.items()}
    handlers = {kind: _handler(kind, services[handled[kind.name][0]]) for kind in called}
    routes = {s.name: {k.cls: _route(handled[k.name][0], handlers[k]) for k in s.calls} for s in services.values()}
    found = {s.name: _subscriptions(s, owners, topics, routes[s.name]) for s in services.values()}
    return Topology(topics, owners, found, routes)


def published_by(service: Declaration) -> set[MessageType]:
    """Everything a service may publish: by ``publishes=`` and ``calls=``, and by the annotations of its handlers."""
    # Whoever handles commands may be called, by a program that is newer than this one, too.
    answers = any(kind.kind == "command" for handler in service.handlers for kind in handler.types)
    own = (message_type(Handled),) if answers else ()
    return set(service.publishes).union(service.calls, own, *(handler.returns for handler in service.handlers))


def _handler(command: MessageType, service: Declaration) -> Handler:
    """The one that answers a command that is called."""
    handlers = [handler for handler in service.handlers if command in handler.types]
    if len(handlers) > 1:
        names = " and ".join(handler.name for handler in handlers)
        raise ConfigurationError(
            f"command {command.name} is called, and {service.name} handles it in {names}: one handler answers it"
        )
    [handler] = handlers
    wanted = results(command.cls)
    if wanted == (NoneType,) and not handler.is_silent:
        raise ConfigurationError(
            f"{handler.filename}:{handler.line}: {handler.name} answers {command.name} with an event, which "
            "rejects each call of it, because its class says Command[None]: name the event there, or say Command alone"
        )
    for cls in wanted or ():
        if cls is not NoneType and message_type(cls) not in handler.returns:
            raise ConfigurationError(
                f"{handler.filename}:{handler.line}: {handler.name} answers {command.name}, whose class says "
                f"Command[{cls.__name__}], and is not annotated to return that"
            )
    return handler


def _route(participant: str, handler: Handler) -> Route:
    replies = {kind.name: kind.cls for kind in handler.returns if kind.kind != "command"}
    return Route(participant, f"{participant}{CALLS}", {**replies, message_type(Handled).name: Handled})


def _wire_names(services: dict[str, Declaration], published: dict[str, set[MessageType]]) -> dict[str, MessageType]:
    known: dict[str, MessageType] = {}
    for service in services.values():
        for kind in [*published[service.name], *(t for h in service.handlers for t in h.types)]:
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
    if kind.cls in _OWN:
        return LIBRARY
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
    service: Declaration,
    owners: dict[str, tuple[str, ...]],
    topics: dict[type, str],
    routes: dict[type, Route],
) -> tuple[Subscription, ...]:
    by_origin: dict[str, dict[str, tuple[Handler, ...]]] = {}
    read: dict[str, set[str]] = {}
    for handler in service.handlers:
        for kind in handler.types:
            for origin in owners[kind.name]:
                handlers = by_origin.setdefault(origin, {})
                handlers[kind.name] = (*handlers.get(kind.name, ()), handler)
                read.setdefault(origin, set()).add(topics[kind.cls])
                if kind.kind == "command":
                    read[origin].add(f"{service.name}{CALLS}")
    for route in routes.values():
        handlers = by_origin.setdefault(route.service, {})
        for name, cls in route.replies.items():
            if ANSWERS not in (known := handlers.get(name, ())):
                handlers[name] = (*known, ANSWERS)
            read.setdefault(route.service, set()).add(topics[cls])
    return tuple(
        Subscription(
            group=service.name,
            origin=origin,
            lanes=service.lanes,
            handlers=handlers,
            topics=frozenset(read[origin]),
        )
        for origin, handlers in by_origin.items()
    )
