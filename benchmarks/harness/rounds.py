"""Interleaved rounds: A B A B …, so that whatever else the machine does meanwhile falls on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def interleave(rounds: int, runs: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Every run once per round, by turns; in every second round in reverse, because the first one may profit."""
    measured: dict[str, list[T]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in reversed(list(runs)) if number % 2 else runs:
            measured[name].append(runs[name]())
    return measured


def middle(values: Sequence[float], limits: Sequence[float]) -> tuple[float, float]:
    """Value and limit of the round whose ratio is the median of all rounds."""
    pairs = sorted(zip(values, limits, strict=True), key=lambda pair: pair[0] / pair[1])
    return pairs[len(pairs) // 2]


def percentiles(micros: Sequence[int]) -> dict[str, float]:
    """The median and the 99th percentile, in milliseconds."""
    ordered = sorted(micros)
    return {"p50": ordered[len(ordered) // 2] / 1000, "p99": ordered[len(ordered) * 99 // 100] / 1000}
