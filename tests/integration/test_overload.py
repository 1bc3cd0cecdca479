"""Ten times more than can be taken: what waits is bounded, the rest is refused by name, nothing accepted is lost."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec

from skald import App, Service
from skald.errors import Overloaded
from skald.messaging.consumer import ConsumerSettings
from skald.runtime.service import RuntimeSettings
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.stage import Placed, caught_up, eventually, playing

BOUND = 200
TIMES = 10


async def ids(service: Service) -> list[int]:
    records = await service.store.log.read(1, 100_000)
    return sorted(msgspec.json.decode(record.payload or b"")["n"] for record in records)


async def test_what_is_accepted_is_written_once_and_the_rest_is_refused(store_url: str) -> None:  # noqa: F811
    source = Service("source", publishes=[Placed])
    app = App(source, store=store_url, settings=RuntimeSettings(max_pending=BOUND))
    await app.migrate()
    async with app.connect():
        accepted: list[int] = []
        for wave in range(3):
            numbers = range(wave * BOUND * TIMES, (wave + 1) * BOUND * TIMES)
            answers = await asyncio.gather(
                *(source.publish(Placed(f"k{n % 50}", n)) for n in numbers), return_exceptions=True
            )
            refused = [answer for answer in answers if isinstance(answer, BaseException)]
            assert all(isinstance(answer, Overloaded) for answer in refused), Counter(map(repr, refused))
            assert 0 < len(answers) - len(refused) <= BOUND, "the queue has no bound"
            accepted += [n for n, answer in zip(numbers, answers, strict=True) if answer not in refused]
            # Back to normal as soon as the queue is empty.
            await source.publish(Placed("after", -wave - 1))
            accepted.append(-wave - 1)
        assert await ids(source) == sorted(accepted)


async def test_the_refusal_says_when_to_try_again_and_trying_again_ends(store_url: str) -> None:  # noqa: F811
    source = Service("source", publishes=[Placed])
    app = App(source, store=store_url, settings=RuntimeSettings(max_pending=BOUND))
    await app.migrate()

    refusals: list[Overloaded] = []

    async def insist(n: int) -> None:
        while True:
            try:
                await source.publish(Placed(f"k{n % 50}", n))
                return
            except Overloaded as error:
                refusals.append(error)
                await asyncio.sleep(0.01)  # sleep: a caller that comes back

    async with app.connect():
        await asyncio.gather(*(insist(n) for n in range(BOUND * TIMES)))
        assert await ids(source) == list(range(BOUND * TIMES))
    assert refusals
    assert all(error.retry_after > 0 and "full; try again in" in str(error) for error in refusals)


async def test_a_slow_handler_holds_a_bounded_part_of_its_backlog(store_url: str) -> None:  # noqa: F811
    consumer = ConsumerSettings(run=20, concurrency=10, max_stragglers=30, patience=0.01, poll=0.05, checkpoint=0.05)
    source, sink = Service("source", publishes=[Placed]), Service("sink")
    running, most, done = 0, 0, list[int]()
    full, go_on = asyncio.Event(), asyncio.Event()

    @sink.on(Placed)
    async def slow(event: Placed) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running >= 30:
            full.set()
        await go_on.wait()
        running -= 1
        done.append(event.n)

    app = App(source, sink, store=store_url, settings=RuntimeSettings(consumer=consumer))
    async with playing(app):
        for start in range(0, 1000, 100):
            await source.publish(*(Placed(f"k{n}", n) for n in range(start, start + 100)))
        await asyncio.wait_for(full.wait(), 60)
        for _ in range(50):  # turns of the loop in which more could be taken
            await sink.fetch("SELECT 1 AS one")
            await asyncio.sleep(0)
        assert most <= 30 + 20, "more was begun than a stretch and the stragglers' bound"
        go_on.set()
        assert await eventually(lambda: caught_up(sink, source))
        assert await eventually(lambda: _all(done))
        assert most <= 50


async def _all(done: list[int]) -> bool:
    return sorted(done) == list(range(1000))
