"""Arguments and results are inferred through ``start``, ``run`` and calls of steps. Each ``ignore`` must be needed."""

from __future__ import annotations

import asyncio
from typing import assert_type

from skald import Backoff, Handle, Retry, Service, Transaction, step, workflow, workflows
from skald.workflows import NotDone, Query, Signal, Update


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


async def find(n: int) -> str | NotDone:
    return workflows.NOT_DONE


@step(lookup=find, retry=Backoff(attempts=3), at_most_once=True)
async def looked_up(n: int) -> str:
    return str(n)


@step(transactional=True)
async def booked(n: int) -> int:
    assert_type(workflows.transaction(), Transaction)
    return n


approval = Signal("approval", int)
status = Query("status", str)
rename = Update("rename", str, bytes)


@workflow
async def talking(n: int) -> int:
    @status.answered_by
    def _() -> str:
        return ""

    @rename.handled_by
    async def _(new: str) -> bytes:
        return new.encode()

    assert_type(await approval.receive(), int)
    assert_type(await looked_up(n), str)
    assert_type(await booked(n), int)
    assert_type(await flow.run(1, "a"), dict[str, int])
    assert_type(await flow.child(1, "a", detached=True).result(), dict[str, int])
    mapped = await workflows.map([1, 2], with_options, max_concurrency=2)
    assert_type(mapped.results, dict[int, str])
    await flow.run("1", "a")  # type: ignore[arg-type]
    await workflows.map(["1"], with_options)  # type: ignore[arg-type]
    if workflows.patched("x"):
        workflows.continue_as_new(2)
    return n


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
    talk = await talking.start(1, key="k", delay=5, existing="reject")
    await talk.signal(approval, 3)
    await talk.signal(approval, "3")  # type: ignore[misc]
    assert_type(await talk.query(status), str)
    assert_type(await talk.update(rename, "x"), bytes)
    await talk.update(rename, 4)  # type: ignore[misc]
    await service.signal(approval, 3, key="k")
    await service.signal(approval, "3", key="k")  # type: ignore[misc]
    async with service.transaction() as tx:
        assert_type(await tx.start(flow, 1, "a", id="z"), str)
        await tx.start(flow, "1", "a")  # type: ignore[misc]
        await tx.signal(approval, 3, id="z")
    await flow.run("1", "a")  # type: ignore[arg-type]
    await flow.run(1)  # type: ignore[call-arg]
    await flow.start(1, "a", name="x")  # type: ignore[call-arg]


service = Service("typed", workflows=[flow, bare, talking])
