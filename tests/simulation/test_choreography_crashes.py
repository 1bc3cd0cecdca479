"""A process is killed between any two durable writes: what was done is undone once, and a process moves on once."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from skald.testing.failpoints import kill_at
from tests.simulation.choreography import Cancelled, Ledger, Placed, build
from tests.simulation.pipeline import Options
from tests.simulation.stage import caught_up, deliveries, effects, eventually, seed
from tests.simulation.workers import workers

OPTIONS = Options(lease=30.0, patience=0.05, checkpoint=0.05, run=10, lanes=4)
PLACES = [
    "claim.after", "commit.before", "commit.after", "transaction.handled", "transaction.applied",
    "transaction.committed", "work.claimed", "delivery.decided", "delivery.ended",
]  # fmt: skip
SAMPLE = random.Random(seed()).sample([(name, hit) for name in PLACES for hit in (1, 2, 3)], 2)


@pytest.fixture(autouse=True)
def _more_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.stage.PATIENCE", 60.0)


async def crash(url: str, folder: Path, name: str, hit: int) -> None:
    ledger = str(folder / "ledger")
    app = build(url, OPTIONS, ledger)
    await app.migrate()
    keys = [f"o{n}" for n in range(12)]
    cancelled = keys[::2]
    orders, stock, payments = (app.service(name) for name in ("orders", "stock", "payments"))
    with workers(folder, url, OPTIONS, "tests.simulation.choreography:app") as crew:
        async with app.connect():
            crew.start("payments", environment={**kill_at(name, hit), "LEDGER": ledger})
            for key in keys:
                await orders.publish(Placed(key))
                if key in cancelled:
                    await stock.publish(Cancelled(key))
            await orders.publish(*(Placed(key) for key in keys))
            await stock.publish(*(Cancelled(key) for key in cancelled))

            async def done() -> bool:
                crew.restart_the_dead({"LEDGER": ledger})
                assert await caught_up(payments, orders)
                assert await caught_up(payments, stock)
                return not await deliveries(payments)

            await eventually(done)
            published = Counter((r.type, r.key) for r in await payments.store.log.read(0, 1_000))
            asked = set(Ledger(ledger).asked())
            charges, refunds = [
                Counter(row["key"] for row in await effects(payments, handler)) for handler in ("charge", "refund")
            ]
    for key in keys:
        charged, held = published["Charged", key], published["Held", key]
        assert charges[key] == charged <= 1
        assert held <= 1
        assert refunds[key] == published["Refunded", key] == (charged if key in cancelled else 0)
        was_held = f"payments:hold:{key}" in asked
        assert (f"payments:release:{key}" in asked) == (published["Released", key] == 1)
        assert published["Released", key] == int(was_held and key in cancelled)
        if key not in cancelled:
            assert charged == held == 1
        assert published["Waited", key] == 1


@pytest.mark.parametrize(("name", "hit"), SAMPLE)
async def test_a_crash_undoes_nothing_twice_and_forgets_nothing(
    store_url: str, tmp_path: Path, name: str, hit: int
) -> None:
    await crash(store_url, tmp_path, name, hit)


@pytest.mark.sweep
@pytest.mark.parametrize("hit", [1, 2, 3, 5])
@pytest.mark.parametrize("name", PLACES)
async def test_a_crash_at_every_place(store_url: str, tmp_path: Path, name: str, hit: int) -> None:
    await crash(store_url, tmp_path, name, hit)
