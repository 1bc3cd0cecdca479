"""Arms the places of ``skald.failpoints`` in processes that a test starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from skald.failpoints import VARIABLE


def kill_at(name: str, hit: int = 1) -> Mapping[str, str]:
    """Environment of a process that dies at the given hit of a place."""
    return {VARIABLE: f"{name}@{hit}"}


def trace_to(file: Path) -> Mapping[str, str]:
    """Environment of a process that writes down every place it comes to."""
    return {VARIABLE: f"trace:{file}"}


def traced(file: Path) -> Counter[str]:
    """How often each place was come to."""
    return Counter(file.read_text().split()) if file.exists() else Counter()
