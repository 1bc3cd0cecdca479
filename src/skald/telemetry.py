"""What happened, as types: emitted at the seam, never inside adapters, and written as one structured line each.

Nothing is emitted per handled message. A process may add its own listeners; one that raises is dropped with a line.

A handler's error may hold anything, secrets among them. Its text is kept with the message in the database (``skald
parked show``) and given to listeners; the line has its type and the message's place alone. All other texts are written
without the passwords of addresses.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import msgspec

log = logging.getLogger("skald")
_PASSWORD = re.compile(r"(://[^\s:/@]*):[^\s@]+@|((?:password|passwd|pgpass)=)[^\s&'\"]+", re.IGNORECASE)


def scrubbed(text: str) -> str:
    """Without the passwords of addresses; error texts come from anywhere, drivers among them."""
    return _PASSWORD.sub(lambda found: f"{found[1]}:***@" if found[1] is not None else f"{found[2]}***", text)


class Occurrence(msgspec.Struct, frozen=True, tag=True):
    """Something worth a line."""


class Retried(Occurrence, frozen=True):
    service: str
    handler: str
    origin: str
    position: int
    id: str
    correlation_id: str
    attempts: int
    delay: float
    error: str


class Parked(Occurrence, frozen=True):
    service: str
    handler: str
    origin: str
    position: int
    id: str
    correlation_id: str
    attempts: int
    error: str


class ForwardRefused(Occurrence, frozen=True):
    """A message whose effect has been undone, or was cancelled before it came; or that came once more. ``state`` is
    that of the effect."""

    service: str
    handler: str
    key: str
    id: str
    correlation_id: str
    state: str


class LaneStopped(Occurrence, frozen=True):
    service: str
    origin: str
    lane: int
    error: str


class LanesTaken(Occurrence, frozen=True):
    service: str
    process: str
    from_process: str
    reason: str


class Refused(Occurrence, frozen=True):
    service: str
    what: str
    error: str


class LoopStalled(Occurrence, frozen=True):
    """The event loop does not turn; ``stack`` shows where it stands."""

    service: str
    seconds: float
    stack: str


class HandlerIgnoresCancellation(Occurrence, frozen=True):
    service: str
    handler: str
    id: str
    seconds: float


class MemoryGrows(Occurrence, frozen=True):
    service: str
    resident_mb: float
    largest: str


class Recovering(Occurrence, frozen=True):
    """Something outside failed (the database, mostly) and is tried again."""

    service: str
    what: str
    error: str
    again_in: float


class StepRetried(Occurrence, frozen=True):
    """``attempts`` have failed; the next one begins after ``delay`` seconds."""

    service: str
    workflow: str
    id: str
    step: str
    attempts: int
    delay: float
    error: str


class StepIgnoresCancellation(Occurrence, frozen=True):
    """The function of a step runs on in its thread ``seconds`` after its beginning, although it has timed out or was
    given up. Its next attempt waits for its end, and so does all undoing of its saga."""

    service: str
    workflow: str
    id: str
    step: str
    seconds: float


class WorkflowStopped(Occurrence, frozen=True):
    """It cannot go on with this code: it is paused until somebody resumes it, with code that fits."""

    service: str
    workflow: str
    id: str
    error: str


class WorkflowPaused(Occurrence, frozen=True):
    """A step gave up: the workflow waits until somebody resumes it."""

    service: str
    workflow: str
    id: str
    step: str
    error: str


class SagaNeedsPerson(Occurrence, frozen=True):
    """A saga can go neither forward nor back before somebody has decided: ``skald sagas show ID`` says what about."""

    service: str
    saga: str
    id: str
    status: str
    step: str
    error: str


class WorkflowComplaint(Occurrence, frozen=True):
    """What asyncio would have logged: an exception of a task that nobody awaited, mostly."""

    service: str
    workflow: str
    id: str
    text: str


_listeners: list[Callable[[Occurrence], None]] = []
_WARN = (Retried, ForwardRefused, LanesTaken, Recovering, StepRetried, WorkflowPaused, WorkflowComplaint)


def listen(listener: Callable[[Occurrence], None]) -> Callable[[], None]:
    """Calls ``listener`` with every occurrence of this process; returns what stops it."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener) if listener in _listeners else None


def line(occurrence: Occurrence) -> str:
    """What the log says of it."""
    fields = msgspec.to_builtins(occurrence)
    if isinstance(occurrence, Retried | Parked | StepRetried):
        fields["error"] = occurrence.error.partition(":")[0]
    fields = {name: scrubbed(value) if isinstance(value, str) else value for name, value in fields.items()}
    return msgspec.json.encode(fields).decode(errors="replace")


def emit(occurrence: Occurrence) -> None:
    level = logging.WARNING if isinstance(occurrence, _WARN) else logging.ERROR
    if log.isEnabledFor(level):
        log.log(level, "%s", line(occurrence))
    for listener in tuple(_listeners):
        try:
            listener(occurrence)
        except Exception:
            _listeners.remove(listener)
            log.exception("a telemetry listener raised and was dropped")
