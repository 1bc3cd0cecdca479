"""Arguments and results are inferred through ``start``, ``run`` and calls of steps. Each ``ignore`` must be needed."""

from __future__ import annotations

import asyncio
from typing import assert_type

from skald import Handle, Retry, Service, step, workflow


@step
async def plain(n: int, by: str = "one") -> list[int]:
    return [n]


@step(retry=Retry(immediate=1), timeout=5)
async def with_options(n: int) -> str:
    return str(n)


@step
def synchronous(text: str) -> float:
    return float(text)


@step(name="other")
def synchronous_with_options(text: str) -> bytes:
    return text.encode()


@workflow
async def flow(n: int, text: str) -> dict[str, int]:
    assert_type(await plain(n), list[int])
    assert_type(await plain(n, by="two"), list[int])
    assert_type(await with_options(n), str)
    assert_type(await synchronous(text), float)
    assert_type(await synchronous_with_options(text), bytes)
    assert_type(await asyncio.gather(plain(n), synchronous(text)), tuple[list[int], float])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(with_options(n))
    assert_type(task.result(), str)
    assert_type(await asyncio.wait_for(plain(n), 5), list[int])
    await plain("1")  # type: ignore[arg-type]
    await plain(1, wrong=2)  # type: ignore[call-arg]
    await synchronous()  # type: ignore[call-arg]
    return {}


@workflow(name="no arguments")
async def bare() -> None: ...


async def outside() -> None:
    handle = await flow.start(1, "a", id="x")
    assert_type(handle, Handle[dict[str, int]])
    assert_type(await handle.result(), dict[str, int])
    assert_type(await flow.run(1, "a"), dict[str, int])
    assert_type(await flow.handle("x").result(), dict[str, int])
    assert_type(await flow(1, "a"), dict[str, int])
    assert_type(await bare.start(id="y"), Handle[None])
    await flow.run("1", "a")  # type: ignore[arg-type]
    await flow.run(1)  # type: ignore[call-arg]
    await flow.start(1, "a", name="x")  # type: ignore[call-arg]


service = Service("typed", workflows=[flow, bare])
