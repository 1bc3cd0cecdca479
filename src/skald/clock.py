"""Time as an argument: whoever needs the time is given a ``Clock``; tests move a ``ManualClock``.

Stored times are integers, microseconds since 1970 in UTC. Where machines must agree (leases, due times) the
database's clock is asked instead, see ``Transaction.now``.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    def now(self) -> int:
        """Microseconds since 1970, UTC."""
        ...


class SystemClock:
    def now(self) -> int:
        return time.time_ns() // 1000


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, start: int = 1_700_000_000_000_000) -> None:
        self._now = start

    def now(self) -> int:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += round(seconds * 1e6)


def to_datetime(micros: int) -> datetime:
    # Whole microseconds through timedelta: fromtimestamp() would round through a float.
    return _EPOCH + timedelta(microseconds=micros)


def from_datetime(moment: datetime) -> int:
    """Microseconds of an aware datetime; a naive one is refused, because its zone would be a guess."""
    if moment.tzinfo is None:
        raise ValueError("a time needs a zone: use datetime(..., tzinfo=UTC)")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def to_rfc3339(micros: int) -> str:
    return to_datetime(micros).isoformat(timespec="microseconds").replace("+00:00", "Z")
