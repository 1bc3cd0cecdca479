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
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from enum import Enum
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar, TypeVarTuple, Unpack, cast, get_args, overload

import msgspec

from skald.errors import ConfigurationError, Stopped, WorkflowError
from skald.retry import Policy, Retry
from skald.workflows.channels import Query, Signal, Update
from skald.workflows.loop import running
from skald.workflows.signature import Identity, Signature, digest_of

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
A = TypeVar("A")
Q = TypeVar("Q")
Ts = TypeVarTuple("Ts")


# --- steps ------------------------------------------------------------------------------------------------------------


class Call(msgspec.Struct, eq=False):
    """A step that a workflow has called."""

    step: Step[..., Any]
    body: bytes
    """The arguments. The step gets a copy of them: what it changes in it no replay would see."""
    digest: bytes
    occurrence: int
    future: Any
    """Of the workflow's loop."""
    begun: bool = False
    """An attempt that must not be repeated has begun."""
    unknown: bool = False
    """An earlier process may have run it."""
    identity: Identity = ("", b"", 0)

    def __post_init__(self) -> None:
        self.identity = self.step.name, self.digest, self.occurrence

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def signature(self) -> Signature:
        return self.step.signature

    def __str__(self) -> str:
        return f"{self.step.name}#{self.occurrence} ({self.digest.hex()[:8]})"


class Child(msgspec.Struct, eq=False):
    """A workflow that a workflow has called."""

    workflow: Workflow[*tuple[Any, ...], Any]
    body: bytes
    digest: bytes
    occurrence: int
    future: Any
    id: str
    key: str | None = None
    delay: float = 0.0
    detached: bool = False
    """It goes on when its caller ends or gives it up; otherwise it is cancelled then."""

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


class Step(Generic[P, R]):
    """See ``step``."""

    def __init__(
        self, function: Callable[P, Any], *, lookup: Callable[P, Any] | None = None, **options: Unpack[StepOptions]
    ) -> None:
        self.function, self.name, self.lookup = function, options.get("name") or function.__name__, lookup
        self.retry: Policy = options.get("retry") or Retry()
        self.timeout, self.total, self.pause = options.get("timeout"), options.get("total"), options.get("pause", False)
        self.retry_if, self.heartbeat = options.get("retry_if"), options.get("heartbeat")
        self.transactional, self.at_most_once = options.get("transactional", False), options.get("at_most_once", False)
        self.is_async = inspect.iscoroutinefunction(function)
        self.signature = Signature(function)
        self._check(set(options))
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
        return host.call(cast("Step[..., Any]", self), args, kwargs)

    async def _plain(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result = self.function(*args, **kwargs)
        return cast("R", await result if self.is_async else result)

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, bytes]:
        """The arguments and their digest; raises for one that is no data."""
        body = self.signature.encode(args, kwargs)
        return body, digest_of(body)


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
    """
    if function is not None:
        return Step(function, **options)
    return lambda function: Step(function, **options)


# --- workflows --------------------------------------------------------------------------------------------------------

Existing = Literal["return", "reject", "restart"]
"""What starting an id means that was started before: it is returned (the same workflow and arguments provided); that is
an error; or it is returned while it runs, and started again once it has ended."""


class Handle(Protocol[R_co]):
    """A workflow that was started."""

    @property
    def id(self) -> str: ...

    async def result(self) -> R_co:
        """Waits until it has ended. ``WorkflowFailed`` if it ended with an exception, was cancelled or terminated."""
        ...

    async def signal(self, signal: Signal[T], value: T) -> None:
        """Durable when it returns. ``WorkflowEnded`` if it has ended; one that has yet to be started finds it then."""
        ...

    async def query(self, query: Query[Q]) -> Q:
        """Answered by the workflow as it is in memory here, or by a replay of its journal; also after its end."""
        ...

    async def update(self, update: Update[A, Q], value: A) -> Q:
        """Waits for the answer. ``UpdateFailed`` if it was refused or failed."""
        ...

    async def cancel(self, reason: str = "") -> None:
        """Raises CancelledError in it, where it waits; it may clean up, or go on."""
        ...

    async def terminate(self, reason: str = "") -> None:
        """Ends it where it is, without clean-up."""
        ...

    async def pause(self) -> None:
        """Leaves it as it is until ``resume``; running steps are interrupted, and run again then."""
        ...

    async def resume(self) -> None:
        """Lets one that was paused go on, or that paused itself because a step gave up: the step is tried again."""
        ...

    async def retry(self) -> None:
        """Lets a failed one go on before the step that failed last; what came later in its history is forgotten."""
        ...


class Options(msgspec.Struct, frozen=True):
    """How a workflow is started."""

    id: str | None = None
    key: str | None = None
    delay: float = 0.0
    existing: Existing = "return"

    def __post_init__(self) -> None:
        if self.existing not in get_args(Existing):
            raise ConfigurationError(f"existing={self.existing!r}: use one of {', '.join(get_args(Existing))}")


class Starter(Protocol):
    """What a service has for its workflows."""

    def start_workflow(
        self, workflow: Workflow[*tuple[Any, ...], Any], args: tuple[Any, ...], options: Options
    ) -> Awaitable[Handle[Any]]: ...

    def handle(self, workflow: Workflow[*tuple[Any, ...], Any], id: str) -> Handle[Any]: ...


class ChildHandle(Generic[R]):
    """A workflow that was started by a workflow. Talk to it in a step, by its id."""

    def __init__(self, host: Host, child: Child) -> None:
        self._host, self._child = host, child

    @property
    def id(self) -> str:
        return self._child.id

    async def result(self) -> R:
        return cast("R", await self._host.joined(self._child))


class Workflow(Generic[*Ts, R]):
    """See ``workflow``."""

    def __init__(
        self,
        function: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        *,
        name: str | None = None,
        timeout: float | None = None,
    ) -> None:
        self.function, self.name, self.timeout = function, name or function.__name__, timeout
        self.signature = Signature(function)
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
        self._starter: Starter | None = None

    async def start(
        self,
        *args: *Ts,
        id: str | None = None,
        key: str | None = None,
        delay: float = 0.0,
        existing: Existing = "return",
    ) -> Handle[R]:
        """Starts it, durably when this returns. The same id and arguments again are the same workflow.

        ``key`` is a business key by which others may address it; an open workflow has it for itself. ``delay`` is in
        seconds.
        """
        return await self.starter.start_workflow(cast("Any", self), args, Options(id, key, delay, existing))

    async def run(
        self,
        *args: *Ts,
        id: str | None = None,
        key: str | None = None,
        delay: float = 0.0,
        existing: Existing = "return",
    ) -> R:
        """Starts it and waits for its result. Inside a workflow it is a child: cancelled if its caller is."""
        loop = running()
        if loop is not None:
            return await self.child(*args, id=id, key=key, delay=delay).result()
        handle = await self.start(*args, id=id, key=key, delay=delay, existing=existing)
        return await handle.result()

    def child(
        self, *args: *Ts, id: str | None = None, key: str | None = None, delay: float = 0.0, detached: bool = False
    ) -> ChildHandle[R]:
        """Inside a workflow: starts it and goes on. A ``detached`` one outlives its caller."""
        loop = running()
        if loop is None:
            raise WorkflowError(f"{self.name}.child() is for workflows; use {self.name}.start()")
        host: Host = loop.host
        options = {"id": id, "key": key, "delay": delay, "detached": detached}
        return ChildHandle(host, host.child(self, args, options))

    def handle(self, id: str) -> Handle[R]:
        """One that was started before."""
        return self.starter.handle(cast("Any", self), id)

    def __call__(self, *args: *Ts) -> Coroutine[object, None, R]:
        """The plain function, for tests and for use inside another workflow: nothing of its own is stored."""
        return self.function(*args)

    async def bounded(self, args: Sequence[Any], kwargs: dict[str, Any]) -> R:
        """The function within its timeout."""
        if self.timeout is None:
            return await self.function(*args, **kwargs)
        async with asyncio.timeout(self.timeout):
            return await self.function(*args, **kwargs)

    def called(self, args: tuple[Any, ...]) -> tuple[bytes, bytes]:
        """The arguments and their digest; raises for one that is no data."""
        body = self.signature.encode(args, {})
        return body, digest_of(body)

    @property
    def starter(self) -> Starter:
        if running() is not None:
            raise WorkflowError(
                f"inside a workflow, start {self.name!r} with {self.name}.run() or {self.name}.child(), or in a step"
            )
        if self._starter is None:
            raise Stopped(
                f"workflow {self.name!r} is not connected here: use it inside 'async with app.run(…)' or "
                "'app.connect(…)' of its service"
            )
        return self._starter

    def bind(self, starter: Starter | None) -> None:
        """Called when its service is connected, and disconnected."""
        if starter is not None and self._starter is not None:
            raise ConfigurationError(f"workflow {self.name!r} is connected in this process already")
        self._starter = starter


class _WorkflowDecorator(Protocol):
    def __call__(self, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]], /) -> Workflow[*Ts, R]: ...


@overload
def workflow(function: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]], /) -> Workflow[*Ts, R]: ...
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
