"""Nothing waits for a poll: whatever is published, called or answered is rung for, however it meets what is under way.

The other tests poll often, and so do not see a ring that was lost: what it was for comes a moment later. Here nobody
polls within an hour.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from skald import App, Command, Event, RuntimeSettings, Service, Transaction, call, lock, saga, workflow
from skald.messaging.consumer import ConsumerSettings
from skald.workflows import Signal
from skald.workflows.executor import ExecutorSettings
from tests.simulation.stage import PATIENCE, Seen, playing, seed

RUN = 4
HOUR = 3600.0
NEVER_POLLS = RuntimeSettings(
    consumer=ConsumerSettings(run=RUN, poll=HOUR, checkpoint=HOUR), workflows=ExecutorSettings(poll=HOUR)
)


class Sent(Event, key="key"):
    key: str
    n: int


class Passed(Event, key="key"):
    key: str
    n: int


class Taken(Event, key="key"):
    key: str


class Take(Command[Taken], key="key"):
    key: str


class Undo(Exception):
    pass


told = Signal("told", str)


class World:
    """Three services in a row, and in the first one workflows and sagas of all kinds that call the second one."""

    def __init__(self, url: str, chance: Random) -> None:
        self.chance = chance
        self.seen: Seen[int] = Seen()
        self.sent = 0
        self.first = Service("first", publishes=[Sent], workflows=[taking, waiting, parent, locked], calls=[Take])
        self.second, self.third = Service("second"), Service("third")

        @self.second.on(Sent)
        async def pass_on(event: Sent) -> Passed:
            return Passed(event.key, event.n)

        @self.second.on(Take)
        async def take(command: Take) -> Taken:
            return Taken(command.key)

        @self.third.on(Passed)
        async def note(event: Passed, tx: Transaction) -> None:
            self.seen.note(event.n)

        self.app = App(self.first, self.second, self.third, store=url, settings=NEVER_POLLS)

    async def play(self) -> None:
        async with playing(self.app), asyncio.timeout(PATIENCE):
            async with asyncio.TaskGroup() as tasks:
                for number in range(8):
                    tasks.create_task(self.act(number))
            # Twice the same is what a transaction that is repeated notes.
            await self.seen.until(lambda noted: len(set(noted)) == self.sent)

    async def act(self, number: int) -> None:
        for turn in range(6):
            # A different moment within what the others are doing.
            for _ in range(self.chance.randrange(40)):
                await asyncio.sleep(0)  # sleep: a turn of the loop
            match self.chance.randrange(7):
                case 0:
                    await self.first.publish(*self.messages(self.chance.choice((1, 1, RUN, 2 * RUN + 1, 3 * RUN))))
                case 1:
                    async with self.first.transaction() as tx:
                        tx.publish(*self.messages(self.chance.choice((1, RUN))))
                case 2:
                    try:
                        async with self.first.transaction() as tx:
                            await tx.append(f"stream-{number}-{turn}", [Sent("kept back", -1)])
                            raise Undo
                    except Undo:
                        pass
                case 3:
                    assert await taking.run(f"{number}-{turn}") == ["a", "b"]
                case 4:
                    handle = await waiting.start(f"{number}-{turn}")
                    await handle.signal(told, "something")
                    assert await handle.result() == "something"
                case 5:
                    assert await parent.run(f"{number}-{turn}") == "child of a child"
                case 6:
                    assert await locked.run(f"key {self.chance.randrange(2)}") == ["a", "b"]

    def messages(self, count: int) -> list[Sent]:
        self.sent += count
        return [Sent(f"k{n % 5}", n) for n in range(self.sent - count, self.sent)]


@saga
async def taking(key: str) -> list[str]:
    return await take_two(key)


async def take_two(key: str) -> list[str]:
    taken = [await call(Take(f"{key}/{name}")) for name in ("a", "b")]
    return [one.key.rsplit("/", 1)[1] for one in taken]


@workflow
async def waiting(key: str) -> str:
    return await told.receive()


@workflow
async def parent(key: str, depth: int = 0) -> str:
    return "child" if depth == 1 else f"{await parent.run(key, depth + 1)} of a child"


@saga
async def locked(key: str) -> list[str]:
    await lock(key)
    return await take_two(key)


SEED = seed()


@pytest.mark.parametrize("number", range(4))
async def test_nothing_waits_for_a_poll(store_url: str, number: int) -> None:
    print(f"SKALD_SEED={SEED}")
    await World(store_url, Random(f"{SEED} {number}")).play()


@pytest.mark.sweep
@pytest.mark.parametrize("number", range(4, 64))
async def test_nothing_waits_for_a_poll_many_times(store_url: str, number: int) -> None:
    print(f"SKALD_SEED={SEED}")
    await World(store_url, Random(f"{SEED} {number}")).play()
