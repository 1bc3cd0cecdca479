"""PURE. Ends and exceptions as data: type and text, never executed."""

from __future__ import annotations

import msgspec

from skald.errors import SagaCompensated, StepFailed, WorkflowError, WorkflowFailed
from skald.unit import WorkflowState

MAX_ERROR = 2_000
"""Characters of an error's text that are stored."""


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception as data."""

    type: str
    message: str
    unknown: bool = False
    """Of a step: an attempt may have done it all the same."""
    step: str | None = None
    """Of a saga: at which step it has failed."""
    compensated: bool = False
    entry: int | None = None
    """Of a workflow: the position of the entry that it failed because of, 0 if its own code had failed. Older ones do
    not say it."""
    unanswered: str | None = None
    """The call that had no answer in time when that was told, if it failed because of this."""


FOR_RETRY = ("entry", "unanswered")
"""What of a failure only a retry asks for."""


class End(msgspec.Struct, frozen=True):
    """How a workflow has ended: ``body`` is its result, or the ``Failure``."""

    state: WorkflowState
    body: bytes


encode = msgspec.json.Encoder().encode
decode_failure = msgspec.json.Decoder(Failure).decode


BY_CALLER = "its caller"
"""The reason of a cancellation that a workflow asks for, of its own child."""


def is_of_before(end: End, ended_at: int, retried_at: int, *, given_up: bool) -> bool:
    """Whether a child that is waited for has ended in vain before its caller was retried (at 0 if it never was), or has
    been cancelled because of what was before: it is brought back then, and its caller is not told. ``given_up``: that
    its caller has given it up since, and waits for it once more."""
    if end.state == WorkflowState.COMPLETED or not retried_at:
        return False
    by_caller = end.state == WorkflowState.CANCELLED and decode_failure(end.body).message == BY_CALLER
    return ended_at <= retried_at or (by_caller and not given_up)


def let_go(error: BaseException | None) -> None:
    """Of the frames that it has come through, once nobody looks at them any more: they hold it, and all that they used,
    until the collector comes round."""
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def came_with(error: BaseException, told: int) -> WorkflowError | None:
    """The failure of a step, child or call, of those that an exception was raised from the last one; ``None`` if there
    is none. What was just being handled counts if nothing else was ``told`` since (a position): nothing can have been
    built upon it."""
    found: WorkflowError | None = None
    seen: set[int] = set()
    ahead: list[tuple[BaseException, bool]] = [(error, True)]
    while ahead:
        one, certain = ahead.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, WorkflowError) and one.position:
            if (certain or one.position == told) and (found is None or found.position < one.position):
                found = one
            continue
        if isinstance(one, BaseExceptionGroup):
            ahead += [(member, certain) for member in one.exceptions]
        if one.__cause__ is not None:
            ahead.append((one.__cause__, certain))
        elif one.__context__ is not None and not one.__suppress_context__:
            ahead.append((one.__context__, False))
    return found


def failure_of(error: BaseException) -> Failure:
    """Its type and text, fit to be stored whatever they hold. A failed step's own are passed on."""
    if isinstance(error, SagaCompensated):
        return Failure(error.type, error.message, step=error.step, compensated=True)
    if isinstance(error, StepFailed):
        return Failure(error.type, error.message, error.unknown)
    try:
        text = str(error)
    except Exception:
        # An error whose own text fails is still an error.
        text = ""
    return Failure(type(error).__name__, text.encode("utf-8", "replace").decode()[:MAX_ERROR])


def failed(id: str, failure: Failure) -> WorkflowFailed:
    """The exception of whoever waits for a workflow."""
    if failure.compensated:
        return SagaCompensated(id, failure.type, failure.message, failure.step)
    return WorkflowFailed(id, failure.type, failure.message)


def encode_failure(error: BaseException) -> bytes:
    return encode(failure_of(error))
