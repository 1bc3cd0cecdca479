"""Beside a million workflows that sleep everything is as it was; and those that sleep cost a process no memory."""

from __future__ import annotations

import time
from functools import partial

from benchmarks.harness.child import Children
from benchmarks.harness.figures import Figure, at_least, at_most, plain
from benchmarks.harness.places import Place
from benchmarks.harness.rounds import interleave, middle
from benchmarks.workflows.ceiling import AT_ONCE, told
from benchmarks.workflows.sizes import Sizes
from benchmarks.workflows.tables import add_sleeping, count, tables, until

FLAT = 0.85
START_SECONDS = 2.0
MIB, BASE_MIB, OF = 300.0, 80.0, 100_000
"""What so many sleeping ones may cost, and how much of it a process has without any."""
HOURS = 10 * 3_600.0


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    return [*_beside(place, sizes), *_in_memory(place, sizes)]


def _beside(place: Place, sizes: Sizes) -> list[Figure]:
    empty, full = place.fresh(), place.fresh()
    beside = tables(full)
    add_sleeping(beside, sizes.sleeping, beside.now() + round(HOURS * 1e6), 2 * HOURS)
    beside.close()
    taken = []
    with Children() as start:
        for _ in range(sizes.rounds):
            began = time.monotonic()
            one = start("benchmarks.workflows.waiting:first", url=full)
            one.hear()
            taken.append(time.monotonic() - began)
            one.close()
    with Children() as start:
        urls = {"empty": empty, "full": full}
        children = {name: start("benchmarks.workflows.children:run", url=url) for name, url in urls.items()}
        for child in children.values():
            child.hear()
            told(child, "order", AT_ONCE, 1.0)  # warm
        runs = {name: partial(told, child, "order", AT_ONCE, sizes.seconds) for name, child in children.items()}
        found = {name: [one["rate"] for one in many] for name, many in interleave(sizes.rounds, runs).items()}
    for url in (empty, full):
        place.drop(url)
    of = f"{sizes.sleeping:,} sleeping workflows {place.name}"
    return [
        at_least(f"100 workflows at once, beside {of}", middle(found["full"], found["empty"]), "workflows/s", FLAT),
        at_most(
            f"first workflow of a new process beside {of}", (sorted(taken)[len(taken) // 2], START_SECONDS), "s", 1.0
        ),
    ]


def _in_memory(place: Place, sizes: Sizes) -> list[Figure]:
    url, naps = place.fresh(), sizes.started
    beside = tables(url)
    with Children() as start:
        worker = start("benchmarks.workflows.waiting:start_naps", url=url, naps=naps, seconds=HOURS)
        worker.hear(300)
        full = worker.resident()
        until(lambda: count(beside, "skald_workflows WHERE owner IS NULL AND wake_at IS NOT NULL") == naps, every=0.5)
        time.sleep(1.0)
        left = worker.resident()
    beside.close()
    place.drop(url)
    of = f"{naps:,} sleeping workflows {place.name}"
    limit = BASE_MIB + (MIB - BASE_MIB) * naps / OF
    return [
        at_most(f"memory of the process of {of}", (left, limit), "MiB", 1.0),
        plain(f"memory before they leave it, {of}", full, "MiB"),
    ]
