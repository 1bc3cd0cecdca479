"""Backlog and memory: a consumer that was away catches up, and one that is never idle, without growing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from benchmarks.harness.child import Child, Children
from benchmarks.harness.figures import Figure, at_least, at_most
from benchmarks.harness.places import Place
from benchmarks.spine import pair
from benchmarks.spine.sizes import Sizes

GROWTH = 1 / 0.85
PATIENCE = 900.0


def measure_backlog(place: Place, sizes: Sizes) -> list[Figure]:
    """The whole backlog beside half of it: the same memory will do."""
    many = sizes.backlog_messages
    bare, _ = _drained(place, pair.LIMIT, many)
    _, few = _drained(place, pair.SKALD, many // 2)
    rate, most = _drained(place, pair.SKALD, many)
    return [
        at_least(f"backlog drained {place.name}", (rate, bare), "messages/s", None),
        at_most(f"backlog memory, beside half of it {place.name}", (most, few), "MiB", GROWTH),
    ]


def _drained(place: Place, kind: pair.Pair, count: int) -> tuple[float, float]:
    """Messages per second, and the most memory that the consumer had."""
    url = kind.prepared(place)
    try:
        with Children() as start:
            kind.producing(start, place, url, count).ask(PATIENCE, go=True)
            consumer = kind.consuming(start, place, url, count)
            began = time.monotonic()
            most = max(_resident(consumer))
            return count / (consumer.hear()["ended"] - began), most
    finally:
        place.drop(url)


def _resident(child: Child, every: float = 0.1) -> Iterator[float]:
    """The child's memory until it has something to say."""
    deadline = time.monotonic() + PATIENCE
    yield child.resident()
    while not child.has_spoken() and time.monotonic() < deadline:
        yield child.resident()
        time.sleep(every)


def measure_memory(place: Place, sizes: Sizes) -> list[Figure]:
    """Of the consumer: the last tenth of all messages beside the second tenth, when its caches are full."""
    url, count = pair.SKALD.prepared(place), sizes.memory_messages
    try:
        with Children() as start:
            consumer = pair.SKALD.consuming(start, place, url, count)
            producer = pair.SKALD.producing(start, place, url, count)
            producer.tell(go=True)
            samples = list(_resident(consumer, every=0.25))
            consumer.hear()
            producer.hear()
    finally:
        place.drop(url)
    tenth = max(1, len(samples) // 10)
    end, begin = statistics.median(samples[-tenth:]), statistics.median(samples[tenth : 2 * tenth + 1])
    return [at_most(f"memory at the end, beside the beginning {place.name}", (end, begin), "MiB", GROWTH)]
