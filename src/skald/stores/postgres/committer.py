"""The one connection of a process that commits groups: one statement, one round trip, one transaction each.

Four things can go wrong, and each has one answer. A *new* key that somebody's open transaction is inserting makes
the statement time out after 50 ms: it is run again with the suspects named, which are then tried one by one, and those
that are held stay named for a while. A lost connection leaves the outcome open: the answer is looked up under the
group's number, and the group is run again, under the same number, only if there is none; if the first run is still
under way, one of the two fails on that number. A workflow that was started elsewhere after the guard had looked makes
the statement fail: it is run again, and the guard finds it. A value that the database refuses fails its own unit: the
group is cut in halves until it is alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any
from uuid import uuid4

import asyncpg
from asyncpg.pgproto.pgproto import UUID

from skald.errors import Busy, Rejection, StoreUnavailable
from skald.stores.postgres import wire
from skald.stores.postgres.connecting import COMMITTER, Connection, check_settings, close, connect, connect_patiently
from skald.stores.postgres.failures import boundary, is_gone
from skald.stores.postgres.group import Group
from skald.stores.postgres.migrate import require_current
from skald.stores.postgres.statements import statements
from skald.unit import Committed, Unit

log = logging.getLogger("skald.postgres")

HOT_SECONDS = 1.0
"""How long a key that was held is tried carefully; each time it is found held again counts anew."""
FORGET_EVERY = 256
MAX_HOT = 20
"""Each key that is held costs a millisecond of everybody's time."""
STATEMENTS = 100
"""That are kept, one for each choice of columns: a service uses a few dozen, and each takes 100 KiB of the server."""
IN_USE = ("skald_workflows_id", "skald_workflows_key")
"""The indexes that let one of two workflows with the same id or key start."""
Outcome = Committed | Rejection
BAD_VALUE = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
"""What one unit's own data can cause; every other error concerns the whole group."""


class Committer:
    def __init__(self, url: str, schema: str, service: str, lease: float) -> None:
        self._url, self._schema, self._service, self._lease = url, schema, service, lease
        self._sql = statements("commit", schema)
        self._call = lru_cache(STATEMENTS)(partial(wire.call, self._sql))
        self._id = UUID(uuid4().bytes)
        self._number = 0
        self._hot: dict[str, float] = {}
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._groups = 0

    async def open(self) -> None:
        self._connection = await self._connect(within=0)
        with boundary():
            check_settings(await self._connection.fetchrow(self._sql["settings"]), self._url)
            await require_current(self._connection, self._schema)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._groups:
            connection.terminate()
        await close(connection)

    def __len__(self) -> int:
        """Groups that are under way or wait for their turn."""
        return self._groups

    async def commit(self, units: Sequence[Unit]) -> list[Outcome]:
        # In the caller's task: another one would cost as much as the rest of it.
        self._groups += 1
        try:
            async with self._lock:
                try:
                    return await self._commit_units(units)
                except (asyncio.CancelledError, GeneratorExit):
                    # The server may be at it yet, or be told to stop when it is at the next group already.
                    if self._connection is not None:
                        self._connection.terminate()
                    raise
        finally:
            self._groups -= 1

    async def _commit_units(self, units: Sequence[Unit]) -> list[Outcome]:
        if not units:
            return []
        group = Group(units)
        if len(group.rejected) == len(units):
            return [group.rejected[n] for n in range(len(units))]
        hot = self._still_hot(group)
        if len(hot) > MAX_HOT:
            return await self._without(hot[MAX_HOT:], units)
        try:
            return await self._run(group, hot)
        except BAD_VALUE as error:
            if len(units) == 1:
                return [_caused(Rejection(f"the unit cannot be written: {error}"), error)]
        except asyncpg.LockNotAvailableError as error:
            if len(units) == 1:
                return [_caused(Busy(next(iter(units[0].keys()), "a table")), error)]
        middle = len(units) // 2
        return await self._commit_units(units[:middle]) + await self._commit_units(units[middle:])

    async def _without(self, keys: Sequence[str], units: Sequence[Unit]) -> list[Outcome]:
        """Answers the units of keys that were just found held as they were answered then, and commits the others."""
        known = set(keys)
        outcomes: list[Outcome | None] = []
        for unit in units:
            held = next(iter(known.intersection(unit.keys())), None)
            outcomes.append(None if held is None else Busy(held))
        done = iter(await self._commit_units([u for u, o in zip(units, outcomes, strict=True) if o is None]))
        return [next(done) if outcome is None else outcome for outcome in outcomes]

    async def _run(self, group: Group, hot: Sequence[str]) -> list[Outcome]:
        """Runs the group until it has an answer; only refused values and locks that stay held are raised."""
        arguments = group.arguments()
        packed, columns = wire.values(arguments)
        sql = self._call(packed, tuple(arguments))
        self._number += 1
        suspects = hot
        careful = raced = False
        while True:
            try:
                values = [self._id, self._number, suspects or None, *columns]
                answer = await self._ask(sql, values)
                break
            except asyncpg.LockNotAvailableError:
                # A second time with every suspect named: what is held then is no new key, but a table or a delivery.
                if careful:
                    raise
                careful = True
                suspects = group.suspects()
            except asyncpg.UniqueViolationError as error:
                # Started meanwhile elsewhere: the guard sees it now. A second time the group itself has it twice.
                if raced or error.constraint_name not in IN_USE:
                    raise
                raced = True
            except asyncpg.PostgresError as error:
                if error.sqlstate not in ("SK001", "40001", "40P01"):
                    raise
        if suspects:
            self._remember(suspects, answer)
        if self._number % FORGET_EVERY == 0:
            await self._forget()
        return group.outcomes(answer)

    async def _ask(self, sql: str, values: list[Any]) -> Mapping[str, Any]:
        """One run under the group's number, or the answer that an earlier one with the same number left."""
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = await self._reconnect()
        uncertain = False
        deadline = asyncio.get_running_loop().time() + 2 * self._lease
        while True:
            try:
                if uncertain and (found := await connection.fetchrow(self._sql["answer"], *values[:2])):
                    return found  # type: ignore[no-any-return]
                return await connection.fetchrow(sql, *values)  # type: ignore[no-any-return]
            except asyncpg.UniqueViolationError as error:
                if error.table_name != "skald_commits":
                    raise
                uncertain = True
            except asyncpg.LockNotAvailableError:
                # After a lost reply this may be our own first run, still under way.
                if not uncertain or asyncio.get_running_loop().time() > deadline:
                    raise
            except Exception as error:
                if not is_gone(error) and not connection.is_closed():
                    raise
                if asyncio.get_running_loop().time() > deadline:
                    raise StoreUnavailable(f"the outcome of a commit could not be learned: {error}") from error
                uncertain = True
                log.warning("lost the connection while committing, looking the outcome up: %s", error)
                connection.terminate()
                try:
                    connection = await self._reconnect()
                except StoreUnavailable as away:
                    raise StoreUnavailable(f"the outcome of a commit could not be learned: {away}") from away

    async def _forget(self) -> None:
        """Drops the answers that nobody will look up any more; failing to do so harms nothing."""
        try:
            await self._live().execute(self._sql["forget"], self._id, self._number)
        except Exception as error:
            log.warning("old answers were not deleted: %s", error)

    def _still_hot(self, group: Group) -> list[str]:
        if not self._hot:
            return []
        now = asyncio.get_running_loop().time()
        self._hot = {key: until for key, until in self._hot.items() if until > now}
        # Those that were held longest ago first: only a few are tried at a time, and so everyone's turn comes.
        return sorted((key for key in group.suspects() if key in self._hot), key=self._hot.__getitem__)

    def _remember(self, tried: Sequence[str], answer: Mapping[str, Any]) -> None:
        held = {key for key, code in zip(answer["bad_key"] or (), answer["bad_code"] or (), strict=True) if code == 2}
        until = asyncio.get_running_loop().time() + HOT_SECONDS
        for key in tried:
            if key in held:
                self._hot[key] = until
            else:
                self._hot.pop(key, None)

    def _live(self) -> Connection:
        if self._connection is None:
            raise StoreUnavailable("the store is not open")
        return self._connection

    async def _reconnect(self) -> Connection:
        self._live()
        connection = await self._connect(within=self._lease)
        if self._connection is None:
            connection.terminate()  # closed meanwhile
        else:
            self._connection = connection
        return self._live()

    async def _connect(self, within: float) -> Connection:
        options = {
            "schema": self._schema,
            "settings": COMMITTER | {"idle_in_transaction_session_timeout": f"{self._lease * 1000:.0f}"},
            "timeout": max(10.0, 2 * self._lease),
            "statements": STATEMENTS,
        }
        if within:
            return await connect_patiently(self._url, self._service, within, **options)
        return await connect(self._url, self._service, **options)  # type: ignore[arg-type]


def _caused(rejection: Rejection, cause: BaseException) -> Rejection:
    rejection.__cause__ = cause
    return rejection
