"""Random workflows whose workers are killed every second or two, stopped for longer than their lease, and started: each
ends with the result that its program says, every step has had its effect, and those in a transaction exactly one.

A seed decides the programs of a batch and what happens to their workers; ``SKALD_SEED=…`` plays one batch again.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skald import Service
from tests.simulation import random_workflows
from tests.simulation.crew import Crew
from tests.simulation.random_workflows import application, expected, play, program, ready, signals

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


def crew_of(url: str, folder: Path, seed: int) -> Crew:
    return Crew(random_workflows.__name__, PLACES, url, folder, seed)


async def run(url: str, folder: Path, seed: int, count: int) -> None:
    app = application(url)
    await app.migrate()
    crew = crew_of(url, folder, seed)
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
