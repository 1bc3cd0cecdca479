"""Sagas keep the types of their steps, arguments and results. Each ``ignore`` must be needed."""

from __future__ import annotations

from typing import Any, assert_type

from skald import (
    FailedExecution,
    Handle,
    Lock,
    LockTaken,
    Retry,
    Saga,
    SagaCompensated,
    Service,
    compensation,
    lock,
    saga,
    step,
)


@compensation
async def forget(n: int, failed: FailedExecution) -> None:
    assert_type(failed.step, str | None)


@compensation(retry=Retry(delays=(1, 5)), timeout=10, guarantee="best_effort", independent=True)
async def undo(result: str | None, n: int) -> None: ...


@compensation(guarantee="best_effort")
def undo_in_a_thread(n: int) -> None: ...


@compensation(guarantee="perhaps")  # type: ignore[call-overload,untyped-decorator]
async def perhaps(n: int) -> None: ...


@step(compensate=undo, timeout=5)
async def act(n: int) -> str:
    return str(n)


@step(compensate=forget)
def act_in_a_thread(n: int) -> float:
    return n / 2


@step(pivot=True)
async def pivot(text: str) -> bytes:
    return text.encode()


@step(forward=True)
async def forward(n: int) -> int:
    return n


@step(compensate=print)  # type: ignore[call-overload,untyped-decorator]
async def undone_by_something_else(n: int) -> int:
    return n


@saga
async def plain(n: int) -> str:
    assert_type(await act(n), str)
    assert_type(await act_in_a_thread(n), float)
    await act("1")  # type: ignore[arg-type]
    return ""


@saga
async def locking(n: int) -> str | None:
    found = await lock(f"number {n}", timeout=5)
    assert_type(found, Lock)
    assert_type((await lock("k", conflict="proceed")).dirty, bool)
    await lock("k", conflict="steal")  # type: ignore[arg-type]
    await lock(n)  # type: ignore[arg-type]
    try:
        await lock("k", conflict="fail")
    except LockTaken as taken:
        assert_type(taken.holder, str)
    return found.holder


@saga(deadline=60)
async def with_a_deadline(n: int, text: str) -> dict[str, int]:
    assert_type(await pivot(text), bytes)
    assert_type(await plain.run(n), str)
    return {}


async def outside() -> None:
    assert_type(await plain.run(1), str)
    assert_type(await with_a_deadline.start(1, "a", id="x"), Handle[dict[str, int]])
    await with_a_deadline.run("1", "a")  # type: ignore[call-overload]
    await undo(None, 1)
    await undo(1, 1)  # type: ignore[arg-type]
    try:
        await plain.run(1)
    except SagaCompensated as failure:
        assert_type(failure.step, str | None)


graph = Saga("graph", deadline=60).step("first", act).step("second", forward, after=["first"])
assert_type(graph, Saga)
service = Service("service", workflows=[plain, with_a_deadline, graph])


async def of_a_graph() -> None:
    handle: Handle[Any] = await graph.start(1, id="x")
    await handle.result()
