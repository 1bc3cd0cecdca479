"""Retention deletes what is declared to go, below the slowest reader, and nothing that anybody still needs."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from skald import NEVER, App, ManualClock, Service, operations
from skald.errors import BelowFloor, StoreError
from skald.message import Record, new_id, slot_of
from skald.messaging import cursor
from skald.messaging.consumer import ConsumerSettings
from skald.runtime.pruner import Pruned, Pruner, PrunerSettings
from skald.runtime.service import RuntimeSettings
from skald.store import Store
from skald.telemetry import LaneStopped, Recovering
from skald.unit import Unit
from tests.simulation.stage import QUICK, Job, Made, Placed, Seen, caught_up, eventually, occurrences, playing, seed

DAY = 86_400


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


class Stage:
    """``Made`` goes after a day, ``Placed`` is kept; ``Job`` is a command. Time stands still until it is moved."""

    def __init__(self, url: str, **source: Any) -> None:
        self.clock = ManualClock()
        self.source = Service("source", publishes=[Placed, Made, Job], retention={Made: 1}, **source)
        self.sink = Service("sink", lanes=4)
        self.app = App(self.source, self.sink, store=url, settings=QUICK, clock=self.clock)
        self.done: Seen[tuple[str, int]] = Seen()
        self.sink.on(Placed, Made, Job, retry=NEVER)(self.handle)

    async def handle(self, event: Placed | Made | Job) -> None:
        self.done.note((type(event).__name__, event.n))

    def pruner(self, **settings: Any) -> Pruner:
        async def slowest() -> int | None:
            return await self.app.slowest_reader("source")

        return Pruner(
            store=self.source.store,
            service=self.source,
            readers=slowest,
            clock=self.clock,
            settings=PrunerSettings(**settings),
        )

    async def step(self, **settings: Any) -> Pruned:
        async with self.app.connect("source"):
            return await self.pruner(**settings).step()

    async def publish(self, *messages: object) -> None:
        async with self.app.connect("source"):
            for message in messages:
                await self.source.publish(message)

    async def run_to_the_end(self) -> None:
        async with playing(self.app):
            assert await eventually(lambda: caught_up(self.sink, self.source))

    async def left(self) -> list[tuple[int, str]]:
        log = self.app.log("source")
        await log.open()
        try:
            return [(record.position, record.type) for record in await log.read(0, 10_000)]
        finally:
            await log.close()

    async def floors(self) -> dict[str, int]:
        async with self.app.connect("source"):
            rows = await self.source.fetch("SELECT key, value FROM skald_meta WHERE key LIKE 'floor%'")
        return {row["key"]: int(row["value"]) for row in rows}


async def test_what_is_declared_goes_and_the_rest_stays(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    await stage.publish(Placed("a", 0), Made("a", 1), Job("a", 2), Made("b", 3), Placed("b", 4))
    await stage.run_to_the_end()
    assert await stage.step() == Pruned()
    stage.clock.advance(DAY + 1)
    assert await stage.step() == Pruned(events=2)
    assert await stage.left() == [(1, "Placed"), (3, "Job"), (5, "Placed")]
    assert await stage.floors() == {"floor": 4, "floor:Made": 4}
    stage.clock.advance(6 * DAY)
    assert await stage.step() == Pruned(messages=1)
    assert await stage.left() == [(1, "Placed"), (5, "Placed")]
    assert await stage.floors() == {"floor": 4, "floor:Made": 4, "floor:Job": 3}
    assert await stage.step() == Pruned()


async def test_nothing_at_or_above_a_readers_place_goes(store_url: str) -> None:
    """The message that a cursor points at stays, too: the reader compares its id."""
    stage = Stage(store_url)
    await stage.app.migrate()
    await stage.publish(*(Made(f"k{n}", n) for n in range(20)))
    assert await stage.step() == Pruned()
    stage.clock.advance(2 * DAY)
    assert await stage.step() == Pruned(), "the sink has never read"
    await stage.run_to_the_end()
    async with stage.app.connect("sink"), stage.sink.transaction() as tx:
        await tx.execute("UPDATE skald_cursors SET position = 8 WHERE lane = 2")
    assert await stage.step() == Pruned(events=7)
    assert [position for position, _ in await stage.left()] == list(range(8, 21))


async def test_a_log_that_nobody_reads_is_pruned_to_its_end(store_url: str) -> None:
    stage = Stage(store_url)
    stage.app = App(stage.source, store=store_url, clock=stage.clock)
    stage.source.publishes = tuple(kind for kind in stage.source.publishes if kind.kind == "event")
    await stage.app.migrate()
    await stage.publish(*(Made(f"k{n}", n) for n in range(5)))
    stage.clock.advance(2 * DAY)
    assert await stage.step() == Pruned(events=5)


async def test_any_batch_size_and_any_order_of_times_end_the_same(store_url: str) -> None:
    chance = random.Random(seed())
    stage = Stage(store_url)
    await stage.app.migrate()
    records, start = [], stage.clock.now()
    for n in range(200):
        kind = chance.choice(["Placed", "Made"])
        # Clocks of senders differ, one by years.
        time = start + n * 10_000_000 + chance.randint(-200, 200) * 1_000_000 + (n % 50 == 7) * 400 * DAY * 1_000_000
        records.append(Record(0, new_id(), "source", "k", slot_of("k"), kind, 1, time, "c", None, None, b"{}"))
    async with stage.app.connect("source"):
        await stage.source.store.commit([Unit(events=tuple(records))])
    app = App(stage.source, store=store_url, clock=stage.clock)
    stage.app, stage.source.publishes = app, ()
    stage.clock.advance(DAY)
    async with app.connect("source"):
        pruner = stage.pruner(batch=chance.randint(1, 30))
        for _ in range(12):
            stage.clock.advance(chance.randint(1, 400))
            await pruner.step()
            assert await gone(stage) <= due(stage, records), "nothing goes before its time"
        stage.clock.advance(DAY)
        await pruner.step()
        assert await gone(stage) == due(stage, records), "and in the end everything does"
    floors = await stage.floors()
    assert floors["floor:Made"] == floors["floor"] == max(due(stage, records))


def due(stage: Stage, records: list[Record]) -> set[int]:
    before = stage.clock.now() - DAY * 1_000_000
    return {n for n, record in enumerate(records, 1) if record.type == "Made" and record.time < before}


async def gone(stage: Stage) -> set[int]:
    return set(range(1, 201)) - {position for position, _ in await stage.left()}


async def test_a_payload_of_any_size_goes_in_transactions_of_bounded_size(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skald.runtime.pruner.MAX_BYTES", 1_000)
    stage = Stage(store_url)
    await stage.app.migrate()
    await stage.publish(*(Made("x" * 400, n) for n in range(9)), Made("y" * 500, 9))
    await stage.run_to_the_end()
    stage.clock.advance(2 * DAY)
    async with stage.app.connect("source"):
        sizes = await stage.source.fetch("SELECT position FROM skald_events ORDER BY position")
        pruner = stage.pruner()
        deleted: list[int] = []
        inner = pruner._delete

        async def watched(table: str, due: list[Any], before: int) -> int:
            deleted.append(sum(row["size"] for row in due))
            return await inner(table, due, before)

        monkeypatch.setattr(pruner, "_delete", watched)
        done = await pruner.step()
    assert (len(sizes), done.events) == (10, 9)
    assert len(deleted) == 5
    assert max(deleted) <= 1_000


async def test_a_reader_that_cannot_be_asked_keeps_everything_and_is_named(store_url: str, tmp_path: Path) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    await stage.publish(Made("a", 1), Job("a", 2))
    await stage.run_to_the_end()
    stage.clock.advance(30 * DAY)
    elsewhere = {"sink": f"sqlite:{tmp_path / 'elsewhere'}"}
    settings = RuntimeSettings(pruner=PrunerSettings(interval=0.01))
    stage.app = App(stage.source, stage.sink, store=store_url, stores=elsewhere, settings=settings, clock=stage.clock)
    with pytest.raises(StoreError):
        await stage.step()
    async with occurrences() as seen, stage.app.run("source"):
        await seen.until(lambda items: any(isinstance(i, Recovering) and i.what == "retention" for i in items))
    assert await stage.left() == [(1, "Made"), (2, "Job")]


async def test_a_running_service_prunes_by_itself(store_url: str) -> None:
    stage = Stage(store_url)
    stage.app = App(
        stage.source,
        stage.sink,
        store=store_url,
        settings=RuntimeSettings(
            lease=1.0,
            consumer=ConsumerSettings(patience=0.1, poll=0.05, checkpoint=0.05),
            pruner=PrunerSettings(interval=0.02),
        ),
        clock=stage.clock,
    )
    async with playing(stage.app):
        await stage.source.publish(Made("a", 1), Made("b", 2), Placed("c", 3))
        assert await eventually(lambda: caught_up(stage.sink, stage.source))
        stage.clock.advance(2 * DAY)

        async def pruned() -> bool:
            return await stage.left() == [(3, "Placed")]

        assert await eventually(pruned)
        await stage.source.publish(Placed("d", 4))
        await stage.done.until(lambda items: ("Placed", 4) in items)


async def test_a_reader_below_the_floor_stops_by_name(store_url: str) -> None:
    """One that was restored to an earlier moment would otherwise miss in silence what was deleted since."""
    stage = Stage(store_url)
    await stage.app.migrate()
    await stage.publish(Placed("a", 0), Placed("a", 1), Made("a", 2), Made("b", 3), Placed("a", 4))
    await stage.run_to_the_end()
    stage.clock.advance(2 * DAY)
    assert (await stage.step()).events == 2
    await restore(stage, 2)
    stage.done.items.clear()
    async with playing(stage.app), occurrences() as seen:
        await seen.until(lambda items: len([i for i in items if isinstance(i, LaneStopped)]) == 4)
        rows = await cursor.lanes(stage.sink.store, "sink")
        assert stage.done.items == []
        assert all(row.stopped is not None and "keeps its log from position 4" in row.stopped for row in rows)

        # And goes on with what is left, when somebody says so.
        with pytest.raises(BelowFloor):
            await operations.reset_subscription(stage.app, "sink", "source", 2)
        await operations.reset_subscription(stage.app, "sink", "source", "here")
        await stage.done.count(1)
    assert stage.done.items == [("Placed", 4)]


async def test_a_reader_at_a_deleted_message_stops_by_name(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    await stage.publish(Made("a", 0), Made("a", 1), Made("b", 2), Placed("a", 3))
    await stage.run_to_the_end()
    stage.clock.advance(2 * DAY)
    assert (await stage.step()).events == 3
    await restore(stage, 2, "the id of a message that is gone")
    async with playing(stage.app), occurrences() as seen:
        await seen.until(lambda items: len([i for i in items if isinstance(i, LaneStopped)]) == 4)
        rows = await cursor.lanes(stage.sink.store, "sink")
    assert all(row.stopped is not None and "keeps its log from" in row.stopped for row in rows)


async def restore(stage: Stage, position: int, id: str | None = None) -> None:
    log = stage.app.log("source")
    await log.open()
    found = await log.read(position, 1)
    await log.close()
    async with stage.app.connect("sink"), stage.sink.transaction() as tx:
        sql = "UPDATE skald_cursors SET position = :position, message_id = :id"
        await tx.execute(sql, position=position, id=id or found[0].id)


async def test_a_reader_that_handles_none_of_what_is_gone_is_not_stopped(store_url: str) -> None:
    stage = Stage(store_url)
    other = Service("other")
    other.on(Placed)(stage.handle)
    stage.app = App(stage.source, stage.sink, other, store=store_url, settings=QUICK, clock=stage.clock)
    await stage.app.migrate()
    await stage.publish(Placed("a", 0), Made("a", 1), Placed("a", 2))
    async with playing(stage.app):
        assert await eventually(lambda: caught_up(stage.sink, stage.source))
        assert await eventually(lambda: caught_up(other, stage.source))
    stage.clock.advance(2 * DAY)
    assert (await stage.step()).events == 1
    log = stage.app.log("source")
    await log.open()
    (first,) = await log.read(0, 1)
    await log.close()
    async with stage.app.connect("other"), other.transaction() as tx:
        await tx.execute("UPDATE skald_cursors SET position = 1, message_id = :id", id=first.id)
    stage.done.items.clear()
    async with playing(stage.app):
        assert await eventually(lambda: caught_up(other, stage.source))
    assert stage.done.items == [("Placed", 2)]


async def test_a_new_reader_from_the_start_gets_everything_that_is_left(store_url: str) -> None:
    """What is gone it has accepted by starting there; it is not below the floor, and later gaps still count."""
    stage = Stage(store_url)
    await stage.app.migrate()
    await stage.publish(Placed("a", 0), Made("a", 1), Placed("a", 2), Made("a", 3), Placed("a", 4), Made("a", 5))
    await stage.run_to_the_end()
    stage.clock.advance(2 * DAY)
    assert (await stage.step()).events == 2
    new = Service("new")
    seen: Seen[int] = Seen()

    @new.on(Placed, Made)
    async def collect(event: Placed | Made) -> None:
        seen.note(event.n)

    stage.app = App(stage.source, stage.sink, new, store=store_url, settings=QUICK, clock=stage.clock)
    async with playing(stage.app):
        assert await eventually(lambda: caught_up(new, stage.source))
    assert seen.items == [0, 2, 4, 5]

    await operations.reset_subscription(stage.app, "new", "source", "start")
    async with playing(stage.app):
        await seen.count(8)
    assert seen.items == [0, 2, 4, 5] * 2


async def test_old_answers_of_the_http_face_go(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    start = stage.clock.now()
    async with stage.app.connect("source"), stage.source.transaction() as tx:
        for n in range(50):
            await tx.execute(
                "INSERT INTO skald_idempotency (scope, key, body_hash, answer, created_at) "
                "VALUES (:scope, :key, 'h', :answer, :at)",
                scope=f"POST /{n % 3}",
                key=f"key{n}",
                answer=b"",
                at=start + n * 3_600_000_000,
            )
    stage.clock.advance(8 * DAY)
    done = await stage.step(batch=7)
    assert done.idempotency == 24
    async with stage.app.connect("source"):
        rows = await stage.source.fetch("SELECT min(created_at) AS at FROM skald_idempotency")
    assert rows[0]["at"] == start + 24 * 3_600_000_000


async def test_old_answers_of_commits_go(postgres_url: str) -> None:
    stage = Stage(postgres_url)
    await stage.app.migrate()
    await stage.publish(Placed("a", 1), Placed("a", 2))
    async with stage.app.connect("source"):
        store: Store = stage.source.store
        assert await store.tidy() == 0
        async with stage.source.transaction() as tx:
            await tx.execute("UPDATE skald_commits SET at = at - interval '2 days' WHERE number = 1")
        assert await store.tidy() == 1


async def test_only_one_process_of_a_service_prunes(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    async with stage.app.connect("source"):
        asked: Seen[str] = Seen()

        def leads() -> bool:
            asked.note("asked")
            return False

        async def slowest() -> int | None:
            raise AssertionError("it does not lead")

        await stage.source.publish(Made("a", 1))
        stage.clock.advance(2 * DAY)
        pruner = Pruner(
            store=stage.source.store,
            service=stage.source,
            readers=slowest,
            clock=stage.clock,
            settings=PrunerSettings(interval=0.01),
            leads=leads,
        )
        task = asyncio.create_task(pruner.run())
        await asked.count(3)
        await pruner.stop()
        await task
    assert await stage.left() == [(1, "Made")]
