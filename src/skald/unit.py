"""PURE. A unit of work: guards and writes, as data. One unit is atomic and fails alone.

Everything the runtime does is: read an input, decide (pure code), and commit the decision. The decision is a
``Unit``; many units of many callers share one database transaction (``Store.commit``), and the same unit can be
applied inside a transaction that the user's code holds (``Transaction.apply``).

Guards: the expected versions of streams and tags, the fence of the process that writes, the place of a lane's
cursor, the presence of the deliveries that it resolves, the versions of its marks, the absence of the workflows that it
starts. If any guard fails nothing of the unit is written and its outcome is the ``Rejection`` that says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, StrEnum

import msgspec

from skald.message import Record

NEW = 0
"""Expected version of a stream that must not exist yet."""


class Append(msgspec.Struct, frozen=True, gc=False):
    """Events for one stream. ``expected`` is the version before them, ``NEW`` for none, ``None`` for any."""

    stream: str
    records: tuple[Record, ...]
    expected: int | None = None


class Tag(msgspec.Struct, frozen=True, gc=False):
    """One tag of a dynamic consistency boundary: compared if ``expected`` is given, raised by one if ``bump``.

    Reading under a tag returns its version with the events; an append that was decided on them names every tag it
    read with that version, and bumps every tag it writes.
    """

    tag: str
    expected: int | None = None
    bump: bool = False


class CursorMove(msgspec.Struct, frozen=True, gc=False):
    """Moves a lane's cursor by compare-and-swap: the move happens only from exactly ``position`` and ``version``.

    ``to_id`` is the id of the message at ``to_position``; the next reader compares it, and so sees a fork.
    """

    group: str
    origin: str
    lane: int
    owner: str
    position: int
    version: int
    to_position: int
    to_id: str


class DeliveryState(StrEnum):
    DELAYED = "delayed"  # tried and failed, due again at a time; blocks its key
    WAITING = "waiting"  # behind a delayed, running or parked one with the same key
    RUNNING = "running"  # slower than its batch; its result is committed on its own; blocks its key
    PARKED = "parked"  # waits for a person; blocks its key
    QUEUED = "queued"  # work of a queue: competing workers, no order by key


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A message that one handler has taken responsibility for without having finished it, copied in whole."""

    group: str
    handler: str
    origin: str
    lane: int
    state: DeliveryState
    record: Record
    attempts: int = 0
    due: int = 0
    error: str | None = None
    owner: str | None = None


class Resolve(msgspec.Struct, frozen=True, gc=False):
    """Deletes a delivery; if it is ``required`` and gone (or, with ``owner``, somebody else's) the unit is rejected."""

    group: str
    handler: str
    origin: str
    position: int
    owner: str | None = None
    required: bool = True


class MarkKind(StrEnum):
    ONCE = "once"  # a fact was handled; the key is its type and the value that names it
    EFFECT = "effect"  # what a handler that can be compensated did for a key
    PROCESS = "process"  # the state of a process
    PARKING = "parking"  # moved by who parks a message of a key and by who cancels it: one of them sees the other


class Mark(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of one key, written over exactly the version it was decided on: ``expected`` is that version,
    ``NEW`` if there is none, and the new one is one more. A unit has at most one mark of a place."""

    kind: MarkKind
    name: str
    """Of the handler or the process."""
    key: str
    expected: int
    state: str
    time: int
    payload: bytes = b""
    step: str | None = None
    correlation_id: str | None = None

    @property
    def place(self) -> tuple[MarkKind, str, str]:
        return self.kind, self.name, self.key


class WorkflowState(StrEnum):
    SCHEDULED = "scheduled"
    """Was started, and has not begun."""
    RUNNING = "running"
    PAUSED = "paused"
    """Left alone until somebody resumes it."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """After its own clean-up."""
    TERMINATED = "terminated"
    CONTINUED = "continued"
    """As another run of the same id."""


class WorkflowStart(msgspec.Struct, frozen=True, gc=False):
    """A workflow begins; if its ``id`` exists already the unit is rejected, and if its ``key`` belongs to an open one.

    ``run`` is its id among all that ever ran, and rises with the time (UUIDv7), so that the rows of a journal stand
    together. Without an ``owner`` somebody takes it from ``wake_at`` on (microseconds since 1970). ``again`` allows an
    id whose last run has ended, in this unit or before; letters to the id that were to end, pause or change that run
    are dropped, unless it is continued. ``style`` is that of a saga. ``correlation`` is that of what it was started
    because of; without one, it is correlated by its id.
    """

    run: str
    id: str
    workflow: str
    owner: str | None
    wake_at: int | None
    parent: str | None
    """The run that called it."""
    key: str | None
    input: bytes
    time: int
    again: bool = False
    style: str | None = None
    correlation: str | None = None


class EntryKind(IntEnum):
    STEP_DONE = 0
    STEP_FAILED = 1
    TIMER = 2
    STEP_BEGUN = 3
    SIGNAL = 4
    UPDATE = 5
    CHILD_DONE = 6
    CHILD_FAILED = 7
    CANCEL = 8
    PATCH = 9
    STATUS = 10
    """What has become of a saga; not written while it is in progress, nor for its good end."""
    CALL_DONE = 11
    CALL_REJECTED = 12
    STAGE = 13
    """Where it stands, in its own words; a replay passes over it."""
    FORGOTTEN = 14
    """What failed before a retry, or that there was one (see ``workflows.forgetting``). What follows, up to the last
    position before that retry, is told if it fits without it."""


class JournalEntry(msgspec.Struct, frozen=True, gc=False):
    """What a workflow was told, at its place in the order in which it was told. Never replaced: a second one for the
    same place rejects its unit. ``name``, ``digest`` and ``occurrence`` say which step; ``payload`` is its result."""

    run: str
    position: int
    kind: EntryKind
    name: str
    digest: bytes
    occurrence: int
    time: int
    payload: bytes | None


class WorkflowEnd(msgspec.Struct, frozen=True, gc=False):
    """A workflow has ended, with its result or its failure."""

    run: str
    state: WorkflowState
    outcome: bytes
    time: int
    frees: bool = False
    """Locks, for which others may wait."""


class WorkflowRest(msgspec.Struct, frozen=True, gc=False):
    """A workflow leaves its owner's memory, until ``wake_at`` or until there is a letter for it; paused, until somebody
    resumes it. ``note`` says why it was paused."""

    run: str
    state: WorkflowState
    wake_at: int | None
    note: bytes | None = None


class LetterKind(IntEnum):
    SIGNAL = 0
    UPDATE = 1
    """Stays until it has a reply, and the reply until somebody has read it."""
    CANCEL = 2
    """By the caller of a child its name is the caller's run, and no other workflow is told; otherwise it has none."""
    TERMINATE = 3
    PAUSE = 4
    CHILD = 5
    """A child has ended."""
    STEP = 6
    """The result of a step, written with the step's own rows."""
    PROGRESS = 7
    """Of a step that runs; a later one replaces it."""
    CALL = 8
    """Holds the place of the answer to a command, which has its id; nobody reads it."""
    ANSWER = 9
    """What it becomes with its reply."""
    LOCK = 10
    """Asks for the lock of the key that is its name; nobody reads this one and the next two."""
    LOCK_WAITS = 11
    """What it becomes while another saga has the lock."""
    LOCK_HELD = 12
    """What it becomes when it is granted. There is one of a name, and it goes with the end of its saga."""


class AddressKind(IntEnum):
    ID = 0
    KEY = 1
    RUN = 2


class Letter(msgspec.Struct, frozen=True, gc=False):
    """Something for a workflow, whether it runs, sleeps or has yet to be started. Its owner journals and takes it."""

    id: str
    kind: LetterKind
    by: AddressKind
    address: str
    name: str
    payload: bytes
    time: int


class Reply(msgspec.Struct, frozen=True, gc=False):
    """The answer to an update, kept in its letter; or to a call, whose letter its workflow can read from now on. Where
    there is no such letter, or it has an answer, nothing is written."""

    letter: str
    outcome: bytes
    heard: bool = False
    """Whoever commits it tells the workflow that waits for it: nobody has to be rung."""


class WorkflowWrites(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Of workflows: in this order, and whole or not at all like everything of a unit. ``taken`` are ids of letters."""

    ends: tuple[WorkflowEnd, ...] = ()
    starts: tuple[WorkflowStart, ...] = ()
    journal: tuple[JournalEntry, ...] = ()
    rests: tuple[WorkflowRest, ...] = ()
    letters: tuple[Letter, ...] = ()
    taken: tuple[str, ...] = ()
    replies: tuple[Reply, ...] = ()


class Unit(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The writes: ``events`` (facts in no stream), ``appends``, ``messages`` (commands, replies), deliveries, a cursor,
    ``marks``; what concerns ``workflows``.

    ``deliveries`` are written whole, after the ``resolves``: one that exists already is replaced, and a unit may
    resolve a delivery and write it again.
    """

    events: tuple[Record, ...] = ()
    appends: tuple[Append, ...] = ()
    messages: tuple[Record, ...] = ()
    tags: tuple[Tag, ...] = ()
    fence: str | None = None
    cursor: CursorMove | None = None
    deliveries: tuple[Delivery, ...] = ()
    resolves: tuple[Resolve, ...] = ()
    marks: tuple[Mark, ...] = ()
    workflows: WorkflowWrites | None = None

    @property
    def guarded(self) -> bool:
        """Whether it has any keys."""
        workflows = self.workflows
        return bool(
            self.appends or self.tags or self.resolves or self.cursor or self.marks or (workflows and workflows.starts)
        )

    def keys(self) -> Sequence[str]:
        """The keys that this unit is guarded by; a group holds one unit per key."""
        if not self.guarded:
            return ()
        keys = [f"stream:{append.stream}" for append in self.appends]
        keys += [f"tag:{tag.tag}" for tag in self.tags]
        if self.cursor is not None:
            keys.append(f"cursor:{self.cursor.group}:{self.cursor.origin}:{self.cursor.lane}")
        keys += [f"delivery:{r.group}:{r.handler}:{r.origin}:{r.position}" for r in self.resolves]
        keys += [mark_key(mark) for mark in self.marks]
        if self.workflows is not None:
            keys += [f"workflow:{start.id}" for start in self.workflows.starts]
            keys += [f"workflow key:{start.key}" for start in self.workflows.starts if start.key is not None]
        return keys


class Committed(msgspec.Struct, frozen=True, gc=False):
    """What a committed unit got: one position per record, in the order events, appends, messages."""

    positions: tuple[int, ...] = ()
    versions: tuple[int, ...] = ()
    """The version of each append's stream after it."""


_UNHEARD = (LetterKind.STEP, LetterKind.CALL)


def calls_somebody(unit: Unit) -> bool:
    """Whether a process that runs workflows may have to do something now."""
    writes = unit.workflows
    if writes is None:
        return False
    # What a step has written its own process knows, and the place of an answer is no answer.
    if writes.letters and any(letter.kind not in _UNHEARD for letter in writes.letters):
        return True
    if writes.replies and any(not reply.heard for reply in writes.replies):
        return True
    if writes.starts and any(start.owner is None for start in writes.starts):
        return True
    return bool(writes.ends) and any(end.frees for end in writes.ends)


def mark_key(mark: Mark) -> str:
    return f"mark:{mark.kind.value}:{mark.name}:{mark.key}"
