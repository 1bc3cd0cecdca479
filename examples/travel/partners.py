"""The airline, the hotel and the card company, who all honour idempotency keys.

Stands in for their real interfaces; what they remember is one JSON line per effect, in order, so that a test, or you,
can audit it. A key that was given back is dead: whoever comes late with it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["flight", "hotel", "payment"]


class Entry(msgspec.Struct, frozen=True):
    action: Literal["take", "give back"]
    key: str
    trip: str = ""
    kind: Kind | None = None
    amount: int = 0
    """In cents: what it costs, or what was paid."""


class Refused(Exception):
    """They will not do it, and say so."""


class Partners:
    """``path`` is the file that survives the process."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.entries: list[Entry] = []
        if path is not None and path.exists():
            self.entries = [msgspec.json.decode(line, type=Entry) for line in path.read_bytes().splitlines()]

    def taken(self, trip: str) -> dict[Kind, int]:
        """All that was ever reserved and paid for a trip."""
        return {one.kind: one.amount for one in self.entries if one.kind is not None and one.trip == trip}

    def held(self, trip: str) -> dict[Kind, int]:
        """What of it is still reserved and paid."""
        dead = {one.key for one in self.entries if one.action == "give back"}
        live = (one for one in self.entries if one.key not in dead)
        return {one.kind: one.amount for one in live if one.kind is not None and one.trip == trip}

    async def take(self, key: str, trip: str, kind: Kind, amount: int) -> str:
        """Its number; with a key that was seen before, the same one again."""
        known = {one.action for one in self.entries if one.key == key}
        if "give back" in known:
            raise Refused(f"the {kind} of {trip} was given up")
        if not known:
            self._write(Entry("take", key, trip, kind, amount))
        return f"{kind}-of-{trip}"

    async def give_back(self, key: str) -> None:
        """Whatever was taken under this key; nothing can be taken under it any more."""
        if Entry("give back", key) not in self.entries:
            self._write(Entry("give back", key))

    def _write(self, entry: Entry) -> None:
        self.entries.append(entry)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(entry) + b"\n")
