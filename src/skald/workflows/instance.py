"""One workflow in the memory of the process that owns it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from skald.messaging.context import Cause
from skald.unit import JournalEntry, Letter, Reply, WorkflowRest
from skald.workflows.calling import Ask, Asked
from skald.workflows.crew import Job
from skald.workflows.definition import Call, Workflow
from skald.workflows.failure import End
from skald.workflows.replay import AnyCall, Machine
from skald.workflows.signature import Identity


class Instance:
    """Entries are delivered to the machine at once, and journalled in order: one unit is on its way at a time, and what
    is delivered meanwhile goes into the next. What the code calls because of an entry starts only once that entry is
    durable; so a crash forgets nothing that has had an effect."""

    __slots__ = (
        "asleep", "behind", "body", "cause", "correlation", "detaching", "ended", "first", "id", "in_flight", "key",
        "letters", "machine", "marked", "parent", "pending", "progress", "replies", "rest", "run", "seen", "since",
        "started", "stopped", "taken", "tasks", "wake_at", "workflow",
    )  # fmt: skip

    def __init__(
        self,
        workflow: Workflow[..., Any],
        id: str,
        run: str,
        body: bytes,
        time: int,
        *,
        first: bool,
        parent: str | None = None,
        key: str | None = None,
        copy: Any = None,
        correlation: str | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.workflow, self.id, self.run, self.body, self.first = workflow, id, run, body, first
        self.parent, self.key, self.correlation = parent, key, correlation
        self.machine = Machine(workflow, run, body, time, id=id, copy=copy, correlation=correlation)
        self.cause = Cause(run, self.machine.correlation, None, None)
        """What its steps publish is because of it."""
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
        self.tasks: dict[Identity, Job[Any] | asyncio.Task[Any]] = {}
        """Steps that run, and children that are being started."""
        self.behind: dict[Identity, list[AnyCall]] | None = None
        """Calls that begin when the attempt at another one has come to its end."""
        self.detaching = 0
        """Children that outlive it, and are just being started."""
        self.asleep: asyncio.TimerHandle | None = None
        self.wake_at = 0
        self.since = loop.time()
        """When it was last told something, by the process's loop."""
        self.started: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[End | None] = loop.create_future()
        """``None`` when it has left memory without an end."""

    def wants(self, call: AnyCall) -> bool:
        """Whether the call is still to be done here."""
        return self.machine.calls.get(call.identity) is call and not (self.stopped or self.rest)

    def holds_back(self, call: Call | Asked) -> bool:
        """Whether a call has to wait, because something that was given up is not over: nobody can stop a thread, and
        cleaning up takes time. What undoes waits for all of that: it may work on what is to be undone."""
        behind: Identity | None = None
        if (isinstance(call, Call) and call.shielded) or (isinstance(call, Ask) and call.undoing is not None):
            wanted, tasks = self.machine.calls, self.tasks.items()
            behind = next((one for one, job in tasks if isinstance(job, Job) and one not in wanted), None)
        elif isinstance(call, Call) and call.behind in self.tasks:
            behind = call.behind
        if behind is not None:
            self.behind = self.behind or {}
            self.behind.setdefault(behind, []).append(call)
        return behind is not None

    @property
    def waits_to_end(self) -> bool:
        """It has ended, and nothing is written of that before the starts of the children that outlive it: of one that
        has ended nobody starts them any more."""
        return self.detaching > 0 and self.machine.end is not None

    @property
    def has_writes(self) -> bool:
        return bool(
            self.pending
            or self.taken
            or self.letters
            or self.replies
            or self.rest
            or self.machine.asked
            or self.machine.end is not None
        )


async def unharmed(future: asyncio.Future[Any]) -> None:
    """Waits for a future for which others may wait too, and which goes on if this caller gives up. A shield is the
    same with twice as much to do."""
    if not future.done():
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(partial(_wake, waiter))
        await waiter


def _wake(waiter: asyncio.Future[None], future: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)
