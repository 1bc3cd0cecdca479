"""How much is measured."""

from __future__ import annotations

import msgspec


class Sizes(msgspec.Struct, frozen=True):
    """``seconds`` of one run; ``rounds`` is odd, because the median of them counts."""

    rounds: int
    seconds: float


QUICK = Sizes(rounds=3, seconds=2.0)
FULL = Sizes(rounds=7, seconds=6.0)
