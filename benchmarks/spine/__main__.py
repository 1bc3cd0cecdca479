"""usage: script/bench spine [--json] [--quick] [--only SUBJECTS] [--store STORES]"""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.harness.command import Command
from benchmarks.harness.figures import Figure
from benchmarks.harness.places import Place
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

if __name__ == "__main__":
    sys.exit(Command("spine", SUBJECTS, STORES, QUICK, FULL, "five minutes instead of an hour")())
