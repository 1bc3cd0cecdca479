"""The transaction of a synchronous handler: the same surface, each call waiting for the event loop's answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, TypeVarTuple, Unpack

from skald.message import Message
from skald.messaging.definition import TransactionMarker
from skald.messaging.transaction import Transaction
from skald.store import Row
from skald.unit import Tag
from skald.workflows.channels import Signal
from skald.workflows.starting import StartOptions, Work

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class BlockingTransaction(TransactionMarker):
    """For sync handlers: annotate the parameter with ``BlockingTransaction``. See ``Transaction``."""

    def __init__(self, inner: Transaction, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._loop = inner, loop

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    @property
    def connection(self) -> Any:
        """The driver's own connection. It belongs to the event loop's thread: mind what the driver allows."""
        return self._inner.connection

    def execute(self, sql: str, /, **values: Any) -> int:
        return self._wait(self._inner.execute(sql, **values))

    def fetch(self, sql: str, /, **values: Any) -> list[Row]:
        return self._wait(self._inner.fetch(sql, **values))

    def fetch_one(self, sql: str, /, **values: Any) -> Row | None:
        return self._wait(self._inner.fetch_one(sql, **values))

    def now(self) -> int:
        return self._wait(self._inner.now())

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        block = self._inner.savepoint()
        self._wait(block.__aenter__())
        try:
            yield
        except BaseException as error:
            if not self._wait(block.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            self._wait(block.__aexit__(None, None, None))

    def publish(self, *messages: Message, key: str | None = None, priority: int = 0, delay: float = 0) -> None:
        self._inner.publish(*messages, key=key, priority=priority, delay=delay)

    def start(
        self,
        workflow: Callable[[Unpack[Ts]], Work[object]],
        *args: *Ts,
        **options: Unpack[StartOptions],
    ) -> str:
        return self._wait(self._inner.start(workflow, *args, **options))

    def signal(self, signal: Signal[T], value: T, *, id: str | None = None, key: str | None = None) -> None:
        self._wait(self._inner.signal(signal, value, id=id, key=key))

    def append(
        self, stream: str, events: Iterable[Message], *, expected: int | None = None, tags: Iterable[Tag] = ()
    ) -> int:
        return self._wait(self._inner.append(stream, events, expected=expected, tags=tags))
