"""Sagas whose code a seed has decided, the two services that they go through, and their worker.

usage: python -m tests.simulation.random_sagas URL LEDGER      runs them until it is killed, or stopped by SIGTERM

A program is groups of acts, one group after the other, the acts of a group at once. What an act does to the world
outside is a line of the ledger with its idempotency key, durable before the act goes on; ``booked`` and ``take`` write
rows of their service's database, in the transaction of their result. ``saga_oracle`` says what all of it must come to.
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

from skald import (
    NEVER,
    App,
    Attempt,
    Backoff,
    Command,
    Done,
    Event,
    Retry,
    RuntimeSettings,
    Saga,
    Service,
    Transaction,
    Unknown,
    call,
    compensation,
    saga,
    step,
    workflows,
)
from skald.messaging.consumer import ConsumerSettings
from skald.workflows.executor import ExecutorSettings
from tests.simulation.crew import LEASE, RUNNING
from tests.simulation.stage import MIGRATIONS, effect

DEADLINE = 1.0
TWICE = Retry(immediate=2, delays=())


class Refused(Exception):
    """Nothing was done, and never will be."""


class Act(msgspec.Struct, frozen=True):
    """``saga`` and ``name`` say which one it is; a name begins with the number of its group."""

    saga: str
    name: str
    kind: str
    fails: str = "no"
    """``once``: the first attempt is refused. ``refused``: each. ``lost``: done, and nobody is told. ``hung``: not
    done, and nobody is told. ``torn``: the first attempt is lost, all others are refused. ``late``: a command that is
    done when its caller may have given up."""
    sticks: str = "no"
    """Its compensation fails: ``once``, or ``always``, which is until a person has mended it."""
    person: str = "done"
    """What a person decides when asked about it."""

    @property
    def thing(self) -> str:
        return f"{self.saga}/{self.name}"


class Program(msgspec.Struct, frozen=True):
    """``fails``: the code itself, at the end."""

    shape: str
    """``gather``, ``group`` (a TaskGroup), ``graph``."""
    groups: tuple[tuple[Act, ...], ...]
    fails: bool = False
    deadline: bool = False

    def acts(self) -> list[Act]:
        return [act for group in self.groups for act in group]


STEPS = ("plain", "thread", "booked", "limited", "looked", "single", "keyed", "eager", "beside", "optional", "human")
COMMANDS = ("take", "charge", "hasty take", "hasty charge")
WEIGHTS = dict.fromkeys(STEPS, 2) | {"take": 5, "charge": 5, "hasty take": 2, "hasty charge": 2, "forward": 1, "nap": 2}
FAILS = {
    "booked": ("refused",),
    "forward": ("refused",),
    "take": ("refused", "late"),
    "charge": ("refused", "late"),
    "hasty take": ("refused", "late", "hung"),
    "hasty charge": ("refused", "late", "hung", "lost"),
    "nap": ("no",),
}
"""In which ways it can fail for good, beside ``once``. Other kinds: in every way."""
EVERY_WAY = ("refused", "lost", "hung", "torn")
GRAPH = (("alpha",), ("beta", "gamma"), ("delta",), ("omega",))
GRAPH_KINDS = {"alpha": "plain", "beta": "booked", "gamma": "thread", "delta": "keyed", "omega": "pivot"}


def program(seed: int, saga: str) -> Program:
    chance = random.Random(f"saga {seed} {saga}")
    if chance.random() < 0.15:
        groups = tuple(
            tuple(_act(chance, saga, f"{place}{name}", GRAPH_KINDS[name]) for name in names)
            for place, names in enumerate(GRAPH)
        )
        return Program("graph", groups, deadline=chance.random() < 0.2)
    pivot, found = chance.choice([None, None, 0, 1, 2, 3]), []
    for place in range(chance.randint(1, 4)):
        if place == pivot:
            found.append((_act(chance, saga, f"{len(found)}p", "pivot"),))
        kinds = chance.choices([*WEIGHTS], [*WEIGHTS.values()], k=chance.choice([1, 1, 2, 3]))
        past = pivot is not None and place >= pivot
        if past:  # nobody would give back what was done for one that has given up
            kinds = [kind.removeprefix("hasty ") for kind in kinds]
        found.append(tuple(_act(chance, saga, f"{len(found)}{'abc'[n]}", kind) for n, kind in enumerate(kinds)))
    shape = chance.choice(["gather", "group"])
    return Program(shape, tuple(found), chance.random() < 0.25, deadline=chance.random() < 0.15)


def _act(chance: random.Random, saga: str, name: str, kind: str) -> Act:
    ways = FAILS.get(kind, EVERY_WAY)
    fails = "no" if kind == "nap" else chance.choices(["no", "once", chance.choice(ways)], [8, 2, 2])[0]
    sticks = chance.choices(["no", "once", "always"], [6, 2, 2])[0]
    return Act(saga, name, kind, fails, sticks, chance.choice(["done", "skip", "retry", "fail"]))


# --- the world outside ------------------------------------------------------------------------------------------------

LEDGER = Path()


class Line(msgspec.Struct, frozen=True):
    """``began`` is where the ledger ended when the attempt began; ``by`` the key of what undoes. ``op``: ``do``,
    ``undo``, or ``look`` (it was looked up, and not found)."""

    op: str
    thing: str
    key: str
    began: int = 0
    by: str = ""


def tell(line: Line, path: Path | None = None) -> None:
    file = os.open(path or LEDGER, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC, 0o600)
    try:
        os.write(file, b"\n" + msgspec.json.encode(line) + b"\n")  # what a kill has cut off stays a line of its own
    finally:
        os.close(file)


def told(path: Path) -> list[tuple[int, Line]]:
    """Each with the place where it ends. One that is not whole is just being written, or its writer was killed."""
    found, end = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        end += len(line)
        if line.endswith(b"}\n"):
            found.append((end, msgspec.json.decode(line, type=Line)))
    return found


def _now() -> int:
    return LEDGER.stat().st_size if LEDGER.exists() else 0


def is_mended(thing: str) -> bool:
    """Somebody has seen to what has failed."""
    return (LEDGER.parent / "mended" / thing.replace("/", "_")).exists()


def mend(ledger: Path, thing: str) -> None:
    folder = ledger.parent / "mended"
    folder.mkdir(exist_ok=True)
    (folder / thing.replace("/", "_")).touch()


def _do(act: Act) -> str:
    attempt, began = workflows.attempt(), _now()
    fails = "no" if is_mended(act.thing) else act.fails
    if fails == "once" and attempt.number == 1:
        raise OSError(f"not yet: {act.thing}")
    if fails == "refused" or (fails == "torn" and attempt.number > 1):
        raise Refused(act.thing)
    if fails == "hung":
        raise TimeoutError(act.thing)
    tell(Line("do", act.thing, attempt.key, began))
    if fails in ("lost", "torn"):
        raise TimeoutError(act.thing)
    return act.name


def _undo(act: Act, key: str, by: str, number: int) -> None:
    if (act.sticks == "always" and not is_mended(f"undo {act.thing}")) or (act.sticks == "once" and number == 1):
        raise OSError(f"{act.thing} sticks")
    tell(Line("undo", act.thing, key, by=by))


# --- steps ------------------------------------------------------------------------------------------------------------


@compensation(retry=TWICE)
async def undo(act: Act, key: str) -> None:
    _undo(act, key, workflows.attempt().key, workflows.attempt().number)


@compensation(retry=TWICE)
def undo_in_a_thread(act: Act, key: str) -> None:
    _undo(act, key, workflows.attempt().key, workflows.attempt().number)


@compensation(retry=TWICE, guarantee="exactly_once")
async def undo_by_key(act: Act, key: str) -> None:
    _undo(act, key, workflows.attempt().key, workflows.attempt().number)


@compensation(retry=TWICE, guarantee="best_effort")
async def try_to_undo(act: Act, key: str) -> None:
    _undo(act, key, workflows.attempt().key, workflows.attempt().number)


@compensation(retry=TWICE, independent=True)
async def undo_beside(act: Act, key: str) -> None:
    _undo(act, key, workflows.attempt().key, workflows.attempt().number)


PATIENTLY = {Refused: TWICE, OSError: TWICE, "*": Retry(immediate=3, delays=(0.5, 1.0, 2.0, 4.0))}
"""For transactions: what a stopped neighbour holds up is tried again until it is there."""


async def _book(handler: str, act: Act) -> None:
    await effect(workflows.transaction(), handler, workflows.attempt().key, act.thing, 0)


@compensation(retry=PATIENTLY, guarantee="exactly_once", transactional=True)
async def unbook(act: Act) -> None:
    await _unbook(act)


async def _unbook(act: Act) -> None:
    await _book("unbook", act)
    number = workflows.attempt().number
    if (act.sticks == "always" and not is_mended(f"undo {act.thing}")) or (act.sticks == "once" and number == 1):
        raise OSError(f"{act.thing} sticks")


async def _do_booked(act: Act) -> str:
    await _book("book", act)
    fails = "no" if is_mended(act.thing) else act.fails
    if fails == "once" and workflows.attempt().number == 1:
        raise OSError(f"not yet: {act.thing}")
    if fails == "refused":
        raise Refused(act.thing)
    return act.name


async def _do_limited(act: Act) -> str:
    if act.fails == "hung" and not is_mended(act.thing):
        await asyncio.Event().wait()
    return _do(act)


async def _do_async(act: Act) -> str:
    return _do(act)


async def find(act: Act) -> Any:
    key = workflows.attempt().key
    if any(line.key == key and line.op == "do" for _, line in told(LEDGER)):
        return act.name
    # What is on its way now comes too late: the provider promises that.
    tell(Line("look", act.thing, key))
    return workflows.NOT_DONE


KINDS: dict[str, Any] = {
    "plain": step(name="plain", retry=TWICE, compensate=undo)(_do_async),
    "thread": step(name="thread", retry=TWICE, compensate=undo_in_a_thread)(_do),
    "booked": step(name="booked", retry=PATIENTLY, compensate=unbook, transactional=True)(_do_booked),
    "limited": step(name="limited", retry=TWICE, compensate=undo, timeout=0.3)(_do_limited),
    "looked": step(name="looked", retry=TWICE, compensate=undo, lookup=find)(_do_async),
    "single": step(name="single", compensate=undo, at_most_once=True)(_do_async),
    "keyed": step(name="keyed", retry=TWICE, compensate=undo_by_key)(_do_async),
    "eager": step(name="eager", retry=TWICE, compensate=try_to_undo)(_do_async),
    "beside": step(name="beside", retry=TWICE, compensate=undo_beside)(_do_async),
    "optional": step(name="optional", retry=TWICE, compensate=undo, critical=False)(_do_async),
    "human": step(name="human", retry=TWICE, compensate=undo, human=True)(_do_async),
    "pivot": step(name="pivot", retry=TWICE, pivot=True)(_do_async),
    "forward": step(
        name="forward", retry={Refused: NEVER, "*": Backoff(first=0.05)}, compensate=undo, forward=True
    )(_do_async),
}  # fmt: skip


# --- commands ---------------------------------------------------------------------------------------------------------


class Taken(Event, key="thing"):
    thing: str


class NotTaken(Event, key="thing"):
    thing: str


class GivenBack(Event, key="thing"):
    thing: str


class Take(Command[Taken], key="thing"):
    thing: str
    fails: str


class GiveBack(Command[GivenBack], key="thing"):
    thing: str
    sticks: str


class Charged(Event, key="thing"):
    thing: str


class Declined(Event, key="thing"):
    thing: str


class Charge(Command[Charged], key="thing"):
    thing: str
    fails: str


class Refund(Command[None], key="thing"):
    thing: str
    sticks: str


def _sent(act: Act) -> Any:
    timeout = 0.3 if act.kind.startswith("hasty") else None
    if act.kind.endswith("take"):
        return call(Take(act.thing, act.fails), timeout=timeout, compensate=GiveBack(act.thing, act.sticks))
    return call(Charge(act.thing, act.fails), timeout=timeout, compensate=Refund(act.thing, act.sticks))


# --- sagas ------------------------------------------------------------------------------------------------------------


async def _one(act: Act) -> str | None:
    if act.kind == "nap":
        await asyncio.sleep(0.4)  # sleep: a durable timer, and longer than it may stay in memory
        return None
    if act.kind in COMMANDS:
        await _sent(act)
        return act.name
    found: str | None = await KINDS[act.kind](act)
    return found


async def _play(program: Program) -> list[str | None]:
    found: list[str | None] = []
    for group in program.groups:
        if program.shape == "gather":
            found += await asyncio.gather(*(_one(act) for act in group))
        else:
            async with asyncio.TaskGroup() as together:
                tasks = [together.create_task(_one(act)) for act in group]
            found += [task.result() for task in tasks]
    if program.fails:
        raise RuntimeError("the code has a mistake")
    return found


@saga
async def play(program: Program) -> list[str | None]:
    return await _play(program)


@saga(deadline=DEADLINE)
async def play_soon(program: Program) -> list[str | None]:
    return await _play(program)


def _node(name: str) -> Any:
    """A step of the graph, whose act is found in the program that all of them are given."""
    kind = GRAPH_KINDS[name]

    def mine(program: Program) -> Act:
        return next(act for act in program.acts() if act.name.endswith(name))

    @compensation(name=f"undo {name}", retry=TWICE)
    async def undoing(program: Program, key: str) -> None:
        _undo(mine(program), key, workflows.attempt().key, workflows.attempt().number)

    @compensation(name=f"undo {name}", retry=PATIENTLY, guarantee="exactly_once", transactional=True)
    async def unbooking(program: Program) -> None:
        await _unbook(mine(program))

    async def doing(program: Program) -> str:
        return _do(mine(program))

    def doing_in_a_thread(program: Program) -> str:
        return _do(mine(program))

    async def booking(program: Program) -> str:
        return await _do_booked(mine(program))

    if kind == "booked":
        return step(name=name, retry=PATIENTLY, compensate=unbooking, transactional=True)(booking)
    if kind == "pivot":
        return step(name=name, retry=TWICE, pivot=True)(doing)
    return step(name=name, retry=TWICE, compensate=undoing)(doing_in_a_thread if kind == "thread" else doing)


def _graph(name: str, deadline: float | None = None) -> Saga:
    found, before = Saga(name, deadline=deadline), tuple[str, ...]()
    for names in GRAPH:
        for one in names:
            found.step(one, _node(one), after=before)
        before = names
    return found


graph, graph_soon = _graph("graph"), _graph("graph_soon", DEADLINE)


def saga_of(program: Program) -> Any:
    if program.shape == "graph":
        return graph_soon if program.deadline else graph
    return play_soon if program.deadline else play


# --- services ---------------------------------------------------------------------------------------------------------


def participant() -> Service:
    """Knows nothing of sagas."""
    stock = Service("stock", migrations=MIGRATIONS, lanes=4)
    # The second attempt comes when a hasty caller has given up. Each process that ends costs one.
    late, soon = Retry(immediate=1, delays=(0.5,) * 6), Retry(immediate=2, delays=(0.1,) * 6)

    def fail(command: Take | Charge, attempt: Attempt) -> None:
        if command.fails == "hung" or (command.fails in ("once", "late") and attempt.number == 1):
            raise OSError(f"not yet: {command.thing}")

    def stick(command: GiveBack | Refund, attempt: Attempt) -> None:
        stays = command.sticks == "always" and not is_mended(f"undo {command.thing}")
        if stays or (command.sticks == "once" and attempt.number == 1):
            raise OSError(f"{command.thing} sticks")

    @stock.on(Take, retry=late)
    async def take(command: Take, tx: Transaction, attempt: Attempt) -> Taken | NotTaken:
        fail(command, attempt)
        if command.fails == "refused":
            return NotTaken(command.thing)
        await effect(tx, "take", command.thing, command.thing, 0)
        tx.publish(Taken(command.thing))  # the answer, twice
        return Taken(command.thing)

    @stock.on(GiveBack, retry=soon, compensates=take)
    async def give_back(command: GiveBack, tx: Transaction, attempt: Attempt, done: Done[Taken]) -> GivenBack:
        stick(command, attempt)
        await effect(tx, "give back", command.thing, command.thing, 0)
        tx.publish(GivenBack(command.thing))
        return GivenBack(done.message.thing)

    @stock.on(Charge, retry=late)
    async def charge(command: Charge, attempt: Attempt) -> Charged | Declined:
        began = _now()
        fail(command, attempt)
        if command.fails == "refused":
            return Declined(command.thing)
        tell(Line("do", command.thing, attempt.key, began))
        if command.fails == "lost":
            raise TimeoutError(command.thing)
        return Charged(command.thing)

    @stock.on(Refund, retry=soon, compensates=charge)
    async def refund(command: Refund, attempt: Attempt, done: Done[Charged] | Unknown) -> None:
        stick(command, attempt)
        tell(Line("undo", command.thing, done.attempt, by=attempt.key))

    return stock


def application(url: str) -> App:
    settings = RuntimeSettings(
        lease=LEASE,
        consumer=ConsumerSettings(patience=0.1, poll=0.05, checkpoint=0.05),
        workflows=ExecutorSettings(idle=0.05, poll=0.2),
    )
    sagas, calls = [play, play_soon, graph, graph_soon], [Take, GiveBack, Charge, Refund]
    players = Service("players", workflows=sagas, calls=calls, migrations=MIGRATIONS, lanes=4)
    return App(players, participant(), store=url, settings=settings)


async def work(url: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with application(url).run() as running:
        print(RUNNING, flush=True)
        lost = [asyncio.create_task(one.lost.wait()) for one in running]
        await asyncio.wait([*lost, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)


if __name__ == "__main__":
    LEDGER = Path(sys.argv[2])
    asyncio.run(work(sys.argv[1]))
