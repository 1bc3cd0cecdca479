"""``once_by``: the same fact under another message id, another key or in another lane is handled once."""

from __future__ import annotations

import asyncio

import pytest

from skald import NEVER, App, Attempt, Command, Done, Event, ManualClock, Service, Transaction
from skald.errors import ConfigurationError
from skald.operations.subscriptions import reset_subscription
from skald.runtime.pruner import Pruner
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.stage import (
    MIGRATIONS,
    QUICK,
    Made,
    caught_up,
    deliveries,
    effect,
    effects,
    eventually,
    playing,
    redrive,
)


class Paid(Event, key="key"):
    key: str
    bill: str
    n: int = 0


class Settled(Event, key="key"):
    key: str
    bill: str


class Noted(Event, key="key"):
    key: str
    bill: str | None


class Bill(Command, key="key"):
    key: str
    bill: str


def services() -> tuple[Service, Service]:
    return Service("source", publishes=[Paid]), Service("sink", migrations=MIGRATIONS)


async def seen_by_all(source: Service, sink: Service) -> None:
    await eventually(lambda: caught_up(sink, source))
    await eventually(lambda: _nothing_left(sink))


async def _nothing_left(sink: Service) -> bool:
    return not await deliveries(sink)


async def published(sink: Service) -> list[str]:
    return [record.key for record in await sink.store.log.read(0, 10_000) if record.type == "Made"]


async def test_without_a_transaction(store_url: str) -> None:  # noqa: F811
    source, sink = services()
    ran: list[str] = []

    @sink.on(Paid, once_by="bill")
    async def handle(event: Paid) -> Made:
        ran.append(event.bill)
        return Made(event.key, event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(Paid("a", "1"))
        await seen_by_all(source, sink)
        await source.publish(Paid("a", "1"), Paid("a", "2"))
        await seen_by_all(source, sink)
        assert await published(sink) == ["a", "a"]
    assert ran == ["1", "2"]


async def test_facts_of_two_types_are_two_facts(store_url: str) -> None:  # noqa: F811
    """The second one was passed over in silence: one handler that follows a bill saw it paid, and never settled."""
    source, sink = Service("source", publishes=[Paid, Settled]), Service("sink")
    seen: list[str] = []

    @sink.on(Paid, Settled, once_by="bill")
    async def follow(event: Paid | Settled, attempt: Attempt) -> None:
        seen.append(attempt.key)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        for _ in range(2):
            await source.publish(Paid("a", "1"), Settled("a", "1"))
            await seen_by_all(source, sink)
    assert sorted(seen) == ["sink:follow:Paid:1", "sink:follow:Settled:1"]


async def test_with_a_transaction(store_url: str) -> None:  # noqa: F811
    source, sink = services()

    @sink.on(Paid, once_by="bill")
    async def handle(event: Paid, tx: Transaction) -> Made:
        await effect(tx, "sink", f"{event.bill}", event.key, event.n)
        return Made(event.key, event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        for _ in range(3):
            await source.publish(Paid("a", "1"), Paid("b", "2"), Paid("b", "2"))
            await seen_by_all(source, sink)
        assert sorted(await published(sink)) == ["a", "b"]
        assert sorted(row["id"] for row in await effects(sink, "sink")) == ["1", "2"]


@pytest.mark.parametrize("tx", [True, False])
async def test_two_in_one_stretch_and_in_many_lanes(store_url: str, tx: bool) -> None:  # noqa: F811
    """Before anything reads them, so that they come together; under keys that are in different lanes."""
    source, sink = services()

    if tx:

        @sink.on(Paid, once_by="bill")
        async def handle(event: Paid, tx: Transaction) -> Made:
            await effect(tx, "sink", event.bill, event.key, event.n)
            return Made(event.key, event.n)
    else:

        @sink.on(Paid, once_by="bill", name="handle")
        async def without(event: Paid) -> Made:
            return Made(event.bill, event.n)

    app = App(source, sink, store=store_url, settings=QUICK)
    await app.migrate()
    async with app.connect("source"):
        await source.publish(*(Paid(f"k{n % 7}", str(n % 20)) for n in range(200)))
    async with playing(app):
        await seen_by_all(source, sink)
        assert len(await published(sink)) == 20
        if tx:
            assert sorted(row["id"] for row in await effects(sink, "sink")) == sorted(map(str, range(20)))


async def test_two_that_run_at_the_same_time_have_one_effect_and_one_idempotency_key(
    store_url: str,  # noqa: F811
) -> None:
    source, sink = services()
    both, keys = asyncio.Barrier(2), list[str]()

    @sink.on(Paid, once_by="bill")
    async def handle(event: Paid, attempt: Attempt) -> Made:
        keys.append(attempt.key)
        if len(keys) <= 2:
            await both.wait()
        return Made(event.key, event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(Paid("a", "1"), Paid("b", "1"))
        await seen_by_all(source, sink)
        assert len(await published(sink)) == 1
    assert keys == ["sink:handle:1"] * 2


async def test_what_failed_was_not_handled(store_url: str) -> None:  # noqa: F811
    source, sink = services()
    broken = True

    @sink.on(Paid, once_by="bill", retry=NEVER)
    async def handle(event: Paid) -> Made:
        if broken:
            raise ValueError("broken")
        return Made(event.key, event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(Paid("a", "1"), Paid("b", "1"))
        rows = await eventually(lambda: _parked(sink, 2))
        assert {row["key"] for row in rows} == {"a", "b"}
        broken = False
        await redrive(sink)
        await seen_by_all(source, sink)
        assert len(await published(sink)) == 1


async def _parked(sink: Service, count: int) -> list[dict[str, object]]:
    rows = [row for row in await deliveries(sink) if row["state"] == "parked"]
    return rows if len(rows) == count else []


async def test_what_exhausted_decided_is_decided(store_url: str) -> None:  # noqa: F811
    source, sink = services()
    ran: list[str] = []

    def give_up(event: Paid, error: Exception) -> Made:
        return Made(event.key, -1)

    @sink.on(Paid, once_by="bill", retry=NEVER, exhausted=give_up)
    async def handle(event: Paid) -> None:
        ran.append(event.bill)
        raise ValueError("broken")

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        for _ in range(2):
            await source.publish(Paid("a", "1"))
            await seen_by_all(source, sink)
        assert await published(sink) == ["a"]
    assert ran == ["1"]


async def test_work_of_a_queue(store_url: str) -> None:  # noqa: F811
    source, sink = Service("source", publishes=[Bill]), Service("sink", migrations=MIGRATIONS)

    @sink.queue(Bill, once_by="bill")
    async def handle(command: Bill, tx: Transaction) -> Made:
        await effect(tx, "sink", command.bill, command.key, 0)
        return Made(command.key, 0)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(*(Bill(f"k{n}", str(n % 3)) for n in range(12)))
        await seen_by_all(source, sink)
        assert sorted(row["id"] for row in await effects(sink, "sink")) == ["0", "1", "2"]


async def test_a_compensation_behind_a_tombstone_is_called_once_however_often_it_is_read(
    store_url: str,  # noqa: F811
) -> None:
    _, sink = services()
    called: list[str] = []

    @sink.on(Paid)
    async def book(event: Paid) -> Made:
        return Made(event.key, event.n)

    @sink.on(Noted, once_by="bill", compensates=book)
    async def cancel(event: Noted, done: Done[Made] | None) -> None:
        called.append(event.key)

    source = Service("source", publishes=[Paid, Noted])
    app = App(source, sink, store=store_url, settings=QUICK)
    async with playing(app):
        await source.publish(Noted("a", "1"))
        await seen_by_all(source, sink)
    await reset_subscription(app, "sink", "source", "start", every_lane=True)
    async with playing(app):
        await source.publish(Paid("b", "2"))
        await seen_by_all(source, sink)
    assert called == ["a"]


async def test_what_is_remembered_is_forgotten_in_batches(store_url: str) -> None:  # noqa: F811
    source, sink = services()
    clock = ManualClock()

    @sink.on(Paid, once_by="bill", remember=2)
    async def handle(event: Paid) -> Made:
        return Made(event.key, event.n)

    @sink.on(Paid, once_by="bill", remember=20)
    async def longer(event: Paid) -> None: ...

    async def readers() -> int | None:
        return None

    async with playing(App(source, sink, store=store_url, settings=QUICK, clock=clock)):
        await source.publish(*(Paid("a", str(n)) for n in range(2_500)))
        await seen_by_all(source, sink)
        pruner = Pruner(store=sink.store, service=sink, readers=readers, clock=clock)
        clock.advance(86_400)
        await source.publish(Paid("a", "new"))
        await seen_by_all(source, sink)
        assert (await pruner.step()).marks == 0
        clock.advance(86_400 + 1)
        assert (await pruner.step()).marks == 2_500
        rows = await sink.fetch("SELECT name, count(*) AS n FROM skald_marks GROUP BY name ORDER BY name")
        assert rows == [{"name": "handle", "n": 1}, {"name": "longer", "n": 2_501}]
        await source.publish(Paid("a", "1"))
        await seen_by_all(source, sink)
        assert len(await published(sink)) == 2_502


async def test_a_value_that_is_null_is_parked_by_name(store_url: str) -> None:  # noqa: F811
    source, sink = Service("source", publishes=[Noted]), Service("sink")

    @sink.on(Noted, once_by="bill")
    async def handle(event: Noted) -> None: ...

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(Noted("a", None))
        [row] = await eventually(lambda: _parked(sink, 1))
        assert "bill is null" in str(row["error"])


def test_a_field_that_is_not_there_is_refused_with_its_line() -> None:
    sink = Service("sink")

    async def handle(event: Paid) -> None: ...

    with pytest.raises(ConfigurationError, match=r"test_once_by.py:\d+: handle: once_by='nr' is not a field of Paid"):
        sink.on(Paid, once_by="nr")(handle)
    with pytest.raises(ConfigurationError, match="remember=0"):
        sink.on(Paid, once_by="bill", remember=0)(handle)
