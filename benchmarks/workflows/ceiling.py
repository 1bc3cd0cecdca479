"""Workflows of four steps beside the ceiling, which is the same rows written by hand with group commit, interleaved.

A step that returns at once is costed by two workflows that differ in their number of steps alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.harness.child import Child, Children
from benchmarks.harness.figures import Figure, at_least, at_most
from benchmarks.harness.places import Place
from benchmarks.harness.rounds import interleave, middle
from benchmarks.workflows.children import FEW, MANY
from benchmarks.workflows.sizes import Sizes

AT_ONCE = 100
SHARES = {"sqlite": 0.3, "postgres": 0.2}
"""Of the ceiling, that the engine has to reach."""
P99_MILLISECONDS = 60.0
STEP_MICROSECONDS = 40.0


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    urls = [place.fresh() for _ in range(2)]
    with Children() as start:
        bare = start(f"benchmarks.workflows.limits.{place.name}:run", url=urls[0])
        engine = start("benchmarks.workflows.children:run", url=urls[1])
        for child in (bare, engine):
            child.hear()
            told(child, "order", AT_ONCE, 1.0)  # warm
        runs = {
            "bare many": partial(told, bare, "order", AT_ONCE, sizes.seconds),
            "plain many": partial(told, bare, "plain", AT_ONCE, sizes.seconds),
            "many": partial(told, engine, "order", AT_ONCE, sizes.seconds),
            "bare one": partial(told, bare, "order", 1, sizes.seconds),
            "one": partial(told, engine, "order", 1, sizes.seconds),
            "few steps": partial(told, engine, "few", AT_ONCE, sizes.seconds),
            "many steps": partial(told, engine, "many", AT_ONCE, sizes.seconds),
        }
        found = interleave(sizes.rounds, runs)
    for url in urls:
        place.drop(url)
    return figures(place.name, {name: found[name] for name in runs})


def told(child: Child, run: str, at_once: int, seconds: float) -> dict[str, Any]:
    return child.ask(run=run, at_once=at_once, seconds=seconds)


def figures(name: str, found: dict[str, list[dict[str, Any]]]) -> list[Figure]:
    def all_of(run: str, what: str) -> list[float]:
        return [float(one[what]) for one in found[run]]

    rates = middle(all_of("many", "rate"), all_of("bare many", "rate"))
    plain = middle(all_of("many", "rate"), all_of("plain many", "rate"))
    alone = middle(all_of("one", "p50"), all_of("bare one", "p50"))
    p99 = sorted(all_of("many", "p99"))[len(found["many"]) // 2]
    costs = sorted(
        (many - few) / (MANY - FEW)
        for few, many in zip(all_of("few steps", "cpu"), all_of("many steps", "cpu"), strict=True)
    )
    cpu = costs[len(costs) // 2]
    return [
        at_least(f"100 workflows at once, beside the ceiling {name}", rates, "workflows/s", SHARES[name]),
        at_least(f"100 workflows at once, beside one plain table {name}", plain, "workflows/s", None),
        at_most(f"one at a time, p50 beside the ceiling {name}", alone, "ms", 1.5),
        at_most(f"100 at once, p99 {name}", (p99, P99_MILLISECONDS), "ms", 1.0),
        at_most(f"CPU of a step that returns at once {name}", (cpu, STEP_MICROSECONDS), "µs", 1.0),
    ]
