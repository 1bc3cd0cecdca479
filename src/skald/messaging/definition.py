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
from skald.messaging.compensation import CompensationFailed, Done, Unknown
from skald.messaging.processes import Role, check_start
from skald.retry import Policy, Retry
from skald.unit import MarkKind

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


class Keeping(msgspec.Struct, frozen=True):
    """What a handler remembers of keys."""

    once_by: str | None = None
    """The field whose value says which fact of its type it is; each is handled once."""
    compensated: bool = False
    """Another handler undoes what this one did."""
    undoes: str | None = None
    """The handler that this one compensates."""
    done: str | None = None
    """The parameter that takes what it did."""
    wanted: tuple[MessageType, ...] = ()
    """What must have been published for there to be something to undo; nothing for anything."""
    takes_unknown: bool = False
    takes_nothing: bool = False
    """It is called, with ``None``, where there is nothing to undo."""
    role: Role | None = None
    """What it is to a process."""


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
    remember: float = 365.0
    """Days for which it remembers what it keeps."""
    keeps: Keeping | None = None
    is_silent: bool = True
    """It may publish nothing."""
    answers: bool = False
    """It is the library's own, and takes the answers to what workflows have called."""


def define(
    function: Callable[..., Any],
    *,
    on: Sequence[type] = (),
    name: str | None = None,
    retry: Policy | None = None,
    exhausted: Callable[..., Any] | None = None,
    timeout: float = 30.0,
    queue: Queue | None = None,
    once_by: str | None = None,
    compensates: Handler | None = None,
    role: Role | None = None,
    remember: float = 365.0,
) -> Handler:
    """Reads a handler from its function; every mistake is an error that names the function's line."""
    code = inspect.unwrap(function).__code__
    where = f"{code.co_filename}:{code.co_firstlineno}: {function.__name__}"
    parameters = list(inspect.signature(function).parameters.values())
    hints = _hints(function, where)
    if role is not None:
        parameters = _without_state(parameters, hints, role, where)
    if not parameters:
        raise ConfigurationError(f"{where}: a handler takes the message as its first parameter")
    first = parameters[0].name
    wanted = list(on) or _members(hints.get(first))
    if not wanted:
        raise ConfigurationError(f"{where}: annotate {first!r} with a message class, or name the types in on(...)")
    transaction, injected, done = _injections(parameters[1:], hints, where)
    returned: tuple[MessageType, ...] = ()
    for other in (exhausted, role.not_found if role is not None else None):
        if callable(other):
            returned += _published(_hints(other, where).get("return"), where)
    if compensates is not None:
        returned = (*returned, message_type(CompensationFailed))
    handled = tuple(_declared(cls, where) for cls in wanted)
    return Handler(
        name=name or function.__name__,
        function=function,
        types=handled,
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
        remember=remember,
        keeps=_keeping(handled, once_by, compensates, done, remember, where)
        if role is None
        else _playing(role, handled, done, where),
        is_silent=_may_be_nothing(hints.get("return")),
    )


def _without_state(
    parameters: list[inspect.Parameter], hints: dict[str, Any], role: Role, where: str
) -> list[inspect.Parameter]:
    """The parameters behind the state; a timeout's function has no message, and gets one that it does not see."""
    cls = role.process.cls
    if not parameters or hints.get(parameters[0].name) is not cls:
        raise ConfigurationError(f"{where}: takes the state first, annotated with {cls.__name__}")
    if role.timeout is None:
        return parameters[1:]
    return [inspect.Parameter("message", inspect.Parameter.POSITIONAL_ONLY), *parameters[1:]]


def _injections(
    parameters: Sequence[inspect.Parameter], hints: dict[str, Any], where: str
) -> tuple[str | None, dict[str, type], tuple[str, Any] | None]:
    """The parameter that takes the transaction, those that are found by type, and the one for what was done."""
    transaction, injected, done = None, {}, None
    for parameter in parameters:
        hint = hints.get(parameter.name)
        if _is_done(hint):
            done = parameter.name, hint
        elif isinstance(hint, type) and issubclass(hint, TransactionMarker):
            transaction = parameter.name
        elif isinstance(hint, type):
            injected[parameter.name] = hint
        elif parameter.default is parameter.empty:
            raise ConfigurationError(
                f"{where}: parameter {parameter.name!r} needs an annotation that says what to inject"
            )
    return transaction, injected, done


def _playing(role: Role, handled: Sequence[MessageType], done: tuple[str, Any] | None, where: str) -> Keeping:
    if done is not None:
        raise ConfigurationError(f"{where}: {done[0]!r} takes what another handler did, which is for compensates=")
    fields = {kind.name: field_names(kind.cls) for kind in handled}
    for name, known in fields.items() if role.timeout is None else ():
        if role.by not in known:
            raise ConfigurationError(
                f"{where}: {name} has no field {role.by!r} ({', '.join(known)}): name the one that says which "
                f"{role.process.name} it is, with by="
            )
    if role.starts:
        check_start(role.process.cls, fields, where)
    return Keeping(role=role)


def _keeping(
    handled: Sequence[MessageType],
    once_by: str | None,
    compensates: Handler | None,
    done: tuple[str, Any] | None,
    days: float,
    where: str,
) -> Keeping | None:
    if days <= 0:
        raise ConfigurationError(f"{where}: remember={days:g} must be more than 0 days")
    for kind in handled if once_by is not None else ():
        if once_by not in field_names(kind.cls):
            raise ConfigurationError(
                f"{where}: once_by={once_by!r} is not a field of {kind.name} ({', '.join(field_names(kind.cls))})"
            )
    if compensates is None:
        if done is not None:
            raise ConfigurationError(f"{where}: {done[0]!r} takes what another handler did: name it in compensates=")
        return Keeping(once_by) if once_by is not None else None
    name, hint = done or (None, None)
    wanted, others = _wanted(hint, where)
    _check_compensation(compensates, handled, wanted, where)
    return Keeping(once_by, False, compensates.name, name, wanted, Unknown in others, types.NoneType in others)


def _check_compensation(
    forward: Handler, handled: Sequence[MessageType], wanted: Sequence[MessageType], where: str
) -> None:
    if forward.queue is not None:
        raise ConfigurationError(
            f"{where}: compensates={forward.name}, which works on a queue: what is done once per key is handled with on"
        )
    if forward.keeps is not None and forward.keeps.undoes is not None:
        raise ConfigurationError(
            f"{where}: compensates={forward.name}, which is a compensation itself: let it compensate what that one "
            "compensates, or publish a new fact"
        )
    for kind in handled:
        if kind in forward.types:
            raise ConfigurationError(f"{where}: {kind.name} is what {forward.name} handles, and cannot undo it as well")
    for kind in wanted:
        if kind not in forward.returns:
            returned = ", ".join(each.name for each in forward.returns) or "nothing"
            raise ConfigurationError(
                f"{where}: Done[{kind.name}], but {forward.name} is annotated to publish {returned}"
            )


def _is_done(hint: Any) -> bool:
    """``Done``, ``Done[…]``, or one of them in a union."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_done(member) for member in get_args(hint))
    return hint is Done or get_origin(hint) is Done


def _wanted(hint: Any, where: str) -> tuple[tuple[MessageType, ...], tuple[Any, ...]]:
    """The message classes of ``Done[…]``, and all that the parameter takes."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    wanted = tuple(
        _declared(cls, where)
        for member in members
        if get_origin(member) is Done
        for cls in _members(get_args(member)[0])
    )
    if hint is not None and not wanted and Done[None] not in members:
        raise ConfigurationError(
            f"{where}: say what it published, as in Done[PaymentProcessed]; Done[None] if it publishes nothing"
        )
    return wanted, members


def field_names(cls: type) -> tuple[str, ...]:
    """The fields of a message class, of whatever kind it is."""
    for declared in ("__struct_fields__", "model_fields", "__dataclass_fields__"):
        if hasattr(cls, declared):
            return tuple(getattr(cls, declared))
    return ()


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


def _may_be_nothing(hint: Any) -> bool:
    """Whether what a function is annotated with may be no message; a list may be empty."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(map(_may_be_nothing, get_args(hint)))
    return hint is Any or hint is type(None) or not isinstance(hint, type)


def fact_of(handler: Handler, type: str, value: Any) -> str:
    """What stands for a fact in the idempotency key: where a handler takes several types, each has facts of its own."""
    return str(value) if len(handler.types) == 1 else f"{type}:{value}"


def remembered(handlers: Iterable[Handler]) -> dict[tuple[MarkKind, str], float]:
    """Which marks there are, by kind and name, and for how many days they are kept."""
    found: dict[tuple[MarkKind, str], float] = {}
    for handler in handlers:
        if handler.keeps is not None and handler.keeps.once_by is not None:
            found[MarkKind.ONCE, handler.name] = handler.remember
        if handler.keeps is not None and handler.keeps.compensated:
            found[MarkKind.EFFECT, handler.name] = found[MarkKind.PARKING, handler.name] = handler.remember
        if handler.keeps is not None and handler.keeps.role is not None:
            found[MarkKind.PROCESS, handler.keeps.role.process.name] = handler.remember
    return found


def injectable(cls: type) -> bool:
    """Whether the runtime itself supplies this type."""
    return cls in (Attempt, Envelope)
