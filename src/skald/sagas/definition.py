"""PURE. What undoes a step, as users write it.

    @compensation(retry=Retry(delays=(1, 5, 30)), timeout=10)
    async def release(capacity: Capacity | None, request: Request, failed: FailedExecution) -> None: ...

    @step(compensate=release)
    async def allocate(request: Request) -> Capacity: ...

Its parameters are filled by what they are: one that is annotated ``FailedExecution`` gets the whole execution that has
failed, those named like parameters of the step get its arguments, ``key: str`` gets the idempotency key under which the
step was done, and ``result``, or the only one that is left, gets the step's result: ``None`` where that is unknown.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from types import CodeType
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar, Unpack, cast, get_args, overload

import msgspec

from skald.errors import ConfigurationError, InvalidMessage, WorkflowError
from skald.retry import Policy
from skald.sagas.compensation import Execution
from skald.workflows.definition import Call, Step
from skald.workflows.loop import running

P = ParamSpec("P")
R = TypeVar("R")

Guarantee = Literal["best_effort", "at_least_once", "exactly_once"]
"""What becomes of a compensation that fails for good: that is passed over, or a person decides. ``exactly_once``: it is
transactional, or gives ``attempt().key`` to whom it calls."""


class Executed(msgspec.Struct, frozen=True):
    """A step of a saga that has failed. ``state`` is that of ``ExecutionState``."""

    step: str
    state: str
    arguments: Any
    result: Any = None


class FailedExecution(msgspec.Struct, frozen=True):
    """A saga that has failed: where, why, and what it had done by then. ``step`` is ``None`` if that was at none.

    Where that is more than a message may hold, arguments and results are left out.
    """

    saga: str
    id: str
    step: str | None
    type: str
    message: str
    executions: tuple[Executed, ...]


class CompensationOptions(typing.TypedDict, total=False):
    """See ``skald.step``."""

    name: str | None
    retry: Policy | None
    retry_if: Callable[[Exception], bool] | None
    timeout: float | None
    total: float | None
    heartbeat: float | None
    transactional: bool


class Compensation(Generic[P, R]):
    """See ``compensation``."""

    def __init__(
        self,
        function: Callable[P, Any],
        *,
        guarantee: Guarantee = "at_least_once",
        independent: bool = False,
        lookup: Callable[P, Any] | None = None,
        **options: Unpack[CompensationOptions],
    ) -> None:
        self.step: Step[P, Any] = Step(function, lookup=lookup, **options)
        self.name, self.guarantee, self.independent = self.step.name, guarantee, independent
        where = self.step.signature.where
        if guarantee not in get_args(Guarantee):
            raise ConfigurationError(f"{where}: guarantee={guarantee!r}: use one of {', '.join(get_args(Guarantee))}")
        if guarantee == "exactly_once" and not (self.step.transactional or takes_a_key(function)):
            raise ConfigurationError(
                f"{where}: guarantee='exactly_once' needs transactional=True, or a key for whom it calls: "
                "name workflows.attempt().key in it"
            )
        self._hints = typing.get_type_hints(function)
        self._parameters = inspect.signature(function).parameters
        self._sources: dict[Step[..., Any], dict[str, str]] = {}
        """By step, where each parameter's value comes from: as it was declared, whatever function a test gives it."""
        self.__doc__, self.__name__, self.__wrapped__ = function.__doc__, function.__name__, function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """The plain function, for tests. In a saga nobody calls it but the saga itself."""
        if running() is not None:
            raise WorkflowError(
                f"{self.name} is a compensation: name it in @step(compensate=…), and let the saga call it"
            )
        return cast("Step[P, R]", self.step)(*args, **kwargs)

    # --- what it is called with ---------------------------------------------------------------------------------------

    def misfits(self, step: Step[..., Any]) -> list[str]:
        """Why it cannot compensate a step."""
        theirs, wrong = typing.get_type_hints(step.function), []
        fillings = self._fillings(step)
        self._sources[step] = {name: source for name, source in fillings.items() if source is not None}
        for name, source in fillings.items():
            ours = self._hints.get(name, Any)
            if source is None:
                known = ", ".join(inspect.signature(step.function).parameters) or "none"
                wrong.append(
                    f"{self.name} has a parameter {name!r} that nothing fills: give it the name of one of the step's "
                    f"({known}), or the type FailedExecution, or leave it out"
                )
            elif source == "argument" and not _holds(ours, theirs.get(name, Any)):
                wrong.append(f"{self.name} has another type for {name!r} than the step: {ours}, not {theirs.get(name)}")
            elif source == "result" and not _holds(ours, type(None)):
                wrong.append(
                    f"{self.name} gets the result as {name!r}, and None where that is unknown: "
                    f"annotate it with '… | None'"
                )
            elif source == "result" and not _holds(ours, theirs.get("return", Any)):
                wrong.append(f"{self.name} has another type for {name!r} than the step returns: {ours}")
            elif source == "key" and ours is not str:
                wrong.append(f"{self.name} gets the key of the step as {name!r}: annotate it with 'str'")
        return [f"compensate={text}" for text in wrong]

    def _fillings(self, step: Step[..., Any]) -> dict[str, str | None]:
        """Where each parameter's value comes from; ``None`` for one that nothing fills."""
        arguments = inspect.signature(step.function).parameters
        found: dict[str, str | None] = {}
        for name in self._parameters:
            if self._hints.get(name) is FailedExecution:
                found[name] = "failed"
            elif name in arguments:
                found[name] = "argument"
            elif name in ("key", "result"):
                found[name] = name
            else:
                found[name] = None
        left = [name for name, source in found.items() if source is None]
        if len(left) == 1 and "result" not in found.values():
            found[left[0]] = "result"
        for name in left:
            if found[name] is None and self._parameters[name].default is not inspect.Parameter.empty:
                del found[name]
        return found

    def arguments(self, execution: Execution, run: str, failed: Callable[[], FailedExecution]) -> tuple[bytes, Any]:
        """What it is called with to undo the execution of a step; as ``Signature.written``."""
        call = execution.call
        assert isinstance(call, Call)
        signature, arguments = call.step.signature, None
        filled: dict[str, Any] = {}
        wanting: list[str] = []
        for name, source in self._sources[call.step].items():
            if source == "argument":
                if arguments is None:
                    arguments = signature.read(call.body)
                filled[name] = getattr(arguments, name)
            elif source == "key":
                filled[name] = call.key(run)
            elif source == "result":
                filled[name] = None if execution.result is None else signature.result.decode(execution.result)
            else:
                wanting.append(name)
        if not wanting:
            return self.step.signature.written((), filled)
        whole = failed()
        for told in (whole, _without_data(whole)):
            with suppress(InvalidMessage):
                return self.step.signature.written((), filled | dict.fromkeys(wanting, told))
        nothing = msgspec.structs.replace(whole, executions=())
        return self.step.signature.written((), filled | dict.fromkeys(wanting, nothing))


def _without_data(failed: FailedExecution) -> FailedExecution:
    """Of a saga that has done too much to be told in one message."""
    executions = (msgspec.structs.replace(one, arguments=None, result=None) for one in failed.executions)
    return msgspec.structs.replace(failed, executions=tuple(executions))


def takes_a_key(function: Callable[..., Any]) -> bool:
    """Whether its code names ``attempt`` and ``key``: more cannot be seen without running it."""
    names = {name for code in _codes(inspect.unwrap(function).__code__) for name in code.co_names}
    return {"attempt", "key"} <= names


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _holds(wanted: Any, given: Any) -> bool:
    """Whether a parameter annotated so can take such a value. What cannot be told is left to the codec."""
    options = _options(wanted)
    return all(any(one == option or _may_be(one, option) for option in options) for one in _options(given))


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _may_be(given: Any, wanted: Any) -> bool:
    if wanted is Any:
        return given in (Any, str, int, float, bool, type(None))  # what JSON has: others would come back as such
    if given is type(None):  # a list[int] is no None, either
        return wanted is object or isinstance(wanted, TypeVar)
    if isinstance(given, type) and isinstance(wanted, type) and Any not in (given, wanted):
        return issubclass(given, wanted)
    return True


class _CompensationDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Compensation[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Compensation[P, R]: ...


@overload
def compensation(function: Callable[P, Coroutine[Any, Any, R]], /) -> Compensation[P, R]: ...
@overload
def compensation(function: Callable[P, R], /) -> Compensation[P, R]: ...
@overload
def compensation(
    *,
    guarantee: Guarantee = "at_least_once",
    independent: bool = False,
    lookup: Callable[..., Any] | None = None,
    **options: Unpack[CompensationOptions],
) -> _CompensationDecorator: ...
def compensation(function: Any = None, /, **options: Any) -> Any:
    """What undoes a step of a saga. It is a step itself: journalled, with the options of one.

    It must be harmless where nothing was done: a step whose outcome is unknown is undone, too, with ``None`` as its
    result. ``guarantee``: when it has failed for good, ``"best_effort"`` passes over that; otherwise a person decides.
    ``"exactly_once"`` must be transactional, or name ``workflows.attempt().key`` in its code. ``independent``: it may
    run beside its neighbours that are independent as well.
    """
    if function is not None:
        return Compensation(function, **options)
    return lambda function: Compensation(function, **options)
