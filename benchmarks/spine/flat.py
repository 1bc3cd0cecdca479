"""Append stays as quick as it was: in a table of 5,000,000 rows, and beside a snapshot held open for 60 s.

Each pair runs the library once at an empty store and once at the full (or held) one. Every event begins a stream, so
that the versions and both indexes are looked up and written. On PostgreSQL the pairs are in two databases, because a
snapshot holds up what belongs to its own. That no append walks the full table is asked of the database itself.
"""

from __future__ import annotations

from functools import partial

from benchmarks.harness.child import Children
from benchmarks.harness.figures import Figure, at_least
from benchmarks.harness.places import Place
from benchmarks.harness.rounds import interleave, middle
from benchmarks.spine.append import CALLERS, appended, migrated
from benchmarks.spine.sizes import Sizes

FLAT = 0.85
APPEND = "benchmarks.spine.children:append"


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    return [*_in_rows(place, sizes), _beside_snapshot(place, sizes)]


def _in_rows(place: Place, sizes: Sizes) -> list[Figure]:
    full, tables = migrated(place), f"benchmarks.spine.limits.{place.name}_tables"
    with Children() as start:
        start(f"{tables}:fill", url=full, count=sizes.rows).hear(900)
    with Children() as start:
        child = start(APPEND, callers=CALLERS, kind="streams")

        def at_empty() -> float:
            empty = migrated(place)
            try:
                return appended([child], empty, sizes.flat_seconds)
            finally:
                place.drop(empty)

        def at_full() -> float:
            return appended([child], full, sizes.flat_seconds)

        watching = start(f"{tables}:watch_plans", url=full)
        watching.hear()
        found = interleave(sizes.flat_pairs, {"empty": at_empty, "full": at_full})
        walks = watching.ask(done=True)["walks"]
    place.drop(full)
    name = place.name
    return [
        at_least(f"append flat, full table {name}", middle(found["full"], found["empty"]), "events/s", FLAT),
        Figure(f"append plans that walk a whole table {name}", walks, "walks", bar=0, ok=walks == 0),
    ]


def _beside_snapshot(place: Place, sizes: Sizes) -> Figure:
    free, held = migrated(place), migrated(place)
    seconds = sizes.snapshot_seconds / sizes.flat_pairs / 2
    with Children() as start:
        child = start(APPEND, callers=CALLERS, kind="streams")
        appended([child], held, 0.2)
        start(f"benchmarks.spine.limits.{place.name}_tables:hold_snapshot", url=held).hear()
        runs = {name: partial(appended, [child], url, seconds) for name, url in (("free", free), ("held", held))}
        found = interleave(sizes.flat_pairs, runs)
    for url in (free, held):
        place.drop(url)
    return at_least(f"append flat, held snapshot {place.name}", middle(found["held"], found["free"]), "events/s", FLAT)
