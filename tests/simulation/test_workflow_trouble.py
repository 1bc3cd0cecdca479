"""Workflows while the world is in trouble: a database that is restarted or killed, a clock that is set, a process that
is stopped for longer than its lease."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from skald import App, Service, step, workflow
from skald.testing.workflows import laboratory
from tests.postgres_server import PostgresServer
from tests.simulation.random_workflows import application, expected, play, program, ready, signals
from tests.simulation.stage import eventually, seed
from tests.simulation.test_random_workflows import check, crew_of
from tests.simulation.workers import ROOT

woke: list[str] = []


@step
async def note(name: str) -> str:
    woke.append(name)
    return name


@workflow
async def sleeper(name: str, seconds: float) -> str:
    await asyncio.sleep(seconds)  # sleep: a durable timer
    return await note(name)


MODULE = "tests.simulation.test_workflow_trouble"
BUSY = App(Service("orders", workflows=[sleeper]))
"""For `skald run`."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.stage.PATIENCE", 90.0)
    woke.clear()


@pytest.mark.parametrize("idle", [0.0, 3600.0], ids=["evicted", "in memory"])
@pytest.mark.parametrize("step_by", [3600.0, -3600.0], ids=["an hour on", "an hour back"])
async def test_a_clock_that_is_set_loses_and_doubles_no_timer(idle: float, step_by: float) -> None:
    async with laboratory(Service("sleepers", workflows=[sleeper]), idle=idle) as lab:
        handles = [await sleeper.start(f"{n}", 600.0 * (n + 1), id=f"{n}") for n in range(12)]
        await lab.advance(900)
        assert woke == ["0"]
        lab.clock.advance(step_by)
        await lab.settle()
        await lab.advance(0)
        if step_by > 0:
            assert sorted(woke, key=int) == [f"{n}" for n in range(7)], "all that are due by now"
        else:
            assert woke == ["0"], "nothing is early by the clock"
        await lab.advance(12 * 600.0 + 3600.0)
        assert Counter(woke) == Counter(f"{n}" for n in range(12))
        assert [await lab.result(handle) for handle in handles] == [f"{n}" for n in range(12)]
        rows = await lab.history("11")
        assert [entry.kind for entry in rows.entries] == ["timer", "step_done"]


@pytest.mark.parametrize("blow", ["restart", "crash"])
async def test_a_database_that_goes_away_during_recovery_strands_nothing(tmp_path: Path, blow: str) -> None:
    chance = random.Random(seed())
    with PostgresServer() as server:
        app = application(server.url)
        await app.migrate()
        crew = crew_of(server.url, tmp_path, 1)
        programs = [program(7_000_000 + n) for n in range(30)]
        sent = [[chance.randint(1, 99) for _ in range(signals(p))] for p in programs]
        async with app.connect():
            [service] = app.services.values()
            for n, (p, values) in enumerate(zip(programs, sent, strict=True)):
                for value in values:
                    await service.signal(ready, value, id=f"p-{n}")
                await play.start(f"p-{n}", p, [], id=f"p-{n}")
            try:
                crew.refill()
                for _ in range(3):

                    async def some_are_taken() -> bool:
                        rows = await service.fetch("SELECT 1 AS one FROM skald_workflows WHERE owner IS NOT NULL")
                        open_ones = await service.fetch("SELECT 1 AS one FROM skald_workflows WHERE ended_at IS NULL")
                        return bool(rows) or not open_ones

                    await eventually(some_are_taken)
                    crew.kill_one()
                    getattr(server, blow)()
                    if blow == "crash":
                        server.start()
                    crew.refill()

                async def all_have_ended() -> bool:
                    crew.refill()
                    return not await service.fetch("SELECT 1 AS one FROM skald_workflows WHERE ended_at IS NULL")

                await eventually(all_have_ended)
            finally:
                crew.end()
            for n, (p, values) in enumerate(zip(programs, sent, strict=True)):
                assert await play.handle(f"p-{n}").result() == expected(p, list(values))
            await check(service, tmp_path, programs)


async def test_a_stopped_process_is_refused_when_it_comes_back(tmp_path: Path, postgres_url: str) -> None:
    """A zombie: everything it wrote was written by its successor, and it ends itself. (One that is stopped while it
    writes to a SQLite file keeps everybody out until it goes on.)"""
    app = application(postgres_url)
    await app.migrate()
    crew = crew_of(postgres_url, tmp_path, 2)
    programs = [program(8_000_000 + n) for n in range(30)]
    sent = [[5 for _ in range(signals(p))] for p in programs]
    async with app.connect():
        [service] = app.services.values()
        try:
            crew.start(armed=False)
            for n, p in enumerate(programs):
                await play.start(f"p-{n}", p, [], id=f"p-{n}")

            async def some_are_taken() -> bool:
                return bool(await service.fetch("SELECT 1 AS one FROM skald_workflows WHERE owner IS NOT NULL"))

            await eventually(some_are_taken)
            zombie = crew.stop_one()
            crew.start(armed=False)
            for n, values in enumerate(sent):
                for value in values:
                    await service.signal(ready, value, id=f"p-{n}")

            async def all_have_ended() -> bool:
                return not await service.fetch("SELECT 1 AS one FROM skald_workflows WHERE ended_at IS NULL")

            await eventually(all_have_ended)
            zombie.send_signal(signal.SIGCONT)

            async def it_has_ended() -> bool:
                return zombie.poll() is not None

            await eventually(it_has_ended)
        finally:
            crew.end()
        for n, (p, values) in enumerate(zip(programs, sent, strict=True)):
            assert await play.handle(f"p-{n}").result() == expected(p, list(values))
        await check(service, tmp_path, programs)


@pytest.mark.full
async def test_no_false_takeover_while_every_core_is_busy(tmp_path: Path) -> None:
    """Ten minutes with the default lease."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    orders = Service("orders", workflows=[sleeper])
    app = App(orders, store=f"sqlite:{tmp_path}")
    await app.migrate()
    workers = []
    try:
        command = [sys.executable, "-m", "skald", "run", f"{MODULE}:BUSY", "--service", "orders"]
        environment = {**os.environ, "SKALD_STORE": f"sqlite:{tmp_path}"}
        for n in range(2):
            with (tmp_path / f"{n}.log").open("wb") as log:
                workers.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment))
        async with app.connect():
            end = time.monotonic() + 600
            while time.monotonic() < end:
                assert await (await sleeper.start("x", 1.0)).result() == "x"
        for n in range(2):
            text = (tmp_path / f"{n}.log").read_text()
            assert "running: " in text
            assert "LanesTaken" not in text
            assert "LoopStalled" not in text
    finally:
        for process in (*burning, *workers):
            process.kill()
            process.wait()
