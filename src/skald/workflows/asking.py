"""PURE. ``call``: a command to another service, and the answer to it, in a workflow.

stock = await call(ReserveInventory(order.id, order.items), timeout=30, compensate=ReleaseInventory(order.id))
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Container, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast

from skald.codec import codec_for
from skald.errors import CallUnanswered, StepFailed, WorkflowError
from skald.message import Command
from skald.sagas.recovery import Recovery
from skald.workflows.calling import Ask, Asked, Undoing, key_of
from skald.workflows.definition import Step
from skald.workflows.loop import running, user_line
from skald.workflows.replay import Machine
from skald.workflows.signature import digest_of, identity_text

if TYPE_CHECKING:  # it imports this package
    from skald.sagas.definition import FailedExecution

R = TypeVar("R")


def call(
    command: Command[R],
    *,
    timeout: float | None = None,
    compensate: Command[Any] | Callable[[FailedExecution], Command[Any]] | None = None,
) -> Coroutine[object, None, R]:
    """Sends a command to the service that handles it, once, and waits for the event that its handler answers with.

    A class ``ReserveInventory(Command[InventoryReserved])`` says what is returned; any other answer raises
    ``CallRejected``, which has it as ``reply``: a definite failure. Where nothing comes within ``timeout`` seconds,
    TimeoutError is raised: nobody knows whether it was done. In a saga ``compensate`` undoes it then, and if it was
    done: a command that is called as this one is, and without a timeout; or a function that makes it, told what failed.
    """
    loop = running()
    if loop is None:
        raise WorkflowError(f"{user_line()}: call() is for workflows; elsewhere, publish the command")
    machine = cast("Machine", loop.host)
    machine.ensure_alive("a command")
    if not _is_limit(timeout):
        raise WorkflowError(f"{user_line()}: call(timeout={timeout!r}): a number of seconds above 0, or None")
    if compensate is not None and machine.conductor is None:
        raise WorkflowError(f"{user_line()}: compensate= is for sagas: declare this workflow with @saga")
    undoing = None if compensate is None else _undoing(machine, compensate)
    ask = issue(machine, command)
    ask.timeout, ask.recovery = timeout, Recovery(compensate=undoing)
    return answered(machine, ask) if machine.conductor is None else machine.conductor.ask(ask)


def _is_limit(timeout: object) -> bool:
    return timeout is None or (isinstance(timeout, int | float) and timeout > 0)


def _undoing(machine: Machine, compensate: Any) -> Undoing:
    if isinstance(compensate, Command) or not callable(compensate):
        return Undoing(lambda _: compensate, machine.workflow.calls.kind(compensate).name)
    name = getattr(compensate, "__name__", repr(compensate))
    # What is called would be no command, which would be seen when the saga has failed.
    is_step = isinstance(compensate, Step) or hasattr(compensate, "misfits")
    if is_step or isinstance(compensate, type) or inspect.iscoroutinefunction(compensate):
        raise WorkflowError(
            f"{user_line()}: call(compensate={name}): a command, as in compensate=Release(order.id), or a function, no "
            "'async def', that makes one when it is told what has failed"
        )
    return Undoing(compensate, name)


def issue(machine: Machine, command: Any) -> Ask:
    """A command that is sent by ``answered``."""
    calls = machine.workflow.calls
    kind = calls.kind(command)
    body = codec_for(kind.cls, calls.max_body).encode(command)
    digest = digest_of(body)
    identity, key = (kind.name, digest, machine.count(kind.name, digest)), key_of(kind, command, machine.id)
    return Ask(
        identity=identity, future=asyncio.get_running_loop().create_future(), run=machine.run, kind=kind, calls=calls,
        body=body, key=key, correlation=machine.correlation, retry=machine.retries,
    )  # fmt: skip


async def answered(machine: Machine, ask: Ask) -> Any:
    """The answer, in time; raises ``CallRejected`` and ``CallUnanswered``."""
    try:
        return await _in_time(machine, ask)
    except StepFailed as error:
        error.position = machine.told
        raise


async def _in_time(machine: Machine, ask: Ask) -> Any:
    if ask.timeout is None:
        return await machine.outcome(ask)
    try:
        # Since it was called, or since the retry after which it is waited for anew.
        began = max(asyncio.get_running_loop().time(), machine.waited_anew.since.get(ask.identity, 0.0))
        async with asyncio.timeout_at(began + ask.timeout) as limit:
            return await machine.outcome(ask)
    except TimeoutError:
        if not limit.expired():
            raise
        if ask.future.done() and not ask.future.cancelled():
            return ask.future.result()  # it has come in the same moment
        unanswered = CallUnanswered(ask.name, ask.timeout)
        unanswered.call = identity_text(ask.identity)
        raise unanswered from None


def unsent(machine: Machine, sent: Container[str]) -> list[Asked]:
    """Of one that was brought back, with the ids of what was sent: the rest was never written, or it does no harm to
    write it again."""
    asked = [call for call in machine.calls.values() if isinstance(call, Asked)]
    return [call for call in asked if not any(letter in sent for letter in call.letters)]
