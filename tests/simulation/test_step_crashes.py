"""A process is killed wherever its steps write: what a transactional step wrote is there exactly once, what is done at
most once was done at most once, and the workflow knows which."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from skald.testing.failpoints import kill_at, trace_to, traced
from tests.simulation.workers import KILLED, ROOT

PATIENCE = 90.0


def live(folder: Path, environment: Mapping[str, str] | None = None) -> Any:
    """One life of the process; its result, or ``None`` if it was killed."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.simulation.crashing_steps", str(folder)]
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, timeout=PATIENCE, check=False)
    if done.returncode == KILLED:
        return None
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return msgspec.json.decode(done.stdout)


def check(folder: Path, result: Any) -> None:
    [*sure, once, called] = result
    assert sure == [True, "booked", 3]
    connection = apsw.Connection(str(folder / "orders.db"), flags=apsw.SQLITE_OPEN_READONLY)
    assert sorted(connection.execute("SELECT name FROM payments").fetchall()) == [("book o-1",), ("pay o-1",)]
    assert connection.execute("SELECT count(*) FROM skald_events").fetchall() == [(1,)]
    ended = "SELECT name, digest, occurrence FROM skald_journal WHERE kind IN (0, 1)"
    assert len(connection.execute(ended).fetchall()) == 5
    assert connection.execute("SELECT id FROM skald_letters").fetchall() == []
    ledger = (folder / "ledger").read_text().splitlines()
    times = ledger.count("called once")
    assert (once, times) in {("called", 1), ("OutcomeUnknown", 0), ("OutcomeUnknown", 1)}
    assert len(ledger) - times == 1
    assert called in ("called", "found")


def places(folder: Path, environment: Mapping[str, str] | None = None) -> list[tuple[str, int]]:
    """The places that a life comes to, with every hit."""
    result = live(folder, {**(environment or {}), **trace_to(folder / "trace")})
    check(folder, result)
    return [(name, hit) for name, n in sorted(traced(folder / "trace").items()) for hit in range(1, n + 1)]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_killed_wherever_it_writes(tmp_path: Path, every: bool) -> None:
    found = places(tmp_path / "traced")
    assert {name for name, _ in found} >= {"step.before", "step.after", "step.committing", "step.committed"}
    killed = wanted = 0
    for name, hit in found:
        if every or name.startswith("step."):
            folder = tmp_path / f"{name}-{hit}"
            result, wanted = live(folder, kill_at(name, hit)), wanted + 1
            if result is None:
                killed += 1
                result = live(folder)
            check(folder, result)
    assert killed >= wanted - 5, f"{killed} of {wanted} places were come to"


def test_killed_again_while_it_recovers(tmp_path: Path) -> None:
    first = kill_at("step.committed", 1)
    assert live(tmp_path / "traced", first) is None
    for name, hit in places(tmp_path / "traced"):
        if name.startswith(("step.", "workflows.")):
            folder = tmp_path / f"{name}-{hit}"
            assert live(folder, first) is None
            check(folder, live(folder, kill_at(name, hit)) or live(folder))
