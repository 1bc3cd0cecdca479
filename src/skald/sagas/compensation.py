"""PURE. Which executions of a saga's steps are to be undone, in which order, and which of them at once.

An execution whose outcome is unknown may have taken effect: it is undone, too. One that has failed for sure is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from skald.sagas.recovery import Recovery
from skald.workflows.calling import Ask
from skald.workflows.definition import Call


class ExecutionState(StrEnum):
    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """It was cut off, or has failed in a way in which it may have been done."""
    COMPENSATED = "compensated"
    NOT_COMPENSATED = "not compensated"
    """Its compensation has failed, and that was passed over."""


class Execution(msgspec.Struct, eq=False):
    """A call of a step, or a command that was called, in the order in which they were started. ``node`` is its place in
    a graph."""

    number: int
    node: str
    call: Call | Ask
    recovery: Recovery
    state: ExecutionState = ExecutionState.STARTED
    result: bytes | None = None
    """As JSON, once it is done."""
    given_up: bool = False
    """It was cancelled while it ran, so that nobody has looked it up."""
    is_busy: bool = True
    """Somebody waits for it, or for what a person says about it."""

    def read(self, result: bytes) -> Any:
        """What a person says that it has come to."""
        call = self.call
        return call.read(result) if isinstance(call, Ask) else call.signature.result.decode(result)


_DONE_PERHAPS = (ExecutionState.DONE, ExecutionState.UNKNOWN)


def to_undo(executions: Sequence[Execution]) -> list[Execution]:
    """Last first."""
    return [one for one in reversed(executions) if one.state in _DONE_PERHAPS and one.recovery.compensate is not None]


def batches(
    executions: Sequence[Execution], before: Mapping[str, frozenset[str]] | None = None
) -> list[list[Execution]]:
    """What is to be undone; the members of a batch at once, the batches one after the other.

    In a graph (``before`` has for each node those on the paths that lead to it) nothing is undone as long as something
    that was built on it is not. Without one, neighbours that are all independent are undone at once.
    """
    left = to_undo(executions)
    found: list[list[Execution]] = []
    if before is None:
        for one in left:
            if found and is_independent(one) and is_independent(found[-1][0]):
                found[-1].append(one)
            else:
                found.append([one])
        return found
    while left:
        free = [one for one in left if not any(one.node in before[other.node] for other in left)]
        found.append(free)
        left = [one for one in left if one not in free]
    return found


def is_independent(execution: Execution) -> bool:
    return bool(getattr(execution.recovery.compensate, "independent", False))
