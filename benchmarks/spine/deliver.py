"""Deliver: an event committed by one service, handled by another, its answer and the cursor committed."""

from __future__ import annotations

from benchmarks.harness.child import Children

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
