"""Calls a handler with what its signature asks for, and drafts the records of what it returns."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from skald.clock import Clock
from skald.codec import Codec, codec_for
from skald.errors import ConfigurationError, SkaldError
from skald.message import Envelope, Message, Record
from skald.messaging.blocking import BlockingTransaction
from skald.messaging.context import Cause, current_cause
from skald.messaging.definition import Attempt, Handler, injectable
from skald.messaging.outcome import MAX_ERROR, Again, Done, Exhausted, Item, Outcome, Taken, after_failure, describe
from skald.messaging.publisher import Publisher
from skald.messaging.transaction import Transaction
from skald.unit import DeliveryState

THREADS = 128
"""Sync handlers that run at once; a thread is made when it is first needed."""


class HandlerCancelled(SkaldError):
    """A handler was left by a ``CancelledError`` that nobody had asked for: something it awaited was cancelled."""

    def __init__(self) -> None:
        super().__init__("something that it awaited was cancelled")


class Probe(Protocol):
    """Measures single calls while ``close`` says so."""

    close: bool

    def before(self) -> float: ...

    def after(self, handler: str, before: float) -> None: ...


class Invoker:
    """Runs the handlers of one service. ``dependencies`` are the values that its providers made."""

    def __init__(
        self,
        group: str,
        handlers: Iterable[Handler],
        dependencies: Mapping[type, Any],
        publisher: Publisher,
        clock: Clock,
        probe: Probe,
    ) -> None:
        self._probe = probe
        self.group, self._publisher, self._clock = group, publisher, clock
        # Not the loop's own executor: handlers that hang must not keep it from everybody else.
        self._threads = ThreadPoolExecutor(THREADS, f"skald:{group}")
        self._calls: dict[str, Callable[..., Any]] = {}
        self._constants: dict[str, dict[str, Any]] = {}
        self._special: dict[str, list[tuple[str, type]]] = {}
        self._codecs: dict[str, Codec] = {}
        for handler in handlers:
            special: list[tuple[str, type]] = [(n, cls) for n, cls in handler.injected.items() if injectable(cls)]
            rest = {name: cls for name, cls in handler.injected.items() if not injectable(cls)}
            missing = [cls.__name__ for cls in rest.values() if cls not in dependencies]
            if missing:
                raise ConfigurationError(f"{handler.name} asks for {', '.join(missing)}, which nothing provides")
            self._constants[handler.name] = {name: dependencies[cls] for name, cls in rest.items()}
            self._special[handler.name] = special
            for kind in handler.types:
                self._codecs[kind.name] = codec_for(kind.cls)

    async def call(self, item: Item, origin: str, transaction: Transaction | None = None) -> Done:
        """One attempt. Raises whatever the handler raises."""
        record, handler = item.record, item.handler
        message = self._codecs[record.type].decode(record.payload or b"")
        arguments = self._constants[handler.name]
        special = self._special[handler.name]
        if special or transaction is not None:
            arguments = dict(arguments)
            for name, cls in special:
                arguments[name] = self._attempt(item, origin) if cls is Attempt else Envelope(record, origin)
            if transaction is not None and handler.transaction is not None:
                arguments[handler.transaction] = (
                    transaction if handler.is_async else BlockingTransaction(transaction, asyncio.get_running_loop())
                )
        cause = Cause(record.id, record.correlation_id, record.traceparent, record.key)
        token = current_cause.set(cause)
        before = self._probe.before() if self._probe.close else None
        try:
            if handler.is_async:
                result = await handler.function(message, **arguments)
            else:
                result = await in_thread(self._threads, handler.function, message, **arguments)
            return self._drafts(result, cause)
        except asyncio.CancelledError as error:
            _refuse_stray(error)
            raise
        finally:
            current_cause.reset(token)
            if before is not None:
                self._probe.after(handler.name, before)

    def close(self) -> None:
        """Lets no further sync handler start; those that run are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def failed(self, item: Item, origin: str, error: BaseException) -> Outcome | None:
        """The outcome after a failed attempt (already counted in ``item``); ``None`` to try at once."""
        decision = after_failure(item.handler, error, item.attempts, self._clock.now())
        if isinstance(decision, Again):
            return None
        if isinstance(decision, Exhausted):
            return await self._exhausted(item, origin, error)
        return decision

    async def _exhausted(self, item: Item, origin: str, error: BaseException) -> Outcome:
        """What ``exhausted=`` returns replaces parking; if it fails itself, the message is parked with both errors."""
        parked = Taken(DeliveryState.PARKED, item.attempts, self._clock.now(), describe(error))
        if item.rescued:
            # What it had returned could not be written.
            return parked
        item.rescued = True
        try:
            async with asyncio.timeout(item.handler.timeout):
                return await self._rescue(item, error)
        except Exception as second:
            text = f"{describe(second)} in exhausted=, after {describe(error)}"
            return msgspec.structs.replace(parked, error=text[:MAX_ERROR])

    async def _rescue(self, item: Item, error: BaseException) -> Done:
        record, function = item.record, item.handler.exhausted
        assert function is not None
        cause = Cause(record.id, record.correlation_id, record.traceparent, record.key)
        token = current_cause.set(cause)
        try:
            message = self._codecs[record.type].decode(record.payload or b"")
            if inspect.iscoroutinefunction(function):
                return self._drafts(await function(message, error), cause)
            return self._drafts(await in_thread(self._threads, function, message, error), cause)
        except asyncio.CancelledError as cancelled:
            _refuse_stray(cancelled)
            raise
        finally:
            current_cause.reset(token)

    def _attempt(self, item: Item, origin: str) -> Attempt:
        key = f"{self.group}:{item.handler.name}:{item.record.id}"
        return Attempt(item.attempts + 1, key, item.unknown or item.attempts > 0)

    def _drafts(self, result: Any, cause: Cause) -> Done:
        if result is None:
            return _NOTHING
        messages: Iterable[Message] = result if isinstance(result, list | tuple) else (result,)
        events: list[Record] = []
        requests: list[Record] = []
        for message in messages:
            if message is not None:
                is_fact, record = self._publisher.draft(message, cause)
                (events if is_fact else requests).append(record)
        return Done(tuple(events), tuple(requests))


_NOTHING = Done()


def _refuse_stray(error: asyncio.CancelledError) -> None:
    """A cancellation that nobody asked this task for would end the whole consumer instead of one attempt."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        raise HandlerCancelled from error


async def in_thread(threads: ThreadPoolExecutor, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Runs a synchronous handler in a thread, with the caller's context.

    A thread cannot be ended, so a cancelled caller waits for its end all the same: otherwise the next attempt, or the
    next message of the key, would run beside it.
    """
    context = contextvars.copy_context()

    def run() -> Any:
        try:
            return context.run(function, *arguments, **named)
        except StopIteration as error:
            # A future cannot carry it, and would never end.
            raise RuntimeError("the handler raised StopIteration") from error

    work = threads.submit(run)
    future = asyncio.wrap_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            work.cancel()  # does nothing to what runs already
    if cancelled is not None:
        if not future.cancelled():
            future.exception()
        raise cancelled
    return future.result()
