"""What code inside a workflow or a step may ask for."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import datetime
from random import Random
from uuid import UUID

from skald.clock import to_datetime
from skald.errors import WorkflowError
from skald.messaging.definition import Attempt
from skald.workflows.loop import running
from skald.workflows.replay import Machine

current_attempt: ContextVar[Attempt | None] = ContextVar("skald_attempt", default=None)


def now() -> datetime:
    """The time at which the workflow was last told something; the same at every replay."""
    return to_datetime(_machine("now").time)


def random() -> Random:
    """The workflow's own random numbers; the same at every replay."""
    machine = _machine("random")
    found = machine.local.get("random")
    if not isinstance(found, Random):
        found = machine.local["random"] = Random(machine.run)
    return found


def uuid() -> UUID:
    """A random UUID; the same at every replay."""
    return UUID(int=random().getrandbits(128), version=4)


def attempt() -> Attempt:
    """Inside a step: which try this is, with the idempotency key for the outside world."""
    found = current_attempt.get()
    if found is None:
        raise WorkflowError("attempt() is for steps: it says which try of the step this is")
    return found


def _machine(asked: str) -> Machine:
    loop = running()
    if loop is None or not isinstance(loop.host, Machine):
        raise WorkflowError(f"{asked}() is for workflows: call it in one, and not in a step or outside")
    return loop.host
