"""What a provider has done, as lines of JSON, each on disk (fsync) before the provider answers for it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Ledger:
    """Append-only; what stands in it when the process starts is what the process knows."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.entries = _whole_lines(path)
        self._file = path.open("ab")

    def append(self, **entry: Any) -> Entry:
        entry = {"at": round(time.time(), 6), **entry}
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        _sync(self._file.fileno())
        self.entries.append(entry)
        return entry


def _whole_lines(path: Path) -> list[Entry]:
    """Reads the ledger; a last line torn by a kill was never answered for, and is cut off."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _sync(handle: int) -> None:
    try:
        import fcntl

        # On macOS a plain fsync leaves the line in the drive's cache.
        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined,unused-ignore]
    except (ImportError, AttributeError, OSError):
        os.fsync(handle)
