"""Who reads what and how far; and setting a reader to another place without losing or doubling anything else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from skald import NEVER, App, Service, operations
from skald.errors import BelowFloor
from skald.operations import NotFound, OperationRefused, SubscriptionView, UnknownName
from skald.telemetry import LaneStopped
from tests.simulation.stage import (
    QUICK,
    Placed,
    Seen,
    caught_up,
    cursors,
    deliveries,
    eventually,
    occurrences,
    playing,
)


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


class Stage:
    def __init__(self, url: str, lanes: int = 4) -> None:
        self.source = Service("source", publishes=[Placed])
        self.sink = Service("sink", lanes=lanes)
        self.app = App(self.source, self.sink, store=url, settings=QUICK)
        self.broken: set[int] = set()
        self.done: Seen[int] = Seen()
        self.sink.on(Placed, retry=NEVER)(self.handle)

    async def handle(self, event: Placed) -> None:
        if event.n in self.broken:
            raise ValueError("no")
        self.done.note(event.n)

    async def publish(self, *numbers: int) -> None:
        await self.source.publish(*(Placed(f"k{n % 5}", n) for n in numbers))

    async def settled(self) -> None:
        assert await eventually(lambda: caught_up(self.sink, self.source))

    async def only(self) -> SubscriptionView:
        (view,) = await operations.list_subscriptions(self.app, ["sink"])
        return view


async def lag_free(stage: Stage) -> SubscriptionView:
    async def look() -> SubscriptionView:
        view = await stage.only()
        assert all(lane.lag == 0 and lane.alive for lane in view.lanes)
        return view

    return await eventually(look)  # type: ignore[no-any-return]


# --- looking ----------------------------------------------------------------------------------------------------------


async def test_every_lane_is_shown_with_its_owner_and_its_lag(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app) as running:
        await stage.publish(*range(10))
        view = await lag_free(stage)
        owners = {one.member.id for one in running}

    assert (view.group, view.origin, view.declared, view.end) == ("sink", "source", 4, 10)
    assert [lane.lane for lane in view.lanes] == [0, 1, 2, 3]
    assert {lane.owner for lane in view.lanes} <= owners
    view = await stage.only()
    assert {(lane.owner, lane.alive) for lane in view.lanes} == {(None, False)}


async def test_a_reader_that_never_ran_has_no_lanes(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    view = await stage.only()
    assert (view.lanes, view.declared, view.error) == ([], 4, None)


async def test_a_log_that_cannot_be_read_hides_no_other(store_url: str, tmp_path: Path) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.publish(0)
        await lag_free(stage)
    app = App(stage.source, stage.sink, store=store_url, stores={"source": f"sqlite:{tmp_path / 'elsewhere'}"})
    (view,) = await operations.list_subscriptions(app, ["sink"])
    assert (view.end, len(view.lanes)) == (None, 4)
    assert view.error is not None
    assert "does not exist" in view.error
    assert {lane.lag for lane in view.lanes} == {None}


async def test_a_cursor_of_a_log_that_is_not_read_any_more_is_shown_as_such(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.publish(0)
        await lag_free(stage)
    app = App(stage.source, Service("sink"), store=store_url)
    (view,) = await operations.list_subscriptions(app, ["sink"])
    assert (view.origin, view.declared, len(view.lanes)) == ("source", None, 4)


# --- reset ------------------------------------------------------------------------------------------------------------


async def test_a_running_reader_handles_again_what_lies_behind_the_place(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.publish(*range(10))
        await stage.settled()
        stage.done.items.clear()
        reset = await operations.reset_subscription(stage.app, "sink", "source", 4)
        await stage.done.count(6)
        await stage.publish(10)
        await stage.done.count(7)
        await stage.settled()

    assert (reset.position, reset.lanes, reset.kept, reset.running) == (4, [0, 1, 2, 3], [], True)
    assert sorted(stage.done.items) == [4, 5, 6, 7, 8, 9, 10]
    for key in range(5):
        mine = [n for n in stage.done.items if n % 5 == key]
        assert mine == sorted(mine)


async def test_start_is_everything_and_now_is_nothing(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.publish(*range(5))
        await stage.settled()
    async with stage.app.connect("source"):
        await stage.publish(5, 6)
    stage.done.items.clear()
    await operations.reset_subscription(stage.app, "sink", "source", "now")
    async with playing(stage.app):
        await stage.publish(7)
        await stage.done.count(1)
        await stage.settled()
    assert stage.done.items == [7]

    stage.done.items.clear()
    await operations.reset_subscription(stage.app, "sink", "source", "start")
    async with playing(stage.app):
        await stage.done.count(8)
    assert sorted(stage.done.items) == list(range(8))


async def test_a_time_is_the_place_before_the_first_message_since_then(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.publish(0, 1)
        await stage.settled()
        moment = datetime.now(UTC)
        await stage.publish(2, 3)
        await stage.settled()
    reset = await operations.reset_subscription(stage.app, "sink", "source", moment)
    assert reset.position == 2
    later = await operations.reset_subscription(stage.app, "sink", "source", moment + timedelta(days=1))
    assert later.position == 4


async def test_unfinished_messages_behind_the_place_are_not_both_read_again_and_redelivered(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = {3}
    async with playing(stage.app):
        await stage.publish(*range(10))
        await stage.settled()
        states = {row["position"]: row["state"] for row in await deliveries(stage.sink)}
        assert states == {4: "parked", 9: "waiting"}
        stage.broken.clear()
        stage.done.items.clear()
        reset = await operations.reset_subscription(stage.app, "sink", "source", 2)
        await stage.done.count(8)
        await stage.settled()
        assert await deliveries(stage.sink) == []

    assert reset.dropped == 2
    assert sorted(stage.done.items) == list(range(2, 10))
    assert [n for n in stage.done.items if n % 5 == 3] == [3, 8]


async def test_unfinished_messages_before_the_place_stay(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = {1}
    async with playing(stage.app):
        await stage.publish(*range(10))
        await stage.settled()
        reset = await operations.reset_subscription(stage.app, "sink", "source", 7)
        await stage.settled()
        states = {row["position"]: row["state"] for row in await deliveries(stage.sink)}

    assert reset.dropped == 0
    assert states == {2: "parked", 7: "waiting"}


async def stop_by_a_fork(stage: Stage, lanes: tuple[int, ...]) -> None:
    """What a restored origin looks like: another message stands where these lanes have read."""
    async with stage.app.connect("sink"), stage.sink.transaction() as tx:
        for lane in lanes:
            await tx.execute("UPDATE skald_cursors SET message_id = 'another' WHERE lane = :lane", lane=lane)


async def test_a_fork_stops_the_lane_and_a_reset_lets_it_go_on(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.publish(*range(10))
        await stage.settled()
    await stop_by_a_fork(stage, (0, 1, 2, 3))
    stage.done.items.clear()
    async with playing(stage.app), occurrences() as seen:
        await stage.publish(10)
        await seen.until(lambda items: len([i for i in items if isinstance(i, LaneStopped)]) == 4)
        view = await stage.only()
        assert all(lane.stopped is not None and "has forked" in lane.stopped for lane in view.lanes)
        await operations.reset_subscription(stage.app, "sink", "source", 10)
        await stage.done.count(1)
        await stage.settled()
        view = await stage.only()

    assert all(lane.message_id not in (None, "another") for lane in view.lanes)
    assert [lane.stopped for lane in view.lanes] == [None] * 4
    assert stage.done.items == [10]


async def test_only_the_stopped_lanes_are_moved_unless_all_are_meant(store_url: str) -> None:
    """The others have gone on by themselves: moving them would repeat what they have handled."""
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.publish(*range(20))
        await stage.settled()
    await stop_by_a_fork(stage, (1, 2))
    async with playing(stage.app), occurrences() as seen:
        await stage.publish(20)
        await seen.until(lambda items: len([i for i in items if isinstance(i, LaneStopped)]) == 2)
    before = {row["lane"]: row["position"] for row in await rows_of(stage)}
    reset = await operations.reset_subscription(stage.app, "sink", "source", 3)
    after = {row["lane"]: row["position"] for row in await rows_of(stage)}
    assert (reset.lanes, reset.kept) == ([1, 2], [0, 3])
    assert after == {**before, 1: 3, 2: 3}

    reset = await operations.reset_subscription(stage.app, "sink", "source", 5, every_lane=True)
    assert {row["position"] for row in await rows_of(stage)} == {5}


async def test_here_lets_each_lane_go_on_from_where_it_stands(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.publish(*range(10))
        await stage.settled()
    async with stage.app.connect("sink"), stage.sink.transaction() as tx:
        await tx.execute("UPDATE skald_cursors SET position = 10 - lane, message_id = 'another', stopped = 'it forked'")
    reset = await operations.reset_subscription(stage.app, "sink", "source", "here")
    assert (reset.position, reset.lanes) == (7, [0, 1, 2, 3])
    rows = await rows_of(stage)
    assert [(row["position"], row["stopped"]) for row in rows] == [(10, None), (9, None), (8, None), (7, None)]
    async with playing(stage.app):
        await stage.settled()
        assert all(row["stopped"] is None for row in await cursors(stage.sink))

    async with stage.app.connect("sink"), stage.sink.transaction() as tx:
        await tx.execute("UPDATE skald_cursors SET position = 11 WHERE lane = 3")
    with pytest.raises(OperationRefused, match="ends at position 10, and 11 was asked for"):
        await operations.reset_subscription(stage.app, "sink", "source", "here")


async def rows_of(stage: Stage) -> list[dict[str, Any]]:
    async with stage.app.connect("sink"):
        return await cursors(stage.sink)


async def test_a_place_outside_of_the_log_is_refused(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.publish(*range(5))
        await stage.settled()
    before = await rows_of(stage)
    with pytest.raises(OperationRefused, match="ends at position 5"):
        await operations.reset_subscription(stage.app, "sink", "source", 6)
    async with stage.app.connect("source"), stage.source.transaction() as tx:
        await tx.execute("INSERT INTO skald_meta (key, value) VALUES ('floor:Placed', '3')")
        await tx.execute("UPDATE skald_meta SET value = '3' WHERE key = 'floor'")
    with pytest.raises(BelowFloor, match="position 3"):
        await operations.reset_subscription(stage.app, "sink", "source", 2)
    assert await rows_of(stage) == before


async def test_what_does_not_exist_is_told(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    with pytest.raises(UnknownName, match="did you mean 'sink'"):
        await operations.reset_subscription(stage.app, "sinc", "source", "now")
    with pytest.raises(UnknownName, match="did you mean 'source'"):
        await operations.reset_subscription(stage.app, "sink", "suorce", "now")
    with pytest.raises(NotFound, match="does not read sink; it reads: nothing"):
        await operations.reset_subscription(stage.app, "source", "sink", "now")
    with pytest.raises(OperationRefused, match="has never read source"):
        await operations.reset_subscription(stage.app, "sink", "source", "now")
