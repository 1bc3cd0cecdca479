"""One workflow in the memory of the process that owns it."""

from __future__ import annotations

import asyncio
from typing import Any

from skald.unit import JournalEntry, Letter, Reply, WorkflowRest
from skald.workflows.definition import Workflow
from skald.workflows.failure import End
from skald.workflows.replay import Machine
from skald.workflows.signature import Identity


class Instance:
    """Entries are delivered to the machine at once, and journalled in order: one unit is on its way at a time, and what
    is delivered meanwhile goes into the next. What the code calls because of an entry starts only once that entry is
    durable; so a crash forgets nothing that has had an effect."""

    __slots__ = (
        "asleep", "body", "ended", "first", "id", "in_flight", "key", "letters", "machine", "marked", "parent",
        "pending", "progress", "replies", "rest", "run", "seen", "since", "started", "stopped", "taken",
        "tasks", "wake_at", "workflow",
    )  # fmt: skip

    def __init__(
        self,
        workflow: Workflow[*tuple[Any, ...], Any],
        id: str,
        run: str,
        body: bytes,
        time: int,
        *,
        first: bool,
        parent: str | None = None,
        key: str | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.workflow, self.id, self.run, self.body, self.first = workflow, id, run, body, first
        self.parent, self.key = parent, key
        self.machine = Machine(workflow, run, body, time, id=id)
        self.pending: list[JournalEntry] = []
        """Delivered, and not yet in a unit; likewise the next three."""
        self.taken: list[str] = []
        self.letters: list[Letter] = []
        self.replies: list[Reply] = []
        self.marked: list[asyncio.Future[None]] = []
        """Steps that wait until their beginning is durable."""
        self.seen: set[str] = set()
        """Letters that were delivered: they can be read again until that is durable."""
        self.progress: dict[Identity, bytes] = {}
        """What steps have reported."""
        self.in_flight = False
        self.stopped = False
        self.rest: WorkflowRest | None = None
        """Set when it is to leave memory."""
        self.tasks: dict[Identity, asyncio.Task[Any]] = {}
        self.asleep: asyncio.TimerHandle | None = None
        self.wake_at = 0
        self.since = loop.time()
        """When it was last told something, by the process's loop."""
        self.started: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[End | None] = loop.create_future()
        """``None`` when it has left memory without an end."""

    @property
    def has_writes(self) -> bool:
        return bool(
            self.pending or self.taken or self.letters or self.replies or self.rest or self.machine.end is not None
        )
