"""Several processes of one service: shared lanes, clean hand-over, crashes, processes that were stopped or blocked."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from skald import App
from skald.cli.running import EXIT_LOST
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.pipeline import Options, build
from tests.simulation.stage import Job, Placed, deliveries, eventually, seed
from tests.simulation.workers import KILLED, Workers, check_pipeline, owners_of, workers

KEYS = [f"k{n}" for n in range(16)]


async def publish(app: App, n: int, keys: list[str] = KEYS) -> None:
    await app.service("source").publish(*(Placed(key, n) for key in keys))


async def two_middles(crew: Workers, app: App) -> None:
    first, second, sink = crew.start("middle"), crew.start("middle"), crew.start("sink")
    for worker in (first, second, sink):
        await worker.is_running()
    await eventually(lambda: owners_of(app.service("middle"), 2))


async def test_a_sigterm_hands_over_at_once_and_counts_nothing(store_url: str, tmp_path: Path) -> None:  # noqa: F811
    """With handlers in flight, and a lease so long that only the hand-over itself can explain it."""
    options = Options(lease=60.0, slow=1.0)
    app = build(store_url, options)
    await app.migrate()
    with workers(tmp_path, store_url, options) as crew:
        async with app.connect():
            await two_middles(crew, app)
            slow = [f"slow{n}" for n in range(8)]
            await publish(app, 0, KEYS + slow)
            await eventually(lambda: deliveries(app.service("middle")))
            crew.all[0].send(signal.SIGTERM)
            await publish(app, 1, KEYS + slow)
            await eventually(lambda: owners_of(app.service("middle"), 1))
            await publish(app, 2, KEYS + slow)
            assert await crew.all[0].exit_code() == 0
            await check_pipeline(app, dict.fromkeys(KEYS + slow, 3))
            assert not any(worker.logged('"Retried"') for worker in crew.all)


async def test_kill_9_is_seen_and_taken_over_at_once(store_url: str, tmp_path: Path) -> None:  # noqa: F811
    options = Options(lease=60.0)
    app = build(store_url, options)
    await app.migrate()
    with workers(tmp_path, store_url, options) as crew:
        async with app.connect():
            await two_middles(crew, app)
            await publish(app, 0)
            crew.all[0].send(signal.SIGKILL)
            await publish(app, 1)
            assert await crew.all[0].exit_code() == KILLED
            await eventually(lambda: owners_of(app.service("middle"), 1))
            await publish(app, 2)
            await check_pipeline(app, dict.fromkeys(KEYS, 3))
            assert crew.all[1].logged('"LanesTaken"')
            assert crew.all[1].logged("its process is gone")


async def test_a_stopped_process_that_wakes_up_breaks_nothing(store_url: str, tmp_path: Path) -> None:  # noqa: F811
    options = Options(lease=1.0, slow=1.5, patience=5.0)
    app = build(store_url, options)
    await app.migrate()
    with workers(tmp_path, store_url, options) as crew:
        async with app.connect():
            await two_middles(crew, app)
            zombie, other, _ = crew.all
            middle = app.service("middle")
            slow = [f"slow{n}" for n in range(16)]
            await publish(app, 0, slow)
            zombie.send(signal.SIGSTOP)
            await eventually(lambda: owners_of(middle, 1))
            await publish(app, 1, slow)
            zombie.send(signal.SIGCONT)
            await publish(app, 2, slow)
            assert await zombie.exit_code() == EXIT_LOST
            await check_pipeline(app, dict.fromkeys(slow, 3), crew=crew)
            assert other.logged("its lease has run out")


async def test_a_blocked_loop_is_named_and_loses_its_lanes(store_url: str, tmp_path: Path) -> None:  # noqa: F811
    options = Options(lease=1.0, block=6.0)
    app = build(store_url, options)
    await app.migrate()
    with workers(tmp_path, store_url, options) as crew:
        async with app.connect():
            await two_middles(crew, app)
            await publish(app, 0, ["block", *KEYS])
            blocked = await eventually(lambda: _who_stalls(crew))
            await publish(app, 1)
            assert await blocked.exit_code() == EXIT_LOST
            assert blocked.logged("in act")
            await check_pipeline(app, {"block": 1, **dict.fromkeys(KEYS, 2)}, crew=crew)


async def _who_stalls(crew: Workers) -> object:
    return next((worker for worker in crew.all if worker.logged('"LoopStalled"')), False)


async def test_sixteen_processes_with_crashes_lose_and_double_nothing(store_url: str, tmp_path: Path) -> None:  # noqa: F811
    chance = random.Random(seed())
    options = Options(lease=2.0, lanes=16, slow=0.2)
    app = build(store_url, options)
    await app.migrate()
    keys = [*KEYS, "slow1", "slow2", "flaky1"]
    with workers(tmp_path, store_url, options) as crew:
        for _ in range(16):
            crew.start("middle")
        crew.start("sink")
        async with app.connect():
            await crew.all[0].is_running()
            for n in range(20):
                await publish(app, n, keys)
                await app.service("source").publish(*(Job(f"j{k}", n) for k in range(4)))
                if n % 4 == 0:
                    victim = chance.choice(crew.all[:16])
                    victim.send(chance.choice([signal.SIGKILL, signal.SIGTERM]))
            await check_pipeline(app, dict.fromkeys(keys, 20), {f"j{k}": 20 for k in range(4)}, crew=crew)


@pytest.fixture(autouse=True)
def _more_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.stage.PATIENCE", 60.0)
