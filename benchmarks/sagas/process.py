"""Sagas in one process, beside a workflow of the same four steps in the same process, interleaved.

One that goes well writes what the workflow writes. One that fails at its third step journals two compensations instead
of a third and a fourth result, and its two statuses.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.harness.child import Children
from benchmarks.harness.figures import Figure, at_least, at_most
from benchmarks.harness.places import Place
from benchmarks.harness.rounds import interleave, middle
from benchmarks.sagas.sizes import Sizes
from benchmarks.workflows.ceiling import AT_ONCE, told

ORCHESTRATION, COMPENSATION = 0.9, 0.7
"""Of the workflow's rate, that sagas have to reach."""
KINDS = ("workflow", "saga", "failing saga")


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    url = place.fresh()
    with Children() as start:
        child = start("benchmarks.sagas.children:run", url=url)
        child.hear()
        for kind in KINDS:
            told(child, kind, AT_ONCE, 1.0)  # warm
        runs = {
            (kind, at_once): partial(told, child, kind, at_once, sizes.seconds)
            for at_once in (AT_ONCE, 1)
            for kind in KINDS
        }
        found = interleave(sizes.rounds, {f"{kind} {at_once}": run for (kind, at_once), run in runs.items()})
    place.drop(url)
    return figures(place.name, found)


def figures(name: str, found: dict[str, list[dict[str, Any]]]) -> list[Figure]:
    def beside(kind: str, at_once: int, what: str) -> tuple[float, float]:
        values, limits = ([float(one[what]) for one in found[f"{run} {at_once}"]] for run in (kind, "workflow"))
        return middle(values, limits)

    good, bad = "orchestration in process", "compensation in process, two after step 3 has failed"
    measured = []
    for text, kind, bar in [(good, "saga", ORCHESTRATION), (bad, "failing saga", COMPENSATION)]:
        rates, alone, cpu = (
            beside(kind, AT_ONCE, "rate"), beside(kind, 1, "p50"), beside(kind, AT_ONCE, "cpu")
        )  # fmt: skip
        measured += [
            at_least(f"{text}: {AT_ONCE} at once, beside the workflow {name}", rates, "sagas/s", bar),
            at_most(f"{text}: one at a time, p50 beside the workflow {name}", alone, "ms", None),
            at_most(f"{text}: CPU beside the workflow {name}", cpu, "µs", None),
        ]
    return measured
