"""Workflows whose code a seed has decided: steps, timers, children, signals, branches, failures. And their worker.

usage: python -m tests.simulation.random_workflows URL LEDGER      runs them until it is killed, or stopped by SIGTERM

A program is a list of operations; ``expected`` says in plain Python what it comes to. Every step writes a line into the
ledger before it returns, with its idempotency key, as the world outside would remember it; ``book`` writes a row of the
service's database instead, in the transaction of its result.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from skald import App, Retry, RuntimeSettings, Service, step, workflow, workflows
from skald.errors import StepFailed, WorkflowFailed
from skald.messaging.consumer import ConsumerSettings
from skald.workflows.executor import ExecutorSettings
from tests.simulation.crew import LEASE, RUNNING

MIGRATIONS = Path(__file__).parent / "sql"


class Operation(msgspec.Struct, frozen=True):
    """``kind``: step, thread, book, fail, sleep, wait (for a signal), late (a step that a timeout ends), child,
    branches, again (the rest in a run of its own)."""

    kind: str
    number: int
    branches: tuple[tuple[Operation, ...], ...] = ()


Program = tuple[Operation, ...]


def program(seed: int) -> Program:
    rng = random.Random(f"program {seed}")
    return _program(rng, depth=0, waits=[rng.randint(0, 3)])


def _program(rng: random.Random, depth: int, waits: list[int]) -> Program:
    kinds = ["step"] * 4 + ["thread", "book", "book", "fail", "sleep", "sleep", "wait", "late"]
    kinds += ["child", "branches", "branches"] if depth < 2 else []
    kinds += ["again"] if depth == 0 else []
    found = []
    for _ in range(rng.randint(1, 5)):
        kind, branches = rng.choice(kinds), ()
        if kind == "wait":
            if depth or not waits[0]:
                continue  # only the first one is sent signals
            waits[0] -= 1
        if kind in ("child", "branches"):
            count = 1 if kind == "child" else rng.randint(2, 3)
            branches = tuple(_program(rng, depth + 1, waits) for _ in range(count))
        found.append(Operation(kind, rng.randint(1, 5), branches))
    return tuple(found)


def signals(p: Program) -> int:
    """How many the program waits for."""
    return sum(operation.kind == "wait" for operation in p)


def expected(p: Program, sent: list[int]) -> list[Any]:
    """The result; ``sent`` are the signals, and are used up."""
    found: list[Any] = []
    for operation in p:
        match operation.kind:
            case "step" | "thread" | "book":
                found.append(operation.number * 10)
            case "fail":
                found.append(f"ValueError: no {operation.number}")
            case "sleep":
                found.append("slept")
            case "wait":
                found.append(sent.pop(0))
            case "late":
                found.append("late")
            case "child" if operation.branches[0]:
                found.append(expected(operation.branches[0], sent))
            case "child":
                found.append("WorkflowFailed: empty")
            case "branches":
                found.append([expected(branch, sent) for branch in operation.branches])
    return found


ready = workflows.Signal("ready", int)
LEDGER = Path()


def ledger(name: str, number: int) -> None:
    attempt = workflows.attempt()
    line = msgspec.json.encode({"step": name, "number": number, "key": attempt.key, "unknown": attempt.unknown})
    file = os.open(LEDGER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, line + b"\n")
    os.close(file)


@step
async def act(path: str, number: int) -> int:
    ledger("act", number)
    return number * 10


@step
def act_in_a_thread(path: str, number: int) -> int:
    ledger("act_in_a_thread", number)
    return number * 10


@step(transactional=True)
async def book(path: str, number: int) -> int:
    key = workflows.attempt().key
    await workflows.transaction().execute(
        "INSERT INTO effects (id, handler, key, n, seq) VALUES (:key, 'book', :key, :number, 0)", key=key, number=number
    )
    return number * 10


@step(retry=Retry(immediate=2, delays=()))
async def fail(path: str, number: int) -> int:
    ledger("fail", number)
    raise ValueError(f"no {number}")


@step
async def hang(path: str, number: int) -> None:
    await asyncio.Event().wait()


@workflow
async def play(path: str, p: Program, before: list[Any]) -> list[Any]:
    return [*before, *await _play(path, p, before)]


async def _play(path: str, p: Program, before: list[Any]) -> list[Any]:
    found: list[Any] = []
    for place, operation in enumerate(p):
        here, number = f"{path}.{place}", operation.number
        match operation.kind:
            case "step":
                found.append(await act(here, number))
            case "thread":
                found.append(await act_in_a_thread(here, number))
            case "book":
                found.append(await book(here, number))
            case "fail":
                try:
                    await fail(here, number)
                except StepFailed as failure:
                    found.append(f"{failure.type}: {failure.message}")
            case "sleep":
                await asyncio.sleep(number / 5)  # sleep: a durable timer
                found.append("slept")
            case "wait":
                found.append(await ready.receive())
            case "late":
                try:
                    async with asyncio.timeout(0.01):
                        await hang(here, number)
                except TimeoutError:
                    found.append("late")
            case "child":
                if operation.branches[0]:
                    found.append(await play.run(here, operation.branches[0], []))
                else:
                    try:
                        await empty.run(here)
                    except WorkflowFailed as failure:
                        found.append(f"WorkflowFailed: {failure.message}")
            case "branches":
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(_play(f"{here}/{n}", branch, []))
                        for n, branch in enumerate(operation.branches)
                    ]
                found.append([task.result() for task in tasks])
            case "again":
                workflows.continue_as_new(here, p[place + 1 :], [*before, *found])
    return found


@workflow
async def empty(path: str) -> None:
    raise ValueError("empty")


def application(url: str, idle: float = 0.05) -> App:
    settings = RuntimeSettings(
        lease=LEASE,
        consumer=ConsumerSettings(patience=0.1, poll=0.05, checkpoint=0.05),
        workflows=ExecutorSettings(idle=idle, poll=0.2),
    )
    return App(Service("players", workflows=[play, empty], migrations=MIGRATIONS), store=url, settings=settings)


async def work(url: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with application(url).run() as running:
        print(RUNNING, flush=True)
        lost = asyncio.create_task(running[0].lost.wait())
        await asyncio.wait([lost, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)


if __name__ == "__main__":
    LEDGER = Path(sys.argv[2])
    asyncio.run(work(sys.argv[1]))
