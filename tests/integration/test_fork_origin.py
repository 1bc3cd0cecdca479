"""An origin is put back to an earlier moment: every reader sees it and stops by name, and the way back works.

The history: 10 messages that everybody keeps, 5 that the origin loses (``LOST``), and what it publishes instead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from skald import NEVER, App, Service, Transaction, operations
from skald.message import slot_of
from skald.messaging.router import lane_of
from skald.telemetry import LaneStopped, Occurrence
from tests.simulation.restoring import Copies, DumpCopies, FileCopies, OverwrittenCopies, SchemaCopies, VacuumCopies
from tests.simulation.stage import (
    MIGRATIONS,
    QUICK,
    Placed,
    Seen,
    caught_up,
    cursors,
    deliveries,
    effect,
    eventually,
    occurrences,
)

KEPT, LOST = range(10), range(10, 15)
LANES = {"sink": 4, "other": 2}


WAYS = {
    "files": FileCopies,
    "vacuum": VacuumCopies,
    "overwritten": OverwrittenCopies,
    "dump": DumpCopies,
    "schema": SchemaCopies,
}


@pytest.fixture(params=["files", "schema"])
async def copies(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Copies]:
    if request.param in ("dump", "schema"):
        copies = WAYS[request.param](str(request.getfixturevalue("postgres_url")), tmp_path)
    else:
        copies = WAYS[request.param](tmp_path)
    yield copies
    await copies.close()


class Stage:
    """A source with two readers, each of which notes every message in a table of its own."""

    def __init__(self, copies: Copies) -> None:
        self.copies = copies
        self.source = Service("source", publishes=[Placed])
        self.readers = {name: Service(name, lanes=lanes, migrations=MIGRATIONS) for name, lanes in LANES.items()}
        urls = {name: copies.url(name) for name in ("source", *LANES)}
        self.app = App(self.source, *self.readers.values(), stores=urls, settings=QUICK)
        self.broken: set[int] = set()
        for reader in self.readers.values():
            reader.on(Placed, retry=NEVER, name="note")(self.note)

    async def note(self, event: Placed, tx: Transaction) -> None:
        if event.n in self.broken:
            raise ValueError("no")
        await effect(tx, "note", str(event.n), event.key, event.n)

    async def publish(self, *numbers: int) -> None:
        await self.source.publish(*(Placed(f"k{n % 5}", n) for n in numbers))

    async def settled(self, *names: str) -> None:
        for name in names or LANES:
            assert await eventually(lambda name=name: caught_up(self.readers[name], self.source))

    async def noted(self, name: str) -> list[int]:
        rows = await self.readers[name].fetch("SELECT n FROM effects")
        return sorted(row["n"] for row in rows)

    async def comes_to(self, name: str, *numbers: int) -> None:
        async def look() -> None:
            assert await self.noted(name) == sorted(numbers)

        await eventually(look)

    async def lanes(self, name: str) -> list[dict[str, Any]]:
        return await cursors(self.readers[name])

    async def all_stopped(self, name: str) -> None:
        async def look() -> None:
            assert all("has forked" in (row["stopped"] or "") for row in await self.lanes(name))

        await eventually(look)

    async def read_and_copy(self) -> None:
        """Everybody has read ``KEPT`` and ``LOST``; the copy knows of ``KEPT`` alone."""
        await self.publish(*KEPT)
        await self.settled()
        await self.copies.take("source")
        await self.publish(*LOST)
        await self.settled()


def stopped(items: list[Occurrence]) -> dict[tuple[str, int], str]:
    return {(o.service, o.lane): o.error for o in items if isinstance(o, LaneStopped)}


EVERY_LANE = {(name, lane) for name, lanes in LANES.items() for lane in range(lanes)}


async def every_lane_stops(seen: Seen[Occurrence]) -> None:
    await seen.until(lambda items: stopped(items).keys() >= EVERY_LANE)
    found = stopped(seen.items)
    assert found.keys() == EVERY_LANE
    for (name, lane), error in found.items():
        assert f"the log of source has forked: {name} (lane {lane}) has read message" in error
        assert f"skald subscriptions reset --group {name} --origin source" in error


async def goes_on(stage: Stage, new: list[int]) -> None:
    """The documented way back: one reader takes the whole new history, the other what comes from now on."""
    for name in LANES:
        await stage.all_stopped(name)
        assert await stage.noted(name) == [*KEPT, *LOST], "handled behind the fork, or handled twice"
    end = len(KEPT) + len(new)
    views = await operations.list_subscriptions(stage.app, LANES)
    assert {(view.group, view.end) for view in views} == {(name, end) for name in LANES}
    assert all(lane.stopped and lane.position == 15 and lane.lag == end - 15 for view in views for lane in view.lanes)

    sink = await operations.reset_subscription(stage.app, "sink", "source", len(KEPT))
    assert (sink.position, sink.lanes, sink.kept, sink.dropped) == (10, [0, 1, 2, 3], [], 0)
    await operations.reset_subscription(stage.app, "other", "source", "now")
    await stage.publish(200, 201)
    await stage.comes_to("sink", *KEPT, *LOST, *new, 200, 201)
    await stage.comes_to("other", *KEPT, *LOST, 200, 201)
    await stage.settled()
    for name in LANES:
        assert not any(row["stopped"] for row in await stage.lanes(name))


@pytest.mark.parametrize("copies", WAYS, indirect=True)
async def test_readers_that_were_away_see_the_fork(copies: Copies) -> None:
    await away(copies, [*range(100, 112)])


@pytest.mark.parametrize("new", [[], [100, 101], [*range(100, 105)]], ids=len)
async def test_it_is_seen_however_long_the_new_history_is(copies: Copies, new: list[int]) -> None:
    """Shorter than what they have read, or as long."""
    await away(copies, new)


async def away(copies: Copies, new: list[int]) -> None:
    stage = Stage(copies)
    await stage.app.migrate()
    async with stage.app.run():
        await stage.read_and_copy()
    await copies.restore("source")
    if new:
        async with stage.app.connect("source"):
            await stage.publish(*new)
    async with occurrences() as seen, stage.app.run():
        await every_lane_stops(seen)
        await goes_on(stage, new)


@pytest.mark.parametrize("copies", ["files", "vacuum", "dump", "schema"], indirect=True)
async def test_readers_that_run_see_the_fork(copies: Copies) -> None:
    await running(copies, [*range(100, 112)])


@pytest.mark.parametrize("new", [[], [100, 101]], ids=len)
async def test_readers_that_run_see_a_log_that_became_shorter(copies: Copies, new: list[int]) -> None:
    await running(copies, new)


async def running(copies: Copies, new: list[int]) -> None:
    """The origin's own processes were stopped for it, as the guide says; the readers' were not."""
    stage = Stage(copies)
    await stage.app.migrate()
    async with stage.app.run(*LANES), occurrences() as seen:
        async with stage.app.connect("source"):
            await stage.read_and_copy()
        await copies.restore("source")
        async with stage.app.connect("source"):
            if new:
                await stage.publish(*new)
            await every_lane_stops(seen)
            await goes_on(stage, new)


async def test_who_has_not_read_what_was_lost_just_goes_on(copies: Copies) -> None:
    stage = Stage(copies)
    await stage.app.migrate()
    async with stage.app.run():
        await stage.publish(*KEPT)
        await stage.settled()
        await copies.take("source")
    async with stage.app.run("sink"), stage.app.connect("source"):
        await stage.publish(*LOST)
        await stage.settled("sink")
    await copies.restore("source")
    async with occurrences() as seen, stage.app.run():
        await stage.publish(*range(100, 107))
        await stage.comes_to("other", *KEPT, *range(100, 107))
        await stage.all_stopped("sink")
        await stage.settled("other")
        await seen.until(lambda items: stopped(items).keys() == {("sink", lane) for lane in range(4)})
        assert await stage.noted("sink") == [*KEPT, *LOST]


async def test_one_lane_forks_and_the_others_go_on(copies: Copies) -> None:
    """A lane that was reset, or that lags, stands before the place where the histories part."""
    stage = Stage(copies)
    await stage.app.migrate()
    async with stage.app.run():
        await stage.read_and_copy()
    stuck = lane_of(slot_of("k0"), LANES["sink"])
    async with stage.app.connect("sink"), stage.readers["sink"].transaction() as tx:
        await tx.execute("DELETE FROM effects")
        sql = "UPDATE skald_cursors SET position = 0, message_id = NULL WHERE lane <> :lane"
        await tx.execute(sql, lane=stuck)
    await copies.restore("source")
    new = range(100, 120)
    others = [n for n in [*KEPT, *new] if lane_of(slot_of(f"k{n % 5}"), LANES["sink"]) != stuck]
    async with occurrences() as seen, stage.app.run("sink"), stage.app.connect("source"):
        await stage.publish(*new)
        await seen.until(stopped)
        await stage.comes_to("sink", *others)
        assert stopped(seen.items).keys() == {("sink", stuck)}

        reset = await operations.reset_subscription(stage.app, "sink", "source", len(KEPT))
        assert (reset.lanes, len(reset.kept)) == ([stuck], 3)
        await stage.comes_to("sink", *others, *(n for n in new if n not in others))


async def test_unfinished_messages_of_the_lost_history_are_counted_when_they_are_given_up(copies: Copies) -> None:
    """They stand at positions where the new history has other messages."""
    stage = Stage(copies)
    stage.broken = {3, 12}
    await stage.app.migrate()
    async with stage.app.run():
        await stage.read_and_copy()
        assert [row["position"] for row in await deliveries(stage.readers["sink"])] == [4, 9, 13, 14]
    await copies.restore("source")
    async with stage.app.run():
        await stage.all_stopped("sink")
        reset = await operations.reset_subscription(stage.app, "sink", "source", len(KEPT))
        assert reset.dropped == 2
        await stage.publish(*range(100, 105))
        await stage.settled("sink")
        kept = [row["position"] for row in await deliveries(stage.readers["sink"])]
        expected = {*KEPT, *LOST, *range(100, 105)} - {3, 8, 12, 13} - {103}
        assert kept == [4, 9, 14]
        await stage.comes_to("sink", *expected)


async def test_an_origin_that_begins_anew_is_a_fork_too(copies: Copies) -> None:
    stage = Stage(copies)
    await stage.app.migrate()
    await copies.take("source")
    async with stage.app.run(*LANES), occurrences() as seen:
        async with stage.app.connect("source"):
            await stage.publish(*KEPT)
            await stage.settled()
        await copies.restore("source")
        async with stage.app.connect("source"):
            await every_lane_stops(seen)
            await operations.reset_subscription(stage.app, "sink", "source", "start")
            await stage.publish(100)
            await stage.comes_to("sink", *KEPT, 100)
            assert await stage.noted("other") == [*KEPT]
