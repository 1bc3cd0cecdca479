"""How often, and when, something that failed is tried again: data, and one pure decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec


class Retry(msgspec.Struct, frozen=True):
    """Attempts at once, then one attempt after each delay (seconds), then the end: parked, or ``exhausted=``."""

    immediate: int = 3
    delays: tuple[float, ...] = (1.0, 5.0, 30.0)

    def __post_init__(self) -> None:
        if self.immediate < 1:
            raise ValueError(f"immediate={self.immediate}: the first attempt counts, so it is at least 1")
        if any(not 0 <= delay < 31_536_000 for delay in self.delays):
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

Policy = Retry | Mapping[type[BaseException] | Literal["*"], Retry]
"""One rule for all errors, or one per exception class; the most specific class decides, ``"*"`` is the rest."""


def rule_for(policy: Policy, error: BaseException) -> Retry:
    if isinstance(policy, Retry):
        return policy
    for cls in type(error).__mro__:
        if cls in policy:
            return policy[cls]
    return policy.get("*", Retry())
