"""Arguments and results are inferred through ``start``, ``run`` and calls of steps. Each ``ignore`` must be needed."""

from __future__ import annotations

import asyncio
from typing import assert_type

from skald import Backoff, Handle, Retry, Service, Transaction, step, workflow, workflows
from skald.messaging.blocking import BlockingTransaction
from skald.sync import BlockingService
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
    await flow.run("1", "a")  # type: ignore[call-overload]
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


@workflow
async def order(id: str, express: bool = False, *, note: str = "") -> int:
    assert_type(await order.run("o-1"), int)
    assert_type(await order.run("o-1", True, id="child"), int)
    assert_type(await order.child("o-1", detached=True).result(), int)
    assert_type((await workflows.map(["o-1", "o-2"], order.run)).results, dict[int, int])
    await order.run()  # type: ignore[call-overload]
    await order.child("o-1", 2).result()  # type: ignore[call-overload]
    return 1


@workflow
async def long(a: int, b: int, c: int, d: int, e: int, f: int, g: str = "") -> int:
    return 1


async def defaults() -> None:
    assert_type(await order.start("o-1"), Handle[int])
    assert_type(await order.start("o-1", id="x", existing="restart"), Handle[int])
    assert_type(await order.start("o-1", True, delay=5), Handle[int])
    assert_type(await order.run("o-1"), int)
    assert_type(await order("o-1", express=True, note="plain call"), int)
    await order.start()  # type: ignore[call-overload]
    await order.start(1)  # type: ignore[call-overload]
    await order.start("o-1", 1)  # type: ignore[call-overload]
    await order.start("o-1", True, False)  # type: ignore[call-overload]
    # What stands after the positions is how it is started: the function's own names may be the same.
    await order.start("o-1", express=True)  # type: ignore[call-overload]
    await order("o-1", wrong=True)  # type: ignore[call-arg]
    # More than five are given all, or as they are for a function without defaults.
    await long.start(1, 2, 3, 4, 5, 6, "")
    await long.start(1, 2, 3, 4, 5, 6)  # type: ignore[call-arg]
    async with service.transaction() as tx:
        assert_type(await tx.start(order, "o-1", id="x"), str)
        assert_type(await tx.start(order, "o-1", True), str)
        await tx.start(order)  # type: ignore[arg-type]
        await tx.start(order, "o-1", 1)  # type: ignore[arg-type]


def blocking(tx: BlockingTransaction, connected: BlockingService) -> None:
    assert_type(tx.start(order, "o-1", id="x"), str)
    assert_type(connected.start(order, "o-1", True, key="k"), str)
    assert_type(connected.result(order, "x"), int)
    tx.start(order, 1)  # type: ignore[arg-type]
    connected.start(order, "o-1", True, False)  # type: ignore[arg-type]


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
        await tx.start(flow, "1", "a")  # type: ignore[arg-type]
        await tx.signal(approval, 3, id="z")
    await flow.run("1", "a")  # type: ignore[call-overload]
    await flow.run(1)  # type: ignore[call-overload]
    await flow.start(1, "a", name="x")  # type: ignore[call-overload]


service = Service("typed", workflows=[flow, bare, talking])
