"""How a saga is played on a stage: what is made to fail, who answers its commands and when, and what is seen of it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from types import NoneType
from typing import Any, cast

import msgspec

from skald.errors import ConfigurationError, UndeclaredMessage, WorkflowFailed
from skald.message import Record, message_type
from skald.messaging.calls import Handled, is_called
from skald.messaging.compensation import CompensationFailed
from skald.sagas.compensation import Execution, ExecutionState
from skald.sagas.course import Course
from skald.sagas.definition import Compensation
from skald.sagas.question import open_questions
from skald.testing.stage import MOST, Refused, Stage, is_message
from skald.unit import EntryKind
from skald.workflows import journal
from skald.workflows.calling import Ask, results
from skald.workflows.definition import Call, Step
from skald.workflows.instance import Instance
from skald.workflows.signature import Identity
from skald.workflows.starting import Handle


class Reply(msgspec.Struct, frozen=True):
    """``answer`` is an event, or a function of the command; ``None`` for no answer at all."""

    answer: Any = None
    after: float = 0.0
    times: int = 1


class StepBroken(Exception):
    """What a step or a compensation fails with that a scenario lets fail."""


class Fault(msgspec.Struct, frozen=True):
    """``step`` is what ``SagaScenario.fail`` takes. ``sparing``: not where it would be tried for ever."""

    step: Any
    error: Exception
    lost: bool = False
    undoing: bool = False
    sparing: bool = False

    def hits(self, execution: Execution, number: int) -> bool:
        call = execution.call
        if isinstance(self.step, int):
            return self.step == number
        if isinstance(self.step, str):
            return self.step in (execution.node, call.name)
        if isinstance(self.step, Compensation):
            return execution.recovery.compensate is self.step
        return self.step is (call.kind.cls if isinstance(call, Ask) else call.step)

    def __str__(self) -> str:
        return self.step.__name__ if isinstance(self.step, Step | Compensation | type) else str(self.step)


class Act(msgspec.Struct, frozen=True):
    kind: str
    values: tuple[Any, ...]
    where: str


class Played(msgspec.Struct):
    """What a saga has come to."""

    status: str
    has_ended: bool
    result: Any
    error: WorkflowFailed | None
    steps: list[Execution]
    undone: list[Execution]
    """In the order in which that began; the state of each says whether it was."""
    commands: list[Any]
    asks: list[str]
    published: list[Any]
    missed: list[Fault]
    """What was to fail, and never came."""


_planted: ContextVar[Fault | None] = ContextVar("skald_planted", default=None)


class Performance:
    """Of the saga with this id. ``replies`` are those of each class of command, in order."""

    def __init__(
        self, stage: Stage, id: str, replies: dict[type, list[Reply]], faults: Sequence[Fault], where: str
    ) -> None:
        self._stage, self._lab, self._id, self._where = stage, stage.lab, id, where
        self._replies, self._faults = replies, faults
        self._course: Course | None = None
        self._undoings: dict[Identity, Execution] = {}
        """What is undone, in the order in which that began, by the call that undoes it first."""
        self._commands: list[Any] = []
        self._pending: list[tuple[int, Record, Any]] = []
        """Answers that are on their way: when they are due."""
        self._position = self._began = 0
        self._met: list[Fault] = []
        self._planted: set[tuple[int, bool]] = set()
        """Executions that have failed as planned, and whether that was their compensation: once each."""
        self._wrapped: dict[Step[..., Any], Callable[..., Any]] = {}
        self._trouble: ConfigurationError | None = None
        [running] = stage.lab.running
        assert running.executor is not None
        self._executor = running.executor
        self._perform = self._executor.steps.perform
        self._executor.steps.perform = self._watch  # type: ignore[method-assign, assignment]

    def leave(self) -> None:
        for step, function in self._wrapped.items():
            step.function = function

    async def begin(self) -> None:
        """What the service has published before is not of the saga."""
        self._position = self._began = await self._stage.position()

    # --- going on -----------------------------------------------------------------------------------------------------

    async def go_on(self) -> None:
        """Until it has ended and every answer has come, or nothing is due any more."""
        for _ in range(MOST):
            await self._settle()
            if not self._pending and await self.has_ended():
                return
            due = await self._next_due()
            if due is None:
                return
            await self._lab.move_to(due)
        raise ConfigurationError(f"{self._where}: the saga has not ended after {MOST} moves of the clock")

    async def advance(self, seconds: float) -> None:
        await self._settle()
        end = self._lab.clock.now() + round(seconds * 1e6)
        # A timer is up to two microseconds later than what was asked for: seconds are floats.
        while (due := await self._next_due()) is not None and due <= end + 2:
            await self._lab.move_to(due)
            await self._settle()
        await self._lab.move_to(end)
        await self._settle()

    async def act(self, act: Act, handle: Handle[Any]) -> None:
        match act.kind:
            case "after":
                await self.advance(*act.values)
            case "signal":
                await self._settle()
                await handle.signal(*act.values)
            case "cancel":
                await self._settle()
                await handle.cancel(*act.values)
            case _:
                await self.go_on()
                choice, step, result = act.values
                asked = await self.asks()
                if step not in asked:
                    raise ConfigurationError(
                        f"{act.where}: decide({str(choice)!r}, {step!r}): the saga does not ask about that, but about "
                        f"{', '.join(asked) or 'nothing'}"
                    )
                await self._lab.resolve(handle, choice, step, result)

    async def _next_due(self) -> int | None:
        found = [due for due, _, _ in self._pending]
        due = await self._lab.next_due()
        return min([*found, *([] if due is None else [due])], default=None)

    async def _settle(self) -> None:
        """Until nothing goes on without the clock, and every command that was sent has its answer on the way."""
        while True:
            await self._stage.settle()
            if self._trouble is not None:
                raise self._trouble
            for instance in self._executor.turner.runs.values():
                self._see(instance)
            sent = await self._stage.records(self._position)
            for record in sent:
                self._position = record.position
                if is_called(record.id):
                    await self._send(record)
            now = self._lab.clock.now()
            due = [one for one in self._pending if one[0] <= now]
            self._pending = [one for one in self._pending if one[0] > now]
            for _, record, event in due:
                await self._answer(record, event)
            if not due:
                return

    # --- steps --------------------------------------------------------------------------------------------------------

    def _see(self, instance: Instance) -> None:
        if instance.id == self._id and isinstance(instance.machine.conductor, Course):
            self._course = instance.machine.conductor

    def _watch(self, instance: Instance, call: Call, *rest: Any) -> Coroutine[Any, Any, Any]:
        """Stands before what performs a step."""
        work = self._perform(instance, call, *rest)
        self._see(instance)
        if instance.id != self._id or call.looking or self._course is None:
            return work
        self._stage.tell(f"{'undoes by' if call.shielded else 'performs'} {call.name}")
        fault = self._fault(call)
        if fault is None:
            return work
        recovery = call.step.recovery
        if recovery.forward and not fault.undoing:
            if not fault.sparing and isinstance(fault.error, StepBroken | TimeoutError):
                self._trouble = ConfigurationError(
                    f"{self._where}: fail({fault}): {call.name} is retried to the end: give an error that has a rule "
                    "of its own in its retry="
                )
            if fault.sparing or self._trouble:
                return work
        self._wrap(call.step)
        return _failing(fault, work)

    def _fault(self, call: Call | Ask) -> Fault | None:
        """What is planned for a call, once for each execution."""
        assert self._course is not None
        undoing = call.undoing is not None if isinstance(call, Ask) else call.shielded
        if undoing:
            execution = self._undone_by(call)
        else:
            execution = next((one for one in self._course.executions if one.call is call), None)
        if execution is None:
            return None
        number = list(self._undoings.values()).index(execution) + 1 if undoing else execution.number
        for fault in self._faults:
            if fault.undoing == undoing and fault.hits(execution, number):
                self._met.append(fault)
                if (execution.number, undoing) in self._planted:
                    return None
                self._planted.add((execution.number, undoing))
                return fault
        return None

    def _undone_by(self, call: Call | Ask) -> Execution | None:
        """The execution that a call undoes: the last one that fits and is not being undone yet."""
        assert self._course is not None
        if call.identity not in self._undoings:
            known, may_be_done = self._undoings.values(), (ExecutionState.DONE, ExecutionState.UNKNOWN)
            left = [one for one in self._course.executions if one.state in may_be_done and one not in known]
            fitting = [one for one in left if _undoes(call, one)]
            if fitting:
                self._undoings[call.identity] = fitting[-1]
        return self._undoings.get(call.identity)

    def _wrap(self, step: Step[..., Any]) -> None:
        if step in self._wrapped:
            return
        self._wrapped[step] = function = step.function
        if step.is_async:

            async def breaking(*args: Any, **kwargs: Any) -> Any:
                fault = _planted.get()
                if fault is None or fault.lost:
                    result = await function(*args, **kwargs)
                if fault is not None:
                    raise fault.error
                return result

            step.function = breaking
        else:

            def breaking_in_thread(*args: Any, **kwargs: Any) -> Any:
                fault = _planted.get()
                if fault is None or fault.lost:
                    result = function(*args, **kwargs)
                if fault is not None:
                    raise fault.error
                return result

            step.function = breaking_in_thread

    # --- commands -----------------------------------------------------------------------------------------------------

    def _is_outside(self, record: Record) -> bool:
        routes = self._stage.service.calls.routes
        return any(
            route.topic == record.topic and route.service == self._stage.outside.name for route in routes.values()
        )

    async def _send(self, record: Record) -> None:
        """A command has been sent: what answers it is put on its way."""
        command = self._stage.read(record)
        self._commands.append(command)
        self._stage.tell(f"called {command!r}")
        if not self._is_outside(record):
            return  # the service's own handler answers
        ask = self._ask(record.id)
        fault = None if ask is None or self._course is None else self._fault(ask)
        if fault is not None:
            answer: Any = Refused(record.key)
            if fault.undoing:
                answer = CompensationFailed(
                    "outside", record.type, record.type, record.key, StepBroken.__name__, record.id
                )
            reply = Reply(None if fault.lost else answer)
        else:
            reply = self._reply(command, ask, record)
        if reply.answer is not None:
            event = reply.answer if is_event(reply.answer) else await self._made(reply.answer, command, record)
            due = self._lab.clock.now() + round(reply.after * 1e6)
            self._pending += [(due, record, event)] * reply.times

    async def _made(self, answer: Callable[[Any], Any], command: Any, record: Record) -> Any:
        """What a function answers; where that is nothing, as a handler does that publishes nothing."""
        event = answer(command)
        if inspect.isawaitable(event):
            event = await event
        if event is None:
            return Handled(self._stage.outside.name, record.type, record.key)
        if not is_event(event):
            raise ConfigurationError(
                f"{self._where}: a function answers {record.type} with {event!r}: let it return an event, or None "
                "for a handler that publishes nothing"
            )
        return event

    def _reply(self, command: Any, ask: Ask | None, record: Record) -> Reply:
        left = self._replies.get(type(command))
        if left:
            return left.pop(0) if len(left) > 1 else left[0]
        cls: Any = type(command)
        wanted = results(cls)
        if ask is None or ask.undoing is not None or wanted is None or NoneType in wanted:
            return Reply(Handled(self._stage.outside.name, record.type, record.key))
        name = cls.__name__
        raise ConfigurationError(
            f"{self._where}: the saga calls {command!r}, and nobody answers: say .reply({name}, …) or .never({name})"
        )

    def _ask(self, id: str) -> Ask | None:
        for instance in self._executor.turner.runs.values():
            for call in instance.machine.calls.values():
                if isinstance(call, Ask) and call.id == id:
                    return call
        return None

    async def _answer(self, command: Record, event: Any) -> None:
        self._stage.tell(f"answered {event!r}")
        try:
            await self._stage.answer(command, event)
        except UndeclaredMessage as error:
            name = type(event).__name__
            raise ConfigurationError(
                f"{self._where}: a function answers {command.type} with {name}: annotate it with what it returns"
            ) from error

    # --- what has come of it ------------------------------------------------------------------------------------------

    async def has_ended(self) -> bool:
        known = await journal.by_id(self._executor.store, self._id)
        return known is not None and known.end is not None

    async def asks(self) -> list[str]:
        return [one.step for one in open_questions((await self._lab.history(self._id)).journal())]

    async def played(self, handle: Handle[Any]) -> Played:
        rows = await self._stage.service.fetch("SELECT status FROM saga_state WHERE saga_id = :id", id=self._id)
        ended, result, error = await self.has_ended(), None, None
        if ended:
            try:
                result = await handle.result()
            except WorkflowFailed as failure:
                error = failure
        published = [one for one in await self._stage.records(self._began) if not is_called(one.id)]
        statuses = [one.name for one in (await self._lab.history(self._id)).journal() if one.kind == EntryKind.STATUS]
        for status in statuses:
            self._stage.told.append(f"{'':>14}  it was {status}")
        return Played(
            status=rows[0]["status"], has_ended=ended, result=result, error=error,
            steps=[] if self._course is None else list(self._course.executions), undone=list(self._undoings.values()),
            commands=self._commands, asks=await self.asks(),
            published=[self._stage.read(one) for one in published],
            missed=[one for one in self._faults if one not in self._met],
        )  # fmt: skip


async def _failing(fault: Fault, work: Coroutine[Any, Any, Any]) -> Any:
    _planted.set(fault)
    return await work


def _undoes(call: Call | Ask, execution: Execution) -> bool:
    undo, undone = execution.recovery.compensate, execution.call
    if isinstance(call, Ask):
        return call.undoing is not None and call.undoing is undo
    return isinstance(undo, Compensation) and undo.step is call.step and call.identity[1] == undone.identity[1]


def is_event(value: object) -> bool:
    return is_message(value) and message_type(type(value)).kind != "command"


def types_of(answer: Any) -> list[type]:
    """What a reply may be: of a function, what it is annotated to return."""
    if hasattr(answer, "__message__"):
        return [type(answer)]
    hint = typing.get_type_hints(answer).get("return") if callable(answer) else None
    found = typing.get_args(hint) or (hint,)
    return [cast("type", one) for one in found if hasattr(one, "__message__")]
