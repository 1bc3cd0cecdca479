"""PURE. How workflows are started, and what one has in hand then.

A workflow takes the arguments of its function by position, defaults left out, beside options by name. No single type
says that: a ``ParamSpec`` allows no further parameters, and a ``TypeVarTuple`` knows no defaults. So there is an
overload for each number of arguments, of which those fit that the function can be called with.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    TypeVarTuple,
    Unpack,
    cast,
    get_args,
    overload,
)

import msgspec

from skald.errors import ConfigurationError, Stopped, WorkflowError
from skald.workflows.channels import Query, Signal, Update
from skald.workflows.loop import running, user_line
from skald.workflows.signature import Signature

if TYPE_CHECKING:  # it has workflows, which are started
    from skald.workflows.definition import Child, Host, Workflow

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
Q = TypeVar("Q")
Ts = TypeVarTuple("Ts")
Work = Coroutine[object, None, R]

Existing = Literal["return", "reject", "restart"]
"""What starting an id means that was started before: it is returned (the same workflow and arguments provided); that is
an error; or it is returned while it runs, and started again once it has ended."""

_EXISTING = get_args(Existing)


class StartOptions(TypedDict, total=False):
    """``key`` is a business key by which others may address it; an open workflow has it for itself. ``delay`` is in
    seconds."""

    id: str | None
    key: str | None
    delay: float
    existing: Existing


class ChildOptions(TypedDict, total=False):
    """``detached``: it outlives its caller."""

    id: str | None
    key: str | None
    delay: float
    detached: bool


class Options(msgspec.Struct, frozen=True):
    """How a workflow is started."""

    id: str | None = None
    key: str | None = None
    delay: float = 0.0
    existing: Existing = "return"

    def __post_init__(self) -> None:
        if self.existing not in _EXISTING:
            raise ConfigurationError(f"existing={self.existing!r}: use one of {', '.join(_EXISTING)}")


_FOR_A_START, _FOR_A_CHILD = tuple(StartOptions.__annotations__), tuple(ChildOptions.__annotations__)


def options_of(given: StartOptions) -> Options:
    require_known(given, _FOR_A_START)
    return Options(**given)


def require_known(given: StartOptions | ChildOptions, known: tuple[str, ...]) -> None:
    """Refuses what is meant for the workflow, and not for its start."""
    for name in given:
        if name not in known:
            raise ConfigurationError(
                f"{user_line()}: there is no option {name!r}, there are {', '.join(known)}; what the workflow takes is "
                "given by position"
            )


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
        """Lets a failed one go on: the step, child or call that failed last is run again, and what depends on it. What
        other branches did meanwhile stays done."""
        ...


class Starter(Protocol):
    """What a service has for its workflows."""

    def start_workflow(
        self,
        workflow: Workflow[..., Any],
        args: tuple[Any, ...],
        options: Options,
        *,
        to_end: bool = False,
    ) -> Awaitable[Handle[Any]]: ...

    def handle(self, workflow: Workflow[..., Any], id: str) -> Handle[Any]: ...


class ChildHandle(Generic[R]):
    """A workflow that was started by a workflow. Talk to it in a step, by its id."""

    def __init__(self, host: Host, child: Child) -> None:
        self._host, self._child = host, child

    @property
    def id(self) -> str:
        return self._child.id

    async def result(self) -> R:
        return cast("R", await self._host.joined(self._child))


class Startable(Generic[P, R]):
    """A function with its name, that is started by the service that has it."""

    def __init__(self, function: Callable[P, Coroutine[Any, Any, R]], name: str) -> None:
        self.function, self.name, self.signature = function, name, Signature(function)
        self._starter: Starter | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """The plain function, for tests and for use inside another workflow: nothing of its own is stored."""
        return self.function(*args, **kwargs)

    @overload
    async def start(self: Callable[[], Work[R]], **options: Unpack[StartOptions]) -> Handle[R]: ...
    @overload
    async def start(self: Callable[[A], Work[R]], a: A, /, **options: Unpack[StartOptions]) -> Handle[R]: ...
    @overload
    async def start(self: Callable[[A, B], Work[R]], a: A, b: B, /, **options: Unpack[StartOptions]) -> Handle[R]: ...
    @overload
    async def start(
        self: Callable[[A, B, C], Work[R]], a: A, b: B, c: C, /, **options: Unpack[StartOptions]
    ) -> Handle[R]: ...
    @overload
    async def start(
        self: Callable[[A, B, C, D], Work[R]], a: A, b: B, c: C, d: D, /, **options: Unpack[StartOptions]
    ) -> Handle[R]: ...
    @overload
    async def start(
        self: Callable[[A, B, C, D, E], Work[R]], a: A, b: B, c: C, d: D, e: E, /, **options: Unpack[StartOptions]
    ) -> Handle[R]: ...
    @overload  # of more arguments all are given
    async def start(
        self: Callable[[Unpack[Ts]], Work[R]], *args: *Ts, **options: Unpack[StartOptions]
    ) -> Handle[R]: ...
    async def start(  # type: ignore[misc]  # mypy compares no *Ts with *Any
        self: Any, *args: Any, **options: Unpack[StartOptions]
    ) -> Any:
        """Starts it, durably when this returns. The same id and arguments again are the same workflow.

        ``key`` is a business key by which others may address it; an open workflow has it for itself. ``delay`` is in
        seconds.
        """
        return await self.starter.start_workflow(self, args, options_of(options))

    @overload
    async def run(self: Callable[[], Work[R]], **options: Unpack[StartOptions]) -> R: ...
    @overload
    async def run(self: Callable[[A], Work[R]], a: A, /, **options: Unpack[StartOptions]) -> R: ...
    @overload
    async def run(self: Callable[[A, B], Work[R]], a: A, b: B, /, **options: Unpack[StartOptions]) -> R: ...
    @overload
    async def run(self: Callable[[A, B, C], Work[R]], a: A, b: B, c: C, /, **options: Unpack[StartOptions]) -> R: ...
    @overload
    async def run(
        self: Callable[[A, B, C, D], Work[R]], a: A, b: B, c: C, d: D, /, **options: Unpack[StartOptions]
    ) -> R: ...
    @overload
    async def run(
        self: Callable[[A, B, C, D, E], Work[R]], a: A, b: B, c: C, d: D, e: E, /, **options: Unpack[StartOptions]
    ) -> R: ...
    @overload  # of more arguments all are given
    async def run(self: Callable[[Unpack[Ts]], Work[R]], *args: *Ts, **options: Unpack[StartOptions]) -> R: ...
    async def run(  # type: ignore[misc]  # mypy compares no *Ts with *Any
        self: Any, *args: Any, **options: Unpack[StartOptions]
    ) -> Any:
        """Starts it and waits for its result. Inside a workflow it is a child: cancelled if its caller is."""
        found = options_of(options)
        if running() is not None:
            return await self.child(*args, id=found.id, key=found.key, delay=found.delay).result()
        handle = await self.starter.start_workflow(self, args, found, to_end=True)
        return await handle.result()

    @overload
    def child(self: Callable[[], Work[R]], **options: Unpack[ChildOptions]) -> ChildHandle[R]: ...
    @overload
    def child(self: Callable[[A], Work[R]], a: A, /, **options: Unpack[ChildOptions]) -> ChildHandle[R]: ...
    @overload
    def child(self: Callable[[A, B], Work[R]], a: A, b: B, /, **options: Unpack[ChildOptions]) -> ChildHandle[R]: ...
    @overload
    def child(
        self: Callable[[A, B, C], Work[R]], a: A, b: B, c: C, /, **options: Unpack[ChildOptions]
    ) -> ChildHandle[R]: ...
    @overload
    def child(
        self: Callable[[A, B, C, D], Work[R]], a: A, b: B, c: C, d: D, /, **options: Unpack[ChildOptions]
    ) -> ChildHandle[R]: ...
    @overload
    def child(
        self: Callable[[A, B, C, D, E], Work[R]], a: A, b: B, c: C, d: D, e: E, /, **options: Unpack[ChildOptions]
    ) -> ChildHandle[R]: ...
    @overload  # of more arguments all are given
    def child(self: Callable[[Unpack[Ts]], Work[R]], *args: *Ts, **options: Unpack[ChildOptions]) -> ChildHandle[R]: ...
    def child(  # type: ignore[misc]  # mypy compares no *Ts with *Any
        self: Any, *args: Any, **options: Unpack[ChildOptions]
    ) -> Any:
        """Inside a workflow: starts it and goes on. A ``detached`` one outlives its caller."""
        require_known(options, _FOR_A_CHILD)
        loop = running()
        if loop is None:
            raise WorkflowError(f"{self.name}.child() is for workflows; use {self.name}.start()")
        host: Host = loop.host
        return ChildHandle(host, host.child(self, args, dict(options)))

    def handle(self, id: str) -> Handle[R]:
        """One that was started before."""
        return self.starter.handle(cast("Any", self), id)

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


def started_by(function: Callable[..., Any]) -> Workflow[..., Any]:
    """The workflow that a caller wants to be started; types cannot tell it from a function of the same arguments."""
    if not isinstance(function, Startable):
        raise ConfigurationError(f"{user_line()}: {function!r} is no workflow; make it one with @workflow")
    return cast("Workflow[..., Any]", function)
