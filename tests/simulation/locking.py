"""Sagas that want the same keys, for processes that are killed. Run by ``skald run``, or connected by a test.

What a saga does is said by its name: ``bad…`` fails while it is inside, ``hasty…`` does not wait long, ``shy…`` not at
all, ``crossed…`` takes its keys in the other order, ``slow…`` leaves memory while it is inside.
"""

from __future__ import annotations

import asyncio

from skald import App, RuntimeSettings, Service, compensation, lock, saga, step, workflows
from skald.workflows.executor import ExecutorSettings
from tests.simulation.pipeline import OPTIONS, Options
from tests.simulation.stage import MIGRATIONS, effect


@compensation(transactional=True)
async def leave_again(key: str, name: str) -> None:
    await effect(workflows.transaction(), "at", f"leave {name}", key, 0)


@step(transactional=True, compensate=leave_again)
async def enter(key: str, name: str) -> None:
    await effect(workflows.transaction(), "at", f"enter {name}", key, 0)


@step(transactional=True)
async def leave(key: str, name: str) -> None:
    await effect(workflows.transaction(), "at", f"leave {name}", key, 0)


@saga
async def visit(name: str, keys: list[str]) -> None:
    """Is at all its keys at once, and nobody else is meanwhile."""
    timeout = 0.3 if name.startswith("hasty") else None
    for key in reversed(keys) if name.startswith("crossed") else keys:
        await lock(key, conflict="fail" if name.startswith("shy") else "wait", timeout=timeout)
    await asyncio.gather(*(enter(key, name) for key in keys))
    if name.startswith("slow"):
        await asyncio.sleep(0.1)  # sleep: a durable timer
    if name.startswith("bad"):
        raise ValueError("it does not like it there")
    for key in keys:
        await leave(key, name)


def build(url: str | None = None, options: Options = OPTIONS) -> App:
    orders = Service("orders", lanes=options.lanes, workflows=[visit], migrations=MIGRATIONS)
    executor = ExecutorSettings(idle=0.02, poll=0.02)
    return App(orders, store=url, settings=RuntimeSettings(lease=options.lease, workflows=executor))


app = build()
