"""Start and signal: how soon a process that runs workflows hears of what another one wants of them, one at a time."""

from __future__ import annotations

from benchmarks.harness.child import Children
from benchmarks.harness.figures import Figure, at_most, plain
from benchmarks.harness.places import Place
from benchmarks.workflows.sizes import Sizes
from benchmarks.workflows.tables import Tables, count, tables, until

MILLISECONDS = 10.0
NEVER, SOON = 3_600.0, 0.05
WORKER = "benchmarks.workflows.waiting:work"


def measure_start(place: Place, sizes: Sizes) -> list[Figure]:
    """From the call in one process to the first step in another."""
    url = place.fresh()
    tables(url).close()
    with Children() as start:
        worker = start(WORKER, url=url)
        worker.hear()
        start("benchmarks.workflows.waiting:start", url=url, talks=sizes.talks).hear()
        found = worker.ask(counted=sizes.talks)
    place.drop(url)
    return [
        at_most(f"start from another process, p50 {place.name}", (found["p50"], MILLISECONDS), "ms", 1.0),
        plain(f"start from another process, p99 {place.name}", found["p99"], "ms"),
    ]


def measure_signal(place: Place, sizes: Sizes) -> list[Figure]:
    """From the call in one process to the line after ``receive()`` in another."""
    here = _signalled(place, sizes.talks, NEVER, "owner IS NOT NULL")
    away = _signalled(place, sizes.talks, SOON, "owner IS NULL AND wake_at IS NULL")
    name = "signal from another process"
    return [
        at_most(f"{name}, p50 {place.name}", (here["p50"], MILLISECONDS), "ms", 1.0),
        plain(f"{name}, p99 {place.name}", here["p99"], "ms"),
        plain(f"{name} to an evicted workflow, p50 {place.name}", away["p50"], "ms"),
        plain(f"{name} to an evicted workflow, p99 {place.name}", away["p99"], "ms"),
    ]


def _signalled(place: Place, talks: int, idle: float, waiting: str) -> dict[str, float]:
    """``waiting``: how one looks that waits."""
    url = place.fresh()
    beside: Tables = tables(url)
    try:
        with Children() as start:
            worker = start(WORKER, url=url, idle=idle)
            worker.hear()
            sender = start("benchmarks.workflows.waiting:signal", url=url, talks=talks)
            sender.hear()
            until(lambda: count(beside, f"skald_workflows WHERE state = 'running' AND {waiting}") == talks)
            sender.ask(go=True)
            return worker.ask(counted=talks)
    finally:
        beside.close()
        place.drop(url)
