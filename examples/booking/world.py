"""The world outside: a payment provider and a mail service that honour idempotency keys, and remember for ever.

Stands in for theirs; what it remembers is one JSON line per effect, so that a test, or you, can audit it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class Entry(msgspec.Struct, frozen=True):
    key: str
    kind: str
    booking: str
    amount: int = 0
    text: str = ""


class Declined(Exception):
    """The card's bank says no. It will say so again."""


class World:
    """Each call with a key that was seen before does nothing. ``path`` is the file that survives the process."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.entries: dict[str, Entry] = {}
        if path is not None and path.exists():
            lines = path.read_bytes().splitlines()
            self.entries = {entry.key: entry for entry in (msgspec.json.decode(line, type=Entry) for line in lines)}

    def of(self, booking: str, kind: str) -> list[Entry]:
        return [entry for entry in self.entries.values() if (entry.booking, entry.kind) == (booking, kind)]

    def sum(self, booking: str, kind: str) -> int:
        return sum(entry.amount for entry in self.of(booking, kind))

    # --- the payment provider -----------------------------------------------------------------------------------------

    async def authorise(self, key: str, booking: str, card: str, amount: int) -> None:
        """Sets the amount aside on the card."""
        if card.endswith("declined"):
            raise Declined(f"no funds on {card}")
        self._once(Entry(key, "authorised", booking, amount, card))

    async def capture(self, key: str, booking: str, amount: int) -> None:
        """Takes a part of what was set aside."""
        left = self.sum(booking, "authorised") - self.sum(booking, "captured") - self.sum(booking, "voided")
        self._once(Entry(key, "captured", booking, amount), most=left)

    async def void(self, key: str, booking: str) -> None:
        """Releases what was set aside and not taken, if anything was."""
        left = self.sum(booking, "authorised") - self.sum(booking, "captured") - self.sum(booking, "voided")
        if left:
            self._once(Entry(key, "voided", booking, left))

    async def refund(self, key: str, booking: str, amount: int) -> None:
        left = self.sum(booking, "captured") - self.sum(booking, "refunded") - self.sum(booking, "paid out")
        self._once(Entry(key, "refunded", booking, amount), most=left)

    async def pay_out(self, key: str, booking: str, host: str, amount: int) -> None:
        left = self.sum(booking, "captured") - self.sum(booking, "refunded") - self.sum(booking, "paid out")
        self._once(Entry(key, "paid out", booking, amount, host), most=left)

    # --- the mail service ---------------------------------------------------------------------------------------------

    async def mail(self, key: str, booking: str, to: str, text: str) -> None:
        self._once(Entry(key, "mail", booking, text=f"{to}: {text}"))

    def _once(self, entry: Entry, most: int | None = None) -> None:
        if entry.key in self.entries:
            return
        if most is not None and not 0 < entry.amount <= most:
            raise ValueError(f"{entry.kind} {entry.amount} of {entry.booking}: only {most} are left")
        self.entries[entry.key] = entry
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(entry) + b"\n")
