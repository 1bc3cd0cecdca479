"""PURE. What stands in the ``digest`` of an entry that a retry has left (``EntryKind.FORGOTTEN``).

The entry is that of what had failed, or one of its own where nothing had but the code of the workflow.
"""

from __future__ import annotations

import msgspec


class Forgotten(msgspec.Struct, frozen=True):
    """``last`` is the last position that may have come from the failure, and ``at`` the time of the retry (microseconds
    since 1970). ``digest`` is that of the call that had failed; older ones do not have it."""

    last: int
    at: int
    digest: bytes = b""

    def encode(self) -> bytes:
        return self.last.to_bytes(4, "big") + self.at.to_bytes(8, "big") + self.digest


def forgotten(digest: bytes) -> Forgotten:
    return Forgotten(int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:12], "big"), digest[12:])
