"""Given, when, then: one saga by itself. Every step of it is made to fail, every compensation, every answer is late.

    def test_every_failure_frees_what_was_taken(cloud: Cloud) -> None:
        for failed in each_step(SagaScenario(launch, machines).when(REQUEST)):
            failed.then(status="COMPENSATED")
            assert cloud.held("vm-1") == []

    def test_no_answer_in_time() -> None:
        (
            SagaScenario(fulfil, orders)
            .given(charge, "payment-1")  # what a step comes to, attempt by attempt
            .reply(ReserveInventory, InventoryReserved("o-1"), after=90)  # its call has timeout=30
            .when("o-1")
            .then(status="COMPENSATED", failed="ReserveInventory", compensated=["ReserveInventory", "charge"])
        )

A scenario is a value: what is common to several tests can be kept, and ``then`` plays it from its beginning. The saga
runs on the real engine, on a store in memory that nobody sees, and on a clock that goes on by itself to whatever is due
next, until the saga has ended and nothing is due, or it waits for somebody. ``after`` moves the clock, and no further.
"""

from __future__ import annotations

import copy
import inspect
import shutil
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast, overload
from weakref import finalize

from skald.errors import ConfigurationError, UndeclaredMessage, WorkflowFailed
from skald.message import Command
from skald.messaging.service import Service
from skald.sagas.compensation import ExecutionState
from skald.sagas.definition import Compensation
from skald.sagas.machine import Status
from skald.sagas.question import Choice
from skald.sagas.saga import SagaWorkflow
from skald.testing.playing import Act, Fault, Performance, Played, Reply, StepBroken, is_event, types_of
from skald.testing.report import Report
from skald.testing.stage import (
    Provided,
    Stage,
    check_provided,
    left_behind,
    new_folder,
    play,
    seconds_of,
    staged,
    values_of,
)
from skald.workflows.channels import Signal
from skald.workflows.definition import Step
from skald.workflows.loop import user_line

P = ParamSpec("P")
C = TypeVar("C", bound=Command[Any])
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

ID = "saga-1"

Which = int | Step[..., Any] | type[Command[Any]] | str
"""A step: the object, the class of a command that is called, its name, in a graph its node; or its number as executed,
from 1."""


class SagaScenario(Generic[P, R]):
    """``service`` is where the saga runs: it has its migrations, and the commands that it calls. It may be left out for
    a saga that needs neither."""

    def __init__(
        self, saga: SagaWorkflow[P, R], service: Service | None = None, *, provide: Provided | None = None
    ) -> None:
        if not isinstance(saga, SagaWorkflow):
            raise ConfigurationError(f"{user_line()}: SagaScenario({saga!r}) takes a saga")
        if service is not None and saga not in service.workflows:
            raise ConfigurationError(
                f"{user_line()}: {service.name} does not run {saga.name}: name it in Service({service.name!r}, "
                f"workflows=[{saga.name}])"
            )
        self._saga, self._service, self._provide = saga, service, dict(provide or {})
        self._mocks: tuple[tuple[Step[..., Any] | Compensation[..., Any], tuple[Any, ...]], ...] = ()
        self._replies: tuple[tuple[type, Reply], ...] = ()
        self._faults: tuple[Fault, ...] = ()
        self._before: tuple[str | Callable[[], Any], ...] = ()
        self._acts: tuple[Act, ...] = ()
        self._args: tuple[Any, ...] | None = None
        self._where = ""
        if service is not None:
            check_provided(service, self._provide)

    # --- what the world is like ---------------------------------------------------------------------------------------

    @overload
    def given(
        self, step: Step[..., S] | Compensation[..., S], /, *outcomes: S | BaseException | Callable[..., Any]
    ) -> Self: ...
    @overload
    def given(self, *before: str | Callable[[], Any]) -> Self: ...
    def given(self, *given: Any) -> Self:
        """With a step or a compensation: what it comes to, attempt by attempt; the last outcome stays. An exception,
        or its class, is raised, a function is called with the arguments, and anything else is returned. Otherwise what
        happens before the saga is started: SQL statements that are run, functions that are called while the service is
        connected.
        """
        step, outcomes = given[0] if given else None, given[1:]
        if isinstance(step, Step | Compensation):
            if not outcomes:
                raise ConfigurationError(f"{user_line()}: given({step.name}): say at least one outcome")
            return self._with(_mocks=(*self._mocks, (step, outcomes)))
        for one in given:
            if not (isinstance(one, str) or inspect.isroutine(one) or isinstance(one, partial)):
                raise ConfigurationError(
                    f"{user_line()}: given({one!r}): a step or a compensation with its outcomes, SQL, or a function"
                )
        return self._with(_before=(*self._before, *given))

    def reply(self, command: type[C], answer: Any, *, after: timedelta | float = 0.0, times: int = 1) -> Self:
        """How a command that the saga calls is answered: with an event, or with what a function of the command returns
        (``None``, as a handler that publishes nothing); late, after so many seconds, and ``times`` over. Said again, it
        is how the next one of this class is answered; the last one stays. Whatever the command's class does not name
        rejects it.

        A command whose class names no event, and one that compensates, needs no reply: it is done at once.
        """
        where = f"{user_line()}: reply({getattr(command, '__name__', command)}"
        if not (is_event(answer) or (callable(answer) and not isinstance(answer, type))):
            raise ConfigurationError(f"{where}, {answer!r}): the answer is an event, or a function of the command")
        if times < 1:
            raise ConfigurationError(f"{where}, times={times}): at least once; never(…) is for no answer")
        return self._answered(where, command, Reply(answer, seconds_of(after), times))

    def never(self, command: type[C]) -> Self:
        """A command that the saga calls is not answered."""
        return self._answered(f"{user_line()}: never({getattr(command, '__name__', command)}", command, Reply())

    def _answered(self, where: str, command: type, reply: Reply) -> Self:
        called = [] if self._service is None else [kind.cls for kind in self._service.calls.kinds]
        if command not in called:
            known = ", ".join(one.__name__ for one in called) or "nothing"
            raise ConfigurationError(f"{where}): the service of the saga does not call it; it calls {known}")
        if self._service is not None and any(command in [kind.cls for kind in h.types] for h in self._service.handlers):
            raise ConfigurationError(f"{where}): {self._service.name} handles it itself, and its own handler answers")
        return self._with(_replies=(*self._replies, (command, reply)))

    def fail(self, step: Which, error: Exception | None = None, *, lost: bool = False) -> Self:
        """Lets a step fail at every attempt, before it has done anything; a command is rejected. ``lost``: it is done,
        and nobody is told: its outcome is unknown."""
        return self.but(Fault(step, _broken(error, lost), lost))

    def fail_compensation(self, step: Which | Compensation[..., Any], error: Exception | None = None) -> Self:
        """Lets the compensation of a step fail at every attempt, until somebody has decided. Said itself, it fails
        whatever it undoes; a number counts what is undone, from 1."""
        return self.but(Fault(step, _broken(error, False), undoing=True))

    # --- what happens -------------------------------------------------------------------------------------------------

    def when(self, *args: P.args, **kwargs: P.kwargs) -> Self:
        """The saga is started with these arguments, under the id ``saga-1``."""
        if self._args is not None:
            raise ConfigurationError(f"{user_line()}: it is started once: the second when() is one too many")
        given = inspect.signature(self._saga.function).bind(*args, **kwargs)
        return self._with(_args=given.args, _where=user_line())

    def after(self, time: timedelta | float) -> Self:
        """So many seconds go by."""
        return self._act("after", seconds_of(time))

    def signal(self, signal: Signal[S], value: S) -> Self:
        """Somebody sends it a signal, once it can go on no further by itself without the clock."""
        return self._act("signal", signal, value)

    def cancel(self, reason: str = "") -> Self:
        """Somebody cancels it."""
        return self._act("cancel", reason)

    def decide(self, choice: Choice | str, step: str, result: Any = None) -> Self:
        """A person decides what it asks about a step, as with ``skald sagas resolve``."""
        if choice not in list(Choice):
            raise ConfigurationError(f"{user_line()}: decide({choice!r}): {', '.join(Choice)}")
        return self._act("decide", choice, step, result)

    def but(self, fault: Fault) -> Self:
        """The same, with a further fault."""
        return self._with(_faults=(*self._faults, fault))

    def _act(self, kind: str, *values: Any) -> Self:
        if self._args is None:
            raise ConfigurationError(f"{user_line()}: {kind}() comes behind when(), which starts the saga")
        return self._with(_acts=(*self._acts, Act(kind, values, user_line())))

    def _with(self, **changes: Any) -> Self:
        found = copy.copy(self)
        for name, value in changes.items():
            setattr(found, name, value)
        return found

    # --- what comes of it ---------------------------------------------------------------------------------------------

    def then(
        self,
        result: R | EllipsisType = ...,
        *,
        status: Status | str | None = None,
        failed: str | None = None,
        error: type[Exception] | Exception | None = None,
        steps: Sequence[Any] | None = None,
        compensated: Sequence[Any] | None = None,
        commands: Sequence[Any] | None = None,
        asks: str | Sequence[str] | None = None,
        published: Sequence[Any] | None = None,
        rows: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Plays it, and compares: see ``Outcome.then``."""
        __tracebackhide__ = True
        self.play().then(
            result, status=status, failed=failed, error=error, steps=steps, compensated=compensated, commands=commands,
            asks=asks, published=published, rows=rows,
        )  # fmt: skip

    def play(self) -> Outcome[R]:
        """Plays it, for those who want to look for themselves."""
        if self._args is None:
            raise ConfigurationError(f"{user_line()}: nothing happens: start the saga, with when(…)")
        service, bound = self._service, self._saga.calls
        try:
            outcome = play(partial(self._played, service or Service("scenario", workflows=[self._saga])))
        finally:
            self._saga.calls = bound
        error = outcome._played.error
        if service is None and error is not None and error.type == UndeclaredMessage.__name__:
            name = self._saga.name
            raise ConfigurationError(
                f"{self._where}: {name} needs what its service declares, SagaScenario({name}, service): {error.message}"
            )
        return outcome

    async def _played(self, service: Service) -> Outcome[R]:
        replies: dict[type, list[Reply]] = {}
        answers: dict[type, list[type]] = {}
        for command, reply in self._replies:
            replies.setdefault(command, []).append(reply)
            answers.setdefault(command, []).extend(types_of(reply.answer))
        folder = new_folder()
        try:
            async with staged(service, self._provide, answers, folder) as stage:
                return await self._perform(stage, service, replies, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    async def _perform(
        self, stage: Stage, service: Service, replies: dict[type, list[Reply]], folder: Path
    ) -> Outcome[R]:
        for one in self._before:
            await stage.do(one)
        for step, outcomes in self._mocks:
            stage.lab.mock(step, *outcomes)
        performance = Performance(stage, ID, replies, self._faults, self._where)
        try:
            await performance.begin()
            handle = await cast("Any", self._saga).start(*(self._args or ()), id=ID)
            for act in self._acts:
                await performance.act(act, handle)
            if not self._acts or self._acts[-1].kind != "after":
                await performance.go_on()
            return Outcome(self._saga.name, service, folder, await performance.played(handle), stage.told)
        finally:
            performance.leave()


class Outcome(Generic[R]):
    """What a saga has come to. ``failing`` is what ``each_step`` and ``each_compensation`` have made to fail."""

    def __init__(self, saga: str, service: Service, folder: Path, played: Played, told: list[str]) -> None:
        self._saga, self._service, self._folder, self._played, self._told = saga, service, folder, played, told
        finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.failing = ""

    @property
    def status(self) -> Status:
        return Status(self._played.status)

    @property
    def result(self) -> R:
        """What it has returned; raises what it has failed with."""
        if self._played.error is not None:
            raise self._played.error
        return cast("R", self._played.result)

    @property
    def steps(self) -> list[str]:
        """What was executed, in the order in which it was started: steps, and commands that were called."""
        return [one.node for one in self._played.steps]

    @property
    def done(self) -> list[str]:
        """Those of them that were done, whether they were undone or not."""
        return [one.node for one in self._played.steps if one.result is not None]

    @property
    def compensated(self) -> list[str]:
        """Those that were undone, in the order in which that began."""
        return [one.node for one in self._played.undone if one.state == ExecutionState.COMPENSATED]

    def rows(self, sql: str) -> list[Any]:
        """What a statement finds in the service's database: a row of one column is its value, others are tuples."""
        return values_of(self.look(lambda: self._service.fetch(sql)))

    def look(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Calls a function while the service is connected to what the saga has left behind."""

        async def call() -> T:
            async with left_behind(self._service, self._folder):
                return await function()

        return play(call)

    def then(
        self,
        result: R | EllipsisType = ...,
        *,
        status: Status | str | None = None,
        failed: str | None = None,
        error: type[Exception] | Exception | None = None,
        steps: Sequence[Any] | None = None,
        compensated: Sequence[Any] | None = None,
        commands: Sequence[Any] | None = None,
        asks: str | Sequence[str] | None = None,
        published: Sequence[Any] | None = None,
        rows: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Compares, and raises AssertionError with a diff.

        ``result``: what the saga returns; without anything that says otherwise its ``status`` is COMPLETED. ``failed``:
        the step that has failed, and ``error`` what with: a type, or an error with this text. ``steps`` and
        ``compensated``: their names (in a graph the nodes), in order; a set stands for its members in any order.
        ``commands``: what was called, and what undoes that, as they are or by their classes. ``asks``: the steps that
        a person is asked about.
        ``published``: by its steps. ``rows``: what SQL statements find.
        """
        __tracebackhide__ = True
        where, played = user_line(), self._played
        about = f", with {self.failing} failing," if self.failing else ""
        report = Report(f"{where}: the saga {self._saga}{about}")
        if played.missed:
            report.compare("to be made to fail", [str(one) for one in played.missed], [])
            report.compare("steps", [], self.steps)
        if status is None:
            failing = failed is not None or error is not None or compensated is not None
            status = Status.COMPENSATED if failing else None if asks is not None else Status.COMPLETED
        if status is not None:
            report.compare("status", [str(status)], [str(self.status)])
        if result is not ...:
            report.compare("result", [result], [played.result] if played.error is None and played.has_ended else [])
        if failed is not None:
            step = getattr(played.error, "step", None)
            report.compare("failed", [failed], [] if step is None else [step])
        if error is not None:
            report.compare("error", [_told(error)], [_came(error, played.error)])
        for what, expected, came in [
            ("steps", steps, self.steps),
            ("compensated", compensated, self.compensated),
            ("commands", commands, played.commands),
            ("asks", None if asks is None else (asks,) if isinstance(asks, str) else asks, played.asks),
            ("published", published, played.published),
        ]:
            if expected is not None:
                report.compare(what, expected, came)
        for sql, expected in (rows or {}).items():
            report.compare(f"rows of {sql}", expected, self.rows(sql))
        report.raise_if_any([*self._told, *self._summary()], played.error if str(self.status) != str(status) else None)

    def _summary(self) -> list[str]:
        """What became of each step, in words."""
        lines = [f"  {one.number}. {one.node}: {one.state.value}" for one in self._played.steps]
        lines += [f"  asks about {one}" for one in self._played.asks]
        return lines if self._played.error is None else [*lines, f"  {self._played.error}"]


def each_step(
    scenario: SagaScenario[P, R], error: Exception | None = None, *, lost: bool = False
) -> Iterator[Outcome[R]]:
    """Lets each step of a scenario fail in turn, and each command that it calls be rejected; ``lost``: it is done, and
    nobody is told. Those that are retried to the end are passed over. In a last play nothing fails."""
    yield from _each(scenario, lambda number: Fault(number, _broken(error, lost), lost, sparing=True))


def each_compensation(scenario: SagaScenario[P, R], error: Exception | None = None) -> Iterator[Outcome[R]]:
    """Lets each compensation of a scenario, which has to fail by itself, fail in turn."""
    yield from _each(scenario, lambda number: Fault(number, _broken(error, False), undoing=True))


def _each(scenario: SagaScenario[P, R], fault: Callable[[int], Fault]) -> Iterator[Outcome[R]]:
    number, where = 0, user_line()
    while True:
        number += 1
        planned = fault(number)
        outcome = scenario.but(planned).play()
        played = outcome._played
        found = played.undone if planned.undoing else played.steps
        if number > len(found):
            if number == 1:
                what = "undoes nothing: let it fail() first" if planned.undoing else "executes no step"
                raise ConfigurationError(f"{where}: the scenario {what}")
            return
        execution = found[number - 1]
        if planned in played.missed:
            raise ConfigurationError(
                f"{where}: {execution.node} cannot be made to fail here: the service itself answers it, or it is given "
                "up before it begins"
            )
        if planned.undoing or not execution.recovery.forward:
            outcome.failing = execution.node
            yield outcome


def _broken(error: Exception | None, lost: bool) -> Exception:
    return error or (TimeoutError("no answer") if lost else StepBroken("it was made to fail"))


def _told(error: type[Exception] | Exception) -> str:
    return error.__name__ if isinstance(error, type) else f"{type(error).__name__}: {error}"


def _came(expected: type[Exception] | Exception, came: WorkflowFailed | None) -> str:
    """The error of a saga, as precisely as it is expected."""
    if came is None:
        return "none"
    return came.type if isinstance(expected, type) else f"{came.type}: {came.message}"
