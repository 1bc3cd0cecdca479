"""A process that runs workflows is killed between any two durable writes: every step has its effect at least once, its
result is journalled exactly once, and the workflow's result is the one that it would have had."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from skald.failpoints import VARIABLE
from skald.testing.failpoints import kill_at, trace_to, traced
from tests.simulation.crashing_workflows import ORDERS, STEPS, expected
from tests.simulation.stage import seed
from tests.simulation.workers import KILLED, ROOT

PATIENCE = 90.0
LIVES = 40


def live(folder: Path, count: int, environment: Mapping[str, str] | None = None) -> Any:
    """One life of the process; its results, or ``None`` if it was killed."""
    command = [sys.executable, "-m", "tests.simulation.crashing_workflows", str(folder), str(count)]
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, timeout=PATIENCE, check=False)
    if done.returncode == KILLED:
        return None
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return msgspec.json.decode(done.stdout)


def check(folder: Path, results: Any, count: int) -> None:
    assert [result[:-1] for result in results] == [expected(order) for order in ORDERS[:count]]
    ledger = [line.split() for line in (folder / "ledger").read_text().splitlines()]
    effects = Counter((name, id) for name, id, *_ in ledger)
    connection = apsw.Connection(str(folder / "orders.db"), flags=apsw.SQLITE_OPEN_READONLY)
    rows = connection.execute(
        "SELECT w.id, w.state, w.owner, j.name, j.digest, j.occurrence, j.kind FROM skald_workflows w "
        "JOIN skald_journal j ON j.run = w.run"
    ).fetchall()
    journalled: dict[str, list[str]] = {}
    for id, state, owner, name, _, _, kind in rows:
        assert (state, owner) == ("completed", None)
        journalled.setdefault(id, []).append("timer" if kind == 2 else name)
    assert len(rows) == len({(row[0], row[3], row[4], row[5]) for row in rows}), "journalled twice"
    for order in ORDERS[:count]:
        assert sorted(journalled[order.id]) == [*STEPS, "timer"]
        assert effects["reserve", order.id] >= 2
        assert min(effects[name, order.id] for name in STEPS) >= 1
    shipped = {(id, number) for name, id, *rest in ledger if name == "ship" for number in rest}
    drawn = {(order.id, result[-1]) for order, result in zip(ORDERS, results, strict=False)}
    assert shipped == drawn, "a step was told something that was not durable yet"
    keys = {rest[0] for name, _, *rest in ledger if name == "charge"}
    assert len(keys) == count, "another idempotency key after a crash"


def places(folder: Path, every: bool) -> list[tuple[str, int]]:
    """The places that a life comes to, with every hit, or with the first and the last ones."""
    folder.mkdir(exist_ok=True)
    trace = folder / "trace"
    check(folder, live(folder, 1, trace_to(trace)), 1)
    found = sorted(traced(trace).items())
    return [(name, hit) for name, n in found for hit in range(1, n + 1) if every or hit in (1, n - 1, n)]


EVERY = [False, pytest.param(True, marks=pytest.mark.sweep)]


@pytest.mark.parametrize("every", EVERY)
def test_killed_in_its_first_life(tmp_path: Path, every: bool) -> None:
    found = places(tmp_path / "traced", every)
    names = {name for name, _ in found}
    assert names >= {"workflow.start", "commit.before", "commit.after", "step.before", "step.after"}, names
    killed = 0
    for name, hit in found:
        folder = tmp_path / f"{name}-{hit}"
        folder.mkdir()
        results = live(folder, 1, kill_at(name, hit))
        if results is None:
            killed += 1
            results = live(folder, 1)
        check(folder, results, 1)
    assert killed >= len(found) - 5, f"{killed} of {len(found)} places were come to"


@pytest.mark.parametrize("every", EVERY)
def test_killed_again_while_it_recovers(tmp_path: Path, every: bool) -> None:
    first = kill_at("step.after", 5)
    (tmp_path / "traced").mkdir()
    assert live(tmp_path / "traced", 1, first) is None
    found = places(tmp_path / "traced", every)
    assert {name for name, _ in found} >= {"take_over.lanes", "workflows.claiming", "workflows.claimed"}
    for name, hit in found:
        folder = tmp_path / f"{name}-{hit}"
        folder.mkdir()
        assert live(folder, 1, first) is None
        results = live(folder, 1, kill_at(name, hit)) or live(folder, 1)
        check(folder, results, 1)


def test_many_workflows_and_kills_at_random_places(tmp_path: Path) -> None:
    chance = random.Random(seed())
    results, lives = None, 0
    while results is None:
        lives += 1
        name, most = chance.choice([("commit.before", 6), ("commit.after", 6), ("step.before", 90), ("step.after", 90)])
        armed = kill_at(name, chance.randint(1, most)) if lives < LIVES else {VARIABLE: ""}
        results = live(tmp_path, len(ORDERS), armed)
    print(f"{lives} lives")
    assert lives > 1
    check(tmp_path, results, len(ORDERS))
