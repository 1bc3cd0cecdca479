"""Latency under light load: from the call at the producer to the commit of the answer in another process."""

from __future__ import annotations

from functools import partial

from benchmarks.harness.child import Children
from benchmarks.harness.figures import Figure, at_most
from benchmarks.harness.places import Place
from benchmarks.harness.rounds import interleave, middle
from benchmarks.spine import pair
from benchmarks.spine.append import migrated
from benchmarks.spine.sizes import Sizes

PER_SECOND = 180
LONGEST = 5.0
LONGEST_BESIDE = 100.0
"""Milliseconds."""


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    runs = {
        "limit": partial(_percentiles, place, pair.LIMIT, sizes.latency_seconds),
        "skald": partial(_percentiles, place, pair.OBSERVED, sizes.latency_seconds),
    }
    found = interleave(sizes.rounds, runs)
    p50, p99 = (middle([one[p] for one in found["skald"]], [one[p] for one in found["limit"]]) for p in ("p50", "p99"))
    return [
        at_most(f"latency p50 {place.name}", p50, "ms", 2.0),
        at_most(f"latency p50, beside 5 ms {place.name}", (p50[0], LONGEST), "ms", 1.0),
        at_most(f"latency p99 {place.name}", p99, "ms", None),
        *(_beside_held(place, sizes) if place.name == "postgres" else []),
    ]


def _beside_held(place: Place, sizes: Sizes) -> list[Figure]:
    """Not on SQLite, where an open transaction owns the file."""
    url = migrated(place)
    try:
        with Children() as start:
            target = "benchmarks.spine.children:append_beside_held"
            found = start(target, url=url, seconds=sizes.held_seconds, per_second=PER_SECOND).hear(
                sizes.held_seconds + 60
            )
    finally:
        place.drop(url)
    name = f"latency p99 of appends beside a held key {place.name}"
    return [at_most(name, (found["p99"], LONGEST_BESIDE), "ms", 1.0)]


def _percentiles(place: Place, kind: pair.Pair, seconds: float) -> dict[str, float]:
    url, count = kind.prepared(place), round(seconds * PER_SECOND)
    try:
        with Children() as start:
            consumer = kind.consuming(start, place, url, count)
            kind.producing(start, place, url, count, per_second=PER_SECOND).tell(go=True)
            return consumer.hear()
    finally:
        place.drop(url)
