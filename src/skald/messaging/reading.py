"""Reads an origin's log for lanes that stand at one place, and sees when its history is not the one read before.

Reading is inclusive: the message at a lane's place must still have the id that was handled. While one stretch is being
handled the next one is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

from skald.message import Record
from skald.messaging import cursor
from skald.messaging.outcome import LaneState
from skald.store import Log, Store

NEAR = 8
"""Runs: a cohort waits for one that is less than this behind."""
ASK_AGAIN = 5.0
"""Seconds between two walks through the log for a message that is there and cannot be read yet."""

Cohort = tuple[list[LaneState], int | None]
"""Lanes that stand at the same place, and up to where they may read."""


class Mismatch(Exception):
    """The log does not go on where the lanes stand; ``found`` is what stands there instead."""

    def __init__(self, found: Record | None) -> None:
        self.found = found


def cohorts(lanes: Iterable[LaneState], run: int) -> list[Cohort]:
    by_place: dict[tuple[int, str | None], list[LaneState]] = {}
    for lane in lanes:
        by_place.setdefault((lane.scanned, lane.scanned_id), []).append(lane)
    places = sorted(by_place, key=lambda place: place[0])
    found: list[Cohort] = []
    for index, place in enumerate(places):
        # One that is only a little ahead waits until the one behind has joined it: cohorts that run after each
        # other at a small distance would never meet, and read the log once each.
        if index == 0 or place[0] - places[index - 1][0] > run * NEAR:
            found.append((by_place[place], places[index + 1][0] if index + 1 < len(places) else None))
    return found


class Reader:
    """``run``: messages of one stretch at most. Payloads come for ``types`` alone."""

    def __init__(self, log: Log, store: Store, origin: str, types: Collection[str], run: int) -> None:
        self._log, self._store, self._origin, self._types, self._limit = log, store, origin, types, run + 1
        self._ahead: tuple[int, asyncio.Task[list[Record]]] | None = None
        self.was_ahead = False
        """What was returned last was read before it was asked for: those who have rung since are not in it."""
        self._held_back: tuple[int, str] | None = None
        self._ask_again_at = 0.0

    async def read(self, position: int, id: str | None, upto: int | None) -> list[Record]:
        """What follows the message ``id`` at ``position``, up to ``upto``. Raises ``Mismatch``."""
        records = await self._read(position, upto)
        there = records[0] if records and records[0].position == position else None
        if id is not None and (there is None or there.id != id):
            if there is None and not records and await self._is_held_back(position, id):
                return []
            if there is not None or await self._log.floor() < position:
                raise Mismatch(there)
        if there is not None:
            records = records[1:]
        if not records and upto is not None:
            # Nothing up to a place where no message stands (a lane was reset to a gap): read on from there.
            return await self.read(position, id, None)
        if records and records[-1].position - position > len(records) and await self._is_thinned_out(position):
            raise Mismatch(None)
        return records

    async def _read(self, position: int, upto: int | None) -> list[Record]:
        ahead, self._ahead = self._ahead, None
        self.was_ahead = ahead is not None and ahead[0] == position and upto is None
        if ahead is not None and self.was_ahead:
            records = await ahead[1]
        else:
            if ahead is not None:
                ahead[1].cancel()
            records = await self._log.read(position, self._limit, types=self._types, upto=upto)
        if len(records) == self._limit and upto is None:
            last = records[-1].position
            self._ahead = last, asyncio.create_task(self._log.read(last, self._limit, types=self._types))
        return records

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead[1].cancel()
            self._ahead = None

    async def _is_held_back(self, position: int, id: str) -> bool:
        """Whether the message is there all the same: a process that begins to read may see less for a moment than the
        one that read before it. This walks the log, so it is asked once in a while."""
        now = asyncio.get_running_loop().time()
        if self._held_back != (position, id) or now >= self._ask_again_at:
            found = await self._log.find(id)
            if found is None or found.position != position:
                return False
            self._held_back, self._ask_again_at = (position, id), now + ASK_AGAIN
        return True

    async def _is_thinned_out(self, position: int) -> bool:
        """Whether a gap behind this position was left by retention, and not accepted when the group was put there.

        Asked after the stretch was read: what is deleted later was in it.
        """
        floor = await self._log.floor(self._types)
        return floor > position and floor > await cursor.accepted(self._store, self._origin)
