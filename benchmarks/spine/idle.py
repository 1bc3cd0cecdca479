"""Idle: the statements that a process makes while nothing happens, counted by the driver's hook or on the wire."""

from __future__ import annotations

from benchmarks.harness.child import Children
from benchmarks.harness.figures import Figure, at_most
from benchmarks.harness.places import Place
from benchmarks.spine.append import migrated
from benchmarks.spine.sizes import Sizes

MOST = 2.0
SETTLE = 3.0
"""Seconds after the start that are not counted."""


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    url, target = migrated(place), f"benchmarks.spine.counting:idle_{place.name}"
    with Children() as start:
        child = start(target, url=url, settle=SETTLE, seconds=sizes.idle_seconds)
        statements = child.hear()["statements"]
    place.drop(url)
    return [at_most(f"idle {place.name}", (statements / sizes.idle_seconds, MOST), "statements/s", 1.0)]
