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

GROWTH = 1.18
"""Flat: the smaller is at least 0.85 of the larger."""
PATIENCE = 600.0


def measure_backlog(place: Place, sizes: Sizes) -> list[Figure]:
    """The backlog, and one of twice the size: the same memory will do."""
    many = sizes.backlog_messages
    bare, _ = _drained(place, pair.LIMIT, many)
    rate, most = _drained(place, pair.SKALD, many)
    _, twice = _drained(place, pair.SKALD, 2 * many)
    return [
        at_least(f"backlog drained {place.name}", (rate, bare), "messages/s", None),
        at_most(f"backlog memory, of twice beside once {place.name}", (twice, most), "MiB", GROWTH),
    ]


def _drained(place: Place, kind: pair.Pair, count: int) -> tuple[float, float]:
    """Messages per second, and the most memory that the consumer had."""
    url = kind.prepared(place)
    try:
        with Children() as start:
            kind.producing(start, place, url, count).ask(PATIENCE, go=True)
            consumer = kind.consuming(start, place, url, count)
            most = max(_resident(consumer))
            done = consumer.hear()
            return count / (done["ended"] - done["began"]), most
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
    """Of the consumer: at the last tenth of all messages, beside the tenth that begins when its caches are full."""
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
    tenth, warm = len(samples) // 10 + 1, len(samples) * sizes.warm_messages // count
    end, begin = statistics.median(samples[-tenth:]), statistics.median(samples[warm : warm + tenth])
    return [at_most(f"memory at the end, beside the beginning {place.name}", (end, begin), "MiB", GROWTH)]
