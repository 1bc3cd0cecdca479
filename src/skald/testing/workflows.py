"""Tests of workflows: the real engine on a store of its own, with a clock that only the test moves.

    async def test_a_silent_host(workflow_lab):
        async with workflow_lab(bookings) as lab:
            lab.mock(authorise, Declined("no funds"), "auth-1")     # the first attempt fails, the next ones succeed
            handle = await book.start(request, id="b-1")
            await lab.advance(timedelta(days=2))
            assert await lab.result(handle) == "expired"

``pytest_plugins = ["skald.testing.plugin"]`` brings the fixture, which is ``laboratory``. What a lab does besides:

- Whenever nothing goes on, every workflow in memory is replayed from its journal, and what it then waits for compared:
  code that goes round the loop (``time.time()``, ``random``, a set of strings) is found where it differs.
- ``seed`` lets steps that run at once end in an order of their own. ``crash_everywhere`` fails each commit of a
  scenario in turn, before and after it is written; the workflow leaves memory and comes back from its journal.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import Context
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from skald.app import App
from skald.clock import ManualClock
from skald.errors import Diverged, SkaldError, StoreUnavailable, WorkflowBusy
from skald.messaging.consumer import Consumer
from skald.messaging.service import Service
from skald.runtime.service import RunningService, RuntimeSettings
from skald.sagas.definition import Compensation
from skald.sagas.question import ANSWERS, Answer, Choice, open_questions
from skald.unit import Committed, LetterKind, Unit, WorkflowState
from skald.workflows import Signal, journal
from skald.workflows.client import outside
from skald.workflows.definition import Call, Step
from skald.workflows.executor import Executor, ExecutorSettings
from skald.workflows.instance import Instance
from skald.workflows.replay import Machine
from skald.workflows.saved import History, read, saved
from skald.workflows.starting import Handle
from skald.workflows.steps import Mark, Result

R = TypeVar("R")

_ANSWERS = Signal(ANSWERS, Answer)
GRACE = 0.05
"""Real seconds after which a step that does nothing counts as one that waits."""
LOOKS = 20
"""As many times it was looked at by then."""
FOREVER = timedelta(days=36_500)


class Crashed(StoreUnavailable):
    """A commit that a lab has let fail: nobody knows whether it was written."""


class Lab:
    """Made by ``workflow_lab``."""

    def __init__(self, clock: ManualClock, running: Sequence[RunningService], seed: int | None) -> None:
        self.clock, self.running = clock, running
        self._executors = [one.executor for one in running if one.executor is not None]
        self._consumers = [consumer for one in running for consumer in one.consumers]
        self._workers = [worker for one in running for worker in one.workers]
        self.grace = GRACE
        self._chance = random.Random(seed) if seed is not None else None
        self._held: list[asyncio.Future[None]] = []
        self._asleep: list[tuple[int, asyncio.Future[None]]] = []
        self._originals: dict[Step[..., Any], tuple[Any, bool]] = {}
        self.calls: dict[str, list[tuple[Any, ...]]] = {}
        """What mocked steps were called with, by name, every attempt."""
        for executor in self._executors:
            executor.steps.sleep = self._sleep
            if self._chance is not None:
                executor.steps.perform = partial(self._hold, executor.steps.perform)  # type: ignore[method-assign]

    async def rest_workflows(self) -> None:
        """From now on workflows are started and not run."""
        for executor in self._executors:
            await executor.stop()
        self._executors = []

    # --- steps --------------------------------------------------------------------------------------------------------

    def mock(self, step: Step[..., Any] | Compensation[..., Any], *outcomes: Any) -> None:
        """Lets a step or a compensation have these outcomes, attempt by attempt; the last one stays. An exception, or
        its class, is raised, a function is called with the step's arguments, and anything else is returned."""
        if isinstance(step, Compensation):
            step = step.step
        if not outcomes:
            raise ValueError(f"mock({step.name}): say at least one outcome")
        left, calls = list(outcomes), self.calls.setdefault(step.name, [])
        self._originals.setdefault(step, (step.function, step.is_async))

        async def mocked(*args: Any, **kwargs: Any) -> Any:
            calls.append((*args, *kwargs.values()))
            outcome = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(outcome, BaseException) or (isinstance(outcome, type) and issubclass(outcome, BaseException)):
                raise outcome
            if callable(outcome):
                outcome = outcome(*args, **kwargs)
            return await outcome if isinstance(outcome, Awaitable) else outcome

        step.function, step.is_async = mocked, True

    def unmock(self) -> None:
        for step, (function, is_async) in self._originals.items():
            step.function, step.is_async = function, is_async

    async def resolve(self, handle: Handle[Any], choice: Choice | str, step: str, result: Any = None) -> None:
        """Answers what a saga asks a person about a step, as ``skald sagas resolve`` does."""
        questions = open_questions((await self.history(handle.id)).journal())
        numbers = [one.number for one in questions if one.step == step]
        if not numbers:
            asked = ", ".join(one.step for one in questions) or "nothing"
            raise SkaldError(f"saga {handle.id!r} does not ask about {step!r}, but about {asked}")
        body = msgspec.json.encode(result)
        answer = Answer(numbers[0], Choice(choice), "the test", "it is a test", msgspec.Raw(body))
        await handle.signal(_ANSWERS, answer)
        await self.settle()

    async def _sleep(self, seconds: float) -> None:
        """What steps wait by between two attempts."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asleep.append((self.clock.now() + round(seconds * 1e6), woken))
        await woken

    async def _hold(
        self,
        perform: Callable[[Instance, Call, Mark], Awaitable[Result | None]],
        instance: Instance,
        call: Call,
        mark: Mark,
    ) -> Result | None:
        result = await perform(instance, call, mark)
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.append(held)
        await held
        return result

    # --- time ---------------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Until nothing goes on any more without the clock. A step that waits for something else is left alone."""
        loop = asyncio.get_running_loop()
        changed = quiet_since = loop.time()
        seen, looks = None, 0
        while True:
            for executor in self._executors:
                await outside(partial(_look_at_timers, executor))
                await executor.looked()
            state = [_told(executor) for executor in self._executors]
            if state != seen:
                changed = quiet_since = loop.time()
                seen, looks = state, 0
            elif await self._has_work():
                quiet_since, looks = loop.time(), 0
            else:
                looks += 1
                # So many looks, too: where this process itself was kept waiting, no step has had its time.
                waited = looks > LOOKS and loop.time() - quiet_since > self.grace
                if waited or not self._waiting_steps():
                    if not self._release():
                        break
                    changed = quiet_since = loop.time()
                    looks = 0
            await asyncio.sleep(0 if loop.time() - changed < GRACE / 10 else 0.001)
        await self._replay_all()

    async def _has_work(self) -> bool:
        """Whether anything will go on by itself: a commit, a letter that can be brought, a timer that is due."""
        now = self.clock.now()
        for executor in self._executors:
            wake_at, _, has_locks, _ = await journal.poll(executor.store)
            found = [wake_at, *(instance.machine.wake_at() for instance in executor.turner.runs.values())]
            if has_locks or _is_busy(executor) or any(time is not None and time <= now for time in found):
                return True
            mail = await journal.letters(executor.store, executor.owner)
            ended = {run for run, instance in executor.turner.runs.items() if instance.waits_to_end}
            # Progress stays until its step ends, and nobody tells one that has ended anything.
            letters = [letter for run, letters in mail.items() if run not in ended for letter in letters]
            if any(letter.kind != LetterKind.PROGRESS for letter in letters):
                return True
            if await journal.asleep(executor.store):
                return True
        if any([await _is_behind(consumer) for consumer in self._consumers]):
            return True
        return any(time <= now for time in await self._deliveries_due())

    async def _deliveries_due(self) -> list[int]:
        """When messages are due that handlers are to see again, or that wait in queues."""
        found = [consumer.redelivery.goes_on_at() for consumer in self._consumers] + [
            await worker.due() for worker in self._workers
        ]
        return [time for time in found if time is not None]

    def _waiting_steps(self) -> int:
        """Steps that run and wait neither for the clock nor for us."""
        running = sum(len(one.tasks) for executor in self._executors for one in executor.turner.runs.values())
        running += sum(consumer.redelivery.active for consumer in self._consumers) + sum(
            worker.busy for worker in self._workers
        )
        return running - sum(not one.done() for one in self._held) - sum(not one.done() for _, one in self._asleep)

    def _release(self) -> bool:
        self._held = [one for one in self._held if not one.done()]
        if not self._held or self._chance is None:
            return False
        self._held.pop(self._chance.randrange(len(self._held))).set_result(None)
        return True

    async def advance(self, by: timedelta | float) -> None:
        """Moves the clock, timer by timer: what one of them starts is settled before the next."""
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        end = self.clock.now() + round(seconds * 1e6)
        await self.settle()
        # A timer is up to two microseconds later than what was asked for: seconds are floats.
        while (due := await self.next_due()) is not None and due <= end + 2:
            await self.move_to(due)
        await self.move_to(end)

    async def result(self, handle: Handle[R], within: timedelta = FOREVER) -> R:
        """Moves the clock on until the workflow has ended, and returns what it returned, or raises. ``TimeoutError``
        if it waits for something that time does not bring."""
        end = self.clock.now() + round(within.total_seconds() * 1e6)
        await self.settle()
        while not await self._has_ended(handle.id):
            due = await self.next_due()
            if due is None or due > end:
                raise TimeoutError(f"workflow {handle.id!r} has not ended, and no timer is due: send it what it needs")
            await self.move_to(due)
        return await handle.result()

    async def _has_ended(self, id: str) -> bool:
        for executor in self._executors:
            known = await journal.by_id(executor.store, id)
            if known is not None:
                if known.state == WorkflowState.PAUSED:
                    raise WorkflowBusy(f"workflow {id!r} is paused: {(known.outcome or b'').decode()}")
                return known.end is not None
        return False

    async def move_to(self, time: int) -> None:
        self.clock.advance(max(0, time - self.clock.now()) / 1e6)
        for consumer in self._consumers:
            consumer.redelivery.look()
        for worker in self._workers:
            worker.look()
        for due, woken in self._asleep:
            if due <= time and not woken.done():
                woken.set_result(None)
        self._asleep = [(due, woken) for due, woken in self._asleep if not woken.done()]
        await self.settle()

    async def next_due(self) -> int | None:
        """When something will happen by itself."""
        found = [due for due, woken in self._asleep if not woken.done()] + await self._deliveries_due()
        for executor in self._executors:
            wake_times = [instance.machine.wake_at() for instance in executor.turner.runs.values()]
            found += [time for time in wake_times if time is not None]
            stored, *_ = await journal.poll(executor.store)
            found += [] if stored is None else [stored]
        return max(min(found), self.clock.now()) if found else None

    # --- histories ----------------------------------------------------------------------------------------------------

    async def history(self, id: str) -> History:
        """What a workflow has been told, to be kept in a file (``skald.workflows.saved.write``)."""
        for executor in self._executors:
            if (known := await journal.by_id(executor.store, id)) is not None:
                entries = [saved(entry) for entry in await journal.history(executor.store, known.run)]
                return History(known.workflow, id, known.run, known.started_at, msgspec.Raw(known.input), entries)
        raise SkaldError(f"no workflow with the id {id!r} was started")

    async def _replay_all(self) -> None:
        for executor in self._executors:
            # What has ended one that waits for its children to start is in no journal yet.
            for instance in [one for one in executor.turner.runs.values() if not (_has_work(one) or one.waits_to_end)]:
                history = await journal.history(executor.store, instance.run)
                if not instance.stopped:
                    await outside(partial(_compare, instance, history))


def _has_work(instance: Instance) -> bool:
    """Something of it is on its way to the journal."""
    writes = instance.has_writes and not instance.waits_to_end  # for the clock, where a child could not be started
    return instance.in_flight or writes or instance.stopped or not instance.started.done()


async def _is_behind(consumer: Consumer) -> bool:
    """Whether it has yet to read something, or to take its lanes, which it takes together."""
    end, _ = await consumer.log.end()
    return not consumer.lanes or any(lane.scanned < end for lane in consumer.lanes.values())


def _is_busy(executor: Executor) -> bool:
    return bool(executor.lost) or any(_has_work(instance) for instance in executor.turner.runs.values())


def _told(executor: Executor) -> tuple[int, int, int]:
    """What differs if anything has happened."""
    found = executor.turner.runs.values()
    return len(found), sum(one.machine.position for one in found), sum(len(one.tasks) for one in found)


def _look_at_timers(executor: Executor) -> None:
    for instance in tuple(executor.turner.runs.values()):
        executor.turner.timers.look(instance)


def _compare(instance: Instance, history: Any) -> None:
    if len(history) != instance.machine.position:
        return  # it has gone on meanwhile, and is compared when it waits again
    machine = Machine(instance.workflow, instance.run, instance.body, instance.machine.began, id=instance.id)
    try:
        machine.replay(history)
        live, replayed = ({str(call) for call in one.calls.values()} for one in (instance.machine, machine))
        if live != replayed:
            raise Diverged(machine.position, f"left it waiting for {sorted(live)}", f"waits for {sorted(replayed)}")
        if (first := instance.machine.wake_at()) != (second := machine.wake_at()):
            raise Diverged(machine.position, f"left it waiting until {first}", f"waits until {second}")
    finally:
        machine.leave()


# --- replaying what was saved -----------------------------------------------------------------------------------------


async def replay_saved(path: Path, *services: Service) -> None:
    """Replays a history that was saved, on the code of today; ``Diverged`` if they do not agree. Services that it
    calls have to be among ``services``, too."""
    if any(service.calls.kinds for service in services):
        _ = App(*services).topology
    history = read(path)
    found = [workflow for service in services for workflow in service.workflows if workflow.name == history.workflow]
    if not found:
        raise SkaldError(f"{path}: there is no workflow {history.workflow!r}")

    def play() -> None:
        machine = Machine(found[0], history.run, bytes(history.input), history.started_at, id=history.id)
        try:
            machine.replay(history.journal())
        finally:
            machine.leave()

    await outside(play)


# --- crashes ----------------------------------------------------------------------------------------------------------


class _Committer:
    """Fails one commit of a workflow or of a transactional step, and says how many there were."""

    def __init__(self, inner: Any, fail: int | None, written: bool) -> None:
        self._inner, self._fail, self._written = inner, fail, written
        self.count = 0

    def submit(self, unit: Unit) -> asyncio.Future[Committed]:
        answer: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()

        def answered(outcome: Committed | BaseException) -> None:
            if answer.done():
                return
            if isinstance(outcome, BaseException):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        self.submit_open(lambda: unit, answered, Context())
        return answer

    def submit_open(
        self, close: Callable[[], Unit], then: Callable[[Committed | BaseException], None], context: Context
    ) -> None:
        self.count += 1
        if self.count != self._fail:
            self._inner.submit_open(close, then, context)
            return
        crash = Crashed("the lab has let this commit fail")
        if self._written:
            self._inner.submit_open(close, lambda outcome: then(crash), context)
        else:
            asyncio.get_running_loop().call_soon(then, crash, context=context)

    @asynccontextmanager
    async def transaction(self, inner: Callable[[], AbstractAsyncContextManager[Any]]) -> AsyncIterator[Any]:
        self.count += 1
        fails = self.count == self._fail
        async with inner() as tx:
            yield tx
            if fails and not self._written:
                raise Crashed("the lab has let this commit fail")
        if fails:
            raise Crashed("the lab has let this commit fail")


async def crash_everywhere(scenario: Callable[[Lab], Awaitable[R]], *services: Service, most: int = 1_000) -> list[R]:
    """Plays a scenario once undisturbed, and once for each commit of a workflow in it, which fails before it is
    written, and again after; returns what it returned each time. It starts its workflows under ids of its own: when a
    start fails the scenario is played again from its beginning, on the same data, as a client would."""
    async with laboratory(*services) as lab:
        counters = [_crash(executor, None, False) for executor in lab._executors]
        results = [await scenario(lab)]
        await lab.settle()
    commits = min(most, sum(counter.count for counter in counters))
    for fail in range(1, commits + 1):
        for written in (False, True):
            async with laboratory(*services) as lab:
                for executor in lab._executors:
                    _crash(executor, fail, written)
                try:
                    results.append(await scenario(lab))
                except Crashed:
                    results.append(await scenario(lab))
    return results


def _crash(executor: Executor, fail: int | None, written: bool) -> _Committer:
    committer = _Committer(executor.committer, fail, written)
    executor.turner.recorder.use(committer)
    executor.steps.committer = committer
    executor.steps.transaction = partial(committer.transaction, executor.steps.transaction)
    return committer


# --- the lab itself ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def laboratory(
    *services: Service,
    seed: int | None = None,
    folder: Path | None = None,
    idle: float = 3_600.0,
    apart: Sequence[Service] = (),
) -> AsyncIterator[Lab]:
    """The services run, on SQLite in ``folder`` or in memory, until the block ends: those that are called, too. With
    ``idle=0`` workflows leave memory whenever they wait. Those in ``apart`` can publish, and handle nothing."""
    clock = ManualClock()
    # In memory where that is a folder: nothing of a test has to survive a power cut.
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    data = Path(tempfile.mkdtemp(prefix="skald-lab-", dir=base)) if folder is None else folder
    settings = RuntimeSettings(workflows=ExecutorSettings(idle=idle, retention=None))
    # By name: what the environment says is for programs.
    stores = {service.name: f"sqlite:{data}" for service in (*services, *apart)}
    app = App(*services, *apart, stores=stores, clock=clock, settings=settings)
    async with AsyncExitStack() as stack:
        if folder is None:
            stack.callback(shutil.rmtree, data, ignore_errors=True)
        await app.migrate()
        if apart:
            await stack.enter_async_context(app.connect(*(service.name for service in apart)))
        running = await stack.enter_async_context(app.run(*(service.name for service in services)))
        lab = Lab(clock, running, seed)
        stack.callback(lab.unmock)
        yield lab
