"""A process is killed between any two durable writes, on either side of a call: every order is done, or undone once."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from skald.messaging.calls import is_called
from skald.testing.failpoints import kill_at
from tests.simulation.calling import build, fulfil
from tests.simulation.pipeline import Options
from tests.simulation.stage import effects, eventually, seed
from tests.simulation.workers import workers

OPTIONS = Options(lease=30.0, patience=0.05, checkpoint=0.05, run=10, lanes=4)
CALLED = ["commit.before", "commit.after", "transaction.handled", "transaction.applied", "transaction.committed"]
CALLING = [
    "commit.before",
    "commit.after",
    "workflows.claiming",
    "workflows.claimed",
    "workflows.firing",
    "claim.after",
]
SELDOM = {"workflows.firing"}
"""Mostly the stock answers in time."""
PLACES = [("orders", place) for place in CALLING] + [("stock", place) for place in CALLED]
SAMPLE = random.Random(seed()).sample([(who, name, hit) for who, name in PLACES for hit in (1, 2, 3)], 3)
KINDS = ("fine", "none", "poor", "hasty", "last")
ENDS = {"fine": {"COMPLETED"}, "hasty": {"COMPLETED", "COMPENSATED"}}


@pytest.fixture(autouse=True)
def _more_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.stage.PATIENCE", 60.0)


async def crash(url: str, folder: Path, who: str, name: str, hit: int) -> None:
    app = build(url, OPTIONS)
    await app.migrate()
    keys, killed = [f"{kind}{n}" for n in range(4) for kind in KINDS], 0
    orders, stock, bank = (app.service(name) for name in ("orders", "stock", "bank"))
    with workers(folder, url, OPTIONS, "tests.simulation.calling:app") as crew:
        async with app.connect():
            for service in ("orders", "stock", "bank"):
                crew.start(service, environment=kill_at(name, hit) if service == who else None)
            for key in keys:
                await fulfil.start(key, id=key)

            async def done() -> bool:
                nonlocal killed
                killed += crew.restart_the_dead()
                rows = await orders.fetch("SELECT saga_id, status FROM saga_state")
                left = [row for row in rows if row["status"] not in ("COMPLETED", "COMPENSATED")]
                assert not left, f"{left[:3]} and more, {len(left)}"
                for participant in (stock, bank):  # what comes late is refused, or harmless
                    found = await participant.fetch("SELECT position FROM skald_cursors")
                    end, _ = await orders.store.log.end()
                    assert {row["position"] for row in found} == {end}
                return True

            await eventually(done)
            rows = await orders.fetch("SELECT saga_id, status FROM saga_state")
            counts = {
                handler: Counter(row["key"] for row in await effects(service, handler))
                for service, handlers in ((stock, ("reserve", "release")), (bank, ("pay", "refund")))
                for handler in handlers
            }
            commands = [r for r in await orders.store.log.read(0, 10_000) if is_called(r.id)]
            letters = await orders.fetch("SELECT id FROM skald_letters")
    assert killed or hit > 1 or name in SELDOM
    assert not letters
    assert len({record.id for record in commands}) == len(commands)
    status = {row["saga_id"]: row["status"] for row in rows}
    assert sorted(status) == sorted(keys)
    for key in keys:
        kind = key.rstrip("0123456789")
        assert status[key] in ENDS.get(kind, {"COMPENSATED"})
        undone = status[key] == "COMPENSATED"
        reserved, released, paid, refunded = (counts[name][key] for name in ("reserve", "release", "pay", "refund"))
        assert reserved <= 1
        assert paid <= 1
        assert (released, refunded) == ((reserved, paid) if undone else (0, 0))
        assert undone or reserved == paid == 1
        if kind == "last":
            assert reserved == paid == 1


@pytest.mark.parametrize(("who", "name", "hit"), SAMPLE)
async def test_a_crash_on_either_side_of_a_call(store_url: str, tmp_path: Path, who: str, name: str, hit: int) -> None:
    await crash(store_url, tmp_path, who, name, hit)


@pytest.mark.sweep
@pytest.mark.parametrize("hit", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize(("who", "name"), PLACES)
async def test_a_crash_at_every_place(store_url: str, tmp_path: Path, who: str, name: str, hit: int) -> None:
    await crash(store_url, tmp_path, who, name, hit)
