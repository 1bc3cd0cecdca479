"""Random programs whose processes are killed, stopped and started at random: the end is what the program says.

A seed decides the program (``programs``) and what happens to it. Seeds alternate between the stores. One of them is
played again by ``SKALD_SEED=…``.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from skald import App
from tests.integration.test_delivery_crash_sweep import STOPPING, TAKING_OVER, WORKING
from tests.simulation.programs import Nursery, Program, build, nursery, program, send
from tests.simulation.stage import (
    Job,
    Placed,
    caught_up,
    check_effects,
    deliveries,
    effects,
    eventually,
    no_deliveries,
    redrive,
)

PLACES = sorted(WORKING | TAKING_OVER | STOPPING)
CRASHES = 6
"""At most, of armed processes and killed ones: far fewer than a message has attempts."""
CHOSEN = os.environ.get("SKALD_SEED")
SAMPLE = [int(CHOSEN)] if CHOSEN else range(20)
SWEEP = range(1_000, 1_300)


@pytest.fixture(autouse=True)
def _more_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.stage.PATIENCE", 90.0)


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("nursery") / "log") as found:
        yield found
        found.end()


class Play:
    def __init__(self, p: Program, url: str, folder: Path, crew: Nursery) -> None:
        self.p, self.url, self.crew, self.mended = p, url, crew, folder / "mended"
        self.rng = random.Random(f"fate {p.seed}")
        self.crashes = 0
        self.app: App = build(url, p, self.mended)
        self.source, self.middle, self.sink = (self.app.service(name) for name in ("source", "middle", "sink"))

    def start(self, service: str, *, armed: bool = True) -> None:
        failpoint = None
        if armed and self.crashes < CRASHES and self.rng.random() < 0.6:
            self.crashes += 1
            failpoint = f"{self.rng.choice(PLACES)}@{self.rng.randint(1, 4)}"
        self.crew.start(self.p.seed, self.url, self.mended, service, failpoint)

    def restart_the_dead(self, *, armed: bool) -> None:
        for pid in self.crew.dead():
            self.start(self.crew.children.pop(pid), armed=armed)

    async def something_happens(self) -> None:
        pids = sorted(self.crew.children)
        match self.rng.choice(["nothing", "kill", "stop", "start", "restart", "wait"]):
            case "kill" if self.crashes < CRASHES:
                self.crashes += 1
                send(self.rng.choice(pids), signal.SIGKILL)
            case "stop":
                send(self.rng.choice(pids), signal.SIGTERM)
            case "start" if len(pids) < 5:
                self.start(self.rng.choice(["middle", "sink"]))
            case "restart":
                self.restart_the_dead(armed=True)
            case "wait":
                self.restart_the_dead(armed=False)
                before = await self.done()
                if before < self.most():
                    await eventually(lambda: self.is_beyond(before))

    async def done(self) -> int:
        found = [await effects(self.middle, name) for name in ("table", "picky", "work")]
        return sum(len(rows) for rows in [*found, await effects(self.sink, "made")])

    def most(self) -> int:
        """Effects that come without anything happening, of what is published at the very least."""
        return 1 if {"table", "work"} & set(self.p.handlers) else 0

    async def is_beyond(self, before: int) -> bool:
        self.restart_the_dead(armed=False)
        return await self.done() > before

    async def run(self) -> None:
        await self.app.migrate()
        async with self.app.connect():
            for service in ("middle", "sink"):
                for _ in range(self.rng.randint(1, 2)):
                    self.start(service)
            for n in range(self.p.rounds):
                await self.source.publish(
                    *(Placed(key, n) for key in self.p.keys), *(Job(job, n) for job in self.p.jobs)
                )
                await self.something_happens()
            await eventually(self.all_but_the_parked_is_done)
            await self.check_parked()
            self.mended.touch()
            await redrive(self.middle)
            await eventually(self.all_is_done)
            await self.check()

    async def all_but_the_parked_is_done(self) -> bool:
        """Looks where messages come from before it looks where they go: one that moves meanwhile is seen."""
        self.restart_the_dead(armed=False)
        assert await caught_up(self.middle, self.source), "the middle one is not caught up"
        left = [row for row in await deliveries(self.middle) if not self.may_be_left(row["key"], row["handler"])]
        assert not left, f"{len(left)} deliveries, {left[:2]}"
        assert await caught_up(self.sink, self.middle), "the sink is not caught up"
        assert await no_deliveries(self.sink), "the sink has deliveries"
        return len(await deliveries(self.middle)) == sum(self.p.rounds - n for n in self.p.stuck().values())

    def may_be_left(self, key: str, handler: str) -> bool:
        return handler == "picky" and key in self.p.stuck()

    async def check_parked(self) -> None:
        """Exactly the first refused message of each key, with everything behind it; what came before is done."""
        rows = await deliveries(self.middle)
        parked = {row["key"]: row["attempts"] for row in rows if row["state"] == "parked"}
        assert parked.keys() == self.p.stuck().keys()
        done = {key: self.p.stuck().get(key, self.p.rounds) for key in self.p.keys}
        if "picky" in self.p.handlers:
            check_effects(await effects(self.middle, "picky"), done)

    async def all_is_done(self) -> bool:
        self.restart_the_dead(armed=False)
        return await no_deliveries(self.middle)

    async def check(self) -> None:
        each = dict.fromkeys(self.p.keys, self.p.rounds)
        for handler in ("table", "picky"):
            expected = each if handler in self.p.handlers else {}
            rows = await effects(self.middle, handler)
            check_effects(rows, expected)
            assert len(rows) == sum(expected.values())
        relayed = each if "relay" in self.p.handlers else {}
        rows = await effects(self.sink, "made")
        check_effects(rows, relayed)
        assert len(rows) == sum(relayed.values())
        assert len(await self.middle.store.log.read(1, 10_000)) == sum(relayed.values()), "published twice, or not"
        jobs = {f"{job}:{n}": 1 for job in self.p.jobs for n in range(self.p.rounds)}
        check_effects(await effects(self.middle, "work"), jobs)


def _url(seed: int, request: pytest.FixtureRequest, folder: Path) -> str:
    return str(request.getfixturevalue("postgres_url")) if seed % 2 else f"sqlite:{folder / 'data'}"


async def _play(seed: int, request: pytest.FixtureRequest, folder: Path, crew: Nursery) -> None:
    print(f"SKALD_SEED={seed} {program(seed)}")
    try:
        await Play(program(seed), _url(seed, request, folder), folder, crew).run()
    except AssertionError:
        crew.ask()
        await asyncio.sleep(1)  # sleep: the processes write down what they are doing
        print(f"see {crew.log}, members: {list(crew.children)}")
        raise
    finally:
        crew.end()


@pytest.mark.parametrize("seed", SAMPLE)
async def test_a_random_program_ends_as_it_says(
    seed: int, request: pytest.FixtureRequest, tmp_path: Path, crew: Nursery
) -> None:
    await _play(seed, request, tmp_path, crew)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", SWEEP)
async def test_random_programs_end_as_they_say(
    seed: int, request: pytest.FixtureRequest, tmp_path: Path, crew: Nursery
) -> None:
    await _play(seed, request, tmp_path, crew)
