"""The library beside other engines, interleaved: so many workflows at once, each step of each durable.

A peer that cannot be had is named on stderr with the reason, and its figure has no value.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.harness.child import Child, ChildFailed, Children
from benchmarks.harness.figures import Figure, at_least, failed
from benchmarks.harness.places import Place
from benchmarks.harness.rounds import interleave, middle
from benchmarks.workflows.peers import engines
from benchmarks.workflows.peers.installed import Missing
from benchmarks.workflows.sizes import Sizes

AT_ONCE = 100
STEPS = 4
PEERS = {"DBOS": (engines.dbos, 50.0), "Restate": (engines.restate, 8.0)}
"""How each is started, and how many times as many workflows the library has to run."""
SECONDS = 3.0
"""Of one run, at least: a hundred at once take a peer a second and more."""


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    if place.name != "postgres":
        return []
    seconds = max(sizes.seconds, SECONDS)
    with ExitStack() as stack:
        url = place.fresh()
        stack.callback(place.drop, url)
        children = {"Skald": stack.enter_context(Children())("benchmarks.workflows.children:run", url=url)}
        children["Skald"].hear()
        for name, (running, _) in PEERS.items():
            try:
                children[name] = stack.enter_context(running(place))
            except (Missing, ChildFailed) as error:
                print(f"{name} is left out: {str(error).splitlines()[-1]}", file=sys.stderr, flush=True)
        for child in children.values():
            _told(child, 1.0)  # warm
        found = interleave(sizes.rounds, {name: partial(_told, child, seconds) for name, child in children.items()})
        for name in children.keys() & PEERS.keys():
            _check(name, children[name])
    return [_figure(name, bar, found, place.name) for name, (_, bar) in PEERS.items()]


def _told(child: Child, seconds: float) -> dict[str, Any]:
    return child.ask(run="order", at_once=AT_ONCE, seconds=seconds)


def _check(name: str, child: Child) -> None:
    """It has stored every step of every workflow; that the results are right, it has looked at itself."""
    counts = child.ask(run="count")
    completed = counts["completed"]
    if (counts["workflows"], counts["steps"]) != (completed, STEPS * completed):
        raise RuntimeError(f"{name} has not stored what it has run: {counts}")


def _figure(peer: str, bar: float, found: dict[str, list[dict[str, Any]]], store: str) -> Figure:
    name = f"{AT_ONCE} workflows at once, beside {peer} {store}"
    if peer not in found:
        return failed(name)
    rates, limits = ([float(one["rate"]) for one in found[whose]] for whose in ("Skald", peer))
    return at_least(name, middle(rates, limits), "workflows/s", bar)
