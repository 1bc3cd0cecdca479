"""usage: script/bench sagas [--json] [--quick] [--only SUBJECTS] [--store STORES]"""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.harness.command import Command
from benchmarks.harness.figures import Figure
from benchmarks.harness.places import Place
from benchmarks.sagas import process, shop, whole
from benchmarks.sagas.sizes import FULL, QUICK, Sizes

SUBJECTS: dict[str, Callable[[Place, Sizes], list[Figure]]] = {
    "process": process.measure,
    "messages": shop.measure,
    "shop": whole.measure,
}
STORES = ("sqlite", "postgres")

if __name__ == "__main__":
    sys.exit(Command("sagas", SUBJECTS, STORES, QUICK, FULL, "a minute instead of ten")())
