"""usage: script/bench spine [--json] [--quick] [--only SUBJECTS] [--store STORES]"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable

from benchmarks.harness.figures import Figure, as_json, as_table, failed
from benchmarks.harness.machine import facts
from benchmarks.harness.places import BENCH, Place, places
from benchmarks.spine import append, backlog, deliver, flat, idle, latency, read
from benchmarks.spine.sizes import FULL, QUICK, Sizes

SUBJECTS: dict[str, Callable[[Place, Sizes], list[Figure]]] = {
    "append": append.measure,
    "flat": flat.measure,
    "deliver": deliver.measure,
    "latency": latency.measure,
    "read": read.measure,
    "backlog": backlog.measure_backlog,
    "memory": backlog.measure_memory,
    "idle": idle.measure,
}
STORES = ("sqlite", "postgres")


def main() -> int:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every `finally` runs
    began = time.monotonic()
    with places(tuple(arguments.store)) as found:
        for name, fact in facts(BENCH, [place.version() for place in found]).items():
            _tell(f"{name:10} {fact}", arguments.json)
        figures = [
            figure
            for subject in arguments.only
            for place in found
            for figure in _measured(subject, place, QUICK if arguments.quick else FULL)
        ]
    print(as_json(figures) if arguments.json else as_table(figures))
    _tell(f"took {time.monotonic() - began:.0f} s", arguments.json)
    return 1 if any(figure.value is None for figure in figures) else 0


def _measured(subject: str, place: Place, sizes: Sizes) -> list[Figure]:
    """A subject that cannot be measured is a figure that is not ok, and the others are measured all the same."""
    began = time.monotonic()
    try:
        return SUBJECTS[subject](place, sizes)
    except Exception:
        traceback.print_exc()
        return [failed(f"{subject} {place.name}")]
    finally:
        print(f"measured {subject} {place.name} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _tell(line: str, to_stderr: bool) -> None:
    print(line, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="script/bench spine", description="Figures beside their limits.")
    parser.add_argument("--json", action="store_true", help="print one array of objects")
    parser.add_argument("--quick", action="store_true", help="a sample in five minutes instead of an hour")
    parser.add_argument("--only", type=_some_of(tuple(SUBJECTS)), default=list(SUBJECTS), metavar="SUBJECT,…")
    parser.add_argument("--store", type=_some_of(STORES), default=list(STORES), metavar="STORE,…")
    return parser


def _some_of(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return chosen


if __name__ == "__main__":
    sys.exit(main())
