"""Twenty million rides a day on PostgreSQL: one process runs them, another one creates them and sends their signals.

The rate is offered, not pulled: who creates rides does not wait for those before. A little more than the goal is
offered, because what a span of time holds of a steady rate varies by its edges. A span begins when the first rides have
ended. Each ride counts at the end: all of them have completed.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.harness.child import Child, Children
from benchmarks.harness.figures import Figure, at_least, at_most, plain
from benchmarks.harness.places import Place
from benchmarks.workflows.sizes import Sizes
from benchmarks.workflows.tables import Tables, add_finished, count, tables, until
from benchmarks.workflows.waits import FIFTHS

PER_SECOND = 231
OFFERED = 236.0
WARM = 4.0
"""Seconds before the span that is measured."""
CREATE_MILLISECONDS, UPDATE_MILLISECONDS = 100.0, 50.0
FLAT, GROWTH = 0.85, 1.15


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    if place.name != "postgres":
        return []
    empty = driven(place, sizes.ride_seconds)
    full = driven(place, sizes.finished_seconds, sizes.finished)
    name, beside = place.name, f"beside {sizes.finished:,} finished ones {place.name}"
    first, *_, last = empty["fifths"]
    early, late = empty["memory"][1], empty["memory"][-1]
    return [
        *_figures(empty, sizes.ride_seconds, name),
        at_least(f"ride throughput, last fifth beside the first {name}", (last, first), "rides", FLAT),
        at_most(f"ride memory, last fifth beside the second {name}", (late, early), "MiB", GROWTH),
        *_figures(full, sizes.finished_seconds, beside),
    ]


def _figures(found: dict[str, Any], seconds: float, name: str) -> list[Figure]:
    return [
        at_least(f"ride rate {name}", (sum(found["fifths"]) / seconds, PER_SECOND), "rides/s", 1.0),
        at_most(f"ride creation, p99 {name}", (found["create"], CREATE_MILLISECONDS), "ms", 1.0),
        at_most(f"ride update, p99 {name}", (found["update"]["p99"], UPDATE_MILLISECONDS), "ms", 1.0),
        plain(f"ride update, p50 {name}", found["update"]["p50"], "ms"),
    ]


def driven(place: Place, seconds: float, finished: int = 0) -> dict[str, Any]:
    """What a span of so many seconds was like."""
    url = place.fresh()
    beside = tables(url)
    try:
        if finished:
            add_finished(beside, finished)
        with Children() as start:
            return _driven(start, url, beside, seconds, finished)
    finally:
        beside.close()
        place.drop(url)


def _driven(start: Children, url: str, beside: Tables, seconds: float, finished: int) -> dict[str, Any]:
    worker = start("benchmarks.workflows.waiting:work", url=url)
    driver = start("benchmarks.workflows.waiting:drive", url=url, per_second=OFFERED)
    worker.hear(), driver.hear()
    span = {"began": time.monotonic() + WARM, "seconds": seconds}
    worker.tell(**span)
    driver.tell(**span)
    memory = _memory(worker, **span)
    told = driver.hear(WARM + seconds + 60)
    ended = "skald_workflows WHERE ended_at IS NOT NULL AND state = 'completed'"
    until(lambda: count(beside, ended) == finished + told["created"], every=0.5)
    found = worker.ask(counted=0)
    return {"fifths": found["fifths"], "create": told["p99"], "update": found, "memory": memory}


def _memory(worker: Child, began: float, seconds: float) -> list[float]:
    """The mean of each fifth."""
    samples: list[list[float]] = [[] for _ in range(FIFTHS)]
    while (passed := time.monotonic() - began) < seconds:
        if passed >= 0:
            samples[int(FIFTHS * passed / seconds)].append(worker.resident())
        time.sleep(min(1.0, seconds / 40))
    return [sum(fifth) / len(fifth) for fifth in samples]
