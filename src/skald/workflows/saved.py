"""A workflow's history as one JSON document: to be kept, to be sent to somebody, and to be replayed on other code."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from skald.clock import to_rfc3339
from skald.errors import UnreadableMessage
from skald.unit import EntryKind, JournalEntry
from skald.workflows.definition import Workflow
from skald.workflows.failure import End
from skald.workflows.inbox import Inbox
from skald.workflows.replay import UNREAD, Machine

NOTHING = msgspec.Raw(b"")
Time = Annotated[int, msgspec.Meta(ge=-62_135_596_800_000_000, lt=253_402_300_800_000_000)]
"""Microseconds since 1970, of the years 1 to 9999, which a date can have."""


class SavedEntry(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """``time`` in microseconds since 1970, ``digest`` in hex. A payload that is no JSON stands in ``base64``."""

    position: int
    kind: str
    time: Time
    name: str = ""
    occurrence: int = 0
    digest: str = ""
    payload: msgspec.Raw = NOTHING
    base64: str | None = None


class History(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run was started with and what it was told; ``started_at`` in microseconds since 1970."""

    workflow: str
    id: str
    run: str
    started_at: Time
    input: msgspec.Raw
    entries: list[SavedEntry]
    format: Literal[1] = 1

    def journal(self) -> tuple[JournalEntry, ...]:
        return tuple(_journalled(self.run, entry) for entry in self.entries)


def saved(entry: JournalEntry) -> SavedEntry:
    place = (entry.position, entry.kind.name.lower(), entry.time, entry.name, entry.occurrence, entry.digest.hex())
    if entry.payload is None:
        return SavedEntry(*place)
    try:
        msgspec.json.decode(entry.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return SavedEntry(*place, base64=base64.b64encode(entry.payload).decode())
    return SavedEntry(*place, payload=msgspec.Raw(entry.payload))


def _journalled(run: str, entry: SavedEntry) -> JournalEntry:
    payload = bytes(entry.payload) or None if entry.base64 is None else base64.b64decode(entry.base64, validate=True)
    kind, digest = EntryKind[entry.kind.upper()], bytes.fromhex(entry.digest)
    return JournalEntry(run, entry.position, kind, entry.name, digest, entry.occurrence, entry.time, payload)


def write(history: History, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(history), indent=2) + b"\n")


def read(path: Path) -> History:
    """``UnreadableMessage`` for a file that holds no history."""
    try:
        history = msgspec.json.decode(path.read_bytes(), type=History)
        history.journal()
    except KeyError as error:
        raise UnreadableMessage(f"the history {path}", f"it has an entry of the unknown kind {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, binascii.Error, ValueError) as error:
        raise UnreadableMessage(f"the history {path}", str(error)) from error
    return history


# --- replayed ---------------------------------------------------------------------------------------------------------


class _Inbox(Inbox):
    """Knows which signals are waited for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.awaited: list[str] = []

    async def receive(self, name: str) -> bytes:
        self.awaited.append(name)
        try:
            return await super().receive(name)
        finally:
            self.awaited.remove(name)


class Replayer(Machine):
    """Tells of each entry before it is delivered, and keeps the exception with which the code has ended."""

    def __init__(self, workflow: Workflow[..., Any], history: History, tell: Callable[[JournalEntry], None]) -> None:
        super().__init__(workflow, history.run, bytes(history.input), history.started_at, id=history.id)
        self.inbox = self._signals = _Inbox(self.loop, self.id)
        self.error: BaseException | None = None
        self._heard = tell

    def deliver(self, entry: JournalEntry, value: Any = UNREAD) -> None:
        self._heard(entry)
        super().deliver(entry, value)

    def _ended(self) -> End:
        if not self.task.cancelled():
            self.error = self.task.exception()
        return super()._ended()

    def waits_for(self) -> list[str]:
        """Steps and children, signals, and the next timer, in words."""
        if self.end is not None:
            return []
        found = [str(call) for call in self.calls.values()] + [f"the signal {name}" for name in self._signals.awaited]
        wake_at = self.wake_at()
        return found if wake_at is None else [*found, f"a timer, due at {to_rfc3339(wake_at)}"]
