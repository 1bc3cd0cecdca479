"""Calls a handler with what its signature asks for, and drafts the records of what it returns."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from skald.clock import Clock
from skald.codec import Codec, codec_for
from skald.errors import ConfigurationError
from skald.message import Envelope, Message, Record
from skald.messaging.blocking import BlockingTransaction
from skald.messaging.context import Cause, current_cause
from skald.messaging.definition import Attempt, Handler
from skald.messaging.outcome import Again, Done, Exhausted, Item, Outcome, after_failure
from skald.messaging.publisher import Publisher
from skald.messaging.transaction import Transaction


class Invoker:
    """Runs the handlers of one service. ``dependencies`` are the values that its providers made."""

    def __init__(
        self,
        group: str,
        handlers: Iterable[Handler],
        dependencies: Mapping[type, Any],
        publisher: Publisher,
        clock: Clock,
    ) -> None:
        self._group, self._publisher, self._clock = group, publisher, clock
        self._calls: dict[str, Callable[..., Any]] = {}
        self._constants: dict[str, dict[str, Any]] = {}
        self._special: dict[str, list[tuple[str, type]]] = {}
        self._codecs: dict[str, Codec] = {}
        for handler in handlers:
            special: list[tuple[str, type]] = [(name, cls) for name, cls in handler.injected.items() if cls in (Attempt, Envelope)]
            rest = {name: cls for name, cls in handler.injected.items() if cls not in (Attempt, Envelope)}
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
        try:
            if handler.is_async:
                result = await handler.function(message, **arguments)
            else:
                result = await in_thread(handler.function, message, **arguments)
            return self._drafts(result, cause)
        finally:
            current_cause.reset(token)

    async def attempt(self, item: Item, origin: str) -> Outcome:
        """Attempts at once, as often as the policy says, and decides what becomes of the message."""
        while True:
            try:
                return await self.call(item, origin)
            except Exception as error:
                item.attempts += 1
                outcome = await self.failed(item, origin, error)
                if outcome is not None:
                    return outcome

    async def failed(self, item: Item, origin: str, error: BaseException) -> Outcome | None:
        """The outcome after a failed attempt (already counted in ``item``); ``None`` to try at once."""
        decision = after_failure(item.handler, error, item.attempts, self._clock.now())
        if isinstance(decision, Again):
            return None
        if isinstance(decision, Exhausted):
            return await self._exhausted(item, origin, error)
        return decision

    async def _exhausted(self, item: Item, origin: str, error: BaseException) -> Outcome:
        """What ``exhausted=`` returns replaces parking; if it fails itself, the message is parked with that error."""
        record, function = item.record, item.handler.exhausted
        assert function is not None
        cause = Cause(record.id, record.correlation_id, record.traceparent, record.key)
        token = current_cause.set(cause)
        try:
            message = self._codecs[record.type].decode(record.payload or b"")
            if asyncio.iscoroutinefunction(function):
                return self._drafts(await function(message, error), cause)
            return self._drafts(await in_thread(function, message, error), cause)
        except Exception as second:
            second.__context__ = error
            parked = after_failure(_without_rescue(item.handler), second, 1_000_000, self._clock.now())
            assert not isinstance(parked, Again | Exhausted)
            return parked
        finally:
            current_cause.reset(token)

    def _attempt(self, item: Item, origin: str) -> Attempt:
        key = f"{self._group}:{item.handler.name}:{item.record.id}"
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


def _without_rescue(handler: Handler) -> Handler:
    return msgspec.structs.replace(handler, exhausted=None)


async def in_thread(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Runs a synchronous handler in a thread, with the caller's context."""
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, lambda: context.run(function, *arguments, **named))
