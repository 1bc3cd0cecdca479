"""Deliver: an event committed by one service, handled by another, and its answer and the cursor committed there.

The limit is the bare pair of processes; the peer is an outbox written by hand and read by polling.
"""

from __future__ import annotations

from functools import partial

from benchmarks.harness.child import Children
from benchmarks.harness.figures import Figure, at_least
from benchmarks.harness.places import Place
from benchmarks.harness.rounds import interleave, middle
from benchmarks.spine import pair
from benchmarks.spine.sizes import Sizes

BARS = {"sqlite": 0.25, "postgres": 0.3}
PEER = 3.0


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    count, few = sizes.deliver_messages, sizes.outbox_messages
    found = interleave(
        sizes.rounds,
        {
            "limit": partial(rate, place, pair.LIMIT, count),
            "skald": partial(rate, place, pair.SKALD, count),
            "tx": partial(rate, place, pair.SKALD_TX, few),
            "outbox": partial(rate, place, pair.OUTBOX, few),
        },
    )
    name, unit = place.name, "messages/s"
    return [
        at_least(f"deliver {name}", middle(found["skald"], found["limit"]), unit, BARS[name]),
        at_least(f"deliver, beside an outbox by hand {name}", middle(found["skald"], found["outbox"]), unit, PEER),
        at_least(f"deliver with tx and one insert {name}", middle(found["tx"], found["limit"]), unit, None),
    ]


def rate(place: Place, kind: pair.Pair, count: int) -> float:
    """Messages per second from the first call at the producer to the last commit at the consumer."""
    url = kind.prepared(place)
    try:
        with Children() as start:
            consumer, producer = kind.consuming(start, place, url, count), kind.producing(start, place, url, count)
            producer.tell(go=True)
            began = producer.hear()["began"]
            return float(count / (consumer.hear()["ended"] - began))
    finally:
        place.drop(url)
