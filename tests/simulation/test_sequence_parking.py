"""Order within a key through retries, parking and redrive, while everything else flows."""

from __future__ import annotations

import asyncio
import random

import msgspec

from skald import NEVER, App, ManualClock, Retry, Service, Transaction
from skald.telemetry import Parked
from skald.unit import Unit
from tests.simulation.stage import (
    MIGRATIONS,
    QUICK,
    Made,
    Placed,
    Seen,
    check_effects,
    cursors,
    deliveries,
    effect,
    effects,
    eventually,
    no_deliveries,
    occurrences,
    playing,
    redrive,
    seed,
)


def two_services() -> tuple[Service, Service]:
    return Service("source", publishes=[Placed]), Service("sink", migrations=MIGRATIONS)


async def test_later_messages_of_the_key_wait_and_others_flow(store_url: str) -> None:
    source, sink = two_services()
    seen: Seen[tuple[str, int]] = Seen()
    broken = True

    @sink.on(Placed, retry=NEVER)
    async def handle(event: Placed) -> None:
        if broken and (event.key, event.n) == ("a", 0):
            raise ValueError("broken")
        seen.note((event.key, event.n))

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(*(Placed(key, n) for n in range(3) for key in "ab"))
        await seen.until(lambda items: ("b", 2) in items)
        rows = await eventually(lambda: _waiting(sink, 3))
        assert [row["state"] for row in rows] == ["parked", "waiting", "waiting"]
        await source.publish(Placed("a", 3))
        await eventually(lambda: _waiting(sink, 4))
        assert [item for item in seen.items if item[0] == "a"] == []

        broken = False
        await redrive(sink, aggregateid="a")
        await source.publish(Placed("a", 4))
        await seen.until(lambda items: ("a", 4) in items)
        await eventually(lambda: no_deliveries(sink))
    assert [n for key, n in seen.items if key == "a"] == [0, 1, 2, 3, 4]
    assert [n for key, n in seen.items if key == "b"] == [0, 1, 2]


async def _waiting(service: Service, count: int) -> list[dict[str, object]]:
    rows = await deliveries(service)
    return rows if len(rows) == count else []


async def test_a_discarded_message_lets_the_others_on(store_url: str) -> None:
    source, sink = two_services()
    seen: Seen[int] = Seen()

    @sink.on(Placed, retry=NEVER)
    async def handle(event: Placed) -> None:
        if event.n == 0:
            raise ValueError("broken")
        seen.note(event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(*(Placed("a", n) for n in range(3)))
        await eventually(lambda: _waiting(sink, 3))
        async with sink.transaction() as tx:
            await tx.execute("UPDATE skald_cursors SET version = version + 1")
            await tx.execute("DELETE FROM skald_deliveries WHERE state = 'parked'")
        assert await seen.count(2) == [1, 2]


async def test_a_delayed_message_blocks_its_key_until_its_time_has_come(store_url: str) -> None:
    source, sink = two_services()
    clock, seen = ManualClock(), Seen[tuple[str, int]]()
    failed: set[str] = set()

    @sink.on(Placed, retry=Retry(immediate=1, delays=(3600,)))
    async def handle(event: Placed) -> None:
        if event.n == 0 and event.key not in failed:
            failed.add(event.key)
            raise ValueError("later")
        seen.note((event.key, event.n))

    async with playing(App(source, sink, store=store_url, settings=QUICK, clock=clock)):
        await source.publish(Placed("a", 0), Placed("a", 1), Placed("b", 1), Placed("b", 2))
        await seen.until(lambda items: ("b", 2) in items)
        await eventually(lambda: _waiting(sink, 2))
        clock.advance(3599)
        await source.publish(Placed("a", 2))
        rows = await eventually(lambda: _waiting(sink, 3))
        assert [row["state"] for row in rows] == ["delayed", "waiting", "waiting"]
        clock.advance(1)
        await seen.until(lambda items: ("a", 2) in items)
        await eventually(lambda: no_deliveries(sink))
    assert [n for key, n in seen.items if key == "a"] == [0, 1, 2]


async def test_two_handlers_of_a_message_fail_independently(store_url: str) -> None:
    source, sink = two_services()
    good, parked = Seen[int](), 0

    @sink.on(Placed, retry=NEVER)
    async def bad(event: Placed) -> None:
        raise ValueError("bad")

    @sink.on(Placed)
    async def fine(event: Placed) -> None:
        good.note(event.n)

    @sink.on(Placed, retry=NEVER)
    async def bad_in_transaction(event: Placed, tx: Transaction) -> None:
        await effect(tx, "bad", str(event.n), event.key, event.n)
        raise ValueError("bad too")

    @sink.on(Placed)
    async def fine_in_transaction(event: Placed, tx: Transaction) -> None:
        await effect(tx, "fine", str(event.n), event.key, event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(*(Placed("a", n) for n in range(4)))
        assert await good.count(4) == [0, 1, 2, 3]
        await eventually(lambda: _waiting(sink, 8))
        rows = await deliveries(sink)
        parked = sum(row["state"] == "parked" for row in rows)
        check_effects(await effects(sink, "fine"), {"a": 4})
        assert await effects(sink, "bad") == []
    assert parked == 2
    assert {row["handler"] for row in rows} == {"bad", "bad_in_transaction"}


async def test_an_unreadable_message_is_parked_with_its_bytes_and_blocks_its_key(store_url: str) -> None:
    source, sink = two_services()
    seen: Seen[tuple[str, int]] = Seen()

    @sink.on(Placed)
    async def handle(event: Placed) -> None:
        seen.note((event.key, event.n))

    @sink.on(Placed)
    async def with_transaction(event: Placed, tx: Transaction) -> None:
        await effect(tx, "tx", f"{event.key}{event.n}", event.key, event.n)

    raw = b'{"key": "a", "n": "not a number"'
    async with playing(App(source, sink, store=store_url, settings=QUICK)), occurrences() as noticed:
        _, record = source.connection.publisher.draft(Placed("a", 0))
        await source.store.commit([Unit(events=(msgspec.structs.replace(record, payload=raw),))])
        await source.publish(Placed("a", 1), Placed("b", 0))
        await noticed.until(lambda items: sum(isinstance(item, Parked) for item in items) == 2)
        rows = await eventually(lambda: _waiting(sink, 4))
        assert await eventually(lambda: effects(sink, "tx"))
    parked = [row for row in rows if row["state"] == "parked"]
    assert [bytes(row["payload"]) for row in parked] == [raw, raw]
    assert all(row["error"].startswith("UnreadableMessage") for row in parked)
    assert seen.items == [("b", 0)]


async def test_types_that_nobody_handles_are_ignored_and_counted(store_url: str) -> None:
    source, sink = Service("source", publishes=[Placed, Made]), Service("sink")
    seen: Seen[int] = Seen()

    @sink.on(Placed)
    async def handle(event: Placed) -> None:
        seen.note(event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)) as running:
        await source.publish(*(Made("a", n) for n in range(7)))
        await source.publish(Placed("a", 0))
        await seen.count(1)
        (consumer,) = [consumer for one in running for consumer in one.consumers]
        assert consumer.counters.ignored == 7


async def test_a_slow_handler_holds_up_neither_others_nor_the_cursor(store_url: str) -> None:
    source, sink = two_services()
    go, seen = asyncio.Event(), Seen[tuple[str, int]]()

    @sink.on(Placed)
    async def handle(event: Placed) -> Made:
        if event.key == "slow" and event.n == 0:
            await go.wait()
        seen.note((event.key, event.n))
        return Made(event.key, event.n)

    made: Seen[tuple[str, int]] = Seen()

    @source.on(Made)
    async def on_made(event: Made) -> None:
        made.note((event.key, event.n))

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(Placed("slow", 0), *(Placed("quick", n) for n in range(20)), Placed("slow", 1))
        await made.until(lambda items: ("quick", 19) in items)
        end, _ = await source.store.log.end()
        await eventually(lambda: _all_at(sink, end))
        assert {row["state"] for row in await _waiting(sink, 2)} == {"running", "waiting"}
        go.set()
        await made.until(lambda items: ("slow", 1) in items)
        await eventually(lambda: no_deliveries(sink))
    assert sorted(made.items) == sorted({*made.items}), "a result was committed twice"
    assert [n for key, n in made.items if key == "slow"] == [0, 1]


async def _all_at(service: Service, position: int) -> bool:
    return all(row["position"] == position for row in await cursors(service))


async def test_order_holds_through_random_failures_and_delays(store_url: str) -> None:
    """Handlers that fail at random, slow ones among them; nothing is lost, doubled or out of order."""
    chance = random.Random(seed())
    source, sink = two_services()
    keys, count = [f"k{n}" for n in range(12)], 15

    @sink.on(Placed, retry=Retry(immediate=1, delays=(0.0, *[0.01] * 30)))
    async def plain(event: Placed) -> Made:
        if chance.random() < 0.1:
            await asyncio.sleep(chance.choice([0.01, 0.12]))  # sleep: a slow handler, at random
        if chance.random() < 0.2:
            raise ValueError("at random")
        return Made(event.key, event.n)

    @sink.on(Placed, retry=Retry(immediate=1, delays=(0.0, *[0.01] * 30)))
    async def with_transaction(event: Placed, tx: Transaction) -> None:
        await effect(tx, "tx", f"{event.key}{event.n}", event.key, event.n)
        if chance.random() < 0.1:
            raise ValueError("at random")

    made: dict[str, list[int]] = {key: [] for key in keys}
    done = Seen[None]()

    @source.on(Made)
    async def on_made(event: Made) -> None:
        made[event.key].append(event.n)
        done.note(None)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        for n in range(count):
            await source.publish(*(Placed(key, n) for key in keys))
        await done.count(len(keys) * count)
        await eventually(lambda: no_deliveries(sink))
        check_effects(await effects(sink, "tx"), dict.fromkeys(keys, count))
    assert made == {key: list(range(count)) for key in keys}
