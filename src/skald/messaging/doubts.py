"""What a stretch has decided and not written: what was decided behind it is in doubt, and what ran is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from skald.messaging.keeping import Keeper
from skald.messaging.outcome import Done, Item, LaneState, Outcome, Place

MAX_RAN = 10_000
"""Messages whose outcome is remembered beyond the stretch that was dropped."""


class Doubts:
    """Places of marks of which something was not written as it was decided.

    The version of a mark does not tell: it counts, and what was written instead may have come to the same number.
    """

    def __init__(self, keeper: Keeper | None) -> None:
        self._keeper = keeper
        self._places: set[Place] = set()

    def clear(self) -> None:
        self._places.clear()

    def add(self, items: Iterable[Item]) -> None:
        self._places |= self._of(items)

    def concern(self, items: Iterable[Item]) -> bool:
        """Whether they were decided behind something that was not written so."""
        return bool(self._places) and not self._places.isdisjoint(self._of(items))

    def _of(self, items: Iterable[Item]) -> set[Place]:
        keeper = self._keeper
        return set() if keeper is None else {place for item in items for place in keeper.places(item)}


def ended(task: asyncio.Task[Outcome | None]) -> Done | None:
    """What a handler did that had not ended when its stretch was dropped, and has by now."""
    if not task.done() or task.cancelled() or task.exception() is not None:
        return None
    outcome = task.result()
    return outcome if isinstance(outcome, Done) and outcome.marks else None


class Ran:
    """What handlers without a transaction have done in stretches that were dropped before it was written, or before
    that was known: their messages are read again, and somebody may have cancelled them by then."""

    def __init__(self) -> None:
        self._done: dict[tuple[str, str], Done] = {}
        """By handler and message."""

    def recall(self, items: Iterable[Item]) -> None:
        if self._done:
            for item in items:
                item.ran = self._done.pop((item.handler.name, item.record.id), None)

    def remember(self, lanes: Mapping[int, LaneState], items: Iterable[Item]) -> None:
        for item in items:
            if item.handler.keeps is None or item.handler.transaction is not None or item.rescued:
                continue
            ran = item.outcome if isinstance(item.outcome, Done) and item.outcome.marks else item.ran
            if ran is not None and item.record.position > lanes[item.lane].position and len(self._done) < MAX_RAN:
                self._done[item.handler.name, item.record.id] = ran
