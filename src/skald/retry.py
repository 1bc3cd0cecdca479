"""How often, and when, something that failed is tried again: data, and one pure decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import msgspec

YEAR = 31_536_000
"""Seconds."""


class Retry(msgspec.Struct, frozen=True):
    """Attempts at once, then one attempt after each delay (seconds), then the end: parked, or ``exhausted=``."""

    immediate: int = 3
    delays: tuple[float, ...] = (1.0, 5.0, 30.0)
    jitter: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.immediate < 1:
            raise ValueError(f"immediate={self.immediate}: the first attempt counts, so it is at least 1")
        if any(not 0 <= delay < YEAR for delay in self.delays):
            raise ValueError(f"delays={self.delays}: each is a number of seconds, at least 0 and below a year")

    @property
    def attempts(self) -> int:
        """All attempts together."""
        return self.immediate + len(self.delays)

    def after(self, attempts: int) -> float | None:
        """Seconds to wait after so many failed attempts; 0 for at once, ``None`` when there is no further one."""
        if attempts < self.immediate:
            return 0.0
        index = attempts - self.immediate
        return self.delays[index] if index < len(self.delays) else None


NEVER = Retry(immediate=1, delays=())


class Backoff(msgspec.Struct, frozen=True):
    """Delays that grow: ``first`` seconds, then each ``factor`` times the one before, none above ``longest``; the end
    after so many ``attempts``, the first included.

    ``jitter`` is the share by which a delay is shortened or lengthened at random, so that what failed together is not
    tried again together. Whoever waits applies it: steps of workflows do. Messages are due at the plain times.
    """

    first: float = 1.0
    factor: float = 2.0
    longest: float = 60.0
    attempts: int = 10
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.first < YEAR:
            raise ValueError(f"first={self.first}: seconds above 0 and below a year; Retry has attempts at once")
        if not 1 <= self.factor < float("inf"):
            raise ValueError(f"factor={self.factor}: delays grow, so it is a number, at least 1")
        if not self.first <= self.longest < YEAR:
            raise ValueError(f"longest={self.longest}: seconds, at least first={self.first} and below a year")
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts}: the first attempt counts, so it is at least 1")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter={self.jitter}: the share of a delay that is left to chance, from 0 to 1")

    def after(self, attempts: int) -> float | None:
        """Seconds to wait after so many failed attempts, without the jitter; ``None`` when there is no further one."""
        if attempts >= self.attempts:
            return None
        try:
            return min(self.longest, self.first * self.factor ** (attempts - 1))
        except OverflowError:
            return self.longest


Rule = Retry | Backoff

Policy = Rule | Mapping[type[BaseException] | Literal["*"], Rule]
"""One rule for all errors, or one per exception class; the most specific class decides, ``"*"`` is the rest."""


def rule_for(policy: Policy, error: BaseException) -> Rule:
    if isinstance(policy, Rule):
        return policy
    for cls in type(error).__mro__:
        if cls in policy:
            return policy[cls]
    return policy.get("*", Retry())
