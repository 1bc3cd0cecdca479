"""A consumer is put back to an earlier moment: it reads on from there, and ends where it would have ended anyway.

Source -> middle -> sink; the middle one is restored. What it handles again it publishes again, under new ids, so that
its own log has forked for its reader: that one stops by name, and goes on after a reset.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from skald import App, Service, Transaction, operations
from skald.telemetry import LaneStopped
from tests.simulation.restoring import Copies, DumpCopies, FileCopies, SchemaCopies, VacuumCopies
from tests.simulation.stage import (
    MIGRATIONS,
    QUICK,
    Made,
    Placed,
    caught_up,
    check_effects,
    cursors,
    effect,
    effects,
    eventually,
    occurrences,
)

WAYS = {"files": FileCopies, "vacuum": VacuumCopies, "dump": DumpCopies, "schema": SchemaCopies}
KEYS = [f"k{n}" for n in range(7)]


@pytest.fixture(params=WAYS)
async def copies(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Copies]:
    way = WAYS[request.param]
    on_postgres = request.param in ("dump", "schema")
    found = way(str(request.getfixturevalue("postgres_url")), tmp_path) if on_postgres else way(tmp_path)
    yield found
    await found.close()


class Stage:
    def __init__(self, copies: Copies) -> None:
        self.copies, self.count = copies, 0
        self.source = Service("source", publishes=[Placed])
        self.middle = Service("middle", publishes=[Made], lanes=4, migrations=MIGRATIONS)
        self.sink = Service("sink", lanes=2, migrations=MIGRATIONS)
        urls = {name: copies.url(name) for name in ("source", "middle", "sink")}
        self.app = App(self.source, self.middle, self.sink, stores=urls, settings=QUICK)

        @self.middle.on(Placed)
        async def table(event: Placed, tx: Transaction) -> Made:
            await effect(tx, "table", f"{event.key}:{event.n}", event.key, event.n)
            return Made(event.key, event.n)

        @self.sink.on(Made)
        async def made(event: Made, tx: Transaction) -> None:
            await effect(tx, "made", f"{event.key}:{event.n}", event.key, event.n)

    async def publish(self, rounds: int) -> None:
        for n in range(self.count, self.count + rounds):
            await self.source.publish(*(Placed(key, n) for key in KEYS))
        self.count += rounds

    async def middle_is_done(self) -> None:
        assert await eventually(lambda: caught_up(self.middle, self.source))
        check_effects(await effects(self.middle, "table"), dict.fromkeys(KEYS, self.count))

    async def all_is_done(self) -> None:
        await self.middle_is_done()
        assert await eventually(lambda: caught_up(self.sink, self.middle))
        check_effects(await effects(self.sink, "made"), dict.fromkeys(KEYS, self.count))

    async def sink_has_stopped(self) -> None:
        async def look() -> None:
            assert all("has forked" in (row["stopped"] or "") for row in await cursors(self.sink))

        await eventually(look)


async def test_it_catches_up_to_the_same_state(copies: Copies) -> None:
    stage = Stage(copies)
    await stage.app.migrate()
    async with stage.app.run():
        await stage.publish(3)
        await stage.all_is_done()
        await copies.take("middle")
        await stage.publish(2)
        await stage.all_is_done()
    await copies.restore("middle")
    async with stage.app.run("source", "middle"):
        assert len(await effects(stage.middle, "table")) < 5 * len(KEYS), "nothing was restored"
        await stage.middle_is_done()
        await stage.publish(2)
        await stage.middle_is_done()


async def test_its_readers_stop_by_name_and_go_on_after_a_reset(copies: Copies) -> None:
    """To the end of the new history, once that has the facts that the reader knows already."""
    stage = Stage(copies)
    await stage.app.migrate()
    async with stage.app.run():
        await stage.publish(3)
        await stage.all_is_done()
        await copies.take("middle")
        await stage.publish(2)
        await stage.all_is_done()
    await copies.restore("middle")
    async with occurrences() as seen, stage.app.run():
        await stage.middle_is_done()
        await stage.sink_has_stopped()
        await seen.until(lambda items: {o.lane for o in items if isinstance(o, LaneStopped)} == {0, 1})
        assert {o.service for o in seen.items if isinstance(o, LaneStopped)} == {"sink"}
        check_effects(await effects(stage.sink, "made"), dict.fromkeys(KEYS, 5))
        await operations.reset_subscription(stage.app, "sink", "middle", "now")
        await stage.publish(2)
        await stage.all_is_done()


@pytest.mark.parametrize("copies", ["schema", "dump"], indirect=True)
async def test_a_process_that_runs_meanwhile_goes_on_from_the_earlier_place(copies: Copies) -> None:
    """On SQLite a running process refuses the replaced file; see ``test_fork_alive``."""
    stage = Stage(copies)
    await stage.app.migrate()
    async with stage.app.run("source", "middle"):
        await stage.publish(3)
        await stage.middle_is_done()
        await copies.take("middle")
        await stage.publish(2)
        await stage.middle_is_done()
        await copies.restore("middle")
        await eventually(stage.middle_is_done)
        await stage.publish(2)
        await eventually(stage.middle_is_done)
