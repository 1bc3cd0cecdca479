"""How often a log is read: once for each ring, and once more where a stretch was full, or read ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from skald import App, Event, RuntimeSettings, Service
from skald.message import Record
from skald.messaging.consumer import Consumer, ConsumerSettings
from skald.messaging.reading import Reader
from tests.simulation.conftest import store_url  # noqa: F401

RUN = 4


class Counted(Event, key="name"):
    number: int
    name: str = "same"


class Watched(msgspec.Struct):
    """The only consumer: how often it has read before each of its waits, and what it has handled."""

    turns: list[int] = []
    reads: int = 0
    handled: list[int] = []
    reader: Reader | None = None
    """Its own."""
    idle: asyncio.Event = msgspec.field(default_factory=asyncio.Event)

    async def until(self, handled: int) -> None:
        """Returns when it waits after so many messages."""
        async with asyncio.timeout(30):
            while len(self.handled) < handled or not self.idle.is_set():
                self.idle.clear()
                await self.idle.wait()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched, read, wait = Watched(), Reader.read, Consumer._wait

    async def counted(self: Reader, position: int, id: str | None, upto: int | None) -> list[Record]:
        watched.reads += 1
        watched.reader = self
        return await read(self, position, id, upto)

    async def waits(self: Consumer) -> None:
        watched.turns.append(watched.reads)
        watched.reads = 0
        watched.idle.set()
        await wait(self)
        watched.idle.clear()

    monkeypatch.setattr(Reader, "read", counted)
    monkeypatch.setattr(Consumer, "_wait", waits)
    return watched


async def publish_behind_the_next_stretch(source: Service, watched: Watched, number: int) -> None:
    """While a full stretch is handled: the next one was read when this is published, and its ring has come."""
    assert watched.reader is not None
    assert watched.reader._ahead is not None
    await asyncio.wait([watched.reader._ahead[1]])
    rung = asyncio.Event()
    stop = watched.reader._log.listen(rung.set)
    await source.publish(Counted(number))
    await asyncio.wait_for(rung.wait(), 30)
    stop()


@asynccontextmanager
async def playing(url: str, watched: Watched, *, publishes_at: int | None = None) -> AsyncIterator[Service]:
    source, sink = Service("source", publishes=[Counted]), Service("sink")

    @sink.on(Counted)
    async def count(event: Counted) -> None:
        watched.handled.append(event.number)
        if event.number == publishes_at:
            await publish_behind_the_next_stretch(source, watched, event.number + 1)

    consumer = ConsumerSettings(run=RUN, poll=3600.0, checkpoint=3600.0)
    app = App(source, sink, store=url, settings=RuntimeSettings(consumer=consumer))
    await app.migrate()
    async with app.run():
        await source.publish(Counted(0))
        await watched.until(1)
        yield source


async def test_a_ring_is_one_read(store_url: str, watched: Watched) -> None:  # noqa: F811
    async with playing(store_url, watched) as source:
        watched.turns.clear()
        for number in range(1, 6):
            watched.idle.clear()
            await source.publish(Counted(number))
            await watched.until(number + 1)
        assert set(watched.turns) == {1}
    assert watched.handled == list(range(6))


async def test_what_is_behind_a_full_stretch_needs_no_ring(store_url: str, watched: Watched) -> None:  # noqa: F811
    async with playing(store_url, watched) as source:
        watched.turns.clear()
        watched.idle.clear()
        await source.publish(*map(Counted, range(1, 3 * RUN + 2)))
        await watched.until(3 * RUN + 2)
        assert max(watched.turns) == 5  # the last stretch was read ahead
    assert watched.handled == list(range(3 * RUN + 2))


@pytest.mark.parametrize("behind", [0, 1])
async def test_what_is_rung_for_while_the_next_stretch_is_known_is_read(
    store_url: str,  # noqa: F811
    watched: Watched,
    behind: int,
) -> None:
    """``behind``: messages that are in that next stretch anyway."""
    async with playing(store_url, watched, publishes_at=RUN) as source:
        watched.idle.clear()
        await source.publish(*map(Counted, range(1, RUN + 1)), *[Counted(100)] * behind)
        await watched.until(RUN + 2 + behind)
    assert sorted(watched.handled) == [*range(RUN + 2), *[100] * behind]
