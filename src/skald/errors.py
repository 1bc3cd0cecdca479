"""The one error tree: every error names its cause, and says what to do next.

Errors of drivers are translated at one boundary (each adapter's) and keep the original as ``__cause__``. What the
program may want to look at is a typed attribute, never a part of the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SkaldError(Exception):
    """The root of everything that this library raises on purpose."""


class ConfigurationError(SkaldError):
    """The program or its settings contradict themselves; nothing was started."""


# --- messages ---------------------------------------------------------------------------------------------------------


class InvalidMessage(SkaldError):
    """A message that cannot be stored as it is declared; raised at the sender, before anything is written."""

    def __init__(self, type: str, field: str, reason: str) -> None:
        super().__init__(f"{type}: {field}: {reason}")
        self.type, self.field, self.reason = type, field, reason


class MessageTooLarge(InvalidMessage):
    """The encoded body is over the limit (bytes)."""

    def __init__(self, type: str, size: int, limit: int, advice: str) -> None:
        super().__init__(type, "$", f"the body has {size} bytes, the limit is {limit}; {advice}")
        self.size, self.limit = size, limit


class UnreadableMessage(SkaldError):
    """A stored message of a handled type that does not fit its class; it is parked with its bytes."""

    def __init__(self, type: str, reason: str) -> None:
        super().__init__(f"{type} cannot be read: {reason}")
        self.type, self.reason = type, reason


class UndeclaredMessage(SkaldError):
    """A message that this service neither declares to publish nor returns from a handler."""


# --- units ------------------------------------------------------------------------------------------------------------


class Rejection(SkaldError):
    """Why one unit was not committed. The other units of its group are not touched."""


class Conflict(Rejection):
    """A stream or tag is not at the version that the unit was decided on: read again, decide again."""

    def __init__(self, key: str, expected: int, actual: int) -> None:
        super().__init__(f"{key} is at version {actual}, not {expected}: read it again and decide again")
        self.key, self.expected, self.actual = key, expected, actual


class Busy(Rejection):
    """Somebody's open transaction holds a key of this unit; the same unit can be tried again."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} is held by another open transaction; try again")
        self.key = key


class Fenced(Rejection):
    """Another process has taken over from this one: what it still wants to write is refused."""

    def __init__(self, process: str) -> None:
        super().__init__(f"process {process} no longer owns its work: its lease ran out and another took over")
        self.process = process


class CursorMoved(Rejection):
    """The lane's cursor is not where this unit found it: the run was handled elsewhere, or the lane was reset."""

    def __init__(self, group: str, origin: str, lane: int) -> None:
        super().__init__(f"the cursor of {group} on {origin}, lane {lane}, has moved; this run is dropped")
        self.group, self.origin, self.lane = group, origin, lane


class DeliveryGone(Rejection):
    """A delivery that this unit resolves was resolved by somebody else meanwhile."""

    def __init__(self, handler: str, origin: str, position: int) -> None:
        super().__init__(f"{handler}: message {position} of {origin} was resolved elsewhere")
        self.handler, self.origin, self.position = handler, origin, position


class MarkMoved(Rejection):
    """What is remembered of a key is not what this unit was decided on: somebody else has handled the key meanwhile."""

    def __init__(self, kind: str, name: str, key: str) -> None:
        super().__init__(f"{name}: key {key!r} was handled elsewhere meanwhile ({kind}); decide again")
        self.kind, self.name, self.key = kind, name, key


class WorkflowExists(Rejection):
    """A workflow with this id was started before."""

    def __init__(self, id: str) -> None:
        super().__init__(f"a workflow with the id {id!r} was started before")
        self.id = id


class WorkflowKeyTaken(Rejection):
    """An open workflow with another id has this key."""

    def __init__(self, key: str, id: str) -> None:
        super().__init__(f"the key {key!r} belongs to workflow {id!r}, which has not ended")
        self.key, self.id = key, id


# --- stores -----------------------------------------------------------------------------------------------------------


class StoreError(SkaldError):
    """The database refused or failed; the driver's own error is the cause."""


class StoreUnavailable(StoreError):
    """The database cannot be reached now, or its disk failed or is full; nothing of this call is acknowledged."""


class TransactionConflict(StoreError):
    """Deadlock or serialisation failure: the transaction was rolled back and can be run again."""


class TransactionTooLong(StoreError):
    """A write transaction was open beyond its bound and has been rolled back; names the line that opened it."""


class NestedCommit(StoreError):
    """A commit from inside an open transaction of the same SQLite file would wait for itself."""


class ForeignHandle(StoreError):
    """This process holds the database file through another SQLite library, which loses committed data."""


class UnsafeSettings(StoreError):
    """The database does not keep what it acknowledges (fsync, synchronous_commit, full_page_writes …)."""


class SchemaMismatch(StoreError):
    """The database's tables are newer than this code, or older and not migrated: run ``skald migrate``."""


# --- logs and delivery ------------------------------------------------------------------------------------------------


class LogForked(SkaldError):
    """The origin's history is not the one that was read before: it was restored, failed over or copied."""

    def __init__(self, group: str, origin: str, lane: int, position: int, expected: str, found: str | None) -> None:
        super().__init__(
            f"the log of {origin} has forked: {group} (lane {lane}) has read message {expected} at position "
            f"{position}, where there is now {found or 'nothing'}. See what was lost, then run: "
            f"skald subscriptions reset --group {group} --origin {origin} --to POSITION|start|now"
        )
        self.group, self.origin, self.lane = group, origin, lane
        self.position, self.expected, self.found = position, expected, found


class BelowFloor(SkaldError):
    """A reader asks for positions that retention has already deleted."""

    def __init__(self, origin: str, position: int, floor: int) -> None:
        super().__init__(
            f"{origin} keeps its log from position {floor} on, and {position} was asked for: "
            f"go on with what is left (skald subscriptions reset --origin {origin} --to here), or rebuild from a backup"
        )
        self.origin, self.position, self.floor = origin, position, floor


class Overloaded(SkaldError):
    """Refused at the door: too much is waiting. Try again after ``retry_after`` seconds."""

    def __init__(self, what: str, retry_after: float = 1.0) -> None:
        super().__init__(f"{what} is full; try again in {retry_after:g} s")
        self.retry_after = retry_after


class Stopped(SkaldError):
    """The runtime is stopping or was never started; nothing was written."""


# --- workflows --------------------------------------------------------------------------------------------------------


class WorkflowError(SkaldError):
    """What concerns a workflow or one of its steps."""

    position = 0
    """In a workflow's code: of the entry of its journal that it came with."""


class NotInWorkflow(WorkflowError):
    """Something whose outcome no replay could repeat; names the line and what to do instead."""

    def __init__(self, what: str, line: str, remedy: str) -> None:
        super().__init__(f"{line}: {what} cannot be used inside a workflow: {remedy}")
        self.what, self.line, self.remedy = what, line, remedy


class NeverIdle(WorkflowError):
    """A workflow that polls instead of waiting: nothing from outside can ever reach it."""

    def __init__(self, lines: str) -> None:
        super().__init__(f"the workflow is always ready again and never waits, at {lines}: await what it waits for")


class WorkflowBusy(WorkflowError):
    """The workflow is not in a state in which this can be done; the text says which, and what to do."""


class Diverged(WorkflowError):
    """The code does not do what the history of this workflow says it did. Put the old behaviour back."""

    def __init__(self, position: int, history: str, code: str) -> None:
        super().__init__(f"at position {position} the history has {history}, and the code {code}")
        self.position, self.history, self.code = position, history, code


class StepFailed(WorkflowError):
    """A step has failed for the last time. ``type`` and ``message`` are those of its exception; ``unknown``: an attempt
    may have done it all the same."""

    def __init__(self, step: str, type: str, message: str, unknown: bool = False) -> None:
        super().__init__(f"{step}: {type}: {message}")
        self.step, self.type, self.message, self.unknown = step, type, message, unknown


class CallRejected(StepFailed):
    """What a workflow has called answered something else than was called for. ``reply`` is that event, ``None`` if
    there was none. It was not done, and there is nothing to undo."""

    def __init__(self, command: str, type: str, message: str, reply: Any) -> None:
        super().__init__(command, type, message)
        self.reply = reply


class CallUnanswered(StepFailed, TimeoutError):
    """What a workflow has called has not answered in time, and may do it all the same. ``call`` tells it apart from the
    others of its workflow."""

    call: str | None = None

    def __init__(self, command: str, seconds: float) -> None:
        super().__init__(command, TimeoutError.__name__, f"no answer within {seconds:g} s", unknown=True)


class LockTaken(StepFailed):
    """Another saga has the lock that one has asked for with ``conflict="fail"``. ``holder`` is its id."""

    def __init__(self, key: str, holder: str, name: str) -> None:
        super().__init__(f"lock {key}", LockTaken.__name__, f"{name} {holder!r} has it")
        self.key, self.holder = key, holder


class LockDeadlock(StepFailed):
    """Waiting for this lock would never end: ``chain`` has the ids of sagas of which each waits for the next one, and
    the last for the first. Take locks in one order everywhere; the others go on now."""

    def __init__(self, key: str, holder: str, chain: tuple[str, ...]) -> None:
        waits = " waits for ".join([*chain, chain[0]])
        super().__init__(f"lock {key}", LockDeadlock.__name__, f"{waits}: take locks in one order everywhere")
        self.key, self.holder, self.chain = key, holder, chain


class LockTimeout(StepFailed, TimeoutError):
    """Another saga still had the lock after ``timeout`` seconds."""

    def __init__(self, key: str, seconds: float) -> None:
        super().__init__(f"lock {key}", TimeoutError.__name__, f"not free within {seconds:g} s")
        self.key = key


class WorkflowFailed(WorkflowError):
    """The workflow ended with an exception. ``type`` and ``message`` are those of its exception."""

    def __init__(self, id: str, type: str, message: str) -> None:
        super().__init__(f"workflow {id}: {type}: {message}")
        self.id, self.type, self.message = id, type, message


class SagaCompensated(WorkflowFailed):
    """The saga has failed, and what it had done is undone. ``step`` is where it failed, if that was at a step."""

    def __init__(self, id: str, type: str, message: str, step: str | None = None) -> None:
        super().__init__(id, type, message)
        self.step = step
        if step is not None:
            self.args = (f"saga {id} was compensated, because {step} has failed: {type}: {message}",)


class UpdateFailed(WorkflowError):
    """An update was refused by its validator, or its handler failed. ``type`` and ``message`` are those of the
    exception."""

    def __init__(self, update: str, type: str, message: str) -> None:
        super().__init__(f"update {update}: {type}: {message}")
        self.update, self.type, self.message = update, type, message


class MapFailed(WorkflowError):
    """Too many items of a ``map`` have failed; ``failures`` are their exceptions, by the item's place."""

    def __init__(self, succeeded: int, failures: Mapping[int, Exception]) -> None:
        place, first = next(iter(failures.items()))
        super().__init__(f"{len(failures)} failed and {succeeded} succeeded; item {place}: {first}")
        self.succeeded, self.failures = succeeded, failures


class OutcomeUnknown(WorkflowError):
    """A step that is done at most once had begun when its process ended: whether it was done is not known."""


class WorkflowEnded(WorkflowError):
    """The workflow has ended, and can be told nothing any more."""

    def __init__(self, id: str, state: str) -> None:
        super().__init__(f"workflow {id!r} has ended: {state}")
        self.id, self.state = id, state


class WorkflowMismatch(WorkflowError):
    """This id belongs to a workflow with another name or other arguments."""


class WorkflowUnknown(WorkflowError):
    """There is no workflow with this id."""
