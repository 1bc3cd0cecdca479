"""The workflows of one service in one process: begins them, takes those that nobody owns, brings them their letters.

The owner of a workflow is the process whose name stands in its row; every unit names that process's fence, so one that
was replaced cannot write. Nothing is read on a first execution. One task looks around, when the bell rings or somebody
is due: letters for what is in memory; timers that are due, in bulk; workflows to be taken, by batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from skald.clock import Clock
from skald.errors import Fenced, Overloaded, SkaldError, Stopped
from skald.messaging.outcome import describe
from skald.store import Store
from skald.telemetry import Recovering, emit
from skald.unit import LetterKind, Unit, WorkflowEnd, WorkflowState, WorkflowWrites
from skald.workflows import journal, locks
from skald.workflows.children import Children
from skald.workflows.client import AnyWorkflow, Client, outside
from skald.workflows.databaseclock import DatabaseClock
from skald.workflows.failure import End, Failure
from skald.workflows.instance import Instance
from skald.workflows.local import Local
from skald.workflows.receiving import receive, terminated
from skald.workflows.recorder import Submit, cancelled_by, child_ended
from skald.workflows.steps import StepRunner
from skald.workflows.suspects import Suspects, given_up
from skald.workflows.turner import PAUSE, Turner


class ExecutorSettings(msgspec.Struct, frozen=True):
    """``idle`` and ``poll`` are in seconds, ``retention`` in days."""

    idle: float = 10.0
    """A workflow that has waited for so long leaves memory."""
    poll: float = 1.0
    """Between looks when no bell rings."""
    max_live: int = 100_000
    """Workflows in memory, before starting another one is refused."""
    max_taken: int = 5_000
    """Workflows in memory; beyond it those that wait leave without having been idle, and no further ones are taken."""
    batch: int = 200
    """Workflows taken at a time."""
    fire: int = 2_000
    """Timers fired at a time."""
    retention: float | None = 30.0
    """For which workflows that have ended are kept; ``None``: for ever."""

    def __post_init__(self) -> None:
        least = {"idle": 0, "poll": 0.001, "max_live": 1, "max_taken": 1, "batch": 1, "fire": 1}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {bound}")
        if self.retention is not None and not self.retention >= 0:
            raise ValueError(f"retention={self.retention} must be at least 0 days, or None for ever")


FEW = 20
"""Workflows that are taken however many are in memory."""
SOON = 0.01
"""Seconds, at least, between looks at what could not be taken."""
RELIEVE_EVERY = 0.1
"""Seconds."""
AT_ONCE = 50
"""Workflows that are replayed without a pause."""
PRUNE_EVERY, PRUNE_BATCH = 60.0, 500
LETTER_DAYS = 1.0
_DAY = 86_400_000_000


class Executor:
    """Made on the event loop. ``owner`` names this process, ``lose`` is called when another has taken over from it."""

    def __init__(
        self,
        service: str,
        client: Client,
        *,
        store: Store,
        committer: Submit,
        clock: Clock,
        owner: str,
        steps: StepRunner,
        lose: Callable[[], None],
        settings: ExecutorSettings,
    ) -> None:
        self._service, self.store, self.owner, self._lose = service, store, owner, lose
        self.committer, self.steps = committer, steps
        self._client, self._settings = client, settings
        self._started = self._stopping = False
        self._clock = DatabaseClock(store, clock)
        self._children = Children(service, client.workflows, self, self._clock, settings.max_live)
        self.turner = Turner(
            service, committer=committer, clock=self._clock, owner=owner, steps=steps, lose=lose,
            forgotten=self.bring_back, begin_child=self._children.begin,
        )  # fmt: skip
        self.local = Local(
            self.turner, client.workflows, self._clock, owner=owner, look=self.look, bring_back=self.bring_back,
            has_room=lambda: self._started and not self._stopping and len(self.turner.live) < settings.max_taken,
        )  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._suspects = Suspects(store, owner)
        self.lost: set[str] = set()
        """Runs that are owned and not in memory, because a commit has failed."""
        self._stray = False
        """There may be rows of ours that are not in memory."""
        self._look = asyncio.Event()
        self._looking = asyncio.Lock()
        self._at: asyncio.TimerHandle | None = None
        self._prune_at = self._evict_at = self._relieve_at = 0.0
        self._stop_listening: Callable[[], None] = _nothing

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """From now on workflows can be started here; ``run`` takes those that nobody owns."""
        await self._clock.synchronise()
        self._client.local = self
        self._stop_listening = self.store.workflows.listen(self.look)
        self._started = True
        self._look.set()

    def look(self) -> None:
        """Asks for a look around."""
        self._look.set()

    async def run(self) -> None:
        """Until ``stop``: looks around, whenever somebody asks."""
        while not self._stopping:
            await self._look.wait()
            self._look.clear()
            try:
                async with self._looking:
                    self._look_at(await self._look_around())
            except Fenced:
                self._lose()
                return
            except (SkaldError, OSError) as error:
                # What was just taken may be nobody's now but in its row.
                self._stray = True
                emit(Recovering(self._service, "looking after workflows", describe(error), PAUSE))
                self._look_at(PAUSE)

    async def stop(self, *, lost: bool = False) -> None:
        """Ends the running steps and waits for what is being committed. The workflows go on in another process;
        ``lost``: they do already."""
        if self._stopping or not self._started:
            return
        self._stopping = True
        self._client.local = None
        self._stop_listening()
        if self._at is not None:
            self._at.cancel()
        self._look.set()
        await self.turner.stop(lost=lost)

    def _look_at(self, seconds: float) -> None:
        if self._at is not None:
            self._at.cancel()
        self._at = self._loop.call_later(seconds, self._look.set)

    # --- for tests ----------------------------------------------------------------------------------------------------

    async def looked(self) -> None:
        """Returns when somebody has looked around since."""
        async with self._looking:
            await self._look_around()

    # --- starting -----------------------------------------------------------------------------------------------------

    def live(self, id: str) -> Instance | None:
        return self.turner.live.get(id)

    def begin(
        self,
        workflow: AnyWorkflow,
        id: str,
        run: str,
        body: bytes,
        key: str | None,
        parent: str | None = None,
        *,
        copy: Any = None,
        correlation: str | None = None,
    ) -> Instance:
        """Its ``started`` is done when that is durable. ``copy`` is what ``body`` says, if somebody has read it."""
        if self._stopping:
            raise Stopped(f"service {self._service!r} is stopping; nothing was started")
        if len(self.turner.live) >= self._settings.max_live:
            raise Overloaded(f"the memory of {self._service} for workflows")
        self.store.ensure_free()
        if len(self.turner.live) > self._settings.max_taken and self._loop.time() >= self._relieve_at:
            self._relieve_at = self._loop.time() + RELIEVE_EVERY
            waited, most = min(RELIEVE_EVERY, self._settings.idle), len(self.turner.live) - self._settings.max_taken
            self._loop.call_soon(self.turner.evict, waited, most, context=self.turner.context)
        instance = Instance(
            workflow, id, run, body, self._clock.now(),
            first=True, parent=parent, key=key, copy=copy, correlation=correlation,
        )  # fmt: skip
        self.turner.add(instance)
        self._loop.call_soon(self.turner.begin, instance, context=self.turner.context)
        return instance

    # --- looking around -----------------------------------------------------------------------------------------------

    def bring_back(self, run: str) -> None:
        """One whose memory was given up. Where no row is (a start that failed) nothing is resumed."""
        self.lost.add(run)
        self._look_at(PAUSE)

    async def _look_around(self) -> float:
        """Returns the seconds until the next look, if nobody asks before."""
        settings, now = self._settings, self._loop.time()
        await self._clock.synchronise(older_than=10.0)
        await self._bring_back_all()
        await self._resume(await self._suspects.next(self.turner.runs, now), tried=True)
        wake_at, has_letters, has_locks, timer = await journal.poll(self.store)
        while has_locks and await locks.settle(self.store):
            wake_at, has_letters, has_locks, timer = await journal.poll(self.store)
        self.local.has_mail, woken = has_letters, False
        if has_letters:
            await self._deliver()
            woken = await journal.wake(self.store, self.owner)
        now_stored = self._clock.now()
        # Whatever else is due: it may be of a program that has other code.
        if timer is not None and timer <= now_stored:
            while not self._stopping and await journal.fire(self.store, self.owner, settings.fire) == settings.fire:
                pass
        if woken or (wake_at is not None and wake_at <= now_stored):
            if await self._take():
                return 0.0
            wake_at, *_, timer = await journal.poll(self.store)
            if wake_at is not None and wake_at <= self._clock.now():
                # Somebody else's just now, or of a program that has its code.
                wake_at = timer if timer is not None and timer > self._clock.now() else None
        if now >= self._evict_at:
            self._evict_at = now + min(settings.idle / 4, settings.poll)
            self.turner.evict(settings.idle)
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_EVERY
            await self._prune()
        if self.lost or self._suspects.is_busy(now) or has_locks:
            return SOON
        if wake_at is None:
            return settings.poll
        return min(settings.poll, max(SOON, (wake_at - self._clock.now()) / 1e6))

    async def _bring_back_all(self) -> None:
        if self._stray:
            self.lost |= (
                await journal.owned(self.store, self.owner) - self.turner.runs.keys() - self._suspects.waiting.keys()
            )
            self._stray = False
        runs, self.lost = self.lost, set()
        if not runs:
            return
        try:
            await self._resume(await journal.mine(self.store, self.owner, runs))
        except BaseException:
            self.lost |= runs
            raise

    async def _take(self) -> bool:
        """Takes a batch of what nobody owns; true if there may be more."""
        if self._stopping or len(self.turner.live) >= self._settings.max_live:
            return False
        # Some at any rate: what sleeps must not wait for what is started here.
        room = min(self._settings.batch, max(FEW, self._settings.max_taken - len(self.turner.live)))
        found = await journal.claim(self.store, self.owner, self._client.workflows, room)
        await self._resume(found)
        return len(found) == room

    async def _resume(self, found: Sequence[journal.Open], *, tried: bool = False) -> None:
        """``tried`` for suspects whose turn it is."""
        if not found:
            return
        calling = [one.run for one in found if _may_call(self._client.workflows.get(one.workflow))]
        open_calls = await journal.open_calls(self.store, calling)
        mail = await journal.letters(self.store, self.owner)
        known = []
        for one in found:
            if one.workflow in self._client.workflows:
                known.append(one)
            else:
                await self._without_code(one, mail.get(one.run, ()))
        if not tried:
            known, hopeless = await self._suspects.sort(known)
            for one in hopeless:
                await self.turner.recorder.park(one.workflow, one.id, one.run, given_up(one))
        # Some at once, so that what they write shares its commits; and not all, so that the process goes on meanwhile.
        for first in range(0, len(known), AT_ONCE):
            await outside(partial(self._resume_some, known[first : first + AT_ONCE], mail, open_calls))

    def _resume_some(
        self, found: Sequence[journal.Open], mail: dict[str, list[journal.Mail]], open_calls: frozenset[str]
    ) -> None:
        for one in found:
            if (here := self.turner.runs.get(one.run)) is not None:
                if here.rest is not None or here.machine.end is not None:
                    # It has given itself up, or ended, and was taken again before it had quite left: once it has.
                    self.lost.add(one.run)
            elif not self._stopping:
                workflow = self._client.workflows[one.workflow]
                instance = Instance(
                    workflow, one.id, one.run, one.input, one.started_at,
                    first=one.first, parent=one.parent, key=one.key, correlation=one.correlation,
                )  # fmt: skip
                letters = mail.get(one.run, ())
                self.turner.guarded(instance, partial(self.turner.resume, instance, one.history, letters, open_calls))

    async def _without_code(self, one: journal.Open, letters: Sequence[journal.Mail]) -> None:
        """All that can be done with it is to end it; otherwise it waits for a program that has it."""
        for letter in letters:
            if letter.kind == LetterKind.TERMINATE:
                end = WorkflowEnd(one.run, WorkflowState.TERMINATED, terminated(letter), self._clock.now(), frees=True)
                told = child_ended(one.parent, one.id, End(end.state, end.outcome), end.time)
                # Which of them are detached its code alone says.
                children = await journal.open_children(self.store, one.run)
                told += tuple(cancelled_by(one.run, child, end.time) for child in children)
                writes = WorkflowWrites(ends=(end,), taken=(letter.id,), letters=told)
                await self.committer.submit(Unit(fence=self.owner, workflows=writes))
                return
        failure = Failure("WorkflowUnknown", f"there is no workflow {one.workflow!r} in this program")
        await self.turner.recorder.park(one.workflow, one.id, one.run, failure)

    async def _deliver(self) -> None:
        mail = await journal.letters(self.store, self.owner)
        if mail:
            await outside(partial(self._receive, mail))

    def _receive(self, mail: dict[str, list[journal.Mail]]) -> None:
        for run, letters in mail.items():
            instance = self.turner.runs.get(run)
            if instance is not None and instance.started.done():
                for letter in letters:
                    self.turner.guarded(instance, partial(receive, self.turner, instance, letter, self._clock.now()))

    async def _prune(self) -> None:
        now = self._clock.now()
        if self._settings.retention is not None:
            before = now - round(self._settings.retention * _DAY)
            if await journal.prune(self.store, now, before, PRUNE_BATCH) == PRUNE_BATCH:
                self._prune_at = 0.0  # there may be more, at the next look
            await journal.prune_letters(self.store, now - round(LETTER_DAYS * _DAY), before)


def _may_call(workflow: AnyWorkflow | None) -> bool:
    return workflow is not None and bool(workflow.calls.kinds)


def _nothing() -> None:
    pass
