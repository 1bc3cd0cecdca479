"""Workflows that stand in their last step when their process is killed: from the next one's start to the last end."""

from __future__ import annotations

import os
import signal
import time

from benchmarks.harness.child import Children
from benchmarks.harness.figures import Figure, at_most
from benchmarks.harness.places import Place
from benchmarks.workflows.sizes import Sizes

WORKFLOWS = 1_000
SECONDS = 1.0


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    taken = sorted(seconds(place) for _ in range(sizes.rounds))
    name = f"resume of {WORKFLOWS} workflows after kill -9 {place.name}"
    return [at_most(name, (taken[len(taken) // 2], SECONDS), "s", 1.0)]


def seconds(place: Place) -> float:
    url = place.fresh()
    with Children() as start:
        first = start("benchmarks.workflows.children:park", url=url, workflows=WORKFLOWS)
        first.hear()
        os.kill(first.pid, signal.SIGKILL)
        began = time.monotonic()
        completed = start("benchmarks.workflows.children:resume", url=url).hear()["completed"]
        took = time.monotonic() - began
    place.drop(url)
    if completed != WORKFLOWS:
        raise RuntimeError(f"{completed} of {WORKFLOWS} workflows were completed")
    return took
