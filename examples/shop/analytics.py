"""Analytics: orders per minute, revenue per day, failure rate. It only listens.

Each message counts exactly once, because its row and the reader's place in the log change in one transaction. A fact
that comes once more as another message counts once, too: a number that grows needs to know the fact.
"""

from __future__ import annotations

from pathlib import Path

from examples.shop.messages import OrderCancelled, OrderConfirmed, OrderPlaced
from skald import Envelope, Service, Transaction

MIGRATIONS = Path(__file__).with_name("migrations") / "analytics"
MINUTE = 60_000_000
DAY = 86_400_000_000

analytics = Service("analytics", team="analytics", on_call="analytics@example.com", migrations=MIGRATIONS)


@analytics.on(OrderPlaced, once_by="order_id")
async def count_placed(event: OrderPlaced, envelope: Envelope, tx: Transaction) -> None:
    await tx.execute(
        "INSERT INTO orders_per_minute (minute, placed) VALUES (:minute, 1)"
        " ON CONFLICT (minute) DO UPDATE SET placed = orders_per_minute.placed + 1",
        minute=envelope.record.time // MINUTE,
    )


@analytics.on(OrderConfirmed, once_by="order_id")
async def count_confirmed(event: OrderConfirmed, envelope: Envelope, tx: Transaction) -> None:
    await _count(tx, envelope, confirmed=1, cancelled=0, cents=event.total)


@analytics.on(OrderCancelled, once_by="order_id")
async def count_cancelled(event: OrderCancelled, envelope: Envelope, tx: Transaction) -> None:
    """An order that is cancelled after it was confirmed counts as cancelled, and takes its revenue back."""
    back = int(event.was_confirmed)
    await _count(tx, envelope, confirmed=-back, cancelled=1, cents=-event.total * back)


async def _count(tx: Transaction, envelope: Envelope, *, confirmed: int, cancelled: int, cents: int) -> None:
    day = envelope.record.time // DAY
    await tx.execute(
        "INSERT INTO outcomes_per_day (day, confirmed, cancelled) VALUES (:day, :confirmed, :cancelled)"
        " ON CONFLICT (day) DO UPDATE SET confirmed = outcomes_per_day.confirmed + excluded.confirmed,"
        " cancelled = outcomes_per_day.cancelled + excluded.cancelled",
        day=day,
        confirmed=confirmed,
        cancelled=cancelled,
    )
    await tx.execute(
        "INSERT INTO revenue_per_day (day, cents) VALUES (:day, :cents)"
        " ON CONFLICT (day) DO UPDATE SET cents = revenue_per_day.cents + excluded.cents",
        day=day,
        cents=cents,
    )


async def failure_rate() -> float:
    """The share of settled orders that came to nothing."""
    rows = await analytics.fetch(
        "SELECT SUM(confirmed) AS confirmed, SUM(cancelled) AS cancelled FROM outcomes_per_day"
    )
    confirmed, cancelled = rows[0]["confirmed"] or 0, rows[0]["cancelled"] or 0
    return float(cancelled / (confirmed + cancelled)) if confirmed + cancelled else 0.0
