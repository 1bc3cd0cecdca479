"""A hundred thousand timers within one second, of workflows that nobody owns: each fires once, none early.

The rows are generated, so that the timers are due when the process that will fire them is up. Times are those of the
database's clock, from when the last of them is due.
"""

from __future__ import annotations

import time

from benchmarks.harness.child import Child, Children
from benchmarks.harness.figures import Figure, at_most
from benchmarks.harness.places import Place
from benchmarks.workflows.sizes import Sizes
from benchmarks.workflows.tables import Tables, add_sleeping, count, tables

FIRED_SECONDS, COMPLETED_SECONDS, OF = 10.0, 30.0, 100_000
SLEPT = 3_600.0
PATIENCE = 30.0, 90.0
"""Seconds: at least, and for so many more."""
FIRED, COMPLETED = "skald_journal WHERE kind = 2", "skald_workflows WHERE ended_at IS NOT NULL AND state = 'completed'"
_EARLY = f"""
skald_journal f JOIN skald_journal s ON s.run = f.run AND s.position = 1
WHERE f.kind = 2 AND f.time < s.time + {round(SLEPT * 1e6)}
"""
"""Timers that fired before they were due: each nap has begun with its first step."""


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    url, number = place.fresh(), sizes.timers
    beside = tables(url)
    try:
        due = beside.now() + round((5 + number / 10_000) * 1e6)
        add_sleeping(beside, number, due, SLEPT)
        with Children() as start:
            worker = start("benchmarks.workflows.waiting:work", url=url)
            worker.hear()
            if beside.now() > due:
                raise RuntimeError("the timers were due before there was a process to fire them")
            fired, completed = _times(worker, beside, number, due)
        wrong = _wrong(beside)
    finally:
        beside.close()
        place.drop(url)
    share = number / OF
    name = f"of {number:,} timers in one second"
    return [
        at_most(f"the last firing {name} {place.name}", (fired, FIRED_SECONDS * share), "s", 1.0),
        at_most(f"the last completion {name} {place.name}", (completed, COMPLETED_SECONDS * share), "s", 1.0),
        Figure(f"timers that fired early or twice, {name} {place.name}", wrong, "timers", bar=0, ok=not wrong),
    ]


def _times(worker: Child, beside: Tables, number: int, due: int) -> tuple[float, float]:
    """Seconds from when the last one is due until all have fired, and until all have completed."""
    taken: dict[str, float] = {}
    deadline = time.monotonic() + PATIENCE[0] + PATIENCE[1] * number / OF
    while len(taken) < 2:
        for what in (FIRED, COMPLETED):
            if what in taken:
                continue
            seen = count(beside, what)
            now = beside.now()
            if seen and now < due:
                raise RuntimeError(f"{seen} timers fired before the first was due")
            if seen >= number:
                taken[what] = (now - due) / 1e6 - 1.0
        if worker.has_spoken():
            worker.hear()  # of its end
        if time.monotonic() > deadline:
            raise TimeoutError(f"{count(beside, FIRED)} fired and {count(beside, COMPLETED)} completed of {number}")
        time.sleep(0.1)
    return taken[FIRED], taken[COMPLETED]


def _wrong(beside: Tables) -> int:
    """Those that fired early, and those that fired once more."""
    once = count(beside, "(SELECT DISTINCT run FROM skald_journal WHERE kind = 2) AS once")
    return count(beside, _EARLY) + count(beside, FIRED) - once
