"""Where a group begins in an origin's log, and what it accepts as gone there.

Retention deletes messages of some types and leaves the others, so a reader that stands below what was deleted has a
gap before it that it cannot see. It stops by name, unless it was put there on purpose: then the place it was put to
*accepts* what was gone at that moment, and only later deletions count.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Literal

import msgspec

from skald.clock import from_datetime
from skald.store import Log

Start = Literal["start", "now"] | datetime | int


class Place(msgspec.Struct, frozen=True):
    """Behind the message at ``position``, which has that id (``None``: no message stands exactly there)."""

    position: int
    message_id: str | None
    accepted: int = 0
    """Up to here retention had deleted messages that a reader from this place would otherwise get; 0 for nothing."""


async def starting_point(log: Log, start: Start, types: Collection[str]) -> Place:
    """The place for a reader of these types. ``"start"`` is everything that is left."""
    if start == "now":
        return Place(*await log.end())
    if isinstance(start, datetime):
        position = await log.position_at(from_datetime(start))
    else:
        position = start if isinstance(start, int) else 0
    found = await log.read(position, 1, types=())
    floor = await log.floor(types)
    there = found[0].id if found and found[0].position == position else None
    return Place(position, there, floor if floor > position else 0)
