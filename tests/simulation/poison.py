"""Workflows of which one ends the process that runs it, each time.

usage: python -m tests.simulation.poison URL        runs until it is ended, or until nothing is left to be done
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from skald import App, RuntimeSettings, Service, step, workflow
from skald.workflows.executor import ExecutorSettings


@step
async def work(number: int, place: int) -> int:
    await asyncio.sleep(0.05)  # sleep: so that they are in work when their process is ended
    return number + place


@step
async def end_the_process(number: int) -> int:
    await asyncio.sleep(0.02)  # sleep: so that the others have begun
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@workflow
async def innocent(number: int) -> int:
    return sum([await work(number, place) for place in range(4)])


@workflow
async def poisonous(number: int) -> int:
    return await work(await end_the_process(number), 0)


def application(url: str) -> App:
    service = Service("orders", workflows=[innocent, poisonous])
    return App(service, store=url, settings=RuntimeSettings(workflows=ExecutorSettings(poll=0.05)))


OPEN = "SELECT id FROM skald_workflows WHERE ended_at IS NULL AND state <> 'paused'"


async def main(url: str) -> None:
    app = application(url)
    async with app.run():
        [service] = app.services.values()
        while await service.fetch(OPEN):
            await asyncio.sleep(0.05)  # sleep: between two looks; a process of its own


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
