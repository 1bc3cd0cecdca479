"""PURE. What stands in the ``digest`` of an entry that a retry has left (``EntryKind.FORGOTTEN``).

The entry is that of what had failed, or one of its own: where nothing had but the code of the workflow, or where a call
had no answer in time. Nothing but the time has failed then, and that entry may have told of other things: it stays, and
a replay knows ahead that the call is waited for anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from skald.unit import EntryKind, JournalEntry
from skald.workflows.signature import Identity


class Forgotten(msgspec.Struct, frozen=True):
    """``last`` is the last position that may have come from the failure, and ``at`` the time of the retry (microseconds
    since 1970). ``since`` is where a call had no answer, 0 for what else has failed; ``digest`` belongs to the call or
    step, whose name and occurrence the entry has. Older ones end with ``at``."""

    last: int
    at: int
    since: int = 0
    digest: bytes = b""

    def encode(self) -> bytes:
        return self.last.to_bytes(4, "big") + self.at.to_bytes(8, "big") + self.since.to_bytes(4, "big") + self.digest


def forgotten(digest: bytes) -> Forgotten:
    last, at, since = (int.from_bytes(digest[first:end], "big") for first, end in ((0, 4), (4, 12), (12, 16)))
    return Forgotten(last, at, since, digest[16:])


class WaitedAnew:
    """The calls of a history that had no answer in time before a retry. ``since`` is when that was, in seconds."""

    def __init__(self, history: Sequence[JournalEntry] = ()) -> None:
        found = [(entry, forgotten(entry.digest)) for entry in history if entry.kind == EntryKind.FORGOTTEN]
        self.since: dict[Identity, float] = {
            (entry.name, note.digest, entry.occurrence): note.at / 1e6 for entry, note in found if note.since
        }
        self._doubtful = [range(note.since, note.last + 1) for _, note in found if note.since]

    def has_led_to(self, position: int) -> bool:
        """Whether what stands there may have come of such a call."""
        return bool(self._doubtful) and any(position in span for span in self._doubtful)
