"""The deterministic loop: like a normal one, the same at every replay and on every Python, closed to the outside."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from skald.errors import NeverIdle, NotInWorkflow
from skald.workflows.loop import WorkflowLoop, explained
from tests.unit import workflow_programs
from tests.unit.workflow_programs import (
    PROGRAMS,
    World,
    by_record,
    by_seed,
    on_a_normal_loop,
    on_a_workflow_loop,
    without_calls,
)

SEEDS = range(25)
OTHERS = ("3.11", "3.12", "3.13", "3.14")
REQUIRED = ("3.11", "3.13")
"""With CI=true."""


def make(time: float = 0.0) -> WorkflowLoop:
    return WorkflowLoop(time)  # type: ignore[abstract]


def run(main: Coroutine[Any, Any, Any], loop: WorkflowLoop | None = None) -> Any:
    loop = loop or make()
    task = loop.create_task(main)
    loop.run()
    while not task.done():
        due = loop.next_timer()
        assert due is not None, "it waits for nothing that could happen"
        loop.advance(due)
        loop.run()
    return task.result()


def seen(name: str, world: World) -> list[str]:
    # asyncio puts the coroutines that as_completed is given into a set: their first turns come in any order.
    return without_calls(world.trace) if name == "as_completed" else world.trace


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_does_what_it_does_on_a_normal_loop(name: str) -> None:
    for seed in SEEDS:
        normal, ours = World(by_seed(seed)), World(by_seed(seed))
        expected = on_a_normal_loop(PROGRAMS[name], normal)
        assert on_a_workflow_loop(PROGRAMS[name], ours) == expected, f"seed {seed}: {normal.trace}"
        assert seen(name, ours) == seen(name, normal), f"seed {seed}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_replay_of_what_has_happened_is_the_same_again(name: str) -> None:
    for seed in SEEDS:
        live = World(by_seed(seed))
        result = on_a_workflow_loop(PROGRAMS[name], live)
        junk = [object() for _ in range(seed * 7)]  # other addresses
        again = World(by_record(live.decisions))
        assert on_a_workflow_loop(PROGRAMS[name], again) == result
        assert seen(name, again) == seen(name, live), f"seed {seed}"
        del junk


def pythons() -> dict[str, str]:
    """This Python and the others of this machine, by their version."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": sys.executable}
    for version in OTHERS:
        places: list[Path | str | None] = [
            *Path.home().glob(f".pyenv/versions/{version}.*/bin/python"),
            shutil.which(f"python{version}"),
        ]
        for place in filter(None, places):
            asked = subprocess.run([place, "--version"], capture_output=True, text=True, check=False)
            if asked.returncode == 0:
                found[version] = str(place)
    return found


def test_what_one_python_has_recorded_replays_on_the_others() -> None:
    recorded, expected = {}, {}
    for name, program in PROGRAMS.items():
        for seed in SEEDS:
            world = World(by_seed(seed))
            result = on_a_workflow_loop(program, world)
            recorded[f"{name}:{seed}"] = world.decisions
            expected[f"{name}:{seed}"] = [result, without_calls(world.trace)]
    found = pythons()
    if os.environ.get("CI") == "true":
        assert found.keys() >= set(REQUIRED), f"only {sorted(found)} are installed"
    for version, python in found.items():
        command = [python, workflow_programs.__file__]
        done = subprocess.run(command, input=json.dumps(recorded), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"Python {version}: {done.stderr}"
        replayed = json.loads(done.stdout)
        different = [name for name in expected if replayed[name] != expected[name]]
        assert not different, f"Python {version}: {different}: {replayed[different[0]]}, not {expected[different[0]]}"


def test_members_of_a_group_are_cancelled_in_the_same_order_wherever_they_lie_in_memory() -> None:
    def cancelled(spread: int) -> list[int]:
        order: list[int] = []

        async def member(n: int) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                order.append(n)

        async def main() -> None:
            kept = []
            async with asyncio.TaskGroup() as group:
                for n in range(40):
                    group.create_task(member(n))
                    kept.append([bytearray(spread * n * 13) for _ in range(spread)])
                await asyncio.sleep(1)  # sleep: the clock jumps
                raise ValueError

        with pytest.raises(ExceptionGroup):
            run(main())
        return order

    assert sorted(cancelled(0)) == list(range(40))
    assert len({tuple(cancelled(spread)) for spread in range(6)}) == 1


async def _read_socket() -> None:
    await asyncio.open_connection("localhost", 1)


async def _subprocess() -> None:
    await asyncio.create_subprocess_exec("true")


async def _thread() -> None:
    await asyncio.to_thread(print)


async def _executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, print)


async def _raw_socket() -> None:
    with socket.socket() as made:
        await asyncio.get_running_loop().sock_recv(made, 1)


async def _reader() -> None:
    asyncio.get_running_loop().add_reader(0, print)


async def _another_thread() -> None:
    asyncio.get_running_loop().call_soon_threadsafe(print)


async def _nested_run() -> None:
    asyncio.get_running_loop().run_until_complete(asyncio.sleep(0))


async def _eager() -> None:
    asyncio.get_running_loop().create_task(asyncio.sleep(0), eager_start=True)


@pytest.mark.parametrize(
    "program",
    [_read_socket, _subprocess, _thread, _executor, _raw_socket, _reader, _another_thread, _nested_run, _eager],
)
@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited")
def test_what_cannot_be_journalled_raises_at_once(program: Callable[[], Coroutine[Any, Any, None]]) -> None:
    code = program.__code__
    with pytest.raises(NotInWorkflow) as caught:
        run(program())
    lines = {f"{__file__}:{line}" for line in range(code.co_firstlineno, code.co_firstlineno + 4)}
    assert caught.value.line in lines
    assert caught.value.remedy
    gc.collect()


async def test_a_future_of_another_loop_is_explained() -> None:
    foreign = asyncio.get_running_loop().create_future()

    async def main() -> None:
        await foreign

    done = threading.Event()
    caught: list[BaseException] = []

    def outside() -> None:
        try:
            run(main())
        except RuntimeError as error:
            caught.append(explained(error))
        done.set()

    asyncio.get_running_loop().call_soon(outside)
    while not done.is_set():
        await asyncio.sleep(0)
    assert isinstance(caught[0], NotInWorkflow)
    assert caught[0].line.startswith(__file__)


def test_a_workflow_that_polls_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skald.workflows.loop.MOST_TURNS", 1000)

    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(NeverIdle, match=r"test_workflow_loop\.py:\d+"):
        run(main())


def test_the_clock_moves_only_when_it_is_moved_and_never_backwards() -> None:
    loop = make(500.0)
    assert (loop.time(), loop.advance(499.0), loop.time()) == (500.0, False, 500.0)
    assert (loop.advance(501.5), loop.time()) == (False, 501.5)


def test_ending_runs_clean_up_newest_first_and_nothing_else() -> None:
    loop, order, swallows = make(), list[int](), list[bool]()

    class Gone(BaseException):
        pass

    async def waiting(n: int) -> None:
        try:
            await loop.create_future()
        finally:
            order.append(n)

    async def swallowing() -> None:
        while swallows:
            try:
                await loop.create_future()
            except BaseException:
                order.append(-1)

    for n in range(3):
        loop.create_task(waiting(n))
    loop.run()
    assert loop.end(Gone()) == []
    assert order == [2, 1, 0]

    swallows.append(True)
    loop, order[:] = make(), []
    loop.create_task(swallowing())
    loop.run()
    [kept] = loop.end(Gone())
    assert order == [-1] * 100
    swallows.clear()  # it can be dropped now
    assert not kept.done()
