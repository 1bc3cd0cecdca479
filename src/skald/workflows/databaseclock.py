"""The database's clock, without asking it each time: machines must agree when a timer is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from skald.clock import Clock, SystemClock
from skald.store import Store


class DatabaseClock:
    """``now`` is never ahead of the database's clock, and behind it by the time that asking took, at most.

    A clock that is not the system's (a test's) is taken as it is.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._steady = isinstance(clock, SystemClock)
        self._asked, self._offset = 0.0, 0
        """By the monotonic clock, seconds; from that clock to the database's, microseconds."""

    def now(self) -> int:
        return time.monotonic_ns() // 1000 + self._offset if self._steady else self._clock.now()

    async def synchronise(
        self, older_than: float = 0.0, ask: Callable[[], Coroutine[Any, Any, int]] | None = None
    ) -> None:
        """Asks the database, unless it was asked less than so many seconds ago. ``ask`` asks it inside a transaction
        that is open."""
        if not self._steady or (self._asked and time.monotonic() - self._asked < older_than):
            return
        told = await (ask or self._store.now)()
        # As if it had been read at the very end of the question.
        self._offset = told - time.monotonic_ns() // 1000
        self._asked = time.monotonic()
