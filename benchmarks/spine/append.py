"""Append: one event per unit from 100 concurrent callers, beside a bare grouped insert of 100 rows per transaction.

Both write the same columns of the same migrated tables, and both wait for the disk. The bare rows are made before the
clock starts, and so are the records of the units. Without a bar stand *streams* (each event begins a stream, whose
expected version is compared) and *publish* (drafting, encoding and checking each message included).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from benchmarks.harness.child import Child, Children
from benchmarks.harness.figures import Figure, at_least
from benchmarks.harness.places import Place
from benchmarks.harness.rounds import interleave, middle
from benchmarks.spine.services import migrate
from benchmarks.spine.sizes import Sizes

CALLERS = 100
PROCESSES = 4


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    urls, seconds = [migrated(place) for _ in range(3)], sizes.append_seconds
    with Children() as start:
        runs = {
            "bare": partial(bare, _bare(start, place, urls[0], False), seconds),
            "one": partial(appended, _appenders(start, 1, "append"), urls[1], seconds),
            "four": partial(appended, _appenders(start, PROCESSES, "append"), urls[1], seconds),
            "shared": partial(appended, _appenders(start, PROCESSES, "append", CALLERS // 4), urls[1], seconds),
            "bare streams": partial(bare, _bare(start, place, urls[2], True), seconds),
            "streams": partial(appended, _appenders(start, 1, "streams"), urls[1], seconds),
            "publish": partial(appended, _appenders(start, 1, "publish"), urls[1], seconds),
        }
        found = interleave(sizes.rounds, runs)
    for url in urls:
        place.drop(url)
    name, unit = place.name, "events/s"
    return [
        at_least(f"append {name}", middle(found["one"], found["bare"]), unit, 0.5),
        at_least(f"append to new streams {name}", middle(found["streams"], found["bare streams"]), unit, None),
        at_least(f"append, published as messages {name}", middle(found["publish"], found["bare"]), unit, None),
        at_least(f"append by 4 processes, beside one {name}", middle(found["four"], found["one"]), unit, 1.0),
        at_least(f"append by 4 x 25 callers, beside one {name}", middle(found["shared"], found["one"]), unit, None),
    ]


def migrated(place: Place) -> str:
    """The URL of an empty store with the library's tables."""
    url = place.fresh()
    migrate(url)
    return url


def _bare(start: Children, place: Place, url: str, streams: bool) -> Child:
    return start(f"benchmarks.spine.limits.{place.name}_tables:append", url=url, streams=streams)


def _appenders(start: Children, processes: int, kind: str, callers: int = CALLERS) -> list[Child]:
    """Processes with so many callers each."""
    target = "benchmarks.spine.children:append"
    return [start(target, callers=callers, kind=kind, name=f"order-{n}") for n in range(processes)]


def bare(child: Child, seconds: float) -> float:
    rate: float = child.ask(seconds=seconds)["rate"]
    return rate


def appended(children: Sequence[Child], url: str, seconds: float) -> float:
    """Events per second of all the children together, which begin at the same moment."""
    for child in children:
        child.tell(url=url)
    for child in children:
        child.hear()
    at = time.monotonic() + 0.1
    for child in children:
        child.tell(seconds=seconds, at=at)
    done = [child.hear() for child in children]
    took = max(one["ended"] for one in done) - min(one["began"] for one in done)
    return float(sum(one["appended"] for one in done) / took)
