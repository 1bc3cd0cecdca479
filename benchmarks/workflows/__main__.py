"""usage: script/bench workflows [--json] [--quick] [--only SUBJECTS] [--store STORES]"""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.harness.command import Command
from benchmarks.harness.figures import Figure
from benchmarks.harness.places import Place
from benchmarks.workflows import ceiling, resume
from benchmarks.workflows.sizes import FULL, QUICK, Sizes

SUBJECTS: dict[str, Callable[[Place, Sizes], list[Figure]]] = {
    "ceiling": ceiling.measure,
    "resume": resume.measure,
}
STORES = ("sqlite",)
"""PostgreSQL follows with the engine's own support of it."""

if __name__ == "__main__":
    sys.exit(Command("workflows", SUBJECTS, STORES, QUICK, FULL, "a minute instead of five")())
