"""A process is killed between any two durable writes: then each effect is there once, in order, and nothing waits.

The places are those of ``skald.failpoints``; a run that writes down what it comes to says how often there is a chance.
The plain suite tries a few of them, chosen by its seed; the sweep all, up to ``DEEP`` hits of each.
"""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

import skald
from skald import App
from skald.testing.failpoints import kill_at, trace_to, traced
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.pipeline import Options, build
from tests.simulation.stage import Job, Placed, deliveries, eventually, seed
from tests.simulation.workers import Workers, check_pipeline, workers

KEYS = ["k0", "k1", "k2", "slow", "flaky", "tx-flaky", "late"]
COUNT = 3
DEEP = 3
OPTIONS = Options(lease=30.0, patience=0.05, checkpoint=0.05, run=10, slow=0.15, lanes=4)

WORKING = {
    "start.joined", "start.fenced", "claim.before", "claim.after", "commit.before", "commit.after", "checkpoint.before",
    "transaction.handled", "transaction.applied", "transaction.committed",
    "single.handled", "single.applied", "single.committed",
    "delivery.announced", "delivery.decided", "delivery.applied", "delivery.ended", "work.claimed",
}  # fmt: skip
TAKING_OVER = {"take_over.unfenced", "take_over.lanes", "take_over.after", "claim.before", "claim.after"}
STOPPING = {"hand_over.unfenced", "stop.handed_over"}


@pytest.fixture(autouse=True)
def _more_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.stage.PATIENCE", 60.0)


OF_WORKFLOWS = ("workflow.", "workflows.", "step.", "locks.")
"""Places of the engine for workflows, which has crash tests of its own (tests/simulation)."""


def test_every_place_in_the_code_is_in_a_sweep() -> None:
    source = "".join(path.read_text() for path in Path(skald.__file__).parent.rglob("*.py"))
    named = set(re.findall(r'failpoints\.hit\("([^"]+)"\)', source))
    assert {name for name in named if not name.startswith(OF_WORKFLOWS)} == WORKING | TAKING_OVER | STOPPING


async def feed(app: App) -> None:
    source = app.service("source")
    for n in range(COUNT):
        await source.publish(*(Placed(key, n) for key in KEYS), *(Job(f"j{k}", n) for k in range(2)))


async def finish(app: App, crew: Workers) -> None:
    await check_pipeline(app, dict.fromkeys(KEYS, COUNT), {"j0": COUNT, "j1": COUNT}, crew=crew)


async def working(url: str, folder: Path, armed: Mapping[str, str]) -> None:
    """The armed process does all the work until it dies."""
    app = build(url, OPTIONS)
    await app.migrate()
    with workers(folder, url, OPTIONS) as crew:
        async with app.connect():
            crew.start("sink")
            crew.start("middle", environment=armed)
            await feed(app)
            await finish(app, crew)


async def taking_over(url: str, folder: Path, armed: Mapping[str, str]) -> None:
    """The armed process takes over from one that was killed in the middle of its work."""
    app = build(url, OPTIONS)
    await app.migrate()
    with workers(folder, url, OPTIONS) as crew:
        async with app.connect():
            crew.start("sink")
            first = crew.start("middle")
            await feed(app)
            await eventually(lambda: deliveries(app.service("middle")))
            first.send(signal.SIGKILL)
            await first.exit_code()
            crew.all.remove(first)
            crew.start("middle", environment=armed)
            await finish(app, crew)


async def stopping(url: str, folder: Path, armed: Mapping[str, str]) -> None:
    """The armed process is told to stop in the middle of its work."""
    app = build(url, OPTIONS)
    await app.migrate()
    with workers(folder, url, OPTIONS) as crew:
        async with app.connect():
            crew.start("sink")
            first = crew.start("middle", environment=armed)
            await feed(app)
            await eventually(lambda: deliveries(app.service("middle")))
            first.send(signal.SIGTERM)
            if await first.exit_code() == 0:
                crew.start("middle")
            await finish(app, crew)


STORIES = {"working": (working, WORKING), "taking over": (taking_over, TAKING_OVER), "stopping": (stopping, STOPPING)}
PLACES = [(story, name) for story, (_, names) in STORIES.items() for name in sorted(names)]
SAMPLE = random.Random(seed()).sample(PLACES, 4)


@pytest.mark.parametrize(("story", "name"), SAMPLE)
async def test_a_crash_between_two_durable_writes_harms_nothing(
    store_url: str,  # noqa: F811
    tmp_path: Path,
    story: str,
    name: str,
) -> None:
    await STORIES[story][0](store_url, tmp_path, kill_at(name))


@pytest.mark.sweep
@pytest.mark.parametrize("hit", range(1, DEEP + 1))
@pytest.mark.parametrize(("story", "name"), PLACES)
async def test_crashes_at_every_hit_harm_nothing(
    store_url: str,  # noqa: F811
    tmp_path: Path,
    story: str,
    name: str,
    hit: int,
) -> None:
    await STORIES[story][0](store_url, tmp_path, kill_at(name, hit))


@pytest.mark.sweep
@pytest.mark.parametrize("story", STORIES)
async def test_every_place_of_a_story_is_come_to(store_url: str, tmp_path: Path, story: str) -> None:  # noqa: F811
    play, names = STORIES[story]
    await play(store_url, tmp_path, trace_to(tmp_path / "trace"))
    assert names - traced(tmp_path / "trace").keys() == set()
