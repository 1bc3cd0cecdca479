"""The workflows whose histories are kept in this folder, and replayed by every later version of the library.

Never change what they do: their histories stand for those of users. New features get new ones.

usage: python -m tests.golden.workflows NAME      plays NAME and writes its history, if there is none yet
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import msgspec

from skald import NEVER, Service, step, workflow, workflows
from skald.errors import StepFailed, WorkflowFailed
from skald.testing.workflows import Lab, laboratory
from skald.workflows import saved
from tests.golden import calls, sagas

FOLDER = Path(__file__).parent


class Item(msgspec.Struct, frozen=True):
    name: str
    count: int = 1


go = workflows.Signal("go", Item)
rename = workflows.Update("rename", str, str)


@step
async def act(item: Item) -> Item:
    return Item(item.name.upper(), item.count + 1)


@step
def act_in_a_thread(item: Item) -> str:
    return item.name


@step(retry=NEVER)
async def fail(item: Item) -> None:
    raise ValueError(f"no {item.name}")


@step(at_most_once=True)
async def act_once(item: Item) -> str:
    return f"{item.name} once"


@workflow
async def steps(item: Item) -> list[str]:
    first = await act(item)
    found = await asyncio.gather(act_in_a_thread(first), act_in_a_thread(item), act_in_a_thread(item))
    try:
        await fail(item)
    except StepFailed as failure:
        found.append(f"{failure.type}: {failure.message}")
    return [*found, await act_once(item)]


@workflow
async def timers(item: Item) -> list[str]:
    found = []
    await asyncio.sleep(3600)  # sleep: a durable timer
    try:
        async with asyncio.timeout(60):
            await go.receive()
    except TimeoutError:
        found.append("nobody came")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(delayed(item, n)) for n in (3, 1, 2)]
    return [*found, *(task.result() for task in tasks)]


async def delayed(item: Item, days: int) -> str:
    await asyncio.sleep(days * 86_400)  # sleep: a durable timer
    return (await act(Item(f"{item.name} {days}"))).name


@workflow
async def talking(item: Item) -> list[str]:
    name = item.name

    @rename.handled_by
    async def _(new: str) -> str:
        nonlocal name
        name, before = (await act(Item(new))).name, name
        return before

    found = [(await go.receive()).name for _ in range(2)]
    return [*found, name]


@workflow
async def child(item: Item) -> str:
    if item.count > 2:
        raise LookupError("too many")
    return (await act(item)).name


@workflow
async def family(item: Item) -> list[str]:
    first = child.child(item)
    found = [await child.run(Item("second"))]
    try:
        await child.run(Item("third", 3))
    except WorkflowFailed as failure:
        found.append(failure.type)
    mapped = await workflows.map([Item("a"), Item("b")], child.run, max_concurrency=1)
    return [*found, await first.result(), *mapped.results.values()]


@workflow
async def cancelled(item: Item) -> str:
    try:
        await go.receive()
    except asyncio.CancelledError:
        await act(item)
        raise
    return "never"


@workflow
async def patched(item: Item) -> str:
    drawn = workflows.random().random() < 2 and bool(workflows.uuid()) and workflows.now() is not None
    if workflows.patched("act first"):
        await act(item)
    return f"{drawn}"


@workflow
async def staged(item: Item) -> str:
    workflows.stage("packing")
    first = await act(item)
    workflows.stage("packed")
    return (await act(first)).name


broken = False


@step(retry=NEVER)
async def act_if_mended(item: Item) -> str:
    if broken:
        raise OSError("broken")
    return f"{item.name} mended"


@workflow
async def retried(item: Item) -> list[str]:
    await act(item)

    async def careful() -> str:
        try:
            return await act_if_mended(item)
        except StepFailed:
            await act(Item("clean up"))
            raise

    found = await asyncio.gather(careful(), delayed(item, 1), return_exceptions=True)
    if isinstance(found[0], BaseException):
        raise found[0]
    return [str(one) for one in found]


async def _retry(lab: Lab, name: str) -> None:
    global broken
    await lab.advance(timedelta(days=2))
    broken = False
    await retried.handle(name).retry()
    await _finish(lab, name)


async def _finish(lab: Lab, name: str) -> None:
    found = next(one for one in SERVICE.workflows if one.name == name)
    await lab.result(found.handle(name))


async def _talk(lab: Lab, name: str) -> None:
    handle = talking.handle(name)
    await handle.signal(go, Item("one"))
    update = asyncio.create_task(handle.update(rename, "other"))
    while not update.done():
        await lab.settle()
    await handle.signal(go, Item("two"))
    await _finish(lab, name)


async def _cancel(lab: Lab, name: str) -> None:
    await cancelled.handle(name).cancel("enough")
    try:
        await _finish(lab, name)
    except WorkflowFailed:
        return
    raise AssertionError("it was not cancelled")


SERVICE = Service(
    "golden",
    workflows=[
        steps,
        timers,
        talking,
        child,
        family,
        cancelled,
        patched,
        staged,
        retried,
        *sagas.SAGAS,
        *calls.WORKFLOWS,
    ],
    calls=calls.CALLS,
)
SERVICES = SERVICE, calls.STOCK
PLAYS: dict[str, Callable[[Lab, str], Awaitable[None]]] = {
    "steps": _finish,
    "timers": _finish,
    "talking": _talk,
    "family": _finish,
    "cancelled": _cancel,
    "patched": _finish,
    "staged": _finish,
    "retried": _retry,
    "stay": sagas.finish,
    "stay_compensated": sagas.finish,
    "stay_resolved": sagas.resolve,
    "stay_locked": sagas.wait,
    "calling": calls.finish,
    "calling_back": calls.finish,
}


async def play(name: str) -> saved.History:
    found = next(one for one in SERVICE.workflows if one.name == name)
    global broken
    broken, sagas.broken = name == "retried", name == "stay_resolved"
    async with laboratory(*SERVICES) as lab:
        given = "tea" if found in calls.WORKFLOWS else sagas.Room("tea") if found in sagas.SAGAS else Item("tea")
        await found.start(given, id=name)
        await lab.advance(timedelta(seconds=1))
        await PLAYS[name](lab, name)
        return await lab.history(name)


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        path = FOLDER / f"{wanted}.json"
        if path.exists():
            raise SystemExit(f"{path} is there, and stays as it is")
        saved.write(asyncio.run(play(wanted)), path)
        print(f"wrote {path}")
