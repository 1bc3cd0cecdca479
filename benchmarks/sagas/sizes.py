"""How much is measured: everything within ten minutes, the quick run within one."""

from __future__ import annotations

import msgspec


class Sizes(msgspec.Struct, frozen=True):
    """``seconds`` of one run. ``rounds`` is odd, because the median of them counts, and there are many short ones: a
    shared machine has another pace every few seconds. Over messages: ``orders`` at once, and a twentieth of them with
    ``steady`` ones a second; ``whole`` in the whole shop."""

    rounds: int
    seconds: float
    shop_rounds: int
    orders: int
    steady: float
    whole: int


QUICK = Sizes(rounds=15, seconds=0.3, shop_rounds=1, orders=2_000, steady=50.0, whole=500)
FULL = Sizes(rounds=45, seconds=1.0, shop_rounds=3, orders=10_000, steady=50.0, whole=3_000)
