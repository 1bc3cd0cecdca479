"""Small asyncio programs, and two loops to run them on: asyncio's own with a clock that jumps, and a workflow's.

Nothing but the standard library and ``skald.workflows.loop``, so that any Python can run it: as a program it prints
what its Python makes of every program, for the test that compares versions. Whenever nothing is ready, the driver
decides by its seed, or by a recorded list, which step ends next, or that the clock goes on; steps called ``bad…`` fail.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import sys
import types
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

if "skald" not in sys.modules and __name__ == "__main__":
    # Without the packages' own __init__, which need what another Python may not have.
    for name in ("skald", "skald.workflows"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(__file__).parents[2].joinpath("src", *name.split(".")))]
        sys.modules[name] = package

from skald.workflows.loop import WorkflowLoop

START = 1000.0
CLOCK = "the clock"
Program = Callable[["World"], Coroutine[Any, Any, Any]]


class World:
    """What a program can do: call steps, and note what happened."""

    def __init__(self, choose: Callable[[list[str]], str]) -> None:
        self._choose = choose
        self._calls: dict[str, asyncio.Future[str]] = {}
        self._counts: dict[str, Iterator[int]] = {}
        self.trace: list[str] = []
        self.decisions: list[str] = []

    async def step(self, name: str) -> str:
        number = next(self._counts.setdefault(name, count(1)))
        key = f"{name}#{number}"
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._calls[key] = future
        self.trace.append(f"call {key}")
        try:
            return await future
        finally:
            self._calls.pop(key, None)

    def note(self, what: object) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time() - START:g}: {what}")

    def decide(self, timer: bool) -> str | None:
        """Ends one step, or says that the clock goes on; ``None`` if nothing can happen any more."""
        possible = sorted(self._calls) + ([CLOCK] if timer else [])
        if not possible:
            return None
        choice = self._choose(possible)
        self.decisions.append(choice)
        self.trace.append(f"now {choice}")
        if choice != CLOCK:
            future = self._calls.pop(choice)
            if choice.startswith("bad"):
                future.set_exception(ValueError(choice))
            else:
                future.set_result(f"done {choice}")
        return choice


class _Jumping(selectors.SelectSelector):
    """When the loop would wait, the world decides."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.now = world, START

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout > 0:
            choice = self.world.decide(timeout is not None)
            assert choice is not None, f"stuck after {self.world.trace}"
            if choice == CLOCK and timeout is not None:
                self.now += timeout
        return []


class _Normal(asyncio.SelectorEventLoop):
    def __init__(self, world: World) -> None:
        self._jumping = _Jumping(world)
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def on_a_normal_loop(program: Program, world: World) -> str:
    loop = _Normal(world)
    try:
        return _told(lambda: loop.run_until_complete(program(world)))
    finally:
        loop.close()


def on_a_workflow_loop(program: Program, world: World, salt: int = 1) -> str:
    loop = WorkflowLoop(START, salt=salt)  # type: ignore[abstract]
    task = loop.create_task(program(world), name="workflow")
    loop.run()
    while not task.done():
        choice = world.decide(loop.next_timer() is not None)
        assert choice is not None, f"stuck after {world.trace}"
        if choice == CLOCK:
            loop.advance(loop.next_timer() or 0.0)
        loop.run()
    result = _told(task.result)
    assert loop.end(KeyboardInterrupt()) == []
    return result


def _told(run: Callable[[], Any]) -> str:
    try:
        return repr(run())
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def by_seed(seed: int) -> Callable[[list[str]], str]:
    return Random(seed).choice


def by_record(decisions: Sequence[str]) -> Callable[[list[str]], str]:
    left = iter(decisions)

    def choose(possible: list[str]) -> str:
        choice = next(left)
        assert choice in possible, f"{choice} was recorded, and only {possible} can happen"
        return choice

    return choose


# --- the programs -----------------------------------------------------------------------------------------------------


async def in_a_row(w: World) -> Any:
    return [await w.step(name) for name in "abc"]


async def gathered(w: World) -> Any:
    return await asyncio.gather(*(w.step(name) for name in "abcd"))


async def gathered_one_fails(w: World) -> Any:
    try:
        await asyncio.gather(w.step("a"), w.step("bad"), w.step("c"))
    except ValueError as error:
        w.note(error)
    return await w.step("after")


async def gathered_with_exceptions(w: World) -> Any:
    return await asyncio.gather(w.step("a"), w.step("bad"), return_exceptions=True)


async def gathered_in_layers(w: World) -> Any:
    async def branch(name: str) -> str:
        first = await w.step(name)
        w.note(first)
        return await w.step(f"{name}-again")

    return await asyncio.gather(asyncio.wait_for(branch("a"), 10), branch("b"), branch("c"))


async def equal_calls(w: World) -> Any:
    return await asyncio.gather(*(w.step("same") for _ in range(4)))


async def first_completed(w: World) -> Any:
    tasks = [asyncio.create_task(w.step(name), name=name) for name in "abc"]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    w.note(sorted(task.get_name() for task in done))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return sorted((task.get_name(), task.cancelled()) for task in done | pending)


async def waiting_with_a_timeout(w: World) -> Any:
    tasks = [asyncio.create_task(w.step(name), name=name) for name in "abc"]
    done, pending = await asyncio.wait(tasks, timeout=5)
    w.note((len(done), len(pending)))
    return sorted([await task for task in tasks])


async def as_completed(w: World) -> Any:
    return [await future for future in asyncio.as_completed([w.step(name) for name in "abc"])]


async def waiting_for_one(w: World) -> Any:
    try:
        return await asyncio.wait_for(w.step("a"), 3)
    except TimeoutError:
        return f"late, {await w.step('b')}"


async def timeouts_in_each_other(w: World) -> Any:
    seen = []
    try:
        async with asyncio.timeout(7):
            try:
                async with asyncio.timeout(2):
                    seen.append(await w.step("a"))
            except TimeoutError:
                seen.append("inner")
            seen.append(await w.step("b"))
            seen.append(await w.step("c"))
    except TimeoutError:
        seen.append("outer")
    return seen


async def a_timeout_moved(w: World) -> Any:
    async with asyncio.timeout(2) as limit:
        limit.reschedule(asyncio.get_running_loop().time() + 20)
        await asyncio.sleep(5)  # sleep: the clock jumps
        w.note("slept")
    return limit.expired()


async def a_group(w: World) -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(w.step(name)) for name in "abc"]
    return [task.result() for task in tasks]


async def a_group_that_fails(w: World) -> Any:
    ended: list[str] = []

    async def member(name: str) -> None:
        try:
            await w.step(name)
        finally:
            ended.append(name)

    try:
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "bad", "c", "d"):
                group.create_task(member(name))
    except* ValueError as errors:
        w.note([str(error) for error in errors.exceptions])
    return sorted(ended)


async def cleaning_up(w: World) -> Any:
    async def work() -> None:
        try:
            await w.step("work")
        except asyncio.CancelledError:
            w.note(await w.step("cleanup"))
            raise

    task = asyncio.create_task(work())
    await w.step("other")
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


async def shielded(w: World) -> Any:
    inner = asyncio.ensure_future(w.step("inner"))
    try:
        await asyncio.wait_for(asyncio.shield(inner), 4)
    except TimeoutError:
        w.note("late")
    return await inner


async def with_an_event(w: World) -> Any:
    event, order = asyncio.Event(), []

    async def waiter(name: str) -> None:
        await event.wait()
        order.append(name)
        await w.step(name)

    tasks = [asyncio.create_task(waiter(name)) for name in "abc"]
    await w.step("open")
    event.set()
    await asyncio.gather(*tasks)
    return order


async def with_a_queue(w: World) -> Any:
    queue: asyncio.Queue[str] = asyncio.Queue(2)
    taken = []

    async def consumer(name: str) -> None:
        while (item := await queue.get()) != "end":
            taken.append((name, item, await w.step(f"{name}-{item}")))
            queue.task_done()

    tasks = [asyncio.create_task(consumer(name)) for name in "xy"]
    for item in "abcd":
        await queue.put(item)
    await queue.join()
    for _ in tasks:
        await queue.put("end")
    await asyncio.gather(*tasks)
    return taken


async def with_a_lock(w: World) -> Any:
    lock, order = asyncio.Lock(), []

    async def worker(name: str) -> None:
        await w.step(f"before-{name}")
        async with lock:
            order.append(await w.step(name))

    await asyncio.gather(*(worker(name) for name in "abc"))
    return order


async def with_a_semaphore(w: World) -> Any:
    semaphore, now, most = asyncio.Semaphore(2), 0, 0

    async def worker(name: str) -> None:
        nonlocal now, most
        async with semaphore:
            now += 1
            most = max(most, now)
            await w.step(name)
            now -= 1

    await asyncio.gather(*(worker(name) for name in "abcde"))
    return most


async def with_a_condition(w: World) -> Any:
    condition, stock = asyncio.Condition(), 0

    async def taker(name: str) -> str:
        nonlocal stock
        async with condition:
            await condition.wait_for(lambda: stock > 0)
            stock -= 1
        return await w.step(name)

    takers = [asyncio.create_task(taker(name)) for name in "ab"]
    for n in range(2):
        await w.step(f"refill-{n}")
        async with condition:
            stock += 1
            condition.notify_all()
    return await asyncio.gather(*takers)


async def sleeping(w: World) -> Any:
    async def sleeper(seconds: float) -> float:
        await asyncio.sleep(seconds)  # sleep: the clock jumps
        w.note(f"slept {seconds}")
        return seconds

    async def stepper() -> list[str]:
        return [await w.step(name) for name in "ab"]

    return await asyncio.gather(sleeper(3), sleeper(1), stepper(), sleeper(2), sleeper(0))


async def generating(w: World) -> Any:
    async def names() -> Any:
        try:
            for name in "abc":
                yield await w.step(name)
        finally:
            w.note("closed")

    found = []
    async for name in (generator := names()):
        found.append(name)
        if len(found) == 2:
            break
    await generator.aclose()
    return found


async def contexts(w: World) -> Any:
    who: ContextVar[str] = ContextVar("who", default="nobody")

    async def child(name: str) -> str:
        before = who.get()
        who.set(name)
        await w.step(name)
        return f"{before} {who.get()}"

    who.set("parent")
    return [*await asyncio.gather(child("a"), child("b")), who.get()]


async def callbacks(w: World) -> Any:
    order: list[str] = []
    tasks = [asyncio.create_task(w.step(name), name=name) for name in "ab"]
    for task in tasks:
        task.add_done_callback(lambda task: order.append(task.get_name()))
    asyncio.get_running_loop().call_later(1, order.append, "later")
    asyncio.get_running_loop().call_soon(order.append, "soon")
    await asyncio.gather(*tasks)
    await asyncio.sleep(2)  # sleep: the clock jumps
    return order


async def cancelled_from_within(w: World) -> Any:
    async def main() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("enough")
        try:
            await w.step("a")
        except asyncio.CancelledError as error:
            task.uncancel()
            return f"{error}, {await w.step('b')}"
        return "not cancelled"

    return await asyncio.create_task(main())


async def failing(w: World) -> Any:
    await w.step("a")
    await w.step("bad")


PROGRAMS: dict[str, Program] = {
    program.__name__: program
    for program in (
        in_a_row, gathered, gathered_one_fails, gathered_with_exceptions, gathered_in_layers, equal_calls,
        first_completed, waiting_with_a_timeout, as_completed, waiting_for_one, timeouts_in_each_other, a_timeout_moved,
        a_group, a_group_that_fails, cleaning_up, shielded, with_an_event, with_a_queue, with_a_lock, with_a_semaphore,
        with_a_condition, sleeping, generating, contexts, callbacks, cancelled_from_within, failing,
    )
}  # fmt: skip


def without_calls(trace: Sequence[str]) -> list[str]:
    """What must be alike on every Python: the order in which steps are called need not be."""
    return [line for line in trace if not line.startswith("call ")]


def main() -> None:
    """Reads recorded decisions, program by program, and prints result and trace of their replay."""
    told = {}
    for name, decisions in json.load(sys.stdin).items():
        world = World(by_record(decisions))
        told[name] = [on_a_workflow_loop(PROGRAMS[name.partition(":")[0]], world), without_calls(world.trace)]
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
