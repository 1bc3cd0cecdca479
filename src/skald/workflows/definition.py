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

import inspect
import typing
from collections.abc import Awaitable, Callable, Coroutine
from hashlib import blake2b
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, TypeVarTuple, Unpack, cast, overload

import msgspec

from skald.codec import Codec
from skald.errors import ConfigurationError, Stopped
from skald.retry import Policy, Retry
from skald.workflows.loop import running

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Ts = TypeVarTuple("Ts")


class Signature:
    """How the arguments and the result of a function are stored."""

    def __init__(self, function: Callable[..., Any]) -> None:
        code = inspect.unwrap(function).__code__
        self.where = f"{code.co_filename}:{code.co_firstlineno}: {function.__name__}"
        try:
            hints = typing.get_type_hints(function)
        except NameError as error:
            raise ConfigurationError(
                f"{self.where}: the annotation {error.name!r} cannot be resolved; import it outside of TYPE_CHECKING"
            ) from error
        fields: list[Any] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ConfigurationError(
                    f"{self.where}: name its parameters instead of *{name}; they are stored by name"
                )
            kind = hints.get(name, Any)
            default = () if parameter.default is parameter.empty else (parameter.default,)
            fields.append((name, kind, *default))
        # Without defaults, so that a parameter that is added with one does not change the digests of older calls.
        self._struct = msgspec.defstruct(function.__name__, fields, frozen=True, omit_defaults=True)
        self._names = self._struct.__struct_fields__
        self._named = [name for name, p in inspect.signature(function).parameters.items() if p.kind == p.KEYWORD_ONLY]
        self._arguments = Codec(self._struct)
        self.result = Codec(hints.get("return", Any), name=f"the result of {function.__name__}")

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments as JSON; ``InvalidMessage`` names the part that cannot be stored."""
        return self._arguments.encode(self._struct(*args, **kwargs))

    def decode(self, body: bytes) -> tuple[list[Any], dict[str, Any]]:
        """Positional and named arguments."""
        arguments = self._arguments.decode(body)
        named = self._named
        if not named:
            return [getattr(arguments, name) for name in self._names], {}
        return (
            [getattr(arguments, name) for name in self._names if name not in named],
            {name: getattr(arguments, name) for name in named},
        )


# --- steps ------------------------------------------------------------------------------------------------------------


class Call(msgspec.Struct, eq=False):
    """A step that a workflow has called. Name, digest of the arguments and occurrence are its identity."""

    step: Step[..., Any]
    body: bytes
    """The arguments. The step gets a copy of them: what it changes in it no replay would see."""
    digest: bytes
    occurrence: int
    future: Any
    """Of the workflow's loop."""

    @property
    def identity(self) -> tuple[str, bytes, int]:
        return self.step.name, self.digest, self.occurrence

    def __str__(self) -> str:
        return f"{self.step.name}#{self.occurrence} ({self.digest.hex()[:8]})"


class Host(Protocol):
    """What runs on a workflow's loop."""

    def call(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]: ...


class Step(Generic[P, R]):
    """See ``step``."""

    def __init__(
        self,
        function: Callable[P, Any],
        *,
        name: str | None = None,
        retry: Policy | None = None,
        timeout: float | None = None,
    ) -> None:
        self.function, self.name = function, name or function.__name__
        self.retry: Policy = retry if retry is not None else Retry()
        self.timeout = timeout
        self.is_async = inspect.iscoroutinefunction(function)
        self.signature = Signature(function)
        self.__doc__, self.__name__, self.__wrapped__ = function.__doc__, function.__name__, function

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
        return body, blake2b(body, digest_size=8).digest()


class _StepDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Step[P, R]: ...


@overload
def step(function: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(function: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(*, name: str | None = None, retry: Policy | None = None, timeout: float | None = None) -> _StepDecorator: ...
def step(function: Any = None, /, **options: Any) -> Any:
    """A step: it may do anything, it runs at least once, and its result is journalled exactly once.

    ``name`` is what stands in histories, the function's own by default. ``retry`` says how often and when it is tried
    again; after the last attempt the workflow gets ``StepFailed``. ``timeout`` (seconds) bounds one attempt. A sync
    function runs in a thread, where a timeout cannot end it.
    """
    if function is not None:
        return Step(function, **options)
    return lambda function: Step(function, **options)


# --- workflows --------------------------------------------------------------------------------------------------------


class Handle(Protocol[R_co]):
    """A workflow that was started."""

    @property
    def id(self) -> str: ...

    async def result(self) -> R_co:
        """Waits until it has ended. ``WorkflowFailed`` if it ended with an exception."""
        ...


class Starter(Protocol):
    """The process that runs workflows."""

    def start_workflow(
        self, workflow: Workflow[*tuple[Any, ...], Any], args: tuple[Any, ...], id: str | None
    ) -> Awaitable[Handle[Any]]: ...

    def handle(self, workflow: Workflow[*tuple[Any, ...], Any], id: str) -> Handle[Any]: ...


class Workflow(Generic[*Ts, R]):
    """See ``workflow``."""

    def __init__(self, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]], *, name: str | None = None) -> None:
        self.function, self.name = function, name or function.__name__
        self.signature = Signature(function)
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(
                f"{self.signature.where}: a workflow is an async function, since it awaits its steps"
            )
        self.__doc__, self.__name__, self.__wrapped__ = function.__doc__, function.__name__, function
        self._starter: Starter | None = None

    async def start(self, *args: *Ts, id: str | None = None) -> Handle[R]:
        """Starts it, durably when this returns. The same id and arguments again are the same workflow."""
        return await self.starter.start_workflow(cast("Any", self), args, id)

    async def run(self, *args: *Ts, id: str | None = None) -> R:
        """Starts it and waits for its result."""
        handle = await self.start(*args, id=id)
        return await handle.result()

    def handle(self, id: str) -> Handle[R]:
        """One that was started before."""
        return self.starter.handle(cast("Any", self), id)

    def __call__(self, *args: *Ts) -> Coroutine[object, None, R]:
        """The plain function, for tests and for use inside another workflow: nothing of its own is stored."""
        return self.function(*args)

    @property
    def starter(self) -> Starter:
        if self._starter is None:
            raise Stopped(
                f"workflow {self.name!r} is not running here: use it inside 'async with app.run(…)' of its service"
            )
        return self._starter

    def bind(self, starter: Starter | None) -> None:
        """Called by the process that runs it, when it starts and stops."""
        if starter is not None and self._starter is not None:
            raise ConfigurationError(f"workflow {self.name!r} is running in this process already")
        self._starter = starter


class _WorkflowDecorator(Protocol):
    def __call__(self, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]], /) -> Workflow[*Ts, R]: ...


@overload
def workflow(function: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]], /) -> Workflow[*Ts, R]: ...
@overload
def workflow(*, name: str | None = None) -> _WorkflowDecorator: ...
def workflow(function: Any = None, /, **options: Any) -> Any:
    """A workflow: an async function that survives the death of its process. Everything with an effect is a ``step``.

    ``name`` is what is stored, the function's own by default.
    """
    if function is not None:
        return Workflow(function, **options)
    return lambda function: Workflow(function, **options)
