"""Processes are killed between any two durable writes: no two sagas are at a key at once, and none waits for ever."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from skald.testing.failpoints import kill_at
from tests.simulation.locking import build, visit
from tests.simulation.pipeline import Options
from tests.simulation.stage import effects, eventually, seed
from tests.simulation.workers import workers

OPTIONS = Options(lease=30.0, lanes=4)
PLACES = [
    "commit.before",
    "commit.after",
    "workflows.claiming",
    "workflows.claimed",
    "locks.settling",
    "locks.settled",
]
SAMPLE = random.Random(seed()).sample([(name, hit) for name in PLACES for hit in (1, 2, 3)], 2)
KINDS = ("fine", "bad", "hasty", "shy", "crossed", "slow")
REFUSALS = {"LockDeadlock", "LockTaken", "TimeoutError"}


@pytest.fixture(autouse=True)
def _more_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.stage.PATIENCE", 60.0)


def check_visits(rows: Sequence[str]) -> set[str]:
    """Whoever enters leaves before the next one enters. Returns who was there."""
    names = [row.partition(" ") for row in rows]
    visitors = [name for word, _, name in names if word == "enter"]
    assert rows == [f"{word} {name}" for name in visitors for word in ("enter", "leave")]
    assert len(set(visitors)) == len(visitors)
    return set(visitors)


LETTERS = """
SELECT id, kind, name FROM skald_letters
WHERE NOT (kind = 9 AND to_run IN (SELECT run FROM skald_workflows WHERE ended_at IS NOT NULL))
"""
"""But the news of a lock that came to a saga in the moment in which it had given up and ended."""


async def crash(url: str, folder: Path, name: str, hit: int) -> None:
    app = build(url, OPTIONS)
    await app.migrate()
    chance, killed = random.Random(hit), 0
    orders = app.service("orders")
    wanted = {f"{kind}{n}": sorted(chance.sample("klm", 2)) for n in range(4) for kind in KINDS}
    with workers(folder, url, OPTIONS, "tests.simulation.locking:app") as crew:
        async with app.connect():
            crew.start("orders", environment=kill_at(name, hit))
            crew.start("orders", environment=kill_at(name, hit + 5))
            for id, keys in wanted.items():
                await visit.start(id, keys, id=id)

            async def done() -> bool:
                nonlocal killed
                killed += crew.restart_the_dead()
                rows = await orders.fetch("SELECT saga_id, status FROM saga_state")
                left = [row for row in rows if row["status"] not in ("COMPLETED", "COMPENSATED")]
                assert not left, f"{left[:3]} and more, {len(left)}"
                return True

            await eventually(done)
            sagas = await orders.fetch("SELECT w.id, w.state, w.outcome FROM skald_workflows w")
            visits = await effects(orders, "at")
            letters = await orders.fetch(LETTERS)
    assert killed or hit > 1
    assert letters == []
    assert {saga["id"] for saga in sagas} == set(wanted)
    been = {key: check_visits([row["id"] for row in visits if row["key"] == key]) for key in "klm"}
    for saga in sagas:
        id, outcome = saga["id"], saga["outcome"].decode()
        if saga["state"] == "completed" or "ValueError" in outcome:
            assert all(id in been[key] for key in wanted[id])
            assert (saga["state"] == "completed") is not id.startswith("bad")
        else:
            assert not any(id in been[key] for key in wanted[id])
            assert any(refusal in outcome for refusal in REFUSALS)
            assert "TimeoutError" not in outcome or id.startswith("hasty")
            assert "LockTaken" not in outcome or id.startswith("shy")
    assert any(saga["state"] == "completed" for saga in sagas)


@pytest.mark.parametrize(("name", "hit"), SAMPLE)
async def test_a_crash_of_those_who_have_locks_and_wait(store_url: str, tmp_path: Path, name: str, hit: int) -> None:
    await crash(store_url, tmp_path, name, hit)


@pytest.mark.sweep
@pytest.mark.parametrize("hit", [1, 3, 8])
@pytest.mark.parametrize("name", PLACES)
async def test_a_crash_at_every_place(store_url: str, tmp_path: Path, name: str, hit: int) -> None:
    await crash(store_url, tmp_path, name, hit)
