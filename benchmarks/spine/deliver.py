"""Deliver: an event committed by one service, handled by another, its answer and the cursor committed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from benchmarks.harness.child import Children
from benchmarks.harness.figures import Figure, at_least
from benchmarks.harness.places import Place
from benchmarks.harness.rounds import interleave, middle
from benchmarks.spine import limits
from benchmarks.spine.services import migrate

BARS = {"sqlite": 0.25, "postgres": 0.3}
CHILDREN = "benchmarks.spine.children"


def run_pair(url: str, producer: str, consumer: str, count: int, **options: object) -> float:
    """Messages per second, from the first call at the producer to the last commit at the consumer."""
    with Children() as start:
        reading = start(consumer, url=url, count=count, **options)
        reading.hear()
        writing = start(producer, url=url, count=count)
        writing.hear()
        writing.tell(go=True)
        began = writing.hear()["began"]
        return count / (reading.hear()["ended"] - began)
