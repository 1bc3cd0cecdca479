"""The readable part of one log, and the low-water mark that decides what is readable.

Positions are drawn before their transaction commits, so a row may appear below one that is visible already. Every
appender therefore announces, before it draws, the last position drawn so far, as a shared advisory lock that goes with
its transaction. A reader takes ① the last position drawn, ② the lowest announcement, ③ rows up to the lower of the
two with a snapshot newer than both. Who announces after ② draws above ①; who is gone at ② is visible at ③.
Ordering by transaction id was rejected: it breaks the order within a stream, and any writer stalls it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import starmap
from typing import Any

from skald.errors import SchemaMismatch, StoreUnavailable
from skald.message import Record
from skald.stores.postgres.failures import boundary
from skald.stores.postgres.shared import Shared, release, shared
from skald.stores.postgres.statements import statements

_LAST = (1 << 63) - 1


class Bell:
    """One channel of the doorbell that the logs of an address share; silent while its log is closed."""

    def __init__(self, log: PostgresLog, channel: str) -> None:
        self._log, self._channel = log, channel

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        return self._log.opened().doorbell.listen(self._channel, heard)

    def ring(self) -> None:
        if self._log.is_open:
            self._log.opened().doorbell.ring(self._channel)


class PostgresLog:
    """One schema's log. Logs of one address share the process's reading connection and its listening one."""

    def __init__(self, url: str, schema: str) -> None:
        self._url, self._schema = url, schema
        self._sql = statements("log", schema)
        self._shared: Shared | None = None
        self._mark = 0
        self._session = 0
        """The connection that the mark was taken on."""
        self._bell = Bell(self, f"skald_{schema}"[:63])

    async def open(self) -> None:
        if self._shared is not None:
            return
        self._shared = shared(self._url)
        try:
            await self._fetch("floor")
        except SchemaMismatch as error:
            await self.close()
            # Not a mismatch: an origin that starts for the first time makes its log a moment later.
            raise StoreUnavailable(f"schema {self._schema} has no log yet: run skald migrate") from error
        except BaseException:
            await self.close()
            raise

    @property
    def is_open(self) -> bool:
        return self._shared is not None

    async def close(self) -> None:
        if self._shared is not None:
            one, self._shared = self._shared, None
            await release(one)

    async def read(
        self, position: int, limit: int, *, types: Collection[str] | None = None, upto: int | None = None
    ) -> list[Record]:
        # What was below the mark once stays readable: while catching up, one mark serves many reads.
        far = self._mark >= position + limit or (upto is not None and self._mark >= upto)
        known = far and self._is_current()
        if known:
            found = await self._read(position, limit, types, upto)
        # Where there were gaps, the old mark was not as far away as it seemed.
        if not known or (len(found) < limit and (upto is None or self._mark < upto)):
            found = await self._read_anew(position, limit, types, upto)
        while not self._is_current():
            await self._raise_mark()
            found = await self._read(position, limit, types, upto)
        return found

    def _is_current(self) -> bool:
        """Whether the mark was taken on the present connection: a database that was restored has another one."""
        return self._session == self.opened().reader.session

    async def _read_anew(
        self, position: int, limit: int, types: Collection[str] | None, upto: int | None
    ) -> list[Record]:
        """Up to a new mark, in one statement."""
        known = self._mark if self._is_current() else 0
        wanted = None if types is None else list(types)
        mark, *rows = await self._fetch("read_anew", known, position, limit, _LAST if upto is None else upto, wanted)
        is_same = self._is_current()
        self._set_mark(mark[0], mark[15])
        return _records(rows) if is_same or not known else await self._read(position, limit, types, upto)

    async def _read(self, position: int, limit: int, types: Collection[str] | None, upto: int | None) -> list[Record]:
        last = self._mark if upto is None else min(self._mark, upto)
        if last < position:
            return []
        if types is None:
            return _records(await self._fetch("read", position, last, limit))
        return _records(await self._fetch("read_types", position, last, limit, list(types)))

    async def read_stream(
        self, stream: str, *, after: int = 0, limit: int = 1_000, backwards: bool = False
    ) -> list[Record]:
        # No mark: appends to one stream follow each other under its head's lock, so none can appear in between.
        if backwards:
            return _records(await self._fetch("read_stream_backwards", stream, after or _LAST, limit))
        return _records(await self._fetch("read_stream", stream, after, limit))

    async def versions(self, keys: Collection[str]) -> dict[str, int]:
        found = {row[0]: row[1] for row in await self._fetch("versions", list(keys))}
        return {key: found.get(key, 0) for key in keys}

    async def find(self, id: str) -> Record | None:
        try:
            found = _records(await self._fetch("find", id))
        except ValueError:
            return None
        return found[0] if found else None

    async def end(self) -> tuple[int, str | None]:
        await self._raise_mark()
        rows = await self._fetch("end", self._mark)
        return (rows[0][0], rows[0][1]) if rows else (0, None)

    async def position_at(self, time: int) -> int:
        await self._raise_mark()
        rows = await self._fetch("position_at", time, self._mark)
        return rows[0][0] if rows else (await self.end())[0]

    async def floor(self, types: Collection[str] | None = None) -> int:
        if types is None:
            return int((await self._fetch("floor"))[0][0])
        return int((await self._fetch("floor_of_types", list(types)))[0][0] or 0)

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        return self._bell.listen(heard)

    def ring(self) -> None:
        self._bell.ring()

    async def _raise_mark(self) -> None:
        drawn, announced = (await self._fetch("mark"))[0]
        self._set_mark(drawn, announced)

    def _set_mark(self, drawn: int, announced: int | None) -> None:
        if not self._is_current() or drawn < self._mark:
            # What is readable now may be less than what was: the history of a restored database ends earlier.
            self._mark, self._session = 0, self.opened().reader.session
        # An announcement may appear a little below what was readable before; otherwise the mark never falls.
        self._mark = max(self._mark, drawn if announced is None else min(drawn, announced))

    async def _fetch(self, name: str, *values: Any) -> list[Any]:
        with boundary():
            return await self.opened().reader.fetch(self._sql[name], *values)

    def opened(self) -> Shared:
        if self._shared is None:
            raise StoreUnavailable(f"the log of {self._schema} is not open")
        return self._shared


def _records(rows: list[Any]) -> list[Record]:
    return list(starmap(Record, rows))
