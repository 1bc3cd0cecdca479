"""What code inside a workflow or a step may ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from uuid import UUID

from skald.clock import to_datetime
from skald.codec import Codec
from skald.errors import WorkflowError
from skald.message import MAX_KEY, is_key
from skald.messaging.definition import Attempt
from skald.unit import EntryKind
from skald.workflows.definition import ContinueAsNew
from skald.workflows.loop import running, user_line
from skald.workflows.replay import Machine

if TYPE_CHECKING:  # they import this package
    from skald.messaging.blocking import BlockingTransaction
    from skald.messaging.transaction import Transaction


def now() -> datetime:
    """The time at which the workflow was last told something; the same at every replay. In a query or a validator,
    which are not replayed, the present."""
    machine = _machine("now", changes=False)
    return to_datetime(machine.inbox.looking_at or machine.time)


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


def workflow_id() -> str:
    """The id under which this workflow was started."""
    return _machine("workflow_id", changes=False).id


class Line(Protocol):
    """From an attempt to whoever waits for it; for any thread."""

    cancelled: bool

    def beat(self, progress: bytes | None) -> None: ...


_progress = Codec(Any, name="progress")


class StepAttempt(Attempt, frozen=True):
    """Which try of a step this is."""

    progress: Any = None
    """What the last ``heartbeat(progress)`` of an earlier attempt has reported, also of a process that died."""
    line: Line | None = None

    @property
    def cancelled(self) -> bool:
        """Nobody waits for this attempt any more. A sync step looks here, because a thread cannot be interrupted."""
        return self.line is not None and self.line.cancelled

    def heartbeat(self, progress: Any = None) -> None:
        """Tells that this attempt lives, and how far it is, from whatever thread. ``progress`` is what JSON has: the
        next attempt sees it; it is stored at most once a second. ``InvalidMessage`` for anything else."""
        if self.line is not None:
            self.line.beat(None if progress is None else _progress.encode(progress))


current_attempt: ContextVar[Callable[[], StepAttempt] | None] = ContextVar("skald_attempt", default=None)
current_transaction: ContextVar[Transaction | None] = ContextVar("skald_step_transaction", default=None)
current_blocking: ContextVar[BlockingTransaction | None] = ContextVar("skald_step_blocking", default=None)


def attempt() -> StepAttempt:
    """Inside a step: which try this is, with the idempotency key for the outside world."""
    found = current_attempt.get()
    if found is None:
        raise WorkflowError("attempt() is for steps: it says which try of the step this is")
    return found()


def transaction() -> Transaction:
    """Inside an async ``@step(transactional=True)``: what is written in it commits together with the step's result."""
    found = current_transaction.get()
    if found is None:
        raise WorkflowError("transaction() is for async transactional steps; sync ones have blocking_transaction()")
    return found


def blocking_transaction() -> BlockingTransaction:
    """The same for sync steps."""
    found = current_blocking.get()
    if found is None:
        raise WorkflowError("blocking_transaction() is for sync transactional steps; async ones have transaction()")
    return found


def patched(name: str) -> bool:
    """True for workflows that come here for the first time from now on, False for those that were here before the code
    asked; the answer stays the same for a run. The old way goes behind ``else``."""
    return _machine("patched").patches.patched(name)


def deprecate_patch(name: str) -> None:
    """Stands where ``patched(name)`` stood once no open run needs the old way: histories with the patch are kept."""
    _machine("deprecate_patch").patches.deprecate(name)


def stage(name: str) -> None:
    """Says where the workflow stands from now on: ``current_step`` in ``saga_state``, until a step or another stage is
    journalled. Written with what led to it: an entry, and no commit of its own. It may change from version to version,
    for a replay passes over it."""
    machine = _machine("stage")
    if not is_key(name):
        raise WorkflowError(f"{user_line()}: stage({name!r}): a name of 1 to {MAX_KEY} characters, without NUL")
    if machine.patches.recorded is None:
        machine.mark(name, EntryKind.STAGE)


def continue_as_new(*args: Any) -> NoReturn:
    """Ends this run and begins another one of the same id with these arguments and an empty history. Signals that were
    not received go with it."""
    machine = _machine("continue_as_new")
    if asyncio.current_task() is not machine.task:
        raise WorkflowError("continue_as_new() is for the workflow itself: call it in none of its tasks and handlers")
    raise ContinueAsNew(machine.workflow.signature.input(args)[0])


def _machine(asked: str, *, changes: bool = True) -> Machine:
    loop = running()
    if loop is None or not isinstance(loop.host, Machine):
        raise WorkflowError(f"{asked}() is for workflows: call it in one, and not in a step or outside")
    if changes and loop.host.inbox.looking_at is not None:
        raise WorkflowError(f"{asked}() cannot be called by a query or a validator: they may only look")
    return loop.host
