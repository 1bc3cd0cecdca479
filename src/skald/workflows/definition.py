"""PURE. What users write: workflows and steps, from plain functions, with their types.

    @step(retry=Retry(immediate=1, delays=(1, 5, 30)), timeout=10)
    async def charge(order: Order) -> Payment: ...

    @workflow
    async def fulfil(order: Order) -> Shipment:
        payment, stock = await asyncio.gather(charge(order), reserve(order))
        return await ship(order, payment, stock)

    shipment = await fulfil.run(order, id=order.id)

A step called inside a workflow is journalled and runs outside of its loop; called anywhere else it is the plain
function. The annotations say how arguments and results are stored; without one, what JSON has can be stored.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Callable, Coroutine, Sequence
from enum import Enum
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

import msgspec

from skald.errors import ConfigurationError
from skald.retry import Policy, Retry
from skald.sagas.recovery import Recovery, Undo
from skald.workflows.calling import Calls
from skald.workflows.loop import running
from skald.workflows.signature import Identity, Signature, digest_of, identity_text
from skald.workflows.starting import Startable

P = ParamSpec("P")
R = TypeVar("R")


# --- steps ------------------------------------------------------------------------------------------------------------


class Call(msgspec.Struct, eq=False):
    """A step that a workflow has called."""

    step: Step[..., Any]
    body: bytes
    """The arguments."""
    identity: Identity
    future: Any
    """Of the workflow's loop."""
    copy: Any = None
    """Of the arguments, until an attempt has taken it."""
    begun: bool = False
    """An attempt that must not be repeated has begun."""
    unknown: bool = False
    """An earlier attempt may have done it."""
    woken: bool = False
    """A timer that is journalled has led to it, and will again: only its own beginning tells that it was attempted."""
    looking: bool = False
    """It is not to be done, only looked up."""
    shielded: bool = False
    """A process that stops lets it end."""
    behind: Identity | None = None
    """It does not run beside that call, which was given up, and may not have come to its end."""
    result: bytes | None = None
    """Once it is done."""
    letter: str | None = None
    """That has its result, too: it was written in a transaction."""

    @property
    def name(self) -> str:
        return self.step.name

    def key(self, run: str) -> str:
        """For the outside world: the same for every attempt at this call, and for no other call."""
        return f"{run}:{identity_text(self.identity)}"

    def again(self, future: Any, *, looking: bool = False) -> Call:
        """The same call once more, with the same key; ``looking``: only whether it was done."""
        return msgspec.structs.replace(
            self, future=future, begun=False, unknown=True, looking=looking, behind=self.behind or self.identity,
            result=None, letter=None,
        )  # fmt: skip

    @property
    def signature(self) -> Signature:
        return self.step.signature

    def arguments(self) -> tuple[Sequence[Any], dict[str, Any]]:
        """A copy of them for each attempt: what it changes in them no replay would see."""
        copy, self.copy = self.copy, None
        signature = self.step.signature
        return signature.decode(self.body) if copy is None else signature.unpacked(copy)

    def __str__(self) -> str:
        name, digest, occurrence = self.identity
        return f"{name}#{occurrence} ({digest.hex()[:8]})"


class Child(msgspec.Struct, eq=False):
    """A workflow that a workflow has called."""

    workflow: Workflow[..., Any]
    body: bytes
    digest: bytes
    occurrence: int
    future: Any
    id: str
    key: str | None = None
    delay: float = 0.0
    detached: bool = False
    """It goes on when its caller ends or gives it up; otherwise it is cancelled then."""
    joined: bool = False
    """Its end is awaited."""
    begun: bool = False
    """Somebody may have started it."""

    @property
    def is_let_go(self) -> bool:
        """Whatever becomes of it is nothing to its caller."""
        return self.detached and not self.joined

    @property
    def name(self) -> str:
        return f"workflow {self.workflow.name}"

    @property
    def signature(self) -> Signature:
        return self.workflow.signature

    @property
    def identity(self) -> Identity:
        return self.name, self.digest, self.occurrence

    def __str__(self) -> str:
        return f"{self.name}#{self.occurrence} ({self.id})"


class ContinueAsNew(BaseException):
    """Ends a run and begins the next one of the same id. No ``Exception``, so that no ``except`` catches it."""

    def __init__(self, body: bytes) -> None:
        super().__init__("continue as new")
        self.body = body


def continuation(error: BaseException) -> ContinueAsNew | None:
    """That it is one, also where task groups have wrapped it, and nothing else has failed in them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, ContinueAsNew) else None


class Host(Protocol):
    """What runs on a workflow's loop."""

    def call(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]: ...

    def child(self, workflow: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Child: ...

    def joined(self, child: Child) -> Coroutine[Any, Any, Any]: ...


class NotDone(Enum):
    """What ``lookup`` returns when the step has not been done: ``NOT_DONE``."""

    NOT_DONE = "not done"


NOT_DONE: typing.Final = NotDone.NOT_DONE


class StepOptions(typing.TypedDict, total=False):
    """See ``step``."""

    name: str | None
    retry: Policy | None
    retry_if: Callable[[Exception], bool] | None
    timeout: float | None
    total: float | None
    heartbeat: float | None
    transactional: bool
    at_most_once: bool
    pause: bool
    compensate: Undo | None
    pivot: bool
    critical: bool
    forward: bool
    human: bool


class Step(Generic[P, R]):
    """See ``step``."""

    def __init__(
        self, function: Callable[P, Any], *, lookup: Callable[P, Any] | None = None, **options: Unpack[StepOptions]
    ) -> None:
        self.function, self.name, self.lookup = function, options.get("name") or function.__name__, lookup
        self.recovery = Recovery.of(options)
        self.retry: Policy = self.recovery.patience(options.get("retry")) or Retry()
        self.timeout, self.total, self.pause = options.get("timeout"), options.get("total"), options.get("pause", False)
        self.retry_if, self.heartbeat = options.get("retry_if"), options.get("heartbeat")
        self.transactional, self.at_most_once = options.get("transactional", False), options.get("at_most_once", False)
        self.is_async = inspect.iscoroutinefunction(function)
        self.signature = Signature(function)
        self._check(set(options))
        limits = self.timeout, self.total, self.heartbeat
        bound = self.transactional or self.at_most_once or any(limit is not None for limit in limits)
        self.is_plain = self.is_async and not bound
        """It is called, and that is all."""
        self.__doc__, self.__name__, self.__wrapped__ = function.__doc__, function.__name__, function

    def _check(self, options: set[str]) -> None:
        known = [*StepOptions.__annotations__, "lookup"]
        wrong = [f"a step has no option {name!r}; it has: {', '.join(known)}" for name in options.difference(known)]
        for name in ("timeout", "total", "heartbeat"):
            if (seconds := getattr(self, name)) is not None and not seconds > 0:
                wrong.append(f"{name}={seconds}: a number of seconds above 0")
        for name in ("at_most_once", "lookup", "heartbeat"):
            if self.transactional and getattr(self, name):
                wrong.append(f"a transactional step is short and takes effect exactly once: leave out {name}=")
        if self.at_most_once and self.lookup is None and (again := options & {"retry", "retry_if", "pause"}):
            wrong.append(f"with at_most_once=True and no lookup= it never runs again: leave out {min(again)}=")
        wrong += self.recovery.wrong(self)
        expected = list(inspect.signature(self.function).parameters)
        if self.lookup is not None and list(inspect.signature(self.lookup).parameters) != expected:
            wrong.append(f"lookup= takes the parameters of the step: {', '.join(expected)}")
        if wrong:
            raise ConfigurationError(f"{self.signature.where}: {wrong[0]}")

    # Not Coroutine[Any, Any, R]: with Any in it, mypy would not know which overload of asyncio.gather is meant.
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        loop = running()
        if loop is None:
            return self._plain(*args, **kwargs)
        host: Host = loop.host
        return host.call(self, args, kwargs)

    async def _plain(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result = self.function(*args, **kwargs)
        return cast("R", await result if self.is_async else result)


class _StepDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Step[P, R]: ...


_LookedUp = Callable[[Callable[P, Coroutine[Any, Any, R]] | Callable[P, R]], Step[P, R]]


@overload
def step(function: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(function: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *, lookup: Callable[P, Coroutine[Any, Any, R | NotDone]], **options: Unpack[StepOptions]
) -> _LookedUp[P, R]: ...
@overload
def step(*, lookup: Callable[P, R | NotDone], **options: Unpack[StepOptions]) -> _LookedUp[P, R]: ...
@overload
def step(**options: Unpack[StepOptions]) -> _StepDecorator: ...
def step(function: Any = None, /, **options: Any) -> Any:
    """A step: it may do anything, it runs at least once, and its result is journalled exactly once. Sync functions run
    in threads, where nothing can interrupt them; times are in seconds. After the last attempt the workflow gets
    ``StepFailed``. ``name`` is what stands in histories, the function's own by default.

    ``retry``: how often and when it is tried again, for all errors or by class. ``retry_if``: false for an error after
    which it is not. ``timeout`` bounds one attempt. ``total`` bounds all of them with the delays between, in one
    process. ``heartbeat``: an attempt that does not call ``attempt().heartbeat()`` for so long is cancelled and failed.
    ``pause``: instead of failing it pauses the workflow, and ``resume`` runs it anew.

    ``transactional``: it runs in a transaction of the service's database, got by ``skald.workflows.transaction()``
    (sync: ``blocking_transaction()``), which commits the result together with the rows: exactly once.
    ``at_most_once``: no attempt follows another one; it fails with ``OutcomeUnknown`` if the process ends meanwhile.
    ``lookup``, with the same parameters, is asked wherever an attempt ended without a known outcome (a crash, a
    timeout): it returns the result, or ``NOT_DONE``, and the step runs again: once, with ``at_most_once``.

    In a saga: ``compensate`` undoes it, if it was done or may have been. Once a ``pivot`` is done nothing is undone.
    One that is not ``critical`` may fail: the call returns None then. ``forward``: it is retried to the end, with
    growing delays. ``human``: when it has failed for good a person decides.
    """
    if function is not None:
        return Step(function, **options)
    return lambda function: Step(function, **options)


# --- workflows --------------------------------------------------------------------------------------------------------


class Workflow(Startable[P, R]):
    """See ``workflow``."""

    style: str | None = None
    """Of a saga."""
    calls = Calls()
    """What its service lets it call."""

    def __init__(
        self, function: Callable[P, Coroutine[Any, Any, R]], *, name: str | None = None, timeout: float | None = None
    ) -> None:
        super().__init__(function, name or function.__name__)
        self.timeout = timeout
        if "," in self.name or not self.name.isprintable():
            # Processes ask for the workflows that they have by a list of their names.
            raise ConfigurationError(f"{self.signature.where}: the name {self.name!r} has a comma or cannot be printed")
        if timeout is not None and not timeout > 0:
            raise ConfigurationError(f"{self.signature.where}: timeout={timeout} must be more than 0 seconds")
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(
                f"{self.signature.where}: a workflow is an async function, since it awaits its steps"
            )
        self.__doc__, self.__name__, self.__wrapped__ = function.__doc__, function.__name__, function

    def called(self, args: tuple[Any, ...]) -> tuple[bytes, bytes]:
        """The arguments and their digest; raises for one that is no data."""
        body = self.signature.encode(args, {})
        return body, digest_of(body)

    def bounded(self, host: Host, args: Sequence[Any], kwargs: dict[str, Any]) -> Coroutine[Any, Any, R]:
        """The function within its timeout; ``host`` runs it."""
        work: Coroutine[Any, Any, R] = cast("Any", self.function)(*args, **kwargs)
        return work if self.timeout is None else self._bound(work, self.timeout)

    async def _bound(self, work: Coroutine[Any, Any, R], timeout: float) -> R:
        async with asyncio.timeout(timeout):
            return await work


class _WorkflowDecorator(Protocol):
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...


@overload
def workflow(function: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow(*, name: str | None = None, timeout: float | None = None) -> _WorkflowDecorator: ...
def workflow(function: Any = None, /, **options: Any) -> Any:
    """A workflow: an async function that survives the death of its process. Everything with an effect is a ``step``.

    ``name`` is what is stored, the function's own by default. After ``timeout`` seconds TimeoutError is raised in it,
    where it waits.
    """
    if function is not None:
        return Workflow(function, **options)
    return lambda function: Workflow(function, **options)
