"""Queues: competing workers, priority and delay, no order by key, gone once done; failures as everywhere."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from skald import NEVER, App, Attempt, Retry, RuntimeSettings, Service, SystemClock, Transaction
from skald.errors import StoreUnavailable
from skald.messaging import parking
from skald.messaging.deliverer import Deliverer
from skald.telemetry import Parked, Recovering
from skald.unit import Delivery
from tests.simulation.stage import (
    MIGRATIONS,
    QUICK,
    Job,
    Made,
    Placed,
    Seen,
    caught_up,
    deliveries,
    effect,
    effects,
    eventually,
    happens,
    no_deliveries,
    occurrences,
    playing,
)


def two_services() -> tuple[Service, Service]:
    return Service("source", publishes=[Job, Placed]), Service("sink", migrations=MIGRATIONS)


async def test_priority_decides_and_done_work_is_gone(store_url: str) -> None:
    source, sink = two_services()
    go, seen = asyncio.Event(), Seen[int]()

    @sink.queue(Job, workers=1)
    async def work(job: Job) -> None:
        seen.note(job.n)
        if job.n == 0:
            await go.wait()

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(Job("a", 0))
        await seen.count(1)
        for n, priority in [(1, 0), (2, 5), (3, -1), (4, 9), (5, 5)]:
            await source.publish(Job("a", n), priority=priority)
        await eventually(lambda: caught_up(sink, source))
        go.set()
        assert await seen.count(6) == [0, 4, 2, 5, 1, 3]
        await eventually(lambda: no_deliveries(sink))


async def test_delayed_work_is_not_begun_before_its_time(store_url: str) -> None:
    source, sink = two_services()
    seen: Seen[int] = Seen()

    @sink.queue(Job)
    async def work(job: Job) -> None:
        seen.note(job.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        day = 86_400
        await source.publish(Job("a", 0), delay=day)
        await source.publish(Job("a", 1), Job("a", 2))
        await seen.count(2)
        await eventually(lambda: caught_up(sink, source))
        (row,) = await eventually(lambda: _one(sink))
        assert (day - 60) * 1e6 < row["due"] - SystemClock().now() <= day * 1e6
        async with sink.transaction() as tx:
            await tx.execute("UPDATE skald_deliveries SET due = 0")
        assert (await seen.count(3))[-1] == 0
        await eventually(lambda: no_deliveries(sink))


async def _one(service: Service) -> list[dict[str, Any]]:
    rows = await deliveries(service)
    return rows if len(rows) == 1 else []


async def test_workers_of_several_owners_share_the_work_and_nothing_is_done_twice(store_url: str) -> None:
    count = 120
    source, sink = two_services()
    seen: Seen[tuple[str, int]] = Seen()

    def sinks(name: str, service: Service) -> Service:
        @service.queue(Job, workers=3)
        async def work(job: Job, tx: Transaction) -> Made:
            await effect(tx, name, str(job.n), "any", job.n)
            seen.note((name, job.n))
            return Made("any", job.n)

        return service

    other_source, other = two_services()
    first = App(source, sinks("first", sink), store=store_url, settings=QUICK)
    second = App(other_source, sinks("second", other), store=store_url, settings=QUICK)
    async with playing(first, "sink", "source"), second.run("sink"):
        for n in range(count):
            await source.publish(Job(f"k{n}", n))
        await seen.count(count)
        await eventually(lambda: no_deliveries(sink))
        rows = await effects(sink, "first") + await effects(sink, "second")
    assert sorted(row["n"] for row in rows) == list(range(count))
    assert {name for name, _ in seen.items} == {"first", "second"}


async def test_failed_work_comes_back_later_and_is_parked_in_the_end(store_url: str) -> None:
    source, sink = two_services()
    tries: Seen[Attempt] = Seen()

    @sink.queue(Job, retry=Retry(immediate=2, delays=(0.01, 0.01)))
    async def work(job: Job, attempt: Attempt) -> None:
        tries.note(attempt)
        raise ValueError("no")

    @sink.queue(Job, retry=NEVER)
    async def in_transaction(job: Job, tx: Transaction) -> None:
        await effect(tx, "undone", "x", job.key, job.n)
        raise ValueError("no")

    async with playing(App(source, sink, store=store_url, settings=QUICK)), occurrences() as noticed:
        await source.publish(Job("a", 0))
        await noticed.until(lambda items: sum(isinstance(item, Parked) for item in items) == 2)
        rows = await deliveries(sink)
        assert await effects(sink, "undone") == []
    assert [(row["handler"], row["state"], row["attempts"], row["owner"]) for row in rows] == [
        ("in_transaction", "parked", 1, None),
        ("work", "parked", 4, None),
    ]
    assert [attempt.number for attempt in tries.items] == [1, 2, 3, 4]


async def test_work_does_not_wait_for_its_neighbours_of_the_same_key(store_url: str) -> None:
    source, sink = two_services()
    go, seen = asyncio.Event(), Seen[int]()

    @sink.queue(Job, workers=2, retry=NEVER)
    async def work(job: Job) -> None:
        if job.n == 0:
            await go.wait()
        if job.n == 1:
            raise ValueError("parked")
        seen.note(job.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(*(Job("a", n) for n in range(5)))
        assert sorted(await seen.count(3)) == [2, 3, 4]
        go.set()
        await seen.count(4)


async def test_no_more_is_begun_than_there_are_workers(store_url: str) -> None:
    source, sink = two_services()
    running, most, seen = 0, 0, Seen[int]()

    @sink.queue(Job, workers=3)
    async def work(job: Job) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        seen.note(job.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(*(Job(f"k{n}", n) for n in range(40)))
        await seen.count(40)
    assert most == 3


async def test_new_work_is_begun_without_waiting_for_a_poll(store_url: str) -> None:
    source, sink = two_services()
    seen: Seen[int] = Seen()

    @sink.queue(Job)
    async def work(job: Job) -> None:
        seen.note(job.n)

    # It would poll every 5 s.
    async with playing(App(source, sink, store=store_url, settings=RuntimeSettings(lease=1.0))):
        async with asyncio.timeout(4):
            for n in range(3):
                await source.publish(Job("a", n))
                await seen.count(n + 1)


async def test_a_claim_whose_reply_was_lost_is_found_again(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database took the claim, the answer did not arrive: nobody else would free what this process owns."""
    source, sink = two_services()
    seen: Seen[int] = Seen()
    claim, lost = parking.claim_work, 0

    async def loses_replies(*args: Any, **options: Any) -> object:
        nonlocal lost
        found = await claim(*args, **options)
        if found and lost < 2:
            lost += 1
            raise StoreUnavailable("the reply was lost")
        return found

    @sink.queue(Job)
    async def work(job: Job) -> None:
        seen.note(job.n)

    monkeypatch.setattr(parking, "claim_work", loses_replies)
    async with playing(App(source, sink, store=store_url, settings=QUICK)), occurrences() as noticed:
        await source.publish(*(Job("a", n) for n in range(10)))
        assert sorted(await seen.count(10)) == list(range(10))
        await eventually(lambda: no_deliveries(sink))
        assert any(isinstance(item, Recovering) for item in noticed.items)
    assert lost


async def test_work_that_is_taken_again_before_its_last_attempt_has_quite_ended_is_done(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is free as soon as the failure is committed; the task that made the attempt learns of that later."""
    source, sink = two_services()
    numbers: Seen[int] = Seen()
    again = asyncio.Event()

    @sink.queue(Job, workers=2, retry=Retry(immediate=1, delays=(0.000_001,)))
    async def work(job: Job, attempt: Attempt) -> None:
        numbers.note(attempt.number)
        if attempt.number == 1:
            raise ValueError

    async def ends_late(self: Deliverer, *args: Any) -> None:
        await end(self, *args)
        await happens(again)

    async def claims(*args: Any, **kwargs: Any) -> list[Delivery]:
        found = await claim(*args, **kwargs)
        if any(delivery.attempts for delivery in found):
            again.set()
        return found

    end, claim = Deliverer._end, parking.claim_work
    monkeypatch.setattr(Deliverer, "_end", ends_late)
    monkeypatch.setattr(parking, "claim_work", claims)
    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(Job("a", 0))
        assert await numbers.count(2) == [1, 2]
        await eventually(lambda: no_deliveries(sink))
