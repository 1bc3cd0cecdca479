"""Another number of lanes: every message is handled exactly once across the change, or the change is refused."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from skald import NEVER, App, Service, operations
from skald.errors import ConfigurationError, LogForked
from skald.messaging import cursor
from skald.messaging.router import lane_of
from skald.operations import OperationRefused
from skald.runtime.process import this_process
from tests.simulation.stage import QUICK, Made, Placed, Seen, caught_up, deliveries, eventually, playing, seed


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


class Stage:
    """The source also publishes ``Made``, which nobody handles."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.done: Seen[int] = Seen()
        self.broken: set[int] = set()

    def app(self, lanes: int) -> App:
        source, sink = Service("source", publishes=[Placed, Made]), Service("sink", lanes=lanes)
        sink.on(Placed, retry=NEVER)(self.handle)
        return App(source, sink, store=self.url, settings=QUICK)

    async def handle(self, event: Placed) -> None:
        if event.n in self.broken:
            raise ValueError("no")
        self.done.note(event.n)

    async def run_to_the_end(self, lanes: int) -> None:
        app = self.app(lanes)
        async with playing(app):
            assert await eventually(lambda: caught_up(app.service("sink"), app.service("source")))


async def publish(app: App, count: int, start: int = 0) -> None:
    async with app.connect("source"):
        await app.service("source").publish(*(Placed(f"k{n % 23}", n) for n in range(start, start + count)))


async def cursor_rows(app: App) -> list[cursor.LaneRow]:
    async with app.connect("sink"):
        return await cursor.lanes(app.service("sink").store, "sink")


async def test_everything_is_handled_once_and_in_order_across_changes(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app(4).migrate()
    total = 0
    for before, after in [(4, 8), (8, 3), (3, 16), (16, 1), (1, 4)]:
        await publish(stage.app(before), 100, total)
        total += 100
        await stage.run_to_the_end(before)
        with pytest.raises(ConfigurationError, match="skald subscriptions relane"):
            async with stage.app(after).run("sink"):
                pass
        (done,) = await operations.relane_subscriptions(stage.app(after), "sink")
        assert (done.before, done.after) == (before, after)
        assert await operations.relane_subscriptions(stage.app(after), "sink") == []
    await publish(stage.app(4), 100, total)
    await stage.run_to_the_end(4)

    assert sorted(stage.done.items) == list(range(total + 100))
    for key in range(23):
        mine = [n for n in stage.done.items if n % 23 == key]
        assert mine == sorted(mine)


async def test_lanes_at_any_places_are_changed_right_or_not_at_all(store_url: str) -> None:
    """What the old lanes had handled and what the new ones will handle is everything, and has nothing in common."""
    chance = random.Random(seed())
    stage = Stage(store_url)
    app = stage.app(1)
    await app.migrate()
    async with app.connect("source"):
        source = app.service("source")
        for n in range(60):
            await source.publish(Placed(f"k{n % 23}", n) if chance.random() < 0.4 else Made(f"m{n % 23}", n))
        records = await source.store.log.read(0, 100)
    changed = refused = 0
    for _ in range(30):
        before, after = chance.randint(1, 16), chance.randint(1, 16)
        places = [chance.choice(records) for _ in range(before)]
        if chance.random() < 0.5:
            # As lanes mostly are: close to each other.
            middle = chance.randint(0, 55)
            places = [chance.choice(records[middle : middle + 5]) for _ in range(before)]
        await place_lanes(app, [(record.position, record.id) for record in places])
        wanted = [record for record in records if record.type == "Placed"]
        handled = {r.position for r in wanted if r.position <= places[lane_of(r.slot, before)].position}
        reason = await why_refused(stage.app(after))
        if reason is not None:
            assert "has not yet handled message" in reason
            assert [row.position for row in await cursor_rows(app)] == [record.position for record in places]
            refused += 1
            continue
        rows = await cursor_rows(app)
        assert len(rows) == after
        left = {r.position for r in wanted if r.position > rows[lane_of(r.slot, after)].position}
        assert handled | left == {record.position for record in wanted}
        assert not handled & left
        changed += before != after
    assert changed
    assert refused


async def why_refused(app: App) -> str | None:
    try:
        await operations.relane_subscriptions(app, "sink")
    except OperationRefused as error:
        return str(error)
    return None


async def place_lanes(app: App, places: Sequence[tuple[int, str | None]], **more: Any) -> None:
    async with app.connect("sink"), app.service("sink").transaction() as tx:
        await tx.execute("DELETE FROM skald_cursors")
        for lane, (position, id) in enumerate(places):
            await tx.execute(
                "INSERT INTO skald_cursors (group_name, origin, lane, position, message_id, owner, stopped) "
                "VALUES ('sink', 'source', :lane, :position, :id, :owner, :stopped)",
                lane=lane,
                position=position,
                id=id,
                owner=more.get("owner"),
                stopped=more.get("stopped"),
            )


async def test_deliveries_move_to_the_lane_of_their_key(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app(2).migrate()
    stage.broken = {3, 7}
    await publish(stage.app(2), 46)
    await stage.run_to_the_end(2)
    app = stage.app(16)
    await operations.relane_subscriptions(app, "sink")
    async with app.connect("sink", "source"):
        rows = await deliveries(app.service("sink"))
        slots = {r.position: r.slot for r in await app.service("source").store.log.read(0, 100)}
    assert sorted(row["state"] for row in rows) == ["parked", "parked", "waiting", "waiting"]
    assert all(row["lane"] == lane_of(slots[row["position"]], 16) for row in rows)

    stage.broken.clear()
    async with playing(app):
        await operations.redrive(app, operations.Selection(handler="handle"))
        await stage.done.count(46)
    assert [n for n in stage.done.items if n % 23 == 3] == [3, 26]


async def test_a_running_process_is_not_pulled_the_lanes_away(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app(4)):
        with pytest.raises(OperationRefused, match=f"process {os.getpid()} of sink is running"):
            await operations.relane_subscriptions(stage.app(8), "sink")
    await operations.relane_subscriptions(stage.app(8), "sink")


async def test_a_dead_process_is_taken_over_from_first(store_url: str) -> None:
    """It left its lanes behind, and its right to write ends before they are changed."""
    stage = Stage(store_url)
    await stage.app(2).migrate()
    await publish(stage.app(2), 1)
    app = stage.app(2)
    await place_lanes(app, [(0, None), (0, None)], owner="gone")
    async with app.connect("sink"):
        store = app.service("sink").store
        await cursor.fence(store, "gone")
        await operations.relane_subscriptions(stage.app(4), "sink")
        rows = await cursor.lanes(store, "sink")
        fences = await store.fetch("SELECT process FROM skald_fences")
    assert [(row.owner, row.lane) for row in rows] == [(None, 0), (None, 1), (None, 2), (None, 3)]
    assert fences == []


async def test_a_process_whose_lease_has_not_run_out_counts_as_running(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app(2).migrate()
    app = stage.app(2)
    async with app.connect("sink"):
        membership = app.service("sink").store.membership()
        member = this_process("sink")

        def join() -> None:
            membership.join(member, 60.0)
            membership.close()

        await asyncio.to_thread(join)
    await place_lanes(app, [(0, None), (0, None)])
    with pytest.raises(OperationRefused, match="is running"):
        await operations.relane_subscriptions(stage.app(4), "sink")


async def test_a_stopped_lane_must_be_mended_first(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app(2).migrate()
    await place_lanes(stage.app(2), [(0, None), (0, None)], stopped="a fork")
    with pytest.raises(OperationRefused, match="is stopped"):
        await operations.relane_subscriptions(stage.app(4), "sink")


async def test_a_forked_history_is_not_joined(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app(2).migrate()
    await publish(stage.app(2), 5)
    await place_lanes(stage.app(2), [(3, "another"), (3, "another")])
    with pytest.raises(LogForked):
        await operations.relane_subscriptions(stage.app(1), "sink")
