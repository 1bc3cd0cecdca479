"""Three services for processes that are killed: source -> middle -> sink. Run by ``skald run``, or connected by a test.

What a message does is said by its key, so that a test decides it and a restarted process does it again:
``slow…`` sleeps, ``poison…`` kills its process, ``block…`` stops the event loop unless it may have been handled before,
``flaky…`` fails at its first attempt, ``late…`` is delayed at its first, ``behind…`` too and kills at the second.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

import msgspec

from skald import App, Attempt, Retry, RuntimeSettings, Service, Transaction
from skald.messaging.consumer import ConsumerSettings
from tests.simulation.stage import MIGRATIONS, Job, Made, Placed, effect


class Options(msgspec.Struct, frozen=True):
    """From the variable ``PIPELINE``, as JSON."""

    lease: float = 1.0
    patience: float = 0.1
    checkpoint: float = 0.1
    poll: float = 0.1
    run: int = 500
    lanes: int = 8
    slow: float = 0.3
    block: float = 3.0
    delayed: int = 3
    """Delayed attempts, after two at once."""


OPTIONS = msgspec.json.decode(os.environ.get("PIPELINE", "{}"), type=Options)


def settings(options: Options) -> RuntimeSettings:
    consumer = ConsumerSettings(
        run=options.run, patience=options.patience, poll=options.poll, checkpoint=options.checkpoint
    )
    return RuntimeSettings(lease=options.lease, consumer=consumer)


def build(url: str | None = None, options: Options = OPTIONS) -> App:
    failed: set[tuple[str, int]] = set()
    retry = Retry(immediate=2, delays=(0.05,) * options.delayed)
    source = Service("source", publishes=[Placed, Job])
    middle = Service("middle", migrations=MIGRATIONS, lanes=options.lanes)
    sink = Service("sink", migrations=MIGRATIONS, lanes=options.lanes)

    @middle.on(Placed, retry=retry)
    async def plain(event: Placed, attempt: Attempt) -> Made:
        await act(event, attempt, options)
        return Made(event.key, event.n)

    @middle.on(Placed, retry=retry)
    async def table(event: Placed, tx: Transaction) -> None:
        await effect(tx, "table", f"{event.key}:{event.n}", event.key, event.n)
        if event.key.startswith("tx-flaky") and (event.key, event.n) not in failed:
            failed.add((event.key, event.n))
            raise ValueError("the first attempt of this process fails")
        if event.key.startswith("tx-poison"):
            os.kill(os.getpid(), signal.SIGKILL)

    @middle.queue(Job, retry=retry, workers=2)
    async def work(job: Job, tx: Transaction) -> None:
        await effect(tx, "work", f"{job.key}:{job.n}", f"{job.key}:{job.n}", 0)
        if job.key.startswith("poison"):
            os.kill(os.getpid(), signal.SIGKILL)

    @sink.on(Made, retry=retry)
    async def made(event: Made, tx: Transaction) -> None:
        await effect(tx, "made", f"{event.key}:{event.n}", event.key, event.n)

    return App(source, middle, sink, store=url, settings=settings(options))


async def act(event: Placed, attempt: Attempt, options: Options) -> None:
    key = event.key
    if key.startswith(("behind", "late")) and event.n == 0 and attempt.number <= 2:
        raise ValueError("delayed, so that the next one waits")
    if key.startswith("poison") or (key.startswith("behind") and event.n == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if key.startswith("slow"):
        await asyncio.sleep(options.slow)  # sleep: a slow handler
    if key.startswith("block") and not attempt.unknown:
        time.sleep(options.block)  # sleep: a handler that blocks the event loop
    if key.startswith("flaky") and attempt.number == 1:
        raise ValueError("the first attempt fails")


app = build()
