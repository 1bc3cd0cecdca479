"""PURE. What stands in the ``digest`` of an entry that was forgotten by a retry (``EntryKind.FORGOTTEN``)."""

from __future__ import annotations

import msgspec


class Forgotten(msgspec.Struct, frozen=True):
    """``last`` is the last position before the retry, and ``at`` its time (microseconds since 1970)."""

    last: int
    at: int

    def encode(self) -> bytes:
        return self.last.to_bytes(4, "big") + self.at.to_bytes(8, "big")


def forgotten(digest: bytes) -> Forgotten:
    return Forgotten(int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big"))
