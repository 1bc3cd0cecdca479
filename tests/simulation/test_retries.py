"""Attempts: at once, delayed, exhausted, parked; by the policy of each exception, and each bounded in time."""

from __future__ import annotations

import asyncio
import threading

import pytest

from skald import NEVER, App, Attempt, Retry, Service
from skald.retry import Policy
from skald.telemetry import HandlerIgnoresCancellation, Parked, Retried
from tests.simulation.stage import (
    QUICK,
    Failed,
    Made,
    Placed,
    Seen,
    caught_up,
    deliveries,
    eventually,
    no_deliveries,
    occurrences,
    playing,
)

ONE = Placed("k", 0)


def two_services() -> tuple[Service, Service]:
    return Service("source", publishes=[Placed]), Service("sink")


async def test_attempts_at_once_then_delayed_then_parked(store_url: str) -> None:
    source, sink = two_services()
    tries: Seen[Attempt] = Seen()

    @sink.on(Placed, retry=Retry(immediate=2, delays=(0.01, 0.3)))
    async def fails(event: Placed, attempt: Attempt) -> None:
        tries.note(attempt)
        raise ValueError("no")

    async with playing(App(source, sink, store=store_url, settings=QUICK)), occurrences() as seen:
        await source.publish(ONE)
        await seen.until(lambda items: any(isinstance(item, Parked) for item in items))
        (row,) = await deliveries(sink)

    assert [attempt.number for attempt in tries.items] == [1, 2, 3, 4]
    assert [attempt.unknown for attempt in tries.items] == [False, True, True, True]
    assert len({attempt.key for attempt in tries.items}) == 1
    assert (row["state"], row["attempts"], row["error"]) == ("parked", 4, "ValueError: no")
    retried = [item for item in seen.items if isinstance(item, Retried)]
    assert [item.attempts for item in retried] == [2, 3]
    assert retried[0].delay <= 0.01 < retried[1].delay <= 0.3


def test_the_default_table() -> None:
    assert [Retry().after(n) for n in range(1, 7)] == [0, 0, 1.0, 5.0, 30.0, None]


async def test_success_after_a_delay_is_published_once(store_url: str) -> None:
    source, sink = two_services()
    seen: Seen[Made] = Seen()

    @sink.on(Placed, retry=Retry(immediate=1, delays=(0.01,)))
    async def works_later(event: Placed, attempt: Attempt) -> Made:
        if attempt.number == 1:
            raise ValueError("not yet")
        return Made(event.key, event.n)

    @source.on(Made)
    async def made(event: Made) -> None:
        seen.note(event)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(ONE)
        await seen.count(1)
        await eventually(lambda: no_deliveries(sink))
        await eventually(lambda: caught_up(source, sink))
    assert len(seen.items) == 1


async def test_the_policy_of_the_exception_decides(store_url: str) -> None:
    source, sink = two_services()
    tries: Seen[int] = Seen()
    policy: Policy = {LookupError: Retry(immediate=4, delays=()), ValueError: NEVER, "*": Retry(immediate=2, delays=())}

    @sink.on(Placed, retry=policy)
    async def fails(event: Placed) -> None:
        tries.note(event.n)
        raise {0: KeyError, 1: ValueError, 2: OSError}[event.n](str(event.n))

    async with playing(App(source, sink, store=store_url, settings=QUICK)), occurrences() as seen:
        await source.publish(*(Placed(f"k{n}", n) for n in range(3)))
        await seen.until(lambda items: sum(isinstance(item, Parked) for item in items) == 3)
    assert [tries.items.count(n) for n in range(3)] == [4, 1, 2]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_exhausted_replaces_parking(store_url: str, kind: str) -> None:
    source, sink = two_services()
    seen: Seen[Failed] = Seen()

    async def give_up(event: Placed, error: BaseException) -> Failed:
        return Failed(event.key, event.n, str(error))

    def give_up_sync(event: Placed, error: BaseException) -> Failed:
        return Failed(event.key, event.n, str(error))

    @sink.on(Placed, retry=Retry(immediate=3, delays=()), exhausted=give_up if kind == "async" else give_up_sync)
    async def fails(event: Placed) -> None:
        raise ValueError("declined")

    @source.on(Failed)
    async def failed(event: Failed) -> None:
        seen.note(event)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(ONE)
        assert await seen.count(1) == [Failed("k", 0, "declined")]
        assert await no_deliveries(sink)


async def test_exhausted_that_fails_or_hangs_parks_with_both_errors(store_url: str) -> None:
    source, sink = two_services()

    async def fails_too(event: Placed, error: BaseException) -> Failed:
        if event.n:
            await asyncio.Event().wait()
        raise RuntimeError("worse")

    @sink.on(Placed, retry=NEVER, exhausted=fails_too, timeout=0.2)
    async def fails(event: Placed) -> None:
        raise ValueError("bad")

    async with playing(App(source, sink, store=store_url, settings=QUICK)), occurrences() as seen:
        await source.publish(ONE, Placed("other", 1))
        await seen.until(lambda items: sum(isinstance(item, Parked) for item in items) == 2)
        rows = await deliveries(sink)
    assert [(row["state"], row["attempts"]) for row in rows] == [("parked", 1), ("parked", 1)]
    assert rows[0]["error"] == "RuntimeError: worse in exhausted=, after ValueError: bad"
    assert rows[1]["error"].startswith("TimeoutError")


async def test_a_timeout_ends_each_attempt(store_url: str) -> None:
    source, sink = two_services()
    tries: Seen[Attempt] = Seen()

    @sink.on(Placed, retry=Retry(immediate=2, delays=()), timeout=0.15)
    async def hangs(event: Placed, attempt: Attempt) -> None:
        tries.note(attempt)
        await asyncio.Event().wait()

    async with playing(App(source, sink, store=store_url, settings=QUICK)), occurrences() as seen:
        await source.publish(ONE)
        await seen.until(lambda items: any(isinstance(item, Parked) for item in items))
        (row,) = await deliveries(sink)
    assert len(tries.items) == 2
    assert row["error"] == "TimeoutError: no result within 0.15 s"


async def test_a_handler_that_ignores_cancellation_is_named_and_its_key_waits(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skald.messaging.attempts.GRACE", 0.1)
    source, sink = two_services()
    go, seen = asyncio.Event(), Seen[int]()

    @sink.on(Placed, timeout=0.1, retry=NEVER)
    async def stubborn(event: Placed) -> None:
        while event.n == 0 and not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        seen.note(event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)), occurrences() as noticed:
        await source.publish(ONE, Placed("k", 1), Placed("other", 2))
        await noticed.until(lambda items: any(isinstance(item, HandlerIgnoresCancellation) for item in items))
        assert seen.items == [2]
        go.set()
        assert await seen.count(3) == [2, 0, 1]
        await eventually(lambda: no_deliveries(sink))


async def test_a_sync_handler_that_outlives_its_timeout_keeps_its_key(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skald.messaging.attempts.GRACE", 0.1)
    source, sink = two_services()
    go, running, seen = threading.Event(), [], Seen[int]()

    @sink.on(Placed, timeout=0.1, retry=Retry(immediate=2, delays=()))
    def slow(event: Placed) -> None:
        running.append(event.n)
        assert running == [event.n], "two attempts at once"
        go.wait()
        running.remove(event.n)
        seen.note(event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)), occurrences() as noticed:
        await source.publish(ONE)
        await noticed.until(lambda items: any(isinstance(item, HandlerIgnoresCancellation) for item in items))
        go.set()
        # Twice: the first attempt had been given up, and ended all the same before the second began.
        assert await seen.count(2) == [0, 0]
        await eventually(lambda: no_deliveries(sink))


async def test_a_cancellation_from_inside_a_handler_is_a_failure_like_any_other(store_url: str) -> None:
    """A task that the handler awaits and somebody else cancels must not end the consumer."""
    source, sink = two_services()
    seen: Seen[int] = Seen()

    @sink.on(Placed, retry=NEVER)
    async def awaits_cancelled(event: Placed) -> None:
        if event.n == 0:
            task = asyncio.create_task(asyncio.Event().wait())
            task.cancel()
            await task
        seen.note(event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(ONE, Placed("other", 1))
        await seen.count(1)
        await source.publish(Placed("third", 2))
        await seen.count(2)
        (row,) = await deliveries(sink)
    assert (row["state"], row["attempts"]) == ("parked", 1)
