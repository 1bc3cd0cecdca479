"""A message that kills its process every time runs out of attempts like any other; its key waits, and others flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skald import App
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.pipeline import Options, build
from tests.simulation.stage import Job, Placed, check_effects, deliveries, effects, eventually
from tests.simulation.workers import Workers, workers

OTHERS = [*(f"k{n}" for n in range(8)), "slow", "slow-too"]
"""The slow ones run whenever the poison ends the process, and must not be taken for it."""
ATTEMPTS = 3


@pytest.fixture(autouse=True)
def _more_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.stage.PATIENCE", 90.0)


@pytest.mark.parametrize("key", ["poison", "tx-poison", "behind"])
async def test_a_message_that_kills_is_parked_after_its_attempts(store_url: str, tmp_path: Path, key: str) -> None:  # noqa: F811
    """In a stretch, in a transaction, and as one that has waited behind another."""
    options = Options(lease=30.0, delayed=ATTEMPTS - 2, lanes=2)
    app = build(store_url, options)
    await app.migrate()
    first = 1 if key == "behind" else 0
    with workers(tmp_path, store_url, options) as crew:
        async with app.connect():
            source = app.service("source")
            await source.publish(*(Placed(k, n) for n in range(3) for k in [*OTHERS[:4], key, *OTHERS[4:]]))
            crew.start("middle")
            crew.start("sink")
            crashes = await _until(crew, app, parked=1, waiting=2 - first)
            (parked,) = [row for row in await deliveries(app.service("middle")) if row["state"] == "parked"]
            assert (parked["attempts"], parked["key"], parked["position"]) == (
                ATTEMPTS,
                key,
                await _nth(app, key, first),
            )
            assert parked["error"].startswith("ProcessEnded")
            assert ATTEMPTS <= crashes <= ATTEMPTS + 3
            await source.publish(*(Placed(k, 3) for k in [*OTHERS, key]))
            await _until(crew, app, parked=1, waiting=3 - first)
            rows = await effects(app.service("middle"), "table")
            check_effects([row for row in rows if row["key"] in OTHERS], dict.fromkeys(OTHERS, 4))


async def test_work_that_kills_is_parked_and_its_neighbours_are_done(store_url: str, tmp_path: Path) -> None:  # noqa: F811
    options = Options(lease=30.0, delayed=ATTEMPTS - 2, lanes=2)
    app = build(store_url, options)
    await app.migrate()
    with workers(tmp_path, store_url, options) as crew:
        async with app.connect():
            await app.service("source").publish(Job("a", 0), Job("poison", 0), Job("b", 0), Job("c", 0))
            crew.start("middle")
            await _until(crew, app, parked=1, waiting=0)
            (parked,) = await deliveries(app.service("middle"))
            assert (parked["key"], parked["attempts"]) == ("poison", ATTEMPTS)
            rows = await effects(app.service("middle"), "work")
            assert sorted(row["id"] for row in rows) == ["a:0", "b:0", "c:0"]


async def _until(crew: Workers, app: App, *, parked: int, waiting: int) -> int:
    """Starts the dead again until so many deliveries are parked and waiting, and nothing else; how often that was."""
    crashes = 0

    async def look() -> bool:
        nonlocal crashes
        crashes += crew.restart_the_dead()
        rows: list[dict[str, Any]] = await deliveries(app.service("middle"))
        states = [row["state"] for row in rows]
        counts = (states.count("parked"), states.count("waiting"), len(states))
        end, _ = await app.service("source").store.log.end()
        lanes = await app.service("middle").fetch("SELECT position FROM skald_cursors")
        assert all(row["position"] == end for row in lanes), f"{counts}, {crashes} crashes"
        assert counts == (parked, waiting, parked + waiting), f"{counts}, {crashes} crashes"
        return True

    await eventually(look)
    return crashes


async def _nth(app: App, key: str, n: int) -> int:
    records = await app.service("source").store.log.read(1, 1_000)
    return [record.position for record in records if record.key == key][n]
