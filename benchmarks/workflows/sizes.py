"""How much is measured: everything within 20 minutes and the ten of the rides, the quick run within four."""

from __future__ import annotations

import msgspec


class Sizes(msgspec.Struct, frozen=True):
    """``…seconds`` of one run; ``rounds`` is odd, because the median of them counts. All others are counts."""

    rounds: int
    seconds: float
    talks: int
    """Starts and signals, one at a time."""
    ride_seconds: float
    finished_seconds: float
    """Rides beside those that have finished."""
    finished: int
    sleeping: int
    started: int
    """Sleeping ones that one worker has started."""
    timers: int
    orders: int


QUICK = Sizes(
    rounds=3,
    seconds=1.2,
    talks=150,
    ride_seconds=20.0,
    finished_seconds=10.0,
    finished=200_000,
    sleeping=100_000,
    started=20_000,
    timers=10_000,
    orders=2_000,
)
FULL = Sizes(
    rounds=7,
    seconds=6.0,
    talks=400,
    ride_seconds=600.0,
    finished_seconds=120.0,
    finished=5_000_000,
    sleeping=1_000_000,
    started=100_000,
    timers=100_000,
    orders=20_000,
)
