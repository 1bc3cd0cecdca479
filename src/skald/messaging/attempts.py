"""One message at one handler: attempts, each bounded in time, alone or inside a transaction.

A handler is ended by cancelling it. One that goes on all the same is named and waited for: the next attempt, or the
next message of its key, must not run beside it.
"""

from __future__ import annotations

import asyncio

import msgspec

from skald.errors import MarkMoved
from skald.messaging.invoke import Invoker
from skald.messaging.marks import TooEarly, Undecided
from skald.messaging.outcome import HANDED_OVER, Done, Item, Outcome, Taken
from skald.messaging.publisher import Publisher
from skald.messaging.transaction import Starts, Transaction
from skald.store import Transaction as StoreTransaction
from skald.telemetry import HandlerIgnoresCancellation, emit
from skald.unit import DeliveryState

GRACE = 5.0
"""Seconds that a cancelled handler gets to end."""


class Seat(msgspec.Struct):
    """Where one worker stands: what it runs, since when, and whether it was left behind by its stretch."""

    item: Item | None = None
    started: float = 0.0
    rest: list[Item] = msgspec.field(default_factory=list)
    spilled: bool = False
    timed_out: asyncio.Future[None] | None = None
    """Set while an attempt is being ended because of its timeout; done when it has ended."""


async def call_with(
    invoker: Invoker,
    publisher: Publisher,
    origin: str,
    inner: StoreTransaction,
    item: Item,
    starts: Starts | None = None,
) -> Done:
    """One attempt inside a transaction; what the handler published through it joins what it returned."""
    transaction = Transaction(inner, publisher, starts)
    timeout = item.handler.timeout
    named = asyncio.get_running_loop().call_later(timeout + GRACE, name_stubborn, invoker.group, item, timeout + GRACE)
    try:
        async with asyncio.timeout(timeout):
            return await invoker.call(item, origin, transaction)
    finally:
        named.cancel()


def name_stubborn(group: str, item: Item, seconds: float) -> None:
    """Names a handler that goes on ``seconds`` after its beginning, although it was cancelled."""
    emit(HandlerIgnoresCancellation(group, item.handler.name, item.record.id, seconds))


async def run_attempts(invoker: Invoker, origin: str, item: Item, seat: Seat) -> Outcome:
    """Attempts at once as the policy says. Whoever watches the seat ends an attempt that takes too long."""
    loop = asyncio.get_running_loop()
    while True:
        seat.started = loop.time()
        try:
            return await invoker.call(item, origin)
        except asyncio.CancelledError:
            if seat.timed_out is None:
                raise
            error: Exception = TimeoutError(f"no result within {item.handler.timeout:g} s")
        except Exception as raised:
            if isinstance(raised, Undecided):
                raise
            if isinstance(raised, TooEarly) and seat.timed_out is None:
                return Taken(DeliveryState.DELAYED, item.attempts, error=HANDED_OVER)
            if isinstance(raised, MarkMoved) and seat.timed_out is None:
                # What is remembered has changed while that was decided on: no attempt.
                item.ledger = None
                continue
            error = raised
        if seat.timed_out is not None:
            seat.timed_out.set_result(None)
            seat.timed_out = None
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        item.attempts += 1
        # ``exhausted=`` bounds itself by the same time, so whoever watches grants it that.
        seat.started = loop.time() + item.handler.timeout
        try:
            outcome = await invoker.failed(item, origin, error)
        except MarkMoved:
            outcome = item.ledger = None
        if outcome is not None:
            return outcome


async def watch(task: asyncio.Task[Outcome] | asyncio.Task[Outcome | None], seat: Seat, group: str) -> Outcome:
    """Waits for a handler and ends each attempt that exceeds its timeout. Cancelled itself, it ends the handler."""
    assert seat.item is not None
    item, timeout = seat.item, seat.item.handler.timeout
    loop = asyncio.get_running_loop()
    try:
        while not task.done():
            started = seat.started
            await asyncio.wait([task], timeout=max(0.0, started + timeout - loop.time()))
            if task.done() or seat.started != started or loop.time() < started + timeout:
                continue
            seat.timed_out = ended = loop.create_future()
            task.cancel()
            await asyncio.wait([task, ended], timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and not ended.done():
                name_stubborn(group, item, loop.time() - started)
                await asyncio.wait([task, ended], return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        seat.timed_out = None
        task.cancel()
        await asyncio.wait([task], timeout=GRACE)
        if not task.done():
            name_stubborn(group, item, loop.time() - seat.started)
        raise
    outcome = task.result()
    assert outcome is not None
    return outcome
