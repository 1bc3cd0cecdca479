"""A stage for delivery tests: messages, a table of effects, and ways to wait for what happens.

Nothing waits for a length of time: ``Seen`` is told what happens in this process, ``eventually`` looks at a database.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from skald import App, Command, Event, RuntimeSettings, Service, Transaction
from skald.messaging.consumer import ConsumerSettings
from skald.runtime.service import RunningService
from skald.telemetry import Occurrence, listen

MIGRATIONS = Path(__file__).parent / "sql"
T = TypeVar("T")
PATIENCE = 20.0
"""Seconds after which a test gives up waiting."""

QUICK = RuntimeSettings(lease=1.0, consumer=ConsumerSettings(patience=0.1, poll=0.05, checkpoint=0.05))


class Placed(Event, key="key"):
    key: str
    n: int


class Made(Event, key="key"):
    key: str
    n: int


class Failed(Event, key="key"):
    key: str
    n: int
    reason: str


class Job(Command, key="key"):
    key: str
    n: int


class Seen(Generic[T]):
    """A list that can be waited for; handlers in threads may note as well."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def note(self, item: T) -> None:
        self.items.append(item)
        self._loop.call_soon_threadsafe(self._changed.set)

    async def until(self, condition: Callable[[list[T]], object]) -> list[T]:
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition(self.items):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"did not happen; what did: {self.items[-20:]}") from None
        return self.items

    async def count(self, n: int) -> list[T]:
        return await self.until(lambda items: len(items) >= n)


async def eventually(check: Callable[[], Awaitable[Any]]) -> Any:
    """The first result of ``check`` that is true, or one that does not raise ``AssertionError``."""
    loop = asyncio.get_running_loop()
    end, failure = loop.time() + PATIENCE, "nothing true was answered"
    while loop.time() < end:
        try:
            found = await check()
            if found or found is None:
                return found
        except AssertionError as error:
            failure = str(error)
        await asyncio.sleep(0.02)  # sleep: a pause between two looks at a database
    raise AssertionError(f"not within {PATIENCE:g} s: {failure}")


async def happens(event: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(event.wait(), PATIENCE)
    except TimeoutError:
        raise AssertionError("did not happen") from None


async def forget_member(service: Service, id: str) -> None:
    """What the one who takes over does with the member."""

    def forget() -> None:
        membership = service.store.membership()
        membership.remove(id)
        membership.close()

    await asyncio.to_thread(forget)


@asynccontextmanager
async def playing(app: App, *names: str) -> AsyncIterator[list[RunningService]]:
    """Migrates and runs the services."""
    await app.migrate()
    async with app.run(*names) as running:
        yield running


@asynccontextmanager
async def occurrences() -> AsyncIterator[Seen[Occurrence]]:
    seen: Seen[Occurrence] = Seen()
    stop = listen(seen.note)
    try:
        yield seen
    finally:
        stop()


def seed() -> int:
    """Of this test's randomness: printed, and given back with ``SKALD_SEED``. Processes that share a run of the tests
    have it in common, because they must collect the same."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    chosen = int(os.environ.get("SKALD_SEED") or (int(run[:8], 16) if run else random.randrange(1 << 32)))
    print(f"SKALD_SEED={chosen}")
    return chosen


# --- databases --------------------------------------------------------------------------------------------------------


async def deliveries(service: Service) -> list[dict[str, Any]]:
    return await service.fetch(
        "SELECT handler, origin, lane, position, aggregateid AS key, state, attempts, due, error, owner, payload "
        "FROM skald_deliveries ORDER BY handler, position"
    )


async def no_deliveries(service: Service) -> bool:
    return not await deliveries(service)


async def cursors(service: Service) -> list[dict[str, Any]]:
    return await service.fetch(
        "SELECT origin, lane, position, version, owner, takeovers, stopped FROM skald_cursors ORDER BY origin, lane"
    )


async def caught_up(service: Service, origin: Service) -> bool:
    """All lanes are there, and every one stands at the end of the origin's log."""
    end, _ = await origin.store.log.end()
    found = [row["position"] for row in await cursors(service) if row["origin"] == origin.name]
    return len(found) == service.lanes and set(found) == {end}


async def redrive(service: Service, **where: object) -> None:
    """What an operator's command does: due now, and the lane's version raised in the same transaction.

    Changed is what was found, and nothing else: what parks meanwhile may be of a lane whose version was not raised.
    """
    conditions = " AND ".join(["state = 'parked'", *(f"{column} = :{column}" for column in where)])
    async with service.transaction() as tx:
        found = await tx.fetch(
            f"SELECT group_name, handler, origin, lane, position FROM skald_deliveries WHERE {conditions}", **where
        )
        lanes = {(row["group_name"], row["origin"], row["lane"]) for row in found}
        for group, origin, lane in sorted(lanes):
            await tx.execute(
                "UPDATE skald_cursors SET version = version + 1 "
                "WHERE group_name = :group AND origin = :origin AND lane = :lane",
                group=group,
                origin=origin,
                lane=lane,
            )
        for row in found:
            await tx.execute(
                "UPDATE skald_deliveries SET state = 'delayed', attempts = 0, due = 0 WHERE group_name = :group_name "
                "AND handler = :handler AND origin = :origin AND position = :position AND state = 'parked'",
                **{name: value for name, value in row.items() if name != "lane"},
            )


# --- effects ----------------------------------------------------------------------------------------------------------


async def effect(tx: Transaction, handler: str, id: str, key: str, n: int) -> None:
    await tx.execute(
        "INSERT INTO effects (id, handler, key, n, seq) "
        "SELECT :id, :handler, :key, CAST(:n AS BIGINT), count(*) FROM effects WHERE handler = :handler AND key = :key",
        id=id,
        handler=handler,
        key=key,
        n=n,
    )


async def effects(service: Service, handler: str) -> list[dict[str, Any]]:
    return await service.fetch(
        "SELECT id, key, n, seq FROM effects WHERE handler = :handler ORDER BY key, seq", handler=handler
    )


def check_effects(rows: list[dict[str, Any]], expected: dict[str, int]) -> None:
    """``expected``: how many messages each key has. Every one had its effect once, and in order within its key."""
    found: dict[str, list[tuple[int, int]]] = {}
    for row in rows:
        found.setdefault(row["key"], []).append((row["seq"], row["n"]))
    for key, count in expected.items():
        numbers = [n for _, n in sorted(found.get(key, []))]
        assert sorted(set(numbers)) == sorted(numbers), f"key {key}: doubled, {numbers}"
        assert numbers == sorted(numbers), f"key {key}: out of order, {numbers}"
        assert numbers == list(range(count)), f"key {key}: lost, {numbers} of {count}"
    assert found.keys() <= expected.keys(), f"effects of nobody: {found.keys() - expected.keys()}"
