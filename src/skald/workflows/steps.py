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
import contextvars
import inspect
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import msgspec

from skald import failpoints
from skald.errors import Fenced, InvalidMessage, OutcomeUnknown, SkaldError, StoreUnavailable, UnreadableMessage
from skald.message import new_id
from skald.messaging.blocking import BlockingTransaction
from skald.messaging.invoke import HandlerCancelled, in_thread
from skald.messaging.outcome import describe
from skald.messaging.transaction import Transaction
from skald.retry import rule_for
from skald.telemetry import Recovering, StepRetried, emit
from skald.unit import AddressKind, EntryKind, Letter, LetterKind, Unit, WorkflowWrites
from skald.workflows.context import StepAttempt, current_attempt, current_blocking, current_transaction
from skald.workflows.definition import NOT_DONE, Call, Step
from skald.workflows.failure import Failure, failure_of
from skald.workflows.failure import encode as encode_failure
from skald.workflows.instance import Instance
from skald.workflows.signature import Identity, identity_text

T = TypeVar("T")
Mark = Callable[[Instance, Call], Awaitable[None]]
Result = tuple[EntryKind, bytes]

THREADS = 64
"""Sync steps that run at once; a thread is made when it is first needed."""
EVERY = 1.0
"""Seconds between two writes of one step's progress."""
PAUSE = 1.0
"""Seconds before a database that was away is asked again."""

# The row is locked until the transaction ends, and its rest, its end and its next owner wait for that.
_LOCK = "UPDATE skald_workflows SET owner = owner WHERE run = :run AND owner = :owner"
_FIND = "SELECT 1 AS found FROM skald_letters WHERE to_run = :run AND taken = 0 AND kind = :kind AND name = :name"


class Exhausted(Exception):
    """A step has failed for the last time, and its workflow is to wait for somebody to look."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.type)
        self.failure = failure


class _NotOurs(Exception):
    """The call is done, or given up, or somebody else's."""


class Reports:
    """How far one call is: its next attempt is told, and at most once a second it is written down."""

    def __init__(self, progress: bytes | None, write: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
        self.progress, self._write = progress, write
        self.is_written = progress is not None
        """There may be a letter."""
        self._unwritten = False
        self._ended = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def report(self, progress: bytes) -> None:
        self.progress, self._unwritten = progress, True
        if (self._writing is None or self._writing.done()) and not self._ended.is_set():
            self._writing = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        while self._unwritten and self.progress is not None and not self._ended.is_set():
            self._unwritten, self.is_written = False, True
            await self._write(self.progress)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), EVERY)

    async def end(self) -> None:
        """Nothing is written any more when this returns."""
        self._ended.set()
        if self._writing is not None:
            await asyncio.wait([self._writing])


class Line:
    """What one attempt is bound by, and how it tells that it lives (see ``context.Line``). ``over`` is when the call's
    ``total`` is, by the loop's time."""

    def __init__(self, step: Step[..., Any], over: float | None, reports: Callable[[], Reports]) -> None:
        self._loop, self._step, self._reports = asyncio.get_running_loop(), step, reports
        self.cancelled = False
        self.cut_off: str | None = None
        """The limit that ended it."""
        self._end = None if over is None else (over, "total")
        if step.timeout is not None:
            timeout = self._loop.time() + step.timeout, "timeout"
            self._end = timeout if self._end is None else min(self._end, timeout)
        self._next = self._end
        self._timeout: asyncio.Timeout | None = None
        self._lock = Lock()
        self._heard, self._progress = True, b""
        self.heartbeat = step.heartbeat

    @property
    def has_limits(self) -> bool:
        return self._end is not None or self.heartbeat is not None

    def beat(self, progress: bytes | None) -> None:
        with self._lock:
            if progress is not None:
                self._progress = progress
            heard, self._heard = self._heard, False
        if heard:  # otherwise it is about to look
            with suppress(RuntimeError):  # the loop has ended, and this thread has not
                self._loop.call_soon_threadsafe(self._look, context=contextvars.Context())  # of nobody's transaction

    def _look(self) -> None:
        with self._lock:
            self._heard, progress, self._progress = True, self._progress, b""
        if self.cancelled or (self._timeout is not None and self._timeout.expired()):
            return  # of an attempt that has ended, or has to
        if self._timeout is not None:
            self._set_next()
            self._timeout.reschedule(self._next[0] if self._next else None)
        if progress:
            self._reports().report(progress)

    def _set_next(self) -> None:
        if self.heartbeat is not None:
            silent = self._loop.time() + self.heartbeat, "heartbeat"
            self._next = silent if self._end is None else min(self._end, silent)

    async def bound(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises TimeoutError, naming the limit, if one ends it."""
        self._set_next()
        try:
            async with asyncio.timeout_at(self._next[0] if self._next else None) as self._timeout:
                return await work
        except Exception as error:
            if self._next is None or self._timeout is None or not self._timeout.expired():
                raise  # its own
            self.cut_off = self._next[1]
            raise TimeoutError(limit_text(self._step, self.cut_off)) from error
        finally:
            self.cancelled, self._timeout = True, None


def limit_text(step: Step[..., Any], limit: str) -> str:
    said = {
        "total": "all attempts together took longer",
        "timeout": "the attempt took longer",
        "heartbeat": "the attempt gave no heartbeat for longer",
    }
    return f"{said[limit]} than {limit}={getattr(step, limit):g} s"


class StepRunner:
    """Of one service."""

    def __init__(
        self, service: str, transaction: Callable[[], AbstractAsyncContextManager[Transaction]], owner: str
    ) -> None:
        self.service, self.transaction, self._owner = service, transaction, owner
        self.sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep
        """Between two attempts; tests have a clock of their own."""
        self._loop = asyncio.get_running_loop()
        # Not the loop's own executor: steps that hang must not keep it from everybody else.
        self._threads = ThreadPoolExecutor(THREADS, f"skald:{service}:steps")

    def close(self) -> None:
        """Lets no further sync step start; those that run are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def perform(self, instance: Instance, call: Call, mark: Mark) -> Result | None:
        """All attempts, up to a result or to the last failure; ``None`` if the result comes as a letter. Awaiting
        ``mark`` makes durable that an attempt begins. Raises ``Exhausted``."""
        performance = _Performance(self, instance, call)
        settled, result = False, None
        try:
            result = await performance.settle(mark)
            settled = True
            return result
        except Exception as error:
            failure = failure_of(error)
            if call.step.pause:
                raise Exhausted(failure) from error
            settled, result = True, (EntryKind.STEP_FAILED, encode_failure(failure))
            return result
        finally:
            if performance.reports is not None:
                await self._end_reports(performance.reports, instance, call, settled, result)
            # A result that is a letter yet must find the workflow in memory.
            instance.since = self._loop.time()

    async def _end_reports(
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

    async def call(self, function: Callable[..., Any], call: Call, line: Line) -> Any:
        """One call of the step, or of its lookup, within its limits."""
        args, kwargs = call.signature.decode(call.body)
        is_async = call.step.is_async if function is call.step.function else inspect.iscoroutinefunction(function)
        work = function(*args, **kwargs) if is_async else self._in_thread(line, function, args, kwargs)
        try:
            return await (line.bound(work) if line.has_limits else work)
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise HandlerCancelled from cancelled  # nobody asked this task for it: a failure of the attempt
        except SystemExit as exit:
            raise RuntimeError(f"the step called sys.exit({exit.code!r})") from exit
        finally:
            line.cancelled = True

    async def _in_thread(
        self, line: Line, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        work = asyncio.ensure_future(in_thread(self._threads, function, *args, **kwargs))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            line.cancelled = True
            work.cancel()
            # The next attempt must not run beside it.
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
            raise

    async def transact(self, instance: Instance, call: Call, line: Line) -> None:
        """One call of the step in a transaction, which takes its result along; nothing if it is not ours any more."""
        name = identity_text(call.identity)
        try:
            async with self.transaction() as tx:
                current_transaction.set(tx if call.step.is_async else None)
                blocking = BlockingTransaction(tx, asyncio.get_running_loop())
                current_blocking.set(None if call.step.is_async else blocking)
                failpoints.hit("step.before")
                body = call.signature.result.encode(await self.call(call.step.function, call, line))
                failpoints.hit("step.after")
                await self._ensure_ours(tx, instance, call)
                letter = Letter(
                    new_id(), LetterKind.STEP, AddressKind.RUN, instance.run, name, body, await tx.now()
                )  # fmt: skip
                await tx.apply(Unit(fence=self._owner, workflows=WorkflowWrites(letters=(letter,))))
                failpoints.hit("step.committing")
            failpoints.hit("step.committed")
        except (_NotOurs, Fenced):
            return
        except StoreUnavailable:
            if await self._is_ours(instance, call):
                raise

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

    # --- progress -----------------------------------------------------------------------------------------------------

    async def _write_progress(self, run: str, identity: Identity, progress: bytes) -> None:
        name, kind = identity_text(identity), LetterKind.PROGRESS
        # No time of its own: one letter replaces the other.
        letter = Letter(progress_id(run, identity), kind, AddressKind.RUN, run, name, progress, 0)
        await self._write(WorkflowWrites(letters=(letter,)))

    async def _write(self, writes: WorkflowWrites) -> None:
        # What is lost of it is an advantage of the next attempt, and no more.
        with suppress(SkaldError, OSError):
            async with self.transaction() as tx:
                if writes.letters:
                    now = await tx.now()
                    stamped = tuple(msgspec.structs.replace(letter, time=now) for letter in writes.letters)
                    writes = msgspec.structs.replace(writes, letters=stamped)
                await tx.apply(Unit(fence=self._owner, workflows=writes))


def progress_id(run: str, identity: Identity) -> str:
    return f"progress:{run}:{identity_text(identity)}"


class _Performance:
    """All attempts at one call. It ends with a result, or with the exception that is the step's failure."""

    def __init__(self, runner: StepRunner, instance: Instance, call: Call) -> None:
        self._runner, self._instance, self._call = runner, instance, call
        self._step, self._loop = call.step, asyncio.get_running_loop()
        known = instance.progress and call.identity in instance.progress
        self.reports = runner.reports(instance, call) if known else None
        self._over = None if call.step.total is None else self._loop.time() + call.step.total

    async def settle(self, mark: Mark) -> Result | None:
        step, call = self._step, self._call
        # Where the beginning is durable, one knows more than that there was another process.
        unknown = call.begun if step.at_most_once else call.unknown
        repeated = unknown
        if unknown and step.at_most_once and step.lookup is None:
            raise OutcomeUnknown(f"{step.name} had begun when its process ended, and is done at most once")
        if step.at_most_once and not unknown:
            await mark(self._instance, call)
        number, last = 0, None
        while True:
            if unknown and step.lookup is not None and (found := await self._look_up(number + 1, last)) is not None:
                return EntryKind.STEP_DONE, found
            if last is not None:
                raise last
            number += 1
            line = self._line(number)
            try:
                return await self._attempt(line)
            except (InvalidMessage, UnreadableMessage):
                raise  # its result cannot be stored, whatever one tries
            except Exception as raised:
                failure = raised
            unknown = line.cut_off is not None or isinstance(failure, HandlerCancelled)
            if line.cut_off == "total":
                raise failure
            if step.at_most_once and (repeated or not unknown or step.lookup is None):
                last = failure
            else:
                last, repeated = await self._wait(number, failure), True

    def _line(self, number: int) -> Line:
        """For an attempt, which can ask for it."""
        line = Line(self._step, self._over, self._reporting)
        progress = None if self.reports is None else self.reports.progress
        current_attempt.set(partial(self._told, number, line, progress))
        return line

    def _reporting(self) -> Reports:
        if self.reports is None:
            self.reports = self._runner.reports(self._instance, self._call)
        return self.reports

    def _told(self, number: int, line: Line, progress: bytes | None) -> StepAttempt:
        """What the attempt is told of itself, if it asks."""
        call = self._call
        key = f"{self._instance.run}:{call.name}:{call.digest.hex()}:{call.occurrence}"
        told = None if progress is None else msgspec.json.decode(progress)
        # What an earlier process may have done is not known either.
        return StepAttempt(number, key, call.unknown or number > 1, told, line)

    async def _attempt(self, line: Line) -> Result | None:
        runner, call = self._runner, self._call
        if self._step.transactional:
            await runner.transact(self._instance, call, line)
            return None
        failpoints.hit("step.before")
        body = call.signature.result.encode(await runner.call(self._step.function, call, line))
        failpoints.hit("step.after")
        return EntryKind.STEP_DONE, body

    async def _look_up(self, attempt: int, last: Exception | None) -> bytes | None:
        """The result of an earlier attempt, or ``None`` if it did nothing. ``last`` is the failure that the step ends
        with if this fails, too."""
        assert self._step.lookup is not None
        number = 0
        while True:
            number += 1
            line = self._line(attempt)
            line.heartbeat = None
            try:
                found = await self._runner.call(self._step.lookup, self._call, line)
                return None if found is NOT_DONE else self._call.signature.result.encode(found)
            except Exception as error:
                failure = error
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
        await self._runner.sleep(delay)
        return None
