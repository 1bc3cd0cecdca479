"""Who may act: lanes are shared and handed over, and whoever was taken over from can write nothing any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from skald import App, Attempt, RuntimeSettings, Service, Transaction
from skald.messaging import cursor
from skald.messaging.batch import Stretch
from skald.messaging.consumer import ConsumerSettings
from skald.messaging.outcome import Done, Item
from skald.runtime.service import RunningService
from skald.telemetry import LanesTaken, Refused
from skald.unit import Unit
from tests.simulation.stage import (
    MIGRATIONS,
    QUICK,
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
    forget_member,
    happens,
    no_deliveries,
    occurrences,
    playing,
)

KEYS = [f"k{n}" for n in range(16)]
Handle = Callable[..., Any]


class Players:
    """The same two services again and again, as other processes would have them; ``sink`` notes who handled what."""

    def __init__(self, url: str, settings: RuntimeSettings = QUICK) -> None:
        self.url, self.settings = url, settings
        self.handled: Seen[tuple[str, str, int]] = Seen()
        self.gates: dict[str, asyncio.Event] = {}

    def app(self, name: str) -> App:
        source = Service("source", publishes=[Placed])
        sink = Service("sink", migrations=MIGRATIONS)

        @sink.on(Placed)
        async def plain(event: Placed) -> Made:
            self.handled.note((name, event.key, event.n))
            if name in self.gates:
                await self.gates[name].wait()
            return Made(event.key, event.n)

        @sink.on(Placed)
        async def in_transaction(event: Placed, tx: Transaction) -> None:
            await effect(tx, "tx", f"{event.key}{event.n}", event.key, event.n)

        @source.on(Made)
        async def made(event: Made, tx: Transaction) -> None:
            await effect(tx, "made", f"{event.key}{event.n}", event.key, event.n)

        source.migrations = MIGRATIONS
        return App(source, sink, store=self.url, settings=self.settings)


async def owners(app: App, count: int) -> list[str]:
    """The owners of the sink's lanes, as soon as there are so many, and no lane is without."""
    rows = await cursors(app.service("sink"))
    found = {row["owner"] for row in rows if row["origin"] == "source"}
    return sorted(found) if None not in found and len(found) == count else []


async def check(app: App, count: int, source: Service | None = None) -> None:
    source, sink = source or app.service("source"), app.service("sink")
    await eventually(lambda: caught_up(sink, source))
    await eventually(lambda: no_deliveries(sink))
    await eventually(lambda: caught_up(source, sink))
    check_effects(await effects(sink, "tx"), dict.fromkeys(KEYS, count))
    check_effects(await effects(source, "made"), dict.fromkeys(KEYS, count))


async def test_lanes_are_shared_and_handed_over_without_loss(store_url: str) -> None:
    players = Players(store_url)
    first = players.app("first")
    source = first.service("source")
    async with playing(first):
        await source.publish(*(Placed(key, 0) for key in KEYS))
        async with players.app("second").run("sink"):
            await eventually(lambda: owners(first, 2))
            await source.publish(*(Placed(key, 1) for key in KEYS))
            async with players.app("third").run("sink"):
                await eventually(lambda: owners(first, 3))
                await source.publish(*(Placed(key, 2) for key in KEYS))
                await eventually(lambda: caught_up(first.service("sink"), source))
        await eventually(lambda: owners(first, 1))
        await source.publish(*(Placed(key, 3) for key in KEYS))
        await check(first, 4)
    assert {name for name, _, _ in players.handled.items} == {"first", "second", "third"}
    assert len(players.handled.items) == 4 * len(KEYS), "a message was handled twice in a clean hand-over"


async def test_a_clean_stop_takes_its_attempts_back(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skald.messaging.consumer.GRACE", 0.1)
    source, sink = Service("source", publishes=[Placed]), Service("sink")
    tries: Seen[Attempt] = Seen()
    settings = RuntimeSettings(lease=1.0, consumer=ConsumerSettings(patience=0.02, poll=0.05))

    @sink.on(Placed)
    async def long(event: Placed, attempt: Attempt) -> None:
        tries.note(attempt)
        if len(tries.items) < 4:
            await asyncio.Event().wait()

    for n in range(3):
        app = App(source, sink, store=store_url, settings=settings)
        async with playing(app):
            if n == 0:
                await source.publish(Placed("a", 0))
            await tries.count(n + 1)
            # The first time it has to outlive its stretch; later it is written down before it begins.
            await eventually(lambda: _state(sink, "running"))
        async with app.connect("sink"):
            (row,) = await deliveries(sink)
            assert (row["state"], row["attempts"]) == ("delayed", 0)
    async with playing(App(source, sink, store=store_url, settings=settings)):
        await tries.count(4)
        await eventually(lambda: no_deliveries(sink))
    assert [attempt.number for attempt in tries.items] == [1, 1, 1, 1]
    assert [attempt.unknown for attempt in tries.items] == [False, True, True, True]


async def _state(service: Service, state: str) -> bool:
    return any(row["state"] == state for row in await deliveries(service))


@pytest.mark.parametrize("slow", [False, True])
async def test_what_a_zombie_still_commits_is_refused(store_url: str, slow: bool) -> None:
    """Two owners at once: the first stands in its handlers while the second takes over and handles the same messages.

    ``slow``: the handlers have outlived their stretch, so that each would commit its result on its own.
    """
    patience = 0.02 if slow else 30.0
    settings = RuntimeSettings(lease=30.0, consumer=ConsumerSettings(patience=patience, poll=0.05))
    players = Players(store_url, settings)
    first, second = players.app("first"), players.app("second")
    gate = players.gates["first"] = asyncio.Event()
    async with playing(first, "source"), first.run("sink") as (zombie,), second.run("sink"):
        source, sink = first.service("source"), second.service("sink")
        try:
            async with occurrences() as noticed:
                await _overlap(players, zombie, source, sink, gate, slow=slow)
                await noticed.until(lambda items: any(isinstance(item, Refused) for item in items))
        finally:
            gate.set()
        await source.publish(*(Placed(key, 1) for key in KEYS))
        await check(second, 2, source)


async def _overlap(
    players: Players, zombie: RunningService, source: Service, sink: Service, gate: asyncio.Event, *, slow: bool
) -> None:
    await eventually(lambda: _has_all_lanes(sink, zombie.member.id))
    await source.publish(*(Placed(key, 0) for key in KEYS))
    await players.handled.until(lambda items: len({key for _, key, _ in items}) == len(KEYS))
    if slow:
        await eventually(lambda: _state(sink, "running"))
    await cursor.take_over(sink.store, zombie.member.id)
    await forget_member(sink, zombie.member.id)
    await players.handled.until(lambda items: len({key for name, key, _ in items if name == "second"}) == len(KEYS))
    await eventually(lambda: caught_up(sink, source))
    await eventually(lambda: no_deliveries(sink))
    gate.set()
    await happens(zombie.lost)


async def _has_all_lanes(service: Service, owner: str) -> bool:
    return {row["owner"] for row in await cursors(service) if row["origin"] == "source"} == {owner}


async def test_the_checker_sees_effects_that_are_committed_before_the_cursor(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug: what a handler returned is published in a unit of its own, which no guard refuses."""
    transactionally = Stretch._transactionally

    async def careless(self: Stretch, lanes: Any, items: Sequence[Item], end: Any, **options: bool) -> bool:
        for item in items:
            if isinstance(item.outcome, Done):
                await self._submit.submit(Unit(events=item.outcome.events))
                item.outcome = Done()
        return await transactionally(self, lanes, items, end, **options)

    monkeypatch.setattr(Stretch, "_transactionally", careless)
    monkeypatch.setattr("tests.simulation.stage.PATIENCE", 5.0)
    with pytest.raises(AssertionError, match="doubled"):
        await test_what_a_zombie_still_commits_is_refused(store_url, slow=False)


@pytest.mark.parametrize(
    ("numbers", "fault"), [([0, 1, 1], "doubled"), ([0, 2, 1], "out of order"), ([0, 2], "lost"), ([0, 1], "lost")]
)
def test_the_checker_sees_every_fault(numbers: list[int], fault: str) -> None:
    rows = [{"id": "x", "key": "k", "n": n, "seq": seq} for seq, n in enumerate(numbers)]
    with pytest.raises(AssertionError, match=fault):
        check_effects(rows, {"k": 3})


async def test_a_process_without_its_fence_claims_nothing(store_url: str) -> None:
    players = Players(store_url, RuntimeSettings(lease=30.0, consumer=QUICK.consumer))
    app = players.app("first")
    async with playing(app, "source"), app.run("sink") as (running,):
        sink = app.service("sink")
        await eventually(lambda: owners(app, 1))
        await cursor.take_over(sink.store, running.member.id)
        await eventually(lambda: _looks_until_lost(running))
        assert {row["owner"] for row in await cursors(sink)} == {None}


async def _looks_until_lost(running: RunningService) -> bool:
    running._balance.look()
    return running.lost.is_set()


async def test_lanes_of_an_owner_that_nobody_knows_are_taken_over(store_url: str) -> None:
    """Its row among the members was lost with the power, or the database was restored from a copy."""
    players = Players(store_url)
    app = players.app("first")
    async with playing(app):
        await app.service("source").publish(*(Placed(key, 0) for key in KEYS))
        await check(app, 1)
    async with app.connect("sink"), app.service("sink").transaction() as tx:
        await tx.execute("UPDATE skald_cursors SET owner = 'ghost'")
        await tx.execute("INSERT INTO skald_fences (process) VALUES ('ghost')")
    async with occurrences() as noticed, playing(app):
        await app.service("source").publish(*(Placed(key, 1) for key in KEYS))
        await check(app, 2)
        rows = await app.service("sink").fetch("SELECT process FROM skald_fences WHERE process = 'ghost'")
    assert rows == []
    assert {item.from_process for item in noticed.items if isinstance(item, LanesTaken)} == {"ghost"}


async def test_a_lane_whose_release_is_interrupted_goes_on(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator raises the version of a lane again and again while it works: every run in flight is dropped."""
    players = Players(store_url)
    app = players.app("first")
    dropped = 0
    run = Stretch.run

    async def counted(*args: Any) -> bool:
        nonlocal dropped
        try:
            return await run(*args)
        except Exception:
            dropped += 1
            raise

    monkeypatch.setattr(Stretch, "run", counted)
    async with playing(app):
        source, sink = app.service("source"), app.service("sink")
        await eventually(lambda: owners(app, 1))
        for n in range(10):
            await source.publish(*(Placed(key, n) for key in KEYS))
            async with sink.transaction() as tx:
                await tx.execute("UPDATE skald_cursors SET version = version + 1")
        await check(app, 10)
    assert dropped
