"""A disk that can lose power and fill up: an ``apsw`` VFS below every connection of this process.

It passes everything on, and remembers per file what was synced and what was merely written since. ``image`` builds
what a power cut at this moment can leave: what was synced, and of every later write all, nothing, or a torn part (in
sectors of 512 bytes, the unit that disks write whole). Truncations are lost or kept alike.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512
_Write = tuple[int, bytes]
"""Offset and data; a truncation is (size, b"")."""


class Disk(apsw.VFS):
    """Registered as the default VFS until ``unregister``."""

    def __init__(self, on_operation: Callable[[str], None] | None = None) -> None:
        self.files: dict[str, _Contents] = {}
        self.on_operation = on_operation or (lambda _: None)
        self.writes_left: int | None = None
        """After so many writes the disk is full; ``None``: never."""
        super().__init__("skald-test-disk", "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        return _File(self, path, name, flags)

    def xDelete(self, name: str, sync_dir: bool) -> None:
        # A WAL is deleted only after everything in it was synced to the database, so it may be taken as durable.
        self.files.pop(name, None)
        super().xDelete(name, sync_dir)

    def image(self, folder: Path, rng: random.Random) -> None:
        """Writes into ``folder`` what a power cut now can leave behind."""
        folder.mkdir()
        for path, contents in self.files.items():
            (folder / os.path.basename(path)).write_bytes(contents.after_power_cut(rng))


class _Contents:
    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[_Write] = []

    def sync(self) -> None:
        for write in self.pending:
            _apply(self.durable, write)
        self.pending.clear()

    def after_power_cut(self, rng: random.Random) -> bytes:
        left = bytearray(self.durable)
        for offset, data in self.pending:
            fate = rng.random()
            if fate < 0.4:
                continue
            if fate < 0.6 and len(data) > SECTOR:
                data = data[: rng.randrange(1, len(data) // SECTOR + 1) * SECTOR]
            _apply(left, (offset, data))
        return bytes(left)


def _apply(contents: bytearray, write: _Write) -> None:
    offset, data = write
    if not data:
        del contents[offset:]
        return
    if len(contents) < offset:
        contents.extend(bytes(offset - len(contents)))
    contents[offset : offset + len(data)] = data


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, path: str | None, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._contents: _Contents | None = None
        super().__init__("unix", name, flags)
        # Neither temporary files nor the index of the WAL survive a power cut in any way that matters.
        if path is not None and flags[0] & (apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_WAL):
            if path not in disk.files:
                disk.files[path] = _Contents()
                size = super().xFileSize()
                if size:
                    disk.files[path].durable[:] = super().xRead(size, 0)
            self._contents = disk.files[path]

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._disk.writes_left is not None:
            if self._disk.writes_left <= 0:
                raise apsw.FullError("no space left on device")
            self._disk.writes_left -= 1
        super().xWrite(data, offset)
        if self._contents is not None:
            self._contents.pending.append((offset, bytes(data)))
            self._disk.on_operation("write")

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        if self._contents is not None:
            self._contents.pending.append((size, b""))
            self._disk.on_operation("truncate")

    def xSync(self, flags: int) -> None:
        if self._contents is not None:
            self._disk.on_operation("before sync")
        super().xSync(flags)
        if self._contents is not None:
            self._contents.sync()
            self._disk.on_operation("sync")
