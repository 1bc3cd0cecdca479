"""Read: the whole log through a cursor, 500 events at a time, each payload decoded."""

from __future__ import annotations

from functools import partial

from benchmarks.harness.child import Child, Children
from benchmarks.harness.figures import Figure, at_least
from benchmarks.harness.places import Place
from benchmarks.harness.rounds import interleave, middle
from benchmarks.spine.append import migrated
from benchmarks.spine.sizes import Sizes


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    url, limits = migrated(place), f"benchmarks.spine.limits.{place.name}_tables"
    with Children() as start:
        start(f"{limits}:fill", url=url, count=sizes.read_messages).hear(300)
    with Children() as start:
        runs = {
            "limit": partial(_rate, start(f"{limits}:read", url=url)),
            "skald": partial(_rate, start("benchmarks.spine.children:read", url=url)),
        }
        found = interleave(sizes.rounds, runs)
    place.drop(url)
    return [at_least(f"read {place.name}", middle(found["skald"], found["limit"]), "events/s", 0.7)]


def _rate(child: Child) -> float:
    rate: float = child.ask()["rate"]
    return rate
