"""The command of a benchmark: ``script/bench NAME [--json] [--quick] [--only SUBJECTS] [--store STORES]``."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from benchmarks.harness.figures import Figure, as_json, as_table, failed
from benchmarks.harness.machine import facts
from benchmarks.harness.places import BENCH, Place, places

S = TypeVar("S")


class Command(Generic[S]):
    """``subjects`` are measured in their order, each at every store; ``quick`` and ``full`` say how much."""

    def __init__(
        self,
        name: str,
        subjects: Mapping[str, Callable[[Place, S], list[Figure]]],
        stores: Sequence[str],
        quick: S,
        full: S,
        time: str,
    ) -> None:
        self._name, self._subjects, self._stores = name, subjects, tuple(stores)
        self._quick, self._full, self._time = quick, full, time

    def __call__(self) -> int:
        arguments = self._parser().parse_args()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every `finally` runs
        began = time.monotonic()
        with places(tuple(arguments.store)) as found:
            for name, fact in facts(BENCH, [place.version() for place in found]).items():
                _tell(f"{name:10} {fact}", arguments.json)
            figures = [
                figure
                for subject in arguments.only
                for place in found
                for figure in self._measured(subject, place, self._quick if arguments.quick else self._full)
            ]
        print(as_json(figures) if arguments.json else as_table(figures))
        _tell(f"took {time.monotonic() - began:.0f} s", arguments.json)
        return 1 if any(figure.value is None for figure in figures) else 0

    def _measured(self, subject: str, place: Place, sizes: S) -> list[Figure]:
        """A subject that cannot be measured is a figure that is not ok, and the others are measured all the same."""
        began = time.monotonic()
        try:
            return self._subjects[subject](place, sizes)
        except Exception:
            traceback.print_exc()
            return [failed(f"{subject} {place.name}")]
        finally:
            print(f"measured {subject} {place.name} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"script/bench {self._name}", description="Figures beside their limits.")
        known = tuple(self._subjects)
        parser.add_argument("--json", action="store_true", help="print one array of objects")
        parser.add_argument("--quick", action="store_true", help=f"a sample in {self._time}")
        parser.add_argument("--only", type=_some_of(known), default=list(known), metavar="SUBJECT,…")
        parser.add_argument("--store", type=_some_of(self._stores), default=list(self._stores), metavar="STORE,…")
        return parser


def _tell(line: str, to_stderr: bool) -> None:
    print(line, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def _some_of(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return chosen
