"""PURE. What stands in the ``digest`` of an entry that was forgotten by a retry (``EntryKind.FORGOTTEN``)."""

from __future__ import annotations

import msgspec

from skald.workflows.signature import Identity


class Forgotten(msgspec.Struct, frozen=True):
    """``last`` is the last position before the retry, ``at`` its time (microseconds since 1970), ``digest`` what stood
    there."""

    last: int
    at: int
    digest: bytes

    def encode(self) -> bytes:
        return self.last.to_bytes(4, "big") + self.at.to_bytes(8, "big") + self.digest


def forgotten(digest: bytes, name: str, occurrence: int) -> tuple[Forgotten, Identity]:
    """With the identity of what had failed."""
    found = Forgotten(int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:12], "big"), digest[12:])
    return found, (name, found.digest, occurrence)
