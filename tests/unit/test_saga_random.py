"""Random sagas: steps of every kind that fail in every way, a person who answers, cancels, evictions and crashes.

Whatever happens, they end completed with everything kept, or undone with nothing held, last first.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import Any

import msgspec
import pytest

from skald import NEVER, Retry, Service, compensation, saga, step, workflows
from skald.errors import WorkflowEnded, WorkflowFailed
from skald.sagas.question import Choice, Question, open_questions
from skald.testing.workflows import Crashed, Lab, _crash, laboratory
from skald.unit import EntryKind
from tests.unit.saga_programs import answer as send

SEEDS = range(120)
TWICE = Retry(immediate=2, delays=())


class Act(msgspec.Struct, frozen=True):
    name: str
    kind: str
    fails: str
    """``no``, ``refused``, ``once`` (refused at the first attempt), ``lost`` (done, and nobody is told), ``hung``."""
    sticks: bool
    """Its compensation fails until a person has looked."""


class Program(msgspec.Struct, frozen=True):
    """Groups of acts, one after the other; those of one group at once. ``fails``: the code itself, at the end."""

    groups: list[list[Act]]
    fails: bool


class World:
    def __init__(self) -> None:
        self.held: dict[str, Act] = {}
        self.freed: list[str] = []
        self.attempts: dict[str, int] = {}
        self.mended: set[str] = set()
        """Compensations that a person has seen to."""
        self.by_hand: set[str] = set()


world = World()


@compensation(retry=NEVER)
async def undo(act: Act, key: str) -> None:
    if act.sticks and act.name not in world.mended:
        raise OSError(f"{act.name} sticks")
    if world.held.pop(key, None) is not None:
        world.freed.append(act.name)


async def _do(act: Act) -> str:
    key = workflows.attempt().key
    number = world.attempts[key] = world.attempts.get(key, 0) + 1
    if act.fails == "refused" or (act.fails == "once" and number == 1):
        raise ValueError(f"{act.name} is refused")
    if act.fails == "hung":
        raise TimeoutError(f"{act.name} hangs")
    if key not in world.held:
        world.held[key] = act
    if act.fails == "lost":
        raise TimeoutError(f"{act.name} was lost")
    return act.name


KINDS: dict[str, Any] = {
    "undone": step(name="undone", retry=TWICE, compensate=undo)(_do),
    "optional": step(name="optional", retry=TWICE, compensate=undo, critical=False)(_do),
    "human": step(name="human", retry=TWICE, compensate=undo, human=True)(_do),
    "pivot": step(name="pivot", retry=TWICE, pivot=True)(_do),
}


@saga(deadline=86_400)
async def play(program: Program) -> list[str | None]:
    found: list[str | None] = []
    for group in program.groups:
        found += await asyncio.gather(*(KINDS[act.kind](act) for act in group))
    if program.fails:
        raise RuntimeError("the code has a mistake")
    return found


SERVICE = Service("random", workflows=[play])


def random_program(chance: Random) -> Program:
    groups: list[list[Act]] = []
    pivot = chance.randrange(6)
    for place in range(chance.randint(1, 4)):
        if place == pivot:
            groups.append([random_act(chance, "the pivot", "pivot")])
        kinds = chance.choices(["undone", "optional", "human"], [6, 1, 1], k=chance.choice([1, 1, 2, 3]))
        groups.append([random_act(chance, f"{place}{n}", kind) for n, kind in enumerate(kinds)])
    return Program(groups, chance.random() < 0.3)


def random_act(chance: Random, name: str, kind: str) -> Act:
    fails = chance.choices(["no", "refused", "once", "lost", "hung"], [10, 1, 2, 1, 1])[0]
    return Act(name, kind, fails, chance.random() < 0.2)


async def answer(lab: Lab, chance: Random) -> bool:
    """As an honest person would: true if anything was asked."""
    questions = open_questions((await lab.history("s")).journal())
    if not questions:
        return False
    question = chance.choice(questions)
    act = None if question.arguments is None else msgspec.convert(question.arguments["act"], Act)
    choice, result = _decided(chance, question, act)
    await send(lab, "s", choice, question.number, result)
    return True


def _decided(chance: Random, question: Question, act: Act | None) -> tuple[Choice, Any]:
    if act is None:
        return Choice.DONE, []  # the code has failed after its pivot
    if question.compensation is not None:
        world.mended.add(act.name)
        choice = chance.choice(question.choices)
        if choice != Choice.RETRY:
            world.by_hand.add(act.name)
            for key in [key for key, held in world.held.items() if held == act]:
                del world.held[key]
        return choice, None
    if act.kind == "pivot":
        done = act in world.held.values()
        return (Choice.DONE, "by hand") if done else (Choice.FAIL, None)
    left = [one for one in question.choices if one != Choice.RETRY] if act.fails != "once" else question.choices
    return chance.choice(left), "by hand"


async def played(lab: Lab, program: Program, chance: Random, cancel_at: int | None) -> str:
    handle = await play.start(program, id="s")
    for turn in range(40):
        if turn == cancel_at:
            with suppress(WorkflowEnded):
                await handle.cancel("enough")
        await lab.advance(1)  # an attempt at once is one after no time
        if not await answer(lab, chance):
            break
    else:
        raise AssertionError("it asks for ever")
    try:
        await lab.result(handle)
    except WorkflowFailed as failure:
        return "CANCELLED" if failure.type == "CancelledError" else "COMPENSATED"
    return "COMPLETED"


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_random_saga_is_done_or_undone(seed: int) -> None:
    global world
    world, chance = World(), Random(seed)
    program = random_program(chance)
    idle = chance.choice([0.0, 3_600.0])
    async with laboratory(SERVICE, idle=idle, seed=chance.choice([None, seed])) as lab:
        if chance.random() < 0.7:
            _crash(lab._executors[0], chance.randint(1, 12), chance.random() < 0.5)
        cancel_at = chance.choice([None, None, 0, 1, 2])
        try:
            end = await played(lab, program, chance, cancel_at)
        except Crashed:
            end = await played(lab, program, chance, cancel_at)
        entries = (await lab.history("s")).journal()
    check(program, end, [entry.name for entry in entries if entry.kind == EntryKind.STATUS])


def check(program: Program, end: str, statuses: list[str]) -> None:
    acts = [act for group in program.groups for act in group]
    pivot_done = any(act.kind == "pivot" for act in world.held.values())
    if end == "COMPLETED":
        assert "COMPENSATING" not in statuses
        assert world.freed == []
        assert not program.fails or pivot_done
        return
    assert statuses[-1] == end
    assert not pivot_done
    assert world.held == {}
    places = {act.name: place for place, group in enumerate(program.groups) for act in group}
    order = [places[name] for name in world.freed]
    assert order == sorted(order, reverse=True), f"{world.freed} of {acts}"
