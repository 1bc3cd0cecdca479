"""What is undone, in which order, and which of it at once: pure, over every state and every set of failures."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from skald import compensation, step
from skald.sagas.compensation import Execution, ExecutionState, batches
from skald.workflows.definition import Call, Step


@compensation
async def undo(n: int) -> None: ...


@compensation(independent=True)
async def undo_aside(n: int) -> None: ...


@step(compensate=undo)
async def act(n: int) -> None: ...


@step(compensate=undo_aside)
async def act_aside(n: int) -> None: ...


@step
async def look(n: int) -> None: ...


def executed(*steps: Step[..., Any], state: ExecutionState = ExecutionState.DONE) -> list[Execution]:
    return [
        Execution(number, f"n{number}", Call(one, b"", ("", b"", 1), None), one.recovery, state)
        for number, one in enumerate(steps, start=1)
    ]


def numbers(found: list[list[Execution]]) -> list[list[int]]:
    return [[one.number for one in batch] for batch in found]


@pytest.mark.parametrize("states", list(product(ExecutionState, repeat=3)))
def test_what_was_done_or_may_have_been_is_undone_last_first(states: tuple[ExecutionState, ...]) -> None:
    executions = executed(act, act, act)
    for one, state in zip(executions, states, strict=True):
        one.state = state
    wanted = [n for n in (3, 2, 1) if states[n - 1] in (ExecutionState.DONE, ExecutionState.UNKNOWN)]
    assert numbers(batches(executions)) == [[n] for n in wanted]


def test_a_step_without_a_compensation_is_left_alone() -> None:
    assert numbers(batches(executed(act, look, act))) == [[3], [1]]


def test_independent_neighbours_are_undone_at_once() -> None:
    steps = (act, act_aside, act_aside, look, act_aside, act, act_aside)
    assert numbers(batches(executed(*steps))) == [[7], [6], [5, 3, 2], [1]]


def test_in_a_graph_nothing_is_undone_before_what_was_built_on_it() -> None:
    before = {
        "n1": frozenset[str](),
        "n2": frozenset[str](),
        "n3": frozenset({"n1"}),
        "n4": frozenset({"n1", "n2", "n3"}),
    }
    executions = executed(act, act, act, act)
    assert numbers(batches(executions, before)) == [[4], [3, 2], [1]]
    executions[2].state = ExecutionState.FAILED
    assert numbers(batches(executions, before)) == [[4], [2, 1]]
    executions[3].state = ExecutionState.FAILED
    assert numbers(batches(executions, before)) == [[2, 1]]
