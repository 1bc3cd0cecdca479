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
from skald.errors import ConfigurationError, MarkMoved, SkaldError
from skald.message import Envelope, Message, Record
from skald.messaging.blocking import BlockingTransaction
from skald.messaging.calls import TOPIC, Handled, replied
from skald.messaging.context import Cause, current_cause
from skald.messaging.definition import Attempt, Handler, injectable
from skald.messaging.keeping import Keeper
from skald.messaging.marks import Plan, Undecided
from skald.messaging.outcome import MAX_ERROR, Again, Done, Exhausted, Item, Outcome, Taken, after_failure, describe
from skald.messaging.publisher import Publisher
from skald.messaging.transaction import Transaction
from skald.store import Store
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
        store: Store,
    ) -> None:
        self._probe = probe
        self.group, self._publisher, self._clock = group, publisher, clock
        # Not the loop's own executor: handlers that hang must not keep it from everybody else.
        self._threads = ThreadPoolExecutor(THREADS, f"skald:{group}")
        self._calls: dict[str, Callable[..., Any]] = {}
        self._constants: dict[str, dict[str, Any]] = {}
        self._special: dict[str, list[tuple[str, type]]] = {}
        self._codecs: dict[str, Codec] = {}
        handlers = tuple(handlers)
        self.keeper: Keeper | None = None
        """Nobody, if no handler of the service remembers anything."""
        if any(handler.keeps is not None for handler in handlers):
            self.keeper = Keeper(group, handlers, store, clock, self._codecs, publisher)
        for handler in handlers:
            special: list[tuple[str, type]] = [(n, cls) for n, cls in handler.injected.items() if injectable(cls)]
            rest = {name: cls for name, cls in handler.injected.items() if not injectable(cls)}
            missing = [cls.__name__ for cls in rest.values() if cls not in dependencies]
            if missing:
                raise ConfigurationError(f"{handler.name} asks for {', '.join(missing)}, which nothing provides")
            self._constants[handler.name] = {name: dependencies[cls] for name, cls in rest.items()}
            self._special[handler.name] = special
            for kind in handler.types:
                self._codecs[kind.name] = codec_for(kind.cls, publisher.max_body)

    async def call(self, item: Item, origin: str, transaction: Transaction | None = None) -> Done:
        """One attempt. Raises whatever the handler raises."""
        if item.handler.answers:
            return Done(replies=(replied(item.record),))
        if item.handler.keeps is None or self.keeper is None:
            return self._answered(item, await self._call(item, origin, transaction))
        plan = await self.keeper.plan(item, origin, transaction)
        done = plan.skip if plan.skip is not None else plan.finish(await self._call(item, origin, transaction, plan))
        self.keeper.wrote(item, done)
        return done if plan.answered else self._answered(item, done)

    def _answered(self, item: Item, done: Done) -> Done:
        """A command that a workflow called has an answer at any rate."""
        record, handler = item.record, item.handler
        if not record.topic.endswith(TOPIC):
            return done
        answers = {kind.name for kind in handler.returns}
        if any(event.type in answers for event in done.events):
            return done
        cause = Cause(record.id, record.correlation_id, record.traceparent, record.key)
        _, handled = self._publisher.draft(Handled(self.group, handler.name, record.key), cause)
        # Among the messages: it is no fact, and is dropped when every reader is past it.
        return msgspec.structs.replace(done, messages=(*done.messages, handled))

    async def _call(self, item: Item, origin: str, transaction: Transaction | None, plan: Plan | None = None) -> Done:
        record, handler = item.record, item.handler
        message = self._codecs[record.type].decode(record.payload or b"")
        arguments = self._constants[handler.name]
        special = self._special[handler.name]
        if special or transaction is not None or plan is not None:
            arguments = dict(arguments)
            if plan is not None:
                arguments |= plan.arguments
            for name, cls in special:
                arguments[name] = self._attempt(item, plan) if cls is Attempt else Envelope(record, origin)
            if transaction is not None and handler.transaction is not None:
                arguments[handler.transaction] = (
                    transaction if handler.is_async else BlockingTransaction(transaction, asyncio.get_running_loop())
                )
        function, positional = handler.function, (message,)
        is_async = handler.is_async
        if plan is not None and plan.function is not None:
            # It takes the message alone.
            function, arguments = plan.function, {}
            is_async = inspect.iscoroutinefunction(function)
        elif plan is not None and plan.positional is not None:
            positional = plan.positional
        cause = Cause(record.id, record.correlation_id, record.traceparent, record.key)
        token = current_cause.set(cause)
        before = self._probe.before() if self._probe.close else None
        try:
            if is_async:
                result = await function(*positional, **arguments)
            else:
                result = await in_thread(self._threads, function, *positional, **arguments)
            return _with_published(transaction, self._drafts(result, cause))
        except asyncio.CancelledError as error:
            _refuse_stray(error)
            raise
        finally:
            current_cause.reset(token)
            if before is not None:
                self._probe.after(handler.name, before)

    async def decide_aside(self, item: Item, origin: str) -> None:
        """See ``Keeper``."""
        if self.keeper is not None:
            await self.keeper.decide_aside(item, origin)

    def close(self) -> None:
        """Lets no further sync handler start; those that run are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def failed(self, item: Item, origin: str, error: BaseException, *, aside: bool = True) -> Outcome | None:
        """The outcome after a failed attempt (already counted in ``item``); ``None`` to try at once.

        Without ``aside``, inside a transaction, nothing is written; ``MarkMoved`` is raised if something had to be.
        """
        decision = after_failure(item.handler, error, item.attempts, self._clock.now())
        if isinstance(decision, Again):
            return None
        outcome = await self._exhausted(item, origin, error, aside) if isinstance(decision, Exhausted) else decision
        parks = isinstance(outcome, Taken) and outcome.state is DeliveryState.PARKED
        if parks and self.keeper is not None and item.handler.keeps is not None:
            assert isinstance(outcome, Taken)
            outcome = await self.keeper.parks(item, origin, outcome, error, aside=aside)
        return self._answered(item, outcome) if isinstance(outcome, Done) else outcome

    async def _exhausted(self, item: Item, origin: str, error: BaseException, aside: bool) -> Outcome:
        """What ``exhausted=`` returns replaces parking; if it fails itself, the message is parked with both errors."""
        parked = Taken(DeliveryState.PARKED, item.attempts, self._clock.now(), describe(error))
        if item.rescued:
            # What it had returned could not be written.
            return parked
        item.rescued = True
        try:
            async with asyncio.timeout(item.handler.timeout):
                rescued = await self._rescue(item, error)
                if self.keeper is None or item.handler.keeps is None:
                    return rescued
                return await self.keeper.gave_up(item, origin, rescued, aside=aside)
        except (MarkMoved, Undecided):
            # What it has returned is lost with this, so it is asked again.
            item.rescued = False
            raise
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

    def _attempt(self, item: Item, plan: Plan | None) -> Attempt:
        # What acts once for several messages does so outside under one key too.
        of = item.record.id if plan is None or plan.identity is None else plan.identity
        key = f"{self.group}:{item.handler.name}:{of}"
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


def _with_published(transaction: Transaction | None, done: Done) -> Done:
    """With what the handler has published through its transaction, which came before."""
    collected = transaction.collected() if transaction is not None else ()
    if not collected:
        return done
    return Done(
        tuple(record for unit in collected for record in unit.events) + done.events,
        tuple(record for unit in collected for record in unit.messages) + done.messages,
    )


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
