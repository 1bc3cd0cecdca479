"""PURE. What a handler's signature says: what it takes, what it needs, and what it may publish.

The first parameter is the message; its annotation (a message class, or a union of them) is what the handler
subscribes to unless ``on`` names the types. Every further parameter is injected by its annotation: ``Transaction``,
``Attempt``, ``Envelope``, or whatever the service provides. The return annotation is the contract of what it
publishes; the message graph is derived from it.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import Any, Union, get_args, get_origin

import msgspec

from skald.errors import ConfigurationError
from skald.message import Envelope, MessageType, message_type
from skald.retry import Policy, Retry

_COLLECTIONS = (list, tuple, set, frozenset, Iterable, Sequence, AsyncIterable)


class Attempt(msgspec.Struct, frozen=True):
    """Which try this is. Ask for it as a parameter of a handler that calls the world outside."""

    number: int
    """1 for the first."""
    key: str
    """The idempotency key: the same for every attempt of this handler at this message, and for no other."""
    unknown: bool = False
    """An earlier attempt ended without a known outcome (a crash, a timeout): look up before repeating."""


class TransactionMarker:
    """The base of the class that users annotate; lets this pure module recognise it without importing it."""


class Queue(msgspec.Struct, frozen=True):
    """How a work queue is worked on in one process."""

    workers: int = 4


class Handler(msgspec.Struct, frozen=True):
    name: str
    function: Callable[..., Any]
    types: tuple[MessageType, ...]
    returns: tuple[MessageType, ...]
    message_parameter: str
    injected: dict[str, type]
    """Parameter name to the annotated type, the transaction excluded."""
    transaction: str | None
    """The name of the parameter that takes the transaction."""
    is_async: bool
    retry: Policy
    exhausted: Callable[..., Any] | None
    timeout: float
    queue: Queue | None
    filename: str
    line: int


def define(
    function: Callable[..., Any],
    *,
    on: Sequence[type] = (),
    name: str | None = None,
    retry: Policy | None = None,
    exhausted: Callable[..., Any] | None = None,
    timeout: float = 30.0,
    queue: Queue | None = None,
) -> Handler:
    """Reads a handler from its function; every mistake is an error that names the function's line."""
    code = inspect.unwrap(function).__code__
    where = f"{code.co_filename}:{code.co_firstlineno}: {function.__name__}"
    parameters = list(inspect.signature(function).parameters.values())
    hints = _hints(function, where)
    if not parameters:
        raise ConfigurationError(f"{where}: a handler takes the message as its first parameter")
    first = parameters[0].name
    wanted = list(on) or _members(hints.get(first))
    if not wanted:
        raise ConfigurationError(f"{where}: annotate {first!r} with a message class, or name the types in on(...)")
    transaction, injected = None, {}
    for parameter in parameters[1:]:
        hint = hints.get(parameter.name)
        if isinstance(hint, type) and issubclass(hint, TransactionMarker):
            transaction = parameter.name
        elif isinstance(hint, type):
            injected[parameter.name] = hint
        elif parameter.default is parameter.empty:
            raise ConfigurationError(
                f"{where}: parameter {parameter.name!r} needs an annotation that says what to inject"
            )
    if exhausted is not None:
        hints_exhausted = _hints(exhausted, where)
        returned = _published(hints_exhausted.get("return"), where)
    else:
        returned = ()
    return Handler(
        name=name or function.__name__,
        function=function,
        types=tuple(_declared(cls, where) for cls in wanted),
        returns=tuple(dict.fromkeys(_published(hints.get("return"), where) + returned)),
        message_parameter=first,
        injected=injected,
        transaction=transaction,
        is_async=inspect.iscoroutinefunction(function),
        retry=retry if retry is not None else Retry(),
        exhausted=exhausted,
        timeout=timeout,
        queue=queue,
        filename=code.co_filename,
        line=code.co_firstlineno,
    )


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError as error:
        raise ConfigurationError(
            f"{where}: the annotation {error.name!r} cannot be resolved; import it outside of TYPE_CHECKING"
        ) from error


def _declared(cls: type, where: str) -> MessageType:
    try:
        return message_type(cls)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _members(hint: Any) -> list[type]:
    """The classes of a plain annotation or of a union, without ``None``."""
    if get_origin(hint) in (Union, types.UnionType):
        return [cls for member in get_args(hint) for cls in _members(member)]
    return [hint] if isinstance(hint, type) and hint is not type(None) else []


def _published(hint: Any, where: str) -> tuple[MessageType, ...]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType) or (isinstance(origin, type) and issubclass(origin, _COLLECTIONS)):
        return tuple(found for member in get_args(hint) for found in _published(member, where))
    if hint is None or hint is type(None) or hint is Any or hint is Ellipsis:
        return ()
    if not isinstance(hint, type):
        raise ConfigurationError(f"{where}: returns {hint}, which is no message class, union or list of them")
    return (_declared(hint, where),)


def injectable(cls: type) -> bool:
    """Whether the runtime itself supplies this type."""
    return cls in (Attempt, Envelope)
