"""Random workflows whose workers are killed every second or two, stopped for longer than their lease, and started: each
ends with the result that its program says, every step has had its effect, and those in a transaction exactly one.

A seed decides the programs of a batch and what happens to their workers; ``SKALD_SEED=…`` plays one batch again.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skald import Service
from skald.testing.failpoints import kill_at
from tests.simulation import random_workflows
from tests.simulation.random_workflows import LEASE, application, expected, play, program, ready, signals
from tests.simulation.workers import ROOT

CHOSEN = os.environ.get("SKALD_SEED")
SAMPLE = [(int(CHOSEN), 40)] if CHOSEN else [(1, 40)]
SWEEP = [pytest.param(seed, 125, marks=pytest.mark.sweep) for seed in range(10, 14)]
FULL = [pytest.param(seed, 500, marks=pytest.mark.full) for seed in range(100, 120)]
PATIENCE = 120.0
PLACES = [
    "commit.before", "commit.after", "step.before", "step.after", "workflows.claiming", "workflows.claimed",
    "workflows.firing", "take_over.unfenced", "take_over.lanes", "hand_over.unfenced",
]  # fmt: skip
ENDED = {("completed", None), ("continued", None), ("failed", None)}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


class Crew:
    """Two workers, or what is left of them."""

    def __init__(self, url: str, folder: Path, seed: int) -> None:
        self._url, self._folder, self.rng = url, folder, random.Random(f"fate {seed}")
        self._workers: list[subprocess.Popen[bytes]] = []
        self._stopped: set[int] = set()
        self._started = 0
        self.deaths = 0
        self._blow = asyncio.Event()

    def start(self, *, armed: bool = True) -> None:
        self._started += 1
        with (self._folder / f"worker-{self._started}.log").open("wb") as log:
            command = [sys.executable, "-m", random_workflows.__name__, self._url, str(self._folder / "ledger")]
            failpoint = {}
            if armed and self.rng.random() < 0.5:
                self.deaths += 1
                failpoint = kill_at(self.rng.choice(PLACES), self.rng.randint(1, 30))
            process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log, env={**os.environ, **failpoint})
            self._workers.append(process)

    def refill(self) -> None:
        """Starts others for those that have ended; one that was not killed may have lost its lease while stopped."""
        for worker in [worker for worker in self._workers if worker.poll() is not None]:
            self._workers.remove(worker)
            self._stopped.discard(worker.pid)
        while len(self._workers) < 2:
            self.start()

    async def trouble(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self.rng.uniform(0.2, 1.5))  # sleep: between two blows
            self.refill()
            self._blow, blow = asyncio.Event(), self._blow
            blow.set()
            worker = self.rng.choice(self._workers)
            match self.rng.choice(["kill", "kill", "kill", "end", "stop"]):
                case "kill":
                    self.deaths += 1
                    worker.kill()
                case "end":
                    worker.terminate()
                case "stop" if worker.pid not in self._stopped:
                    self._stopped.add(worker.pid)
                    worker.send_signal(signal.SIGSTOP)
                    await asyncio.sleep(LEASE * self.rng.uniform(0.5, 2.0))  # sleep: it is a zombie now, or nearly
                    worker.send_signal(signal.SIGCONT)
                    self._stopped.discard(worker.pid)
            self.refill()

    def kill_one(self) -> None:
        self.deaths += 1
        self.rng.choice(self._workers).kill()

    def stop_one(self) -> subprocess.Popen[bytes]:
        """Stopped, and not ended: for its successors a silent process."""
        worker = self.rng.choice(self._workers)
        worker.send_signal(signal.SIGSTOP)
        return worker

    async def after(self, blows: int) -> None:
        """Returns when so many more blows have come."""
        for _ in range(blows):
            await self._blow.wait()

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()

    def logs(self) -> str:
        found = [path.read_text(errors="replace")[-1500:] for path in sorted(self._folder.glob("worker-*.log"))]
        return "\n".join(text for text in found if "Traceback" in text or "ERROR" in text)


async def run(url: str, folder: Path, seed: int, count: int) -> None:
    app = application(url)
    await app.migrate()
    crew = Crew(url, folder, seed)
    programs = [program(seed * 100_000 + n) for n in range(count)]
    sent = [[crew.rng.randint(1, 99) for _ in range(signals(p))] for p in programs]
    async with app.connect():
        [service] = app.services.values()
        crew.refill()
        troubling = asyncio.create_task(crew.trouble())
        try:
            await asyncio.wait_for(played(service, programs, sent, crew), PATIENCE)
        except TimeoutError:
            left = await service.fetch(
                "SELECT id, state, owner, wake_at, outcome FROM skald_workflows WHERE ended_at IS NULL LIMIT 20"
            )
            raise AssertionError(f"seed {seed}: {left}\n{crew.logs()}") from None
        finally:
            troubling.cancel()
            crew.end()
        await check(service, folder, programs)
    print(f"seed {seed}: {crew.deaths} kills")


async def played(service: Service, programs: list[Any], sent: list[list[int]], crew: Crew) -> None:
    async def one(number: int) -> None:
        p, id = programs[number], f"p-{number}"
        values = sent[number]
        early = crew.rng.randint(0, len(values))
        for value in values[:early]:
            await service.signal(ready, value, id=id)
        handle = await play.start(id, p, [], id=id)
        for value in values[early:]:
            await crew.after(crew.rng.randint(0, 2))
            await service.signal(ready, value, id=id)
        result = await handle.result()
        assert result == expected(p, list(values)), f"{id}: {p}"

    await asyncio.gather(*(one(number) for number in range(len(programs))))


async def check(service: Service, folder: Path, programs: list[Any]) -> None:
    assert await service.fetch("SELECT * FROM skald_letters WHERE kind NOT IN (2, 5)") == [], "letters are left"
    states = await service.fetch("SELECT state, owner, count(*) AS n FROM skald_workflows GROUP BY state, owner")
    assert {(row["state"], row["owner"]) for row in states} <= ENDED, states
    holes = await service.fetch(
        "SELECT run FROM skald_journal GROUP BY run HAVING min(position) <> 1 OR max(position) <> count(*)"
    )
    assert holes == []
    done = await service.fetch("SELECT name, run, digest, occurrence FROM skald_journal WHERE kind IN (0, 1)")
    keys = {f"{row['run']}:{row['name']}:{bytes(row['digest']).hex()}:{row['occurrence']}" for row in done}
    assert len(keys) == len(done), "a step is journalled twice"
    booked = Counter(row["key"] for row in await service.fetch("SELECT key FROM effects"))
    assert booked == Counter(key for key in keys if ":book:" in key), "a transactional step is not done exactly once"
    acted = {msgspec.json.decode(line)["key"] for line in (folder / "ledger").read_bytes().splitlines()}
    outside = {key for key in keys if ":book:" not in key}
    assert outside <= acted, "journalled, and not done"
    # What is done and not journalled was given up: its workflow had ended, or failed, or its branch was cancelled.
    assert len(acted - outside) <= len(programs) // 5


@pytest.mark.parametrize(("seed", "count"), [*SAMPLE, *SWEEP, *FULL])
async def test_random_workflows_end_as_their_programs_say(url: str, tmp_path: Path, seed: int, count: int) -> None:
    await run(url, tmp_path, seed, count)
