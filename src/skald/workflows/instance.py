"""One workflow in the memory of the process that owns it."""

from __future__ import annotations

import asyncio
from typing import Any

from skald.unit import JournalEntry
from skald.workflows.definition import Call, Workflow
from skald.workflows.replay import End, Machine


class Instance:
    """Entries are delivered to the machine at once, and journalled in order: one unit is on its way at a time, and what
    is delivered meanwhile goes into the next. What the code calls because of an entry starts only once that entry is
    durable; so a crash forgets nothing that has had an effect."""

    __slots__ = (
        "asleep", "body", "called", "ended", "id", "in_flight", "machine", "pending", "resumed", "run", "started",
        "stopped", "tasks", "wake_at", "workflow",
    )  # fmt: skip

    def __init__(
        self, workflow: Workflow[*tuple[Any, ...], Any], id: str, run: str, body: bytes, time: int, *, resumed: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        self.workflow, self.id, self.run, self.body, self.resumed = workflow, id, run, body, resumed
        self.machine = Machine(workflow, run, body, time)
        self.pending: list[JournalEntry] = []
        """Delivered, and not yet in a unit."""
        self.called: list[Call] = []
        """To be started when the unit on its way is durable."""
        self.in_flight = False
        self.stopped = False
        self.tasks: dict[tuple[str, bytes, int], asyncio.Task[Any]] = {}
        self.asleep: asyncio.TimerHandle | None = None
        self.wake_at = 0
        self.started: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[End | None] = loop.create_future()
        """``None`` when it has left memory without an end."""
