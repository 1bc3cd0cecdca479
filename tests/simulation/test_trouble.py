"""The consumer's database fails at any moment, before or after its work is done: nothing is lost, doubled or stuck."""

from __future__ import annotations

import asyncio
import random

import pytest

from skald import App, Retry, Service, Transaction
from skald.messaging.consumer import ConsumerSettings
from skald.runtime.service import RuntimeSettings
from tests.simulation.flaky import FlakyApp
from tests.simulation.stage import (
    MIGRATIONS,
    QUICK,
    Job,
    Made,
    Placed,
    Seen,
    caught_up,
    check_effects,
    cursors,
    deliveries,
    effect,
    effects,
    eventually,
    no_deliveries,
    playing,
    seed,
)

KEYS = [f"k{n}" for n in range(8)]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skald.messaging.consumer.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("skald.messaging.deliverer.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("skald.messaging.worker.AGAIN", 0.1)
    monkeypatch.setattr("skald.messaging.redelivery.PAUSE", 50_000)


def troubled(chance: random.Random, patience: float) -> tuple[Service, Service, RuntimeSettings]:
    source = Service("source", publishes=[Placed, Job])
    sink = Service("sink", migrations=MIGRATIONS)
    retry = Retry(immediate=2, delays=(0.02,) * 50)

    @sink.on(Placed, retry=retry)
    async def plain(event: Placed) -> Made:
        if chance.random() < 0.1:
            await asyncio.sleep(patience * 2)  # sleep: slower than its stretch, at random
        if chance.random() < 0.1:
            raise ValueError("at random")
        return Made(event.key, event.n)

    @sink.on(Placed, retry=retry)
    async def in_transaction(event: Placed, tx: Transaction) -> None:
        await effect(tx, "tx", f"{event.key}{event.n}", event.key, event.n)
        if chance.random() < 0.05:
            raise ValueError("at random")

    @sink.queue(Job, retry=retry)
    async def work(job: Job, tx: Transaction) -> None:
        await effect(tx, "queue", f"{job.key}{job.n}", f"{job.key}{job.n}", 0)

    return source, sink, RuntimeSettings(lease=1.0, consumer=ConsumerSettings(patience=patience, poll=0.05))


@pytest.mark.parametrize("rate", [0.02, 0.15])
async def test_effects_happen_once_and_in_order_whatever_fails(store_url: str, rate: float) -> None:
    chance = random.Random(seed())
    source, sink, settings = troubled(chance, 0.03)
    made: dict[str, list[int]] = {key: [] for key in KEYS}
    done: Seen[None] = Seen()

    @source.on(Made)
    async def on_made(event: Made) -> None:
        made[event.key].append(event.n)
        done.note(None)

    app = FlakyApp(source, sink, store=store_url, settings=settings, chance=chance, flaky=["sink"])
    count = 12
    async with playing(app):
        app.fail(rate)
        for n in range(count):
            await source.publish(*(Placed(key, n) for key in KEYS), *(Job(key, n) for key in KEYS[:3]))
        await done.count(len(KEYS) * count)
        app.fail(0)
        await eventually(lambda: no_deliveries(sink))
        await eventually(lambda: caught_up(sink, source))
        check_effects(await effects(sink, "tx"), dict.fromkeys(KEYS, count))
        check_effects(await effects(sink, "queue"), {f"{key}{n}": 1 for key in KEYS[:3] for n in range(count)})
        await eventually(lambda: caught_up(source, sink))
    assert made == {key: list(range(count)) for key in KEYS}
    assert app.failures


async def test_an_outage_costs_no_attempts(store_url: str) -> None:
    chance = random.Random(seed())
    source, sink = Service("source", publishes=[Placed]), Service("sink", migrations=MIGRATIONS)
    go, seen = asyncio.Event(), Seen[int]()

    @sink.on(Placed, retry=Retry(immediate=1, delays=(0.01,)))
    async def slow(event: Placed) -> None:
        await go.wait()
        seen.note(event.n)

    app = FlakyApp(source, sink, store=store_url, settings=QUICK, chance=chance, flaky=["sink"])
    async with playing(app):
        await source.publish(Placed("a", 0))
        await eventually(lambda: deliveries(sink))
        app.fail(1.0)
        go.set()
        await seen.count(1)
        times = app.failures + 5
        await eventually(lambda: _has_failed(app, times))
        app.fail(0)
        await eventually(lambda: no_deliveries(sink))
    assert seen.items == [0], "the outcome was known, so the handler must not run again"


async def _has_failed(app: FlakyApp, times: int) -> bool:
    return app.failures >= times


async def test_lanes_whose_claim_or_release_failed_are_not_stranded(store_url: str) -> None:
    chance = random.Random(seed())
    settings = RuntimeSettings(lease=0.6, consumer=QUICK.consumer)
    apps = []
    for _ in range(2):
        source, sink, _settings = troubled(chance, 0.03)
        apps.append(FlakyApp(source, sink, store=store_url, settings=settings, chance=chance, flaky=["sink"]))
    first, second = apps
    source = first.service("source")
    async with playing(first):
        first.fail(0.3)
        for n in range(4):
            async with second.run("sink"):
                second.fail(0.3)
                await source.publish(*(Placed(key, n) for key in KEYS))
                await eventually(lambda: _owners(source, first, 2))
            await source.publish(*(Placed(key, 4 + n) for key in KEYS))
        first.fail(0)
        sink = first.service("sink")
        await eventually(lambda: caught_up(sink, source))
        await eventually(lambda: no_deliveries(sink))
        numbers = sorted((row["key"], row["n"]) for row in await effects(sink, "tx"))
        assert numbers == sorted((key, n) for key in KEYS for n in range(8))


async def _owners(_source: Service, app: App, count: int) -> bool:
    try:
        rows = await cursors(app.service("sink"))
    except Exception:
        return False
    return len({row["owner"] for row in rows if row["origin"] == "source"} - {None}) == count
