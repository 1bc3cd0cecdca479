"""Publishing and transactions from synchronous code: Flask, Django, scripts, any number of threads.

    with skald.sync.connect(app, "orders") as orders:
        orders.publish(OrderPlaced(order_id="1", total=30))
        with orders.transaction() as tx:
            tx.execute("INSERT INTO baskets (id) VALUES (:id)", id="1")
            tx.publish(BasketOpened(basket_id="1"))

An event loop in a thread of its own does the work; callers wait for its answer, so what many threads publish at the
same time shares its commits. A web server connects once per process, after it has forked its workers, and closes when
it ends (otherwise the end of the program does). Code that is asynchronous itself uses the service: ``app.connect``.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple, Unpack
from weakref import WeakSet

from skald.app import App
from skald.errors import NestedCommit, Stopped, TransactionTooLong
from skald.message import Message
from skald.messaging.blocking import BlockingTransaction
from skald.messaging.transaction import Transaction
from skald.store import Row
from skald.unit import Tag
from skald.workflows.channels import Signal
from skald.workflows.definition import Workflow
from skald.workflows.starting import StartOptions, Work, started_by

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")
GRACE = 10.0
"""Seconds that ``close`` waits for other threads' open transactions."""


def connect(app: App, service: str) -> BlockingService:
    """Connects a service of the application; its database must have been migrated. Close it, or use it in ``with``."""
    return BlockingService(app, service)


class BlockingService:
    """A service as synchronous code sees it. Safe to use from several threads; made by ``connect``."""

    def __init__(self, app: App, service: str) -> None:
        self._app, self._service, self._name = app, app.service(service), service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._forked = False
        self._closed = False
        self._calls = 0
        self._changed = threading.Condition()
        self._here = threading.local()
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name=f"skald:{service}:sync", daemon=True)
        self._thread.start()
        opened.result()
        _connected.add(self)
        atexit.register(self.close)

    def __enter__(self) -> BlockingService:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finishes what other threads have begun, then disconnects. Twice, or in a forked child, it does nothing."""
        if self._forked:
            return
        opened_at = getattr(self._here, "opened_at", None)
        if opened_at is not None:
            raise Stopped(f"{self._name} cannot be closed inside the transaction opened at {opened_at}: leave it first")
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.wait_for(lambda: self._calls == 0, GRACE)
        atexit.unregister(self.close)
        _connected.discard(self)
        if self._loop is not None and self._end is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    # --- what it is for -----------------------------------------------------------------------------------------------

    def publish(self, *messages: Message, key: str | None = None, priority: int = 0, delay: float = 0) -> list[int]:
        """Publishes in a unit of their own and returns the positions once they are durable. See ``Service.publish``."""
        with self._call():
            self._refuse_inside("publish")
            return self._wait(lambda: self._service.publish(*messages, key=key, priority=priority, delay=delay))

    def append(
        self, stream: str, events: Iterable[Message], *, expected: int | None = None, tags: Iterable[Tag] = ()
    ) -> int:
        """Appends events to a stream; returns its new version, or raises ``Conflict``."""
        with self._call():
            self._refuse_inside("append")
            return self._wait(lambda: self._service.append(stream, events, expected=expected, tags=tags))

    def start(
        self,
        workflow: Callable[[Unpack[Ts]], Work[object]],
        *args: *Ts,
        **options: Unpack[StartOptions],
    ) -> str:
        """Starts a workflow, durably when this returns; returns its id. See ``Workflow.start``."""
        with self._call():
            self._refuse_inside("start")
            return self._wait(lambda: started_by(workflow).start(*args, **options)).id

    def result(self, workflow: Workflow[..., R], id: str) -> R:
        """Waits until a workflow has ended; ``WorkflowFailed`` if that was with an exception."""
        with self._call():
            return self._wait(lambda: workflow.handle(id).result())

    def signal(self, signal: Signal[T], value: T, *, id: str | None = None, key: str | None = None) -> None:
        """Sends a signal to a workflow, durably when this returns. See ``Service.signal``."""
        with self._call():
            self._refuse_inside("signal")
            self._wait(lambda: self._service.signal(signal, value, id=id, key=key))

    def fetch(self, sql: str, /, **values: Any) -> list[Row]:
        """Reads committed rows of the service's database."""
        with self._call():
            return self._wait(lambda: self._service.fetch(sql, **values))

    @contextmanager
    def transaction(self) -> Iterator[BlockingTransaction]:
        """Commits at the end of the block, rolls back if it raises. The transaction belongs to this thread."""
        with self._call():
            self._refuse_inside("transaction")
            self._here.opened_at = opened_at = _calling_line()
            try:
                with self._opened() as tx:
                    yield tx
            except TransactionTooLong as error:
                raise TransactionTooLong(
                    f"the transaction opened at {opened_at} was open for too long and has been rolled back: do slow "
                    "work before it"
                ) from error
            finally:
                self._here.opened_at = None

    @contextmanager
    def _opened(self) -> Iterator[BlockingTransaction]:
        block = self._wait(self._begin)
        try:
            yield _Transaction(block.transaction, self)
        except BaseException as error:
            if not self._wait(partial(block.end, error)):
                raise
        else:
            self._wait(partial(block.end, None))

    async def _begin(self) -> _Block:
        manager = self._service.transaction()
        return _Block(manager, await manager.__aenter__())

    # --- the loop's thread --------------------------------------------------------------------------------------------

    def _run(self, opened: Future[None]) -> None:
        try:
            asyncio.run(self._serve(opened))
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    async def _serve(self, opened: Future[None]) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with self._app.connect(self._name):
            opened.set_result(None)
            await self._end.wait()

    # --- the callers' threads -----------------------------------------------------------------------------------------

    @contextmanager
    def _call(self) -> Iterator[None]:
        self._require_unforked()
        with self._changed:
            # Who holds a transaction may go on until it ends.
            if self._closed and getattr(self._here, "opened_at", None) is None:
                raise Stopped(f"{self._name} is closed; nothing was written: connect again")
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def _wait(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop = self.usable_loop()
        return asyncio.run_coroutine_threadsafe(ask(), loop).result()

    def usable_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that answers; raises ``Stopped`` when there is none any more."""
        self._require_unforked()
        loop = self._loop
        if loop is None or loop.is_closed() or not self._thread.is_alive():
            raise Stopped(f"{self._name} is closed; nothing more was written")
        if threading.current_thread() is self._thread:
            raise Stopped(f"{self._name}: this is the event loop's own thread, which would wait for itself")
        return loop

    def _require_unforked(self) -> None:
        if self._forked:
            raise Stopped(
                f"{self._name} was connected before this process was forked, and only the parent can use that: connect "
                "in the child, for example in gunicorn's post_fork"
            )

    def _refuse_inside(self, what: str) -> None:
        opened_at = getattr(self._here, "opened_at", None)
        if opened_at is not None and self._service.store.features.exclusive_transactions:
            raise NestedCommit(
                f"{what}() inside the transaction opened at {opened_at} would wait for itself: use the transaction's "
                "own methods, or move it behind the block"
            )

    def forget(self) -> None:
        """In a forked child: the thread and the connections are the parent's."""
        self._forked = True
        self._service.bind(None)


class _Block:
    def __init__(self, manager: Any, transaction: Transaction) -> None:
        self._manager, self.transaction = manager, transaction

    async def end(self, error: BaseException | None) -> bool:
        if error is None:
            return bool(await self._manager.__aexit__(None, None, None))
        return bool(await self._manager.__aexit__(type(error), error, error.__traceback__))


class _Transaction(BlockingTransaction):
    """Asks through the service, which knows whether its loop still turns."""

    def __init__(self, inner: Transaction, service: BlockingService) -> None:
        super().__init__(inner, service.usable_loop())
        self._service = service

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            self._service.usable_loop()
        except BaseException:
            coroutine.close()
            raise
        return super()._wait(coroutine)


_connected: WeakSet[BlockingService] = WeakSet()


def _after_fork() -> None:
    for one in list(_connected):
        one.forget()


os.register_at_fork(after_in_child=_after_fork)


def _calling_line() -> str:
    """``file:line`` of the code that opens a transaction."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename == __file__ or frame.f_code.co_filename.endswith("contextlib.py")
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
