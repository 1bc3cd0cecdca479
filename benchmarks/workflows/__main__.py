"""usage: script/bench workflows [--json] [--quick] [--only SUBJECTS] [--store STORES]"""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.harness.command import Command
from benchmarks.harness.figures import Figure
from benchmarks.harness.places import Place
from benchmarks.workflows import ceiling, resume, rides, rows, sleeping, talk, timers
from benchmarks.workflows.peers import subject as peers
from benchmarks.workflows.sizes import FULL, QUICK, Sizes

SUBJECTS: dict[str, Callable[[Place, Sizes], list[Figure]]] = {
    "ceiling": ceiling.measure,
    "resume": resume.measure,
    "start": talk.measure_start,
    "signal": talk.measure_signal,
    "ride": rides.measure,
    "sleeping": sleeping.measure,
    "timers": timers.measure,
    "rows": rows.measure,
    "peers": peers.measure,
}
STORES = ("sqlite", "postgres")

if __name__ == "__main__":
    sys.exit(Command("workflows", SUBJECTS, STORES, QUICK, FULL, "four minutes instead of thirty")())
