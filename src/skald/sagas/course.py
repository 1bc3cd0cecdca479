"""PURE. One saga in memory: which of its steps were started, and what becomes of it when something fails.

It stands between the code and the machine (see ``Machine.conductor``). On the good way it writes nothing: executions
are known from the journal's own entries. Everything here happens in the workflow's loop, and again at each replay.

- A cancel, and the deadline, reach the code only as long as it can go back: once the pivot is done they change nothing,
  while the pivot runs they wait for its outcome, and while the saga is compensated they are too late.
- What still runs when the saga fails is given up, and its outcome is unknown: it is looked up where that is possible,
  and undone otherwise. A pivot cannot be undone: a person says whether it was done.
- After the pivot a failure can go neither back nor forward: a person decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, cast

import msgspec

from skald.errors import SagaCompensated, SkaldError, StepFailed, UnreadableMessage, WorkflowError
from skald.sagas.compensation import Execution, ExecutionState, batches
from skald.sagas.definition import Compensation, Executed, FailedExecution
from skald.sagas.desk import Desk
from skald.sagas.machine import Happening
from skald.sagas.question import Answer, Change, Choice, Question
from skald.sagas.recovery import Recovery
from skald.workflows import locking
from skald.workflows.asking import answered, issue
from skald.workflows.calling import Ask, Undoing
from skald.workflows.definition import Call, Step, continuation
from skald.workflows.failure import Failure, failure_of, let_go
from skald.workflows.loop import explained
from skald.workflows.replay import Evicted, Machine, give_up_children
from skald.workflows.signature import Identity

_NOT_AS_NEW = "a saga cannot continue as new, because what it would have to undo would be forgotten: start another"
_UNDOING = (Choice.RETRY, Choice.DONE, Choice.SKIP)
_FORWARD = (Choice.RETRY, Choice.DONE, Choice.SKIP)
_BEFORE_THE_PIVOT = (Choice.RETRY, Choice.DONE, Choice.SKIP, Choice.FAIL)
_DOUBTFUL_PIVOT = (Choice.RETRY, Choice.DONE, Choice.FAIL)
_GIVEN_UP_PIVOT = (Choice.DONE, Choice.FAIL)


class Course:
    """``deadline`` is in seconds. ``before`` has for each node of a graph those on the paths that lead to it."""

    def __init__(
        self, machine: Machine, deadline: float | None, before: Mapping[str, frozenset[str]] | None = None
    ) -> None:
        self.executions: list[Execution] = []
        self._machine, self._deadline, self._before = machine, deadline, before
        self._loop = machine.loop
        self.is_closed = False
        """It calls no further steps."""
        self._pivots: list[Execution] = []
        """Those that run, or may have been done."""
        self._is_past_pivot = False
        self._timer: asyncio.TimerHandle | None = None
        self._stop: str | None = None
        """Why it is to stop, as soon as it may."""
        self._is_late = False
        self._desk = Desk(machine)
        machine.conductor = self

    # --- forward ------------------------------------------------------------------------------------------------------

    async def run(self, code: Coroutine[Any, Any, Any]) -> Any:
        """Runs the code of the saga; raises ``SagaCompensated``, or CancelledError, when all is undone."""
        if self._deadline is not None:
            expired = partial(self._request, "the deadline", late=True)
            self._timer = self._loop.call_later(self._deadline, expired)
        try:
            result = await code
            # One that cannot be stored is a failure like any other.
            self._machine.workflow.signature.result.encode(result)
        except asyncio.CancelledError as cancelled:
            late = TimeoutError(f"the saga took longer than deadline={self._deadline:g} s") if self._is_late else None
            return await self._failed(late or cancelled)
        except (KeyboardInterrupt, GeneratorExit, Evicted):
            raise
        except BaseException as error:
            self._machine.ensure_alive("the saga")  # otherwise a task group has wrapped that it leaves memory
            return await self._failed(error if continuation(error) is None else WorkflowError(_NOT_AS_NEW))
        self._close()
        return result

    def cancel(self, reason: str) -> None:
        """Asked from outside."""
        self._request(reason, late=False)

    def _request(self, reason: str, *, late: bool) -> None:
        if self.is_closed or self._is_past_pivot:
            return
        if any(pivot.is_busy for pivot in self._pivots):
            if self._stop is None:
                self._stop, self._is_late = reason, late
            return
        self._is_late = late
        self._machine.task.cancel(reason)

    def _stop_now(self) -> None:
        """What was asked while the pivot ran can happen now, unless it was done, or the code has failed with it."""
        if self._stop is not None:
            reason, self._stop = self._stop, None
            self._request(reason, late=self._is_late)

    def looks_for(self, identity: Identity) -> bool:
        return not self._is_past_pivot and any(
            one.given_up
            and one.call.identity == identity
            and (one.recovery.compensate is not None or one.recovery.pivot)
            for one in self.executions
        )

    def expects(self, status: str) -> bool:
        return bool(self._desk.ahead) and self._desk.ahead.pop(0) == status

    def ahead(self) -> list[str]:
        ahead, self._desk.ahead = self._desk.ahead, []
        return ahead

    def call(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        return self.execute(step.name, step, args, kwargs)

    def execute(
        self, node: str, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """One execution of a step, up to where its outcome is settled."""
        call = self._machine.issue(step, *step.signature.called(args, kwargs))
        return self._carry_out(node, call, step.recovery)

    def ask(self, ask: Ask) -> Coroutine[Any, Any, Any]:
        """The same of a command that is called."""
        return self._carry_out(ask.name, ask, ask.recovery)

    async def _carry_out(self, node: str, call: Call | Ask, recovery: Recovery) -> Any:
        machine = self._machine
        if self.is_closed:
            raise WorkflowError(f"the saga {machine.id!r} is being compensated, and calls no {call.name!r}")
        execution = Execution(len(self.executions) + 1, node, call, recovery)
        self.executions.append(execution)
        if recovery.pivot and not self._is_past_pivot:
            self._pivots.append(execution)
        try:
            while True:
                call = execution.call
                try:
                    result = await (machine.outcome(call) if isinstance(call, Call) else answered(machine, call))
                    self._done(execution, execution.call.result)
                    return result
                except StepFailed as raised:
                    failure = raised
                except asyncio.CancelledError:
                    self._cut_off(execution)
                    raise
                self._note(execution, failure)
                answer = await self._given_up(execution, failure)
                if answer is None or answer.choice == Choice.SKIP:
                    return None
                if answer.choice == Choice.DONE:
                    self._done(execution, bytes(answer.result))
                    return execution.read(bytes(answer.result))
                execution.call = execution.call.again(self._loop.create_future())
                execution.state = ExecutionState.STARTED
        finally:
            execution.is_busy = False
            if self._stop is not None and recovery.pivot:
                # Not at once: where the code fails with the pivot, it must not be cancelled while it is compensated.
                self._loop.call_soon(self._stop_now)

    def _done(self, execution: Execution, result: bytes | None) -> None:
        execution.state, execution.result = ExecutionState.DONE, result
        if execution in self._pivots:
            self._pivots.clear()
            self._is_past_pivot = True
            _cancel(self._timer)

    def _cut_off(self, execution: Execution) -> None:
        """Its caller was cancelled; the outcome may have come in the same moment."""
        call = execution.call
        if execution.state != ExecutionState.STARTED:
            return
        if call.result is not None:
            self._done(execution, call.result)
        elif call.future.cancelled():
            execution.state, execution.given_up = ExecutionState.UNKNOWN, True
        else:
            self._note(execution, call.future.exception())

    def _note(self, execution: Execution, failure: BaseException | None) -> None:
        is_unknown = isinstance(failure, StepFailed) and failure.unknown
        execution.state = ExecutionState.UNKNOWN if is_unknown else ExecutionState.FAILED
        if execution in self._pivots and not is_unknown:
            self._pivots.remove(execution)

    async def _given_up(self, execution: Execution, failure: StepFailed) -> Answer | None:
        """A step has failed for good: the saga fails, goes on without it, or waits for a person."""
        recovery, is_unknown = execution.recovery, execution.state == ExecutionState.UNKNOWN
        if not recovery.critical:
            return None
        in_doubt = is_unknown and execution in self._pivots
        if self.is_closed or not (recovery.human or recovery.forward or in_doubt or self._is_past_pivot):
            raise failure
        if self._stop is not None and recovery.pivot and not in_doubt:
            self._loop.call_soon(self._stop_now)  # it has not been done, so that nothing is in the way any more
        choices = _DOUBTFUL_PIVOT if in_doubt else _FORWARD if self._is_past_pivot else _BEFORE_THE_PIVOT
        answer = await self._ask_about(execution, choices, failure_of(failure))
        if answer.choice == Choice.FAIL:
            if in_doubt:
                self._note(execution, None)
            raise failure
        is_pivot = recovery.pivot and not self._is_past_pivot
        if is_pivot and answer.choice in (Choice.RETRY, Choice.DONE) and execution not in self._pivots:
            self._pivots.append(execution)
        return answer

    # --- back ---------------------------------------------------------------------------------------------------------

    async def _failed(self, error: BaseException) -> Any:
        self._close()
        if any(execution.is_busy for execution in self.executions):
            await asyncio.sleep(0)  # those who were given up let go of their calls, before one of them is made again
        while self._pivots and not self._is_past_pivot:
            await self._settle_pivot(self._pivots[0])
        if self._is_past_pivot:
            return await self._stranded(error)
        cause = _cause(error)
        is_cancel, failure = isinstance(error, asyncio.CancelledError), failure_of(explained(cause))
        step = cause.step if isinstance(cause, StepFailed) else _stood_at(self.executions)
        if not is_cancel:
            let_go(error)  # before the compensations, which may take long
        self._desk.enter(Happening.IS_CANCELLED if is_cancel else Happening.FAILS, Change(step, failure))
        await self._undo_all(step, failure)
        self._desk.enter(Happening.IS_UNDONE_FOR_CANCEL if is_cancel else Happening.IS_UNDONE, Change(step, failure))
        if is_cancel:
            raise error
        raise SagaCompensated(self._machine.id, failure.type, failure.message, step) from error

    def _close(self) -> None:
        """Gives up what still runs or waits, in tasks that nobody has awaited; not the pivot, whose outcome decides."""
        self.is_closed = True
        _cancel(self._timer)
        self._desk.close()
        locking.close(self._machine)
        for execution in self.executions:
            if execution.state == ExecutionState.STARTED and execution not in self._pivots:
                execution.call.future.cancel()
                self._cut_off(execution)
        give_up_children(self._machine)

    async def _settle_pivot(self, pivot: Execution) -> None:
        """The code has failed, and nobody knows whether the pivot was done."""
        if pivot.state == ExecutionState.STARTED:
            await asyncio.wait([pivot.call.future])
            self._cut_off(pivot)
        if pivot.given_up and await self._look_up(pivot):
            return
        if pivot.state == ExecutionState.UNKNOWN:
            failure = Failure("OutcomeUnknown", "the saga has failed, and whether this was done is not known")
            answer = await self._ask_about(pivot, _GIVEN_UP_PIVOT, failure)
            if answer.choice == Choice.DONE:
                self._done(pivot, bytes(answer.result))
                return
            self._note(pivot, None)
        if pivot in self._pivots:
            self._pivots.remove(pivot)

    async def _look_up(self, execution: Execution) -> bool:
        """Of one that was given up: true if it was done. Of a transactional step the database knows."""
        if not isinstance(execution.call, Call):
            return False
        if execution.call.step.lookup is None and not execution.call.step.transactional:
            return False
        call = execution.call.again(self._loop.create_future(), looking=True)
        execution.given_up = False
        try:
            await self._machine.outcome(call)
        except StepFailed as failure:
            self._note(execution, failure)
            return False
        self._done(execution, call.result)
        return True

    async def _stranded(self, error: BaseException) -> Any:
        """Neither back nor, with this code, forward: all that can be said is what the saga comes to."""
        machine, failure = self._machine, failure_of(explained(_cause(error)))
        question = _question(machine, machine.workflow.name, (Choice.DONE,), failure)
        while True:
            answer = await self._desk.ask(question)
            try:
                return machine.workflow.signature.result.decode(bytes(answer.result))
            except UnreadableMessage as unreadable:
                question = msgspec.structs.replace(question, failure=failure_of(unreadable))

    async def _undo_all(self, step: str | None, failure: Failure) -> None:
        for execution in self.executions:
            if execution.given_up and execution.recovery.compensate is not None:
                await self._look_up(execution)
        machine, before = self._machine, [execution.state for execution in self.executions]
        told: list[FailedExecution] = []

        def failed() -> FailedExecution:  # most compensations do not ask
            if not told:
                done = tuple(map(_told, self.executions, before))
                told.append(
                    FailedExecution(machine.workflow.name, machine.id, step, failure.type, failure.message, done)
                )
            return told[0]

        for batch in batches(self.executions, self._before):
            undoing = [self._undo(execution, failed, failure) for execution in batch]
            await (asyncio.gather(*undoing) if len(undoing) > 1 else undoing[0])

    async def _undo(self, execution: Execution, failed: Callable[[], FailedExecution], because: Failure) -> None:
        machine = self._machine
        compensation = cast("Compensation[..., Any] | Undoing", execution.recovery.compensate)
        call: Call | Ask | None = None
        while True:
            try:
                call = call or _undoing(machine, execution.call, compensation, failed)
                if isinstance(call, Call) and not isinstance(compensation, Undoing):
                    call.body, call.copy = compensation.arguments(execution, machine.run, failed)
                await machine.outcome(call)
                execution.state = ExecutionState.COMPENSATED
                return
            except Exception as error:
                failure = failure_of(error)
            if compensation.guarantee == "best_effort":
                execution.state = ExecutionState.NOT_COMPENSATED
                return
            name = compensation.name if call is None else call.name
            answer = await self._ask_about(execution, _UNDOING, failure, name, because)
            if answer.choice != Choice.RETRY:
                done = answer.choice == Choice.DONE
                execution.state = ExecutionState.COMPENSATED if done else ExecutionState.NOT_COMPENSATED
                return
            call = call and call.again(self._loop.create_future())

    # --- a person -----------------------------------------------------------------------------------------------------

    async def _ask_about(
        self,
        execution: Execution,
        choices: tuple[Choice, ...],
        failure: Failure,
        compensation: str | None = None,
        because: Failure | None = None,
    ) -> Answer:
        told = _told(execution, execution.state)
        question = _question(
            self._machine, told.step, choices, failure, arguments=told.arguments, result=told.result,
            compensation=compensation, because=because,
        )  # fmt: skip
        while True:
            answer = await self._desk.ask(question)
            if answer.choice != Choice.DONE or compensation is not None:
                return answer
            try:
                execution.read(bytes(answer.result))
                return answer
            except UnreadableMessage as unreadable:
                question = msgspec.structs.replace(question, failure=failure_of(unreadable))


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _undoing(
    machine: Machine,
    undone: Call | Ask,
    compensation: Compensation[..., Any] | Undoing,
    failed: Callable[[], FailedExecution],
) -> Call | Ask:
    """The call that undoes another one."""
    if isinstance(compensation, Undoing):
        ask = issue(machine, compensation.command(failed()))
        ask.undoing = compensation
        return ask
    # By the digest of what it undoes: what it is told besides may be more in another version.
    call = machine.issue(compensation.step, b"", undone.identity[1])
    call.shielded = True
    return call


def _stood_at(executions: Sequence[Execution]) -> str | None:
    """The one that was given up last."""
    return next((one.call.name for one in reversed(executions) if one.given_up), None)


def _question(machine: Machine, step: str, choices: tuple[Choice, ...], failure: Failure, **more: Any) -> Question:
    return Question(0, step, choices, failure, machine.workflow.name, machine.id, **more)


def _told(execution: Execution, state: ExecutionState) -> Executed:
    read = msgspec.json.decode
    result = None if execution.result is None else read(execution.result)
    return Executed(execution.call.name, state, read(execution.call.body), result)


def _cause(error: BaseException) -> BaseException:
    """Of a group of them, the first step that has failed."""
    if isinstance(error, BaseExceptionGroup):
        found = [_cause(one) for one in error.exceptions]
        return next((one for one in found if isinstance(one, SkaldError)), error)
    return error
