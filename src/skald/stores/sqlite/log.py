"""The readable part of one service's log: of our own file, or of another service's, opened read-only.

One writer at a time means that positions become readable in the order in which they were drawn: whatever a
snapshot shows is complete, and there is no horizon to ask for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from itertools import starmap
from pathlib import Path

import msgspec

from skald.message import Record
from skald.sql import blocks
from skald.stores.sqlite import doorbell
from skald.stores.sqlite.reader import Reader

_SQL = blocks(__package__, "log")
_READ, _READ_EVENTS, _READ_TYPES = _SQL["read_log"], _SQL["read_events_alone"], _SQL["read_log_of_types"]
_LAST = 2**63 - 1


class SqliteLog:
    """See ``skald.store.Log``. ``open`` raises ``StoreUnavailable`` while file or tables are missing."""

    def __init__(self, path: Path, *, reader: Reader | None = None) -> None:
        self._path = Path(path)
        self._reader = reader or Reader(self._path)
        self._listening: set[Callable[[], None]] = set()

    async def open(self) -> None:
        self._reader.open()

    async def close(self) -> None:
        for stop in list(self._listening):
            stop()
        self._reader.close()

    async def read(
        self, position: int, limit: int, *, types: Collection[str] | None = None, upto: int | None = None
    ) -> list[Record]:
        """Both tables, merged by position; payloads of types not asked for are ``None``."""
        last = _LAST if upto is None else upto
        if types is None:
            page = (position, last, limit)
            rows = self._reader.rows(_READ_EVENTS, *page) or self._reader.rows(_READ, *page)
        else:
            rows = self._reader.rows(_READ_TYPES, position, last, limit, _json(types))
        return list(starmap(Record, rows))

    async def read_stream(
        self, stream: str, *, after: int = 0, limit: int = 1_000, backwards: bool = False
    ) -> list[Record]:
        if backwards:
            rows = self._reader.rows(_SQL["read_stream_backwards"], stream, after or _LAST, limit)
        else:
            rows = self._reader.rows(_SQL["read_stream"], stream, after, limit)
        return list(starmap(Record, rows))

    async def versions(self, keys: Collection[str]) -> dict[str, int]:
        known: dict[str, int] = dict.fromkeys(keys, 0)
        for key, version in self._reader.rows(_SQL["versions"], _json(keys)):
            known[key] = version
        return known

    async def find(self, id: str) -> Record | None:
        """Walks the log, on a thread."""
        rows = await asyncio.to_thread(self._reader.scan, _SQL["find"], id)
        return Record(*rows[0]) if rows else None

    async def end(self) -> tuple[int, str | None]:
        rows = self._reader.rows(_SQL["end"])
        return (rows[0][0], rows[0][1]) if rows else (0, None)

    async def position_at(self, time: int) -> int:
        """Walks the log, on a thread; the end of the log if nothing was appended since."""
        rows = await asyncio.to_thread(self._reader.scan, _SQL["position_at"], time)
        return rows[0][0] if rows else (await self.end())[0]

    async def floor(self, types: Collection[str] | None = None) -> int:
        if types is None:
            rows = self._reader.rows(_SQL["floor"])
        else:
            rows = self._reader.rows(_SQL["floor_of_types"], _json(types))
        return int(rows[0][0] or 0) if rows else 0

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        stop_bell = doorbell.listen(self._path, heard)

        def stop() -> None:
            self._listening.discard(stop)
            stop_bell()

        self._listening.add(stop)
        return stop


def _json(texts: Collection[str]) -> str:
    return msgspec.json.encode(list(texts)).decode()
