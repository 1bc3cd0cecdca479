"""Runs steps outside of the workflow's loop: async ones on the process's loop, sync ones in threads; with retries.

The outcome of an attempt is known when it returned or raised. It is not when it was cut off: by the end of its
process, by a limit (``Line``), or by a cancellation that nobody asked for. Then ``lookup`` is asked first.

A transactional step writes its result as a letter, in the transaction of its rows. It has run exactly once because,
before that letter, the transaction locks the row of its workflow, which shows that it is still ours, and then looks for
another letter of the same call. Whoever comes second (a thread that nobody could stop, an attempt after a commit whose
reply was lost) waits for that lock, finds the letter or another owner, and writes nothing. The journal need not be
read: what was journalled by this process its memory knows, and for another one to do so it had to take the row first.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, TypeVar

import msgspec

from skald import failpoints
from skald.clock import Clock
from skald.errors import Fenced, InvalidMessage, OutcomeUnknown, SkaldError, StoreUnavailable, UnreadableMessage
from skald.message import new_id
from skald.messaging.attempts import GRACE
from skald.messaging.blocking import BlockingTransaction
from skald.messaging.context import current_cause
from skald.messaging.invoke import HandlerCancelled, in_thread
from skald.messaging.outcome import describe
from skald.messaging.transaction import Transaction
from skald.retry import rule_for
from skald.telemetry import Recovering, StepIgnoresCancellation, StepRetried, emit
from skald.unit import AddressKind, EntryKind, Letter, LetterKind, Unit, WorkflowWrites
from skald.workflows.context import StepAttempt, current_attempt, current_blocking, current_transaction
from skald.workflows.definition import NOT_DONE, Call
from skald.workflows.failure import Failure, failure_of, let_go
from skald.workflows.failure import encode as encode_failure
from skald.workflows.instance import Instance
from skald.workflows.lines import Line, Reports, limit_text
from skald.workflows.recorder import Submit
from skald.workflows.signature import Identity, identity_text

T = TypeVar("T")
Mark = Callable[[Instance, Call], Awaitable[None]]
Result = tuple[EntryKind, bytes, Any]
"""As it is stored, and what that says: the result as whoever called the step gets it, or the ``Failure``."""

THREADS = 64
"""Sync steps that run at once; a thread is made when it is first needed."""
PAUSE = 1.0
"""Seconds before a database that was away is asked again."""

# The row is locked until the transaction ends, and its rest, its end and its next owner wait for that.
_LOCK = "UPDATE skald_workflows SET owner = owner WHERE run = :run AND owner = :owner"
_FIND = "SELECT 1 AS found FROM skald_letters WHERE to_run = :run AND taken = 0 AND kind = :kind AND name = :name"


DOUBTFUL = (TimeoutError, HandlerCancelled, OutcomeUnknown)
"""Failures after which nobody knows whether an attempt has done it."""


class Exhausted(Exception):
    """A step has failed for the last time, and its workflow is to wait for somebody to look."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.type)
        self.failure = failure


class _NotOurs(Exception):
    """The call is done, or given up, or somebody else's."""


class StepRunner:
    """Of one service."""

    def __init__(
        self,
        service: str,
        transaction: Callable[[], AbstractAsyncContextManager[Transaction]],
        owner: str,
        committer: Submit,
        clock: Clock,
    ) -> None:
        self.service, self.transaction, self._owner = service, transaction, owner
        self.committer, self._clock = committer, clock
        self.sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep
        """Between two attempts; tests have a clock of their own."""
        self.resting: set[Call] = set()
        """Those that wait for their next attempt."""
        self._loop = asyncio.get_running_loop()
        # Not the loop's own executor: steps that hang must not keep it from everybody else.
        self._threads = ThreadPoolExecutor(THREADS, f"skald:{service}:steps")

    def close(self) -> None:
        """Lets no further sync step start; those that run are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def perform(self, instance: Instance, call: Call, mark: Mark) -> Coroutine[Any, Any, Result | None]:
        """All attempts, up to a result or to the last failure; ``None`` if the result comes as a letter. Awaiting
        ``mark`` makes durable that an attempt begins. Raises ``Exhausted``."""
        return _Performance(self, self._loop, instance, call).perform(mark)

    async def end_reports(
        self, reports: Reports, instance: Instance, call: Call, settled: bool, result: Result | None
    ) -> None:
        """The letter with the progress goes with the result, or with the one who has given it up."""
        await reports.end()
        wanted = instance.machine.awaits(call)
        # One that leaves memory wants it no more here, but elsewhere.
        given_up = not (wanted or instance.stopped or instance.rest)
        if reports.is_written and settled and wanted and result is not None:
            instance.taken.append(progress_id(instance.run, call.identity))
        elif reports.is_written and (settled or given_up):
            await self._write(WorkflowWrites(taken=(progress_id(instance.run, call.identity),)))

    def reports(self, instance: Instance, call: Call) -> Reports:
        write = partial(self._write_progress, instance.run, call.identity)
        return Reports(instance.progress.get(call.identity), write)

    # --- calling ------------------------------------------------------------------------------------------------------

    async def call(self, instance: Instance, function: Callable[..., Any], call: Call, line: Line) -> Any:
        """One call of the step, or of its lookup, within its limits."""
        args, kwargs = call.arguments()
        is_async = call.step.is_async if function is call.step.function else inspect.iscoroutinefunction(function)
        made = partial(function, *args, **kwargs)
        work = made() if is_async else self._in_thread(instance, call, line, made)
        try:
            return await (line.bound(work) if line.has_limits else work)
        finally:
            line.cancelled = True

    async def _in_thread(self, instance: Instance, call: Call, line: Line, function: Callable[[], Any]) -> Any:
        began, work = self._loop.time(), asyncio.ensure_future(in_thread(self._threads, function))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            line.cancelled = True
            work.cancel()
            # The next attempt must not run beside it.
            named = self._loop.call_later(GRACE, self._name_stubborn, instance, call, began)
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
            named.cancel()
            raise

    def _name_stubborn(self, instance: Instance, call: Call, began: float) -> None:
        seconds = self._loop.time() - began
        emit(StepIgnoresCancellation(self.service, instance.workflow.name, instance.id, call.name, seconds))

    async def transact(self, instance: Instance, call: Call, line: Line) -> Result | None:
        """One call of the step in a transaction, which takes its result along as a letter.
        Nothing if it is not ours any more, or done."""
        name = identity_text(call.identity)
        try:
            async with self.transaction() as tx:
                current_transaction.set(tx if call.step.is_async else None)
                blocking = BlockingTransaction(tx, asyncio.get_running_loop())
                current_blocking.set(None if call.step.is_async else blocking)
                failpoints.hit("step.before")
                body, value = call.signature.result.written(await self.call(instance, call.step.function, call, line))
                failpoints.hit("step.after")
                await self._ensure_ours(tx, instance, call)
                letter = Letter(
                    new_id(), LetterKind.STEP, AddressKind.RUN, instance.run, name, body, await tx.now()
                )  # fmt: skip
                await tx.apply(Unit(fence=self._owner, workflows=WorkflowWrites(letters=(letter,))))
                failpoints.hit("step.committing")
            failpoints.hit("step.committed")
        except (_NotOurs, Fenced):
            return None
        except StoreUnavailable:
            if await self._is_ours(instance, call):
                raise
            return None
        call.letter = letter.id
        return EntryKind.STEP_DONE, body, value

    async def _ensure_ours(self, tx: Transaction, instance: Instance, call: Call) -> None:
        """Raises unless the result of this call is still wanted, and from us. What is seen stays so until the
        transaction ends."""
        locked = await tx.execute(_LOCK, run=instance.run, owner=self._owner)
        wanted = locked and not instance.stopped and instance.rest is None and instance.machine.awaits(call)
        name = identity_text(call.identity)
        if not wanted or await tx.fetch(_FIND, run=instance.run, kind=int(LetterKind.STEP), name=name):
            raise _NotOurs

    async def _is_ours(self, instance: Instance, call: Call) -> bool:
        """After a commit whose outcome is not known: asks until the database answers."""
        while True:
            try:
                async with self.transaction() as tx:
                    await self._ensure_ours(tx, instance, call)
                return True
            except _NotOurs:
                return False
            except (SkaldError, OSError) as error:
                emit(Recovering(self.service, f"step {call.name} of {instance.id}", describe(error), PAUSE))
                await asyncio.sleep(PAUSE)

    async def has_committed(self, instance: Instance, call: Call) -> bool:
        """Whether a step that was given up is done all the same. What is being committed at this moment is waited for,
        and what comes later finds that nobody wants it."""
        name = identity_text(call.identity)
        while True:
            try:
                async with self.transaction() as tx:
                    await tx.execute(_LOCK, run=instance.run, owner=self._owner)
                    return bool(await tx.fetch(_FIND, run=instance.run, kind=int(LetterKind.STEP), name=name))
            except (SkaldError, OSError) as error:
                emit(Recovering(self.service, f"step {call.name} of {instance.id}", describe(error), PAUSE))
                await self.sleep(PAUSE)

    # --- progress -----------------------------------------------------------------------------------------------------

    async def _write_progress(self, run: str, identity: Identity, progress: bytes) -> None:
        name, kind = identity_text(identity), LetterKind.PROGRESS
        letter = Letter(progress_id(run, identity), kind, AddressKind.RUN, run, name, progress, self._clock.now())
        await self._write(WorkflowWrites(letters=(letter,)))

    async def _write(self, writes: WorkflowWrites) -> None:
        # What is lost of it is an advantage of the next attempt, and no more.
        with suppress(SkaldError, OSError):
            await self.committer.submit(Unit(fence=self._owner, workflows=writes))


def _failure_in(error: BaseException) -> Exception:
    """What an attempt has failed with; raises what is no failure of its own."""
    if isinstance(error, Exception):
        return error
    if isinstance(error, SystemExit):
        return RuntimeError(f"the step called sys.exit({error.code!r})")
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling():
        return HandlerCancelled()  # nobody asked this task for it
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | GeneratorExit):
        raise error
    return RuntimeError(f"the step raised {describe(error)}, which is no Exception")


def progress_id(run: str, identity: Identity) -> str:
    return f"progress:{run}:{identity_text(identity)}"


class _Performance:
    """All attempts at one call. It ends with a result, or with the exception that is the step's failure."""

    line: Line | None = None
    reports: Reports | None = None
    doubtful = False
    """An attempt that has not succeeded may have done it."""
    _over: float | None = None

    def __init__(self, runner: StepRunner, loop: asyncio.AbstractEventLoop, instance: Instance, call: Call) -> None:
        self._runner, self._loop, self._instance, self._call = runner, loop, instance, call
        self._step = step = call.step
        if call.identity in instance.progress:
            self.reports = runner.reports(instance, call)
        if step.total is not None:
            self._over = loop.time() + step.total

    async def perform(self, mark: Mark) -> Result | None:
        step, call, result, failure = self._step, self._call, None, None
        settled = False
        try:
            if step.is_plain and not (call.unknown or call.woken or call.looking or self._instance.progress):
                # Most steps are just a function that returns: everything else is made when it is needed.
                current_cause.set(self._instance.cause)
                current_attempt.set(self._first)
                failpoints.hit("step.before")
                try:
                    args, kwargs = call.arguments()
                    value = await step.function(*args, **kwargs)
                    failpoints.hit("step.after")
                    result = EntryKind.STEP_DONE, *step.signature.result.written(value)
                except (InvalidMessage, UnreadableMessage):
                    self.doubtful = True
                    raise
                except BaseException as raised:
                    failure = _failure_in(raised)
            if result is None:
                result = await self._settle(mark, failure)
            settled = True
            return result
        except Exception as error:
            let_go(error)
            last = failure_of(error)
            if self.doubtful and not step.transactional:  # whose rows are there or not
                last = msgspec.structs.replace(last, unknown=True)
            if step.pause and not call.looking:
                raise Exhausted(last) from error
            settled, result = True, (EntryKind.STEP_FAILED, encode_failure(last), last)
            return result
        finally:
            if self.line is not None:
                self.line.end()
            if self.reports is not None:
                await self._runner.end_reports(self.reports, self._instance, call, settled, result)
            if result is None:  # a letter yet, which must find the workflow in memory
                self._instance.since = self._loop.time()

    async def _settle(self, mark: Mark, failure: Exception | None) -> Result | None:
        """``failure`` is that of a first attempt, if there was one."""
        step, call, runner = self._step, self._call, self._runner
        # Where the beginning is durable, one knows more than that there was another process.
        unknown = call.begun if step.at_most_once else call.unknown
        self.doubtful = repeated = unknown
        if call.looking and step.transactional and await runner.has_committed(self._instance, call):
            return None  # as ever, its result comes as a letter
        if call.looking:
            return EntryKind.STEP_DONE, *await self._found()
        if unknown and step.at_most_once and step.lookup is None:
            raise OutcomeUnknown(f"{step.name} had begun when its process ended, and is done at most once")
        if (step.at_most_once or call.woken) and not unknown:
            await mark(self._instance, call)
        number, last = 0, None
        if failure is not None:
            number, repeated = 1, True
            self.doubtful = unknown = isinstance(failure, DOUBTFUL)
            last = await self._wait(number, failure)
        while True:
            if unknown and step.lookup is not None and (found := await self._look_up(number + 1, last)) is not None:
                return EntryKind.STEP_DONE, *found
            self.doubtful = self.doubtful and step.lookup is None
            if last is not None:
                raise last
            number += 1
            line = self._line(number)
            try:
                if step.transactional:
                    return await runner.transact(self._instance, call, line)
                failpoints.hit("step.before")
                result = await runner.call(self._instance, step.function, call, line)
                failpoints.hit("step.after")
                return EntryKind.STEP_DONE, *step.signature.result.written(result)
            except (InvalidMessage, UnreadableMessage):
                self.doubtful = True
                raise  # its result cannot be stored, whatever one tries
            except BaseException as raised:
                failure = _failure_in(raised)
            unknown = isinstance(failure, DOUBTFUL)
            self.doubtful = self.doubtful or unknown
            if line.cut_off == "total":
                raise failure
            if step.at_most_once and (repeated or not unknown or step.lookup is None):
                last = failure
            else:
                last, repeated = await self._wait(number, failure), True

    def _first(self) -> StepAttempt:
        """What a first attempt is told, if it asks."""
        if self.line is None:
            self.line = Line(self._loop, self._step, self._over, self._reporting)
        return self._told(1, self.line, None)

    async def _found(self) -> tuple[bytes, Any]:
        """The result of a call that nobody wants to be made any more."""
        found = None if self._step.transactional else await self._look_up(1, None)
        if found is None:
            self.doubtful = False
            raise OutcomeUnknown(f"{self._step.name} was given up, and had not been done")
        return found

    def _line(self, number: int) -> Line:
        """For an attempt, which can ask for it."""
        line = Line(self._loop, self._step, self._over, self._reporting)
        progress = None if self.reports is None else self.reports.progress
        current_cause.set(self._instance.cause)
        current_attempt.set(partial(self._told, number, line, progress))
        return line

    def _reporting(self) -> Reports:
        if self.reports is None:
            self.reports = self._runner.reports(self._instance, self._call)
        return self.reports

    def _told(self, number: int, line: Line, progress: bytes | None) -> StepAttempt:
        """What the attempt is told of itself, if it asks."""
        call = self._call
        told = None if progress is None else msgspec.json.decode(progress)
        # What an earlier process may have done is not known either.
        return StepAttempt(number, call.key(self._instance.run), call.unknown or number > 1, told, line)

    async def _look_up(self, attempt: int, last: Exception | None) -> tuple[bytes, Any] | None:
        """The result of an earlier attempt, or ``None`` if it did nothing. ``last`` is the failure that the step ends
        with if this fails, too."""
        assert self._step.lookup is not None
        number = 0
        while True:
            number += 1
            line = self._line(attempt)
            line.heartbeat = None
            try:
                found = await self._runner.call(self._instance, self._step.lookup, self._call, line)
                return None if found is NOT_DONE else self._call.signature.result.written(found)
            except BaseException as error:
                failure = _failure_in(error)
            if line.cut_off == "total":
                raise failure
            refused = isinstance(failure, InvalidMessage)
            if refused or await self._wait(number, failure) is not None:
                raise last or OutcomeUnknown(
                    f"whether {self._step.name} was done could not be looked up: {describe(failure)}"
                ) from failure

    async def _wait(self, number: int, failure: Exception) -> Exception | None:
        """Returns when the next attempt may begin, or at once with the failure that is the last one."""
        step, instance = self._step, self._instance
        rule = rule_for(step.retry, failure)
        delay = rule.after(number)
        try:
            if delay is None or (step.retry_if is not None and not step.retry_if(failure)):
                return failure
        except Exception as error:
            return error
        delay *= random.uniform(1 - rule.jitter, 1 + rule.jitter)
        if self._over is not None and self._loop.time() + delay >= self._over:
            return TimeoutError(f"{limit_text(step, 'total')}; attempt {number} ended with {describe(failure)}")
        names = (self._runner.service, instance.workflow.name, instance.id, step.name)
        emit(StepRetried(*names, number, delay, describe(failure)))
        self._runner.resting.add(self._call)
        try:
            await self._runner.sleep(delay)
        finally:
            self._runner.resting.discard(self._call)
        return None
