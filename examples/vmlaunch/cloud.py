"""The cloud: capacity, interfaces, storage, addresses and names, taken and freed under idempotency keys.

Stands in for its real interfaces; what it remembers is one JSON line per effect, in order, so that a test, or you, can
audit it. A key that was freed is dead: whoever comes late with it is refused, so that nothing is taken after its end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec


class Entry(msgspec.Struct, frozen=True):
    action: Literal["take", "free", "bury"]
    """``bury``: freed before it was ever taken."""
    key: str
    instance: str = ""
    kind: str = ""


class Refused(Exception):
    """The cloud will not do it, and says so."""


class Cloud:
    """``path`` is the file that survives the process."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.entries: list[Entry] = []
        if path is not None and path.exists():
            self.entries = [msgspec.json.decode(line, type=Entry) for line in path.read_bytes().splitlines()]

    def held(self, instance: str) -> list[str]:
        """What an instance holds now, in the order in which it was taken."""
        dead = {entry.key for entry in self.entries if entry.action != "take"}
        return [entry.kind for entry in self._taken() if entry.instance == instance and entry.key not in dead]

    def taken(self, instance: str) -> list[str]:
        return [entry.kind for entry in self._taken() if entry.instance == instance]

    def freed(self, instance: str) -> list[str]:
        """In the order in which it was freed."""
        kinds = {entry.key: entry.kind for entry in self._taken() if entry.instance == instance}
        return [kinds[entry.key] for entry in self.entries if entry.action == "free" and entry.key in kinds]

    async def take(self, key: str, instance: str, kind: str) -> str:
        """Its name; with a key that was seen before, the same one again."""
        known = {entry.action for entry in self.entries if entry.key == key}
        if known & {"free", "bury"}:
            raise Refused(f"{kind} for {instance} was given up")
        if not known:
            self._write(Entry("take", key, instance, kind))
        return f"{kind}-of-{instance}"

    async def free(self, key: str) -> None:
        """Whatever was taken under this key; nothing can be taken under it any more."""
        known = {entry.action for entry in self.entries if entry.key == key}
        if not known & {"free", "bury"}:
            self._write(Entry("free" if known else "bury", key))

    def _taken(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.action == "take"]

    def _write(self, entry: Entry) -> None:
        self.entries.append(entry)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(entry) + b"\n")
