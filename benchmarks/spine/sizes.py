"""How much of everything: the whole run ends within an hour on 2 cores, the quick one within five minutes."""

from __future__ import annotations

import msgspec


class Sizes(msgspec.Struct, frozen=True):
    """Times in seconds; ``…_messages`` and ``rows`` are counts. After ``warm_messages`` bounded caches are full."""

    rounds: int
    append_seconds: float
    flat_pairs: int
    flat_seconds: float
    rows: int
    snapshot_seconds: float
    deliver_messages: int
    outbox_messages: int
    latency_seconds: float
    held_seconds: float
    read_messages: int
    backlog_messages: int
    memory_messages: int
    warm_messages: int
    idle_seconds: float


FULL = Sizes(
    rounds=5,
    append_seconds=3,
    flat_pairs=9,
    flat_seconds=2,
    rows=5_000_000,
    snapshot_seconds=60,
    deliver_messages=60_000,
    outbox_messages=15_000,
    latency_seconds=10,
    held_seconds=10,
    read_messages=200_000,
    backlog_messages=100_000,
    memory_messages=1_000_000,
    warm_messages=100_000,
    idle_seconds=30,
)

QUICK = Sizes(
    rounds=3,
    append_seconds=0.7,
    flat_pairs=3,
    flat_seconds=0.5,
    rows=200_000,
    snapshot_seconds=4,
    deliver_messages=10_000,
    outbox_messages=3_000,
    latency_seconds=2,
    held_seconds=3,
    read_messages=30_000,
    backlog_messages=70_000,
    memory_messages=200_000,
    warm_messages=100_000,
    idle_seconds=14,
)
