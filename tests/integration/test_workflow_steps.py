"""What a step may ask for: when it is tried again, when it is given up, and how often it can have happened."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from skald import NEVER, App, Backoff, Event, Retry, Service, Transaction, step, workflow
from skald.errors import ConfigurationError, StepFailed, StoreUnavailable, WorkflowError
from skald.message import child_traceparent
from skald.messaging.transaction import user_transaction
from skald.runtime.committer import Committer
from skald.telemetry import StepIgnoresCancellation, StepRetried
from skald.unit import Committed, LetterKind, Unit
from skald.workflows import NOT_DONE, NotDone, attempt, blocking_transaction, transaction
from skald.workflows.definition import Call, Workflow
from tests.simulation.stage import eventually, occurrences

AT_ONCE = Retry(immediate=3, delays=())
TWICE = Retry(immediate=2, delays=())


class Paid(Event, key="name"):
    name: str


class World:
    """What steps do and find outside."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.answers: list[Any] = []
        """Of the next attempts; exceptions are raised, "hang" hangs, and in the end it is "done"."""
        self.lookups: list[Any] = []
        self.entered = asyncio.Event()

    async def meet(self) -> str:
        self.calls.append(attempt().number)
        self.entered.set()
        return str(await self._say(self.answers, "done"))

    async def look_up(self) -> Any:
        self.calls.append("look up")
        return await self._say(self.lookups, "found")

    async def _say(self, answers: list[Any], otherwise: str) -> Any:
        answer = answers.pop(0) if answers else otherwise
        if isinstance(answer, BaseException):
            raise answer
        if answer == "hang":
            await asyncio.Event().wait()
        return answer


world: World


@pytest.fixture(autouse=True)
def _new_world() -> None:
    global world
    world = World()


@asynccontextmanager
async def playing(folder: Path, *workflows: Workflow[..., Any]) -> AsyncIterator[Service]:
    orders = Service("orders", workflows=workflows, publishes=[Paid])
    app = App(orders, store=f"sqlite:{folder}")
    await app.migrate()
    async with app.run():
        async with orders.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS payments (name TEXT)")
        yield orders


async def payments(service: Service) -> list[str]:
    return [row["name"] for row in await service.fetch("SELECT name FROM payments")]


async def letters(service: Service) -> list[str]:
    return [row["id"] for row in await service.fetch("SELECT id FROM skald_letters")]


async def failure_of(flow: Workflow[..., str], id: str = "one") -> StepFailed:
    """Of a workflow that returns the text of its step's failure."""
    said = await flow.run(id=id)
    assert said.startswith("failed: "), said
    return StepFailed("step", *said.removeprefix("failed: ").split(": ", 1))


def flow_of(one: Callable[[], Any], **options: Any) -> Workflow[..., str]:
    """A workflow of one step; its failure becomes its result."""
    called = step(name="one", **options)(one)

    async def flow() -> str:
        try:
            return str(await called())
        except StepFailed as error:
            return f"failed: {error.type}: {error.message}"

    return workflow(flow)


async def meet() -> str:
    return await world.meet()


async def look_up() -> str | NotDone:
    found: str | NotDone = await world.look_up()
    return found


# --- attempts ---------------------------------------------------------------------------------------------------------


async def test_an_error_of_a_class_that_is_never_retried_fails_at_once(tmp_path: Path) -> None:
    flow = flow_of(meet, retry={LookupError: NEVER, "*": AT_ONCE})
    async with playing(tmp_path, flow):
        world.answers = [KeyError("no such account")]
        assert (await failure_of(flow, "one")).type == "KeyError"
        assert world.calls == [1]
        world.answers = [OSError(), OSError()]
        assert await flow.run(id="two") == "done"
    assert world.calls == [1, 1, 2, 3]


async def test_a_backoff_grows_and_is_spread_by_its_jitter(tmp_path: Path) -> None:
    flow = flow_of(meet, retry=Backoff(first=0.004, factor=2, longest=0.01, attempts=4, jitter=0.5))
    async with occurrences() as seen, playing(tmp_path, flow):
        world.answers = [OSError(f"{n}") for n in range(9)]
        assert (await failure_of(flow)).message == "3"
        delays = [one.delay for one in seen.items if isinstance(one, StepRetried)]
    assert world.calls == [1, 2, 3, 4]
    plain = [0.004, 0.008, 0.01]
    assert all(one / 2 <= delay <= one * 1.5 for one, delay in zip(plain, delays, strict=True))
    assert delays != plain


async def test_retry_if_decides_which_errors_are_tried_again(tmp_path: Path) -> None:
    flow = flow_of(meet, retry=AT_ONCE, retry_if=lambda error: "busy" in str(error))
    async with playing(tmp_path, flow):
        world.answers = [OSError("busy"), OSError("refused")]
        assert (await failure_of(flow)).message == "refused"
    assert world.calls == [1, 2]


async def test_a_retry_if_that_fails_is_the_last_failure(tmp_path: Path) -> None:
    def wrong(error: Exception) -> bool:
        raise ZeroDivisionError("wrong")

    flow = flow_of(meet, retry=AT_ONCE, retry_if=wrong)
    async with playing(tmp_path, flow):
        world.answers = [OSError()]
        assert (await failure_of(flow)).type == "ZeroDivisionError"


async def test_a_timeout_ends_one_attempt(tmp_path: Path) -> None:
    flow = flow_of(meet, retry=TWICE, timeout=0.02)
    async with playing(tmp_path, flow):
        world.answers = ["hang", "hang"]
        failure = await failure_of(flow, "one")
        assert (failure.type, world.calls) == ("TimeoutError", [1, 2])
        assert "timeout=0.02 s" in failure.message
        world.answers = ["hang"]
        assert await flow.run(id="two") == "done"


async def test_a_step_that_hides_its_timeout_behind_another_error_was_cut_off_all_the_same(tmp_path: Path) -> None:
    async def hiding() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in its clean-up")

    flow = flow_of(hiding, retry=NEVER, timeout=0.02)
    async with playing(tmp_path, flow):
        assert (await failure_of(flow)).type == "TimeoutError"


async def test_the_total_ends_the_attempt_that_runs(tmp_path: Path) -> None:
    flow = flow_of(meet, retry=AT_ONCE, total=0.03)
    async with playing(tmp_path, flow):
        world.answers = ["hang"]
        failure = await failure_of(flow)
    assert (failure.type, world.calls) == ("TimeoutError", [1])
    assert "total=0.03 s" in failure.message


async def test_no_delay_is_waited_for_that_ends_after_the_total(tmp_path: Path) -> None:
    flow = flow_of(meet, retry=Retry(immediate=2, delays=(3600,)), total=60)
    async with playing(tmp_path, flow):
        world.answers = [OSError("a"), OSError("b")]
        failure = await failure_of(flow)
    assert (failure.type, world.calls) == ("TimeoutError", [1, 2])
    assert "total=60 s" in failure.message
    assert "OSError: b" in failure.message


# --- heartbeats -------------------------------------------------------------------------------------------------------


async def test_an_attempt_without_a_heartbeat_is_cancelled(tmp_path: Path) -> None:
    flow = flow_of(meet, retry=TWICE, heartbeat=0.02)
    async with playing(tmp_path, flow):
        world.answers = ["hang", "hang"]
        failure = await failure_of(flow)
    assert (failure.type, world.calls) == ("TimeoutError", [1, 2])
    assert "heartbeat=0.02 s" in failure.message


async def test_heartbeats_keep_an_async_step_alive(tmp_path: Path) -> None:
    async def beating() -> str:
        for _ in range(15):
            attempt().heartbeat()
            await asyncio.sleep(0.01)  # sleep: it takes longer than its heartbeat, and says so
        return "alive"

    flow = flow_of(beating, retry=NEVER, heartbeat=0.1)
    async with playing(tmp_path, flow):
        assert await flow.run() == "alive"


async def test_heartbeats_keep_a_sync_step_alive(tmp_path: Path) -> None:
    def beating() -> str:
        for _ in range(15):
            attempt().heartbeat()
            time.sleep(0.01)  # sleep: it takes longer than its heartbeat, and says so
        return "alive"

    flow = flow_of(beating, retry=NEVER, heartbeat=0.1)
    async with playing(tmp_path, flow):
        assert await flow.run() == "alive"


async def test_the_next_attempt_sees_the_progress(tmp_path: Path) -> None:
    def working() -> int:
        done = attempt().progress or 0
        world.calls.append(done)
        attempt().heartbeat(done + 1)
        if done < 2:
            raise OSError
        return int(done)

    flow = flow_of(working, retry=AT_ONCE)
    async with playing(tmp_path, flow) as orders:
        assert await flow.run() == "2"
        assert await letters(orders) == []
    assert world.calls == [0, 1, 2]


async def test_the_next_process_sees_the_progress(tmp_path: Path) -> None:
    async def working() -> str:
        world.calls.append(attempt().progress)
        if attempt().progress is None:
            attempt().heartbeat({"rows": 7})
            await asyncio.Event().wait()
        return str(attempt().progress)

    flow = flow_of(working)
    async with playing(tmp_path, flow) as orders:
        await flow.start(id="one")
        await eventually(lambda: letters(orders))
        [letter] = await letters(orders)
        assert letter.startswith("progress:")
    async with playing(tmp_path, flow) as orders:
        assert await flow.handle("one").result() == "{'rows': 7}"
        assert await letters(orders) == []
    assert world.calls == [None, {"rows": 7}]


async def test_progress_is_written_once_a_second_at_most_and_shares_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, units, submit = counted(monkeypatch), list[Unit](), Committer.submit

    def counting(committer: Committer, unit: Unit) -> asyncio.Future[Committed]:
        units.append(unit)
        return submit(committer, unit)

    monkeypatch.setattr(Committer, "submit", counting)

    async def working() -> str:
        for n in range(20):
            attempt().heartbeat(n)
            await asyncio.sleep(0)
        return "done"

    flow = flow_of(working)
    async with playing(tmp_path, flow) as orders:
        before = len(opened)
        assert await flow.run() == "done"
        assert await letters(orders) == []
        [(fence, letter)] = [(one.fence, two) for one in units if one.workflows for two in one.workflows.letters]
        assert (letter.kind, letter.payload) == (LetterKind.PROGRESS, b"0")
        assert fence is not None, "a process that was replaced writes nothing"
        assert len(opened) == before, "a transaction of its own"


async def test_the_progress_of_a_step_that_was_given_up_is_forgotten(tmp_path: Path) -> None:
    @step
    async def working() -> None:
        attempt().heartbeat("begun")
        await asyncio.Event().wait()

    @workflow
    async def impatient() -> str:
        try:
            async with asyncio.timeout(0.05):
                await working()
        except TimeoutError:
            await asyncio.sleep(0.02)  # sleep: a durable timer
        return "given up"

    async def no_letters() -> bool:
        return not await letters(orders)

    async with playing(tmp_path, impatient) as orders:
        handle = await impatient.start(id="one")
        await eventually(lambda: letters(orders))
        assert await handle.result() == "given up"
        await eventually(no_letters)


async def test_progress_that_is_no_data_is_refused_where_it_is_reported(tmp_path: Path) -> None:
    async def working() -> None:
        attempt().heartbeat({"when": {1, 2}})

    flow = flow_of(working, retry=NEVER)
    async with playing(tmp_path, flow):
        failure = await failure_of(flow)
    assert (failure.type, failure.message.split(":")[0]) == ("InvalidMessage", "progress")


# --- cancellation and keys --------------------------------------------------------------------------------------------


async def test_a_sync_step_can_see_that_it_was_cancelled(tmp_path: Path) -> None:
    ended = threading.Event()

    def working() -> None:
        while not attempt().cancelled:
            time.sleep(0.001)  # sleep: a thread that works
        ended.set()

    flow = flow_of(working, retry=NEVER, timeout=0.02)
    async with playing(tmp_path, flow):
        assert (await failure_of(flow)).type == "TimeoutError"
        assert ended.is_set()


async def test_no_attempt_runs_beside_a_thread_that_cannot_be_stopped(tmp_path: Path) -> None:
    def working() -> None:
        world.calls.append("begins")
        time.sleep(0.05)  # sleep: a thread that does not look whether it was cancelled
        world.calls.append("ends")

    flow = flow_of(working, retry=TWICE, timeout=0.01)
    async with playing(tmp_path, flow):
        assert (await failure_of(flow)).type == "TimeoutError"
    assert world.calls == ["begins", "ends"] * 2


async def test_each_attempt_of_a_sync_step_reads_its_arguments_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, arguments = [], Call.arguments

    def counted(self: Call) -> Any:
        reads.append(self.name)
        return arguments(self)

    def working() -> None:
        if attempt().number == 1:
            raise ValueError("the first time")

    monkeypatch.setattr(Call, "arguments", counted)
    flow = flow_of(working, retry=TWICE)
    async with playing(tmp_path, flow):
        assert await flow.run(id="one") == "None"
    assert reads == ["one", "one"]


async def test_a_thread_that_goes_on_although_it_has_timed_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skald.workflows.steps.GRACE", 0.01)
    released = threading.Event()

    def working() -> None:
        released.wait(30)

    flow = flow_of(working, retry=NEVER, timeout=0.01)
    async with playing(tmp_path, flow), occurrences() as noticed:
        handle = await flow.start(id="one")
        try:
            await noticed.count(1)
        finally:
            released.set()
        assert (await handle.result()).startswith("failed: TimeoutError")
    [stubborn] = noticed.items
    assert isinstance(stubborn, StepIgnoresCancellation)
    assert (stubborn.workflow, stubborn.id, stubborn.step) == (flow.name, "one", "one")
    assert stubborn.seconds >= 0.02


async def test_an_async_step_is_cancelled_when_its_workflow_is(tmp_path: Path) -> None:
    async def working() -> None:
        try:
            world.entered.set()
            await asyncio.Event().wait()
        finally:
            world.calls.append("cleaned up")

    flow = flow_of(working)
    async with playing(tmp_path, flow):
        handle = await flow.start(id="one")
        await world.entered.wait()
        await handle.cancel()
        with pytest.raises(WorkflowError, match="Cancelled"):
            await handle.result()
        await eventually(lambda: _is(world.calls == ["cleaned up"]))


async def _is(value: bool) -> bool:
    return value


async def test_the_key_is_the_same_for_every_attempt_and_process(tmp_path: Path) -> None:
    keys = []

    async def working() -> str:
        keys.append(attempt().key)
        return await meet()

    flow = flow_of(working, retry=AT_ONCE)
    world.answers = [OSError(), "hang"]
    async with playing(tmp_path, flow):
        await flow.start(id="one")
        await eventually(lambda: _is(len(keys) == 2))
    async with playing(tmp_path, flow):
        assert await flow.handle("one").result() == "done"
        await flow.run(id="two")
    assert len(keys) == 4
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]


# --- transactional ----------------------------------------------------------------------------------------------------


async def pay() -> str:
    await transaction().execute("INSERT INTO payments VALUES (:name)", name=f"attempt {attempt().number}")
    transaction().publish(Paid(f"attempt {attempt().number}"))
    return await meet()


async def published(service: Service) -> int:
    [row] = await service.fetch("SELECT count(*) AS n FROM skald_events")
    return int(row["n"])


async def test_rows_messages_and_the_result_commit_together_and_a_failing_attempt_leaves_nothing(
    tmp_path: Path,
) -> None:
    flow = flow_of(pay, transactional=True, retry=AT_ONCE)
    async with playing(tmp_path, flow) as orders:
        world.answers = [OSError(), OSError()]
        assert await flow.run(id="one") == "done"
        assert await payments(orders) == ["attempt 3"]
        assert await published(orders) == 1
        world.answers = [OSError() for _ in range(3)]
        assert (await failure_of(flow, "two")).type == "OSError"
        assert await payments(orders) == ["attempt 3"]
        assert await letters(orders) == []


async def test_what_a_transaction_publishes_belongs_to_its_workflow(tmp_path: Path) -> None:
    flow = flow_of(pay, transactional=True)
    async with playing(tmp_path, flow) as orders:
        handle = await flow.start(id="one")
        await handle.result()
        [paid] = await orders.store.log.read(0, 10)
        [row] = await orders.fetch("SELECT run FROM skald_workflows")
        assert (paid.correlation_id, paid.causation_id) == ("one", row["run"])
        assert paid.traceparent == child_traceparent(None, "one", paid.id)


async def test_a_sync_step_has_a_transaction_too(tmp_path: Path) -> None:
    def pay() -> list[str]:
        blocking_transaction().execute("INSERT INTO payments VALUES ('sync')")
        return [row["name"] for row in blocking_transaction().fetch("SELECT name FROM payments")]

    flow = flow_of(pay, transactional=True)
    async with playing(tmp_path, flow) as orders:
        assert await flow.run() == "['sync']"
        assert await payments(orders) == ["sync"]


async def test_a_result_that_cannot_be_stored_rolls_its_rows_back(tmp_path: Path) -> None:
    async def pay() -> int:
        await transaction().execute("INSERT INTO payments VALUES ('wrong')")
        return "no number"  # type: ignore[return-value]

    flow = flow_of(pay, transactional=True)
    async with playing(tmp_path, flow) as orders:
        assert (await failure_of(flow)).type == "InvalidMessage"
        assert await payments(orders) == []


async def test_a_timeout_rolls_the_transaction_back(tmp_path: Path) -> None:
    flow = flow_of(pay, transactional=True, timeout=0.03, retry=TWICE)
    async with playing(tmp_path, flow) as orders:
        world.answers = ["hang"]
        assert await flow.run() == "done"
        assert await payments(orders) == ["attempt 2"]


def broken_once(monkeypatch: pytest.MonkeyPatch, committed: bool) -> list[str]:
    """From now on: the commit of the next transaction that pays fails, before or after it has happened."""
    failed: list[str] = []
    plain = user_transaction

    @asynccontextmanager
    async def breaking(*arguments: Any) -> AsyncIterator[Transaction]:
        breaks = False
        async with plain(*arguments) as tx:
            yield tx
            breaks = not failed and bool(await tx.fetch("SELECT 1 AS paid FROM payments"))
            if breaks and not committed:
                failed.append("before")
                raise StoreUnavailable("the reply was lost")
        if breaks:
            failed.append("after")
            raise StoreUnavailable("the reply was lost")

    monkeypatch.setattr("skald.runtime.service.user_transaction", breaking)
    return failed


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("retry", [AT_ONCE, NEVER])
async def test_a_commit_without_a_known_outcome_is_not_repeated_blindly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: bool, retry: Retry
) -> None:
    flow = flow_of(pay, transactional=True, retry=retry)
    failed = broken_once(monkeypatch, committed)
    async with playing(tmp_path, flow) as orders:
        said = await flow.run()
        assert failed == ["after" if committed else "before"]
        if committed:
            assert (said, await payments(orders)) == ("done", ["attempt 1"])
        elif retry == AT_ONCE:
            assert (said, await payments(orders)) == ("done", ["attempt 2"])
        else:
            assert (said, await payments(orders)) == ("failed: StoreUnavailable: the reply was lost", [])


async def test_an_attempt_whose_workflow_is_somebody_elses_writes_nothing(tmp_path: Path) -> None:
    async def pay() -> str:
        await transaction().execute("INSERT INTO payments VALUES ('late')")
        await transaction().execute("UPDATE skald_workflows SET owner = 'another'")
        world.entered.set()
        return "done"

    flow = flow_of(pay, transactional=True)
    async with playing(tmp_path, flow) as orders:
        await flow.start(id="one")
        await world.entered.wait()
        async with orders.transaction():
            pass  # it has ended now
        assert await payments(orders) == []
        assert await letters(orders) == []


async def test_an_attempt_that_was_given_up_and_goes_on_writes_nothing(tmp_path: Path) -> None:
    @step(transactional=True)
    async def pay() -> str:
        try:
            await transaction().execute("INSERT INTO payments VALUES ('late')")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            world.calls.append("goes on")
        return "done"

    @workflow
    async def impatient() -> str:
        try:
            return await asyncio.wait_for(pay(), 0.02)
        except TimeoutError:
            return "given up"

    async with playing(tmp_path, impatient) as orders:
        assert await impatient.run() == "given up"
        assert await payments(orders) == []
    assert world.calls == ["goes on"]


async def test_a_second_result_of_the_same_call_is_not_written(tmp_path: Path) -> None:
    async def pay() -> str:
        await transaction().execute("INSERT INTO payments VALUES ('twice')")
        [row] = await transaction().fetch("SELECT run FROM skald_workflows")
        await transaction().execute(
            "INSERT INTO skald_letters (id, kind, to_run, name, payload, time) VALUES ('x', 6, :run, :name, :r, 0)",
            run=row["run"], name=attempt().key.partition(":")[2], r=b'"earlier"',
        )  # fmt: skip
        world.entered.set()
        return "done"

    flow = flow_of(pay, transactional=True)
    async with playing(tmp_path, flow) as orders:
        await flow.start(id="one")
        await world.entered.wait()
        async with orders.transaction():
            pass  # it has ended now
        assert await payments(orders) == []


async def test_what_is_for_steps_says_so_elsewhere() -> None:
    for function, text in (
        (attempt, "for steps"),
        (transaction, "blocking_transaction"),
        (blocking_transaction, r"have transaction\(\)"),
    ):
        with pytest.raises(WorkflowError, match=text):
            function()


# --- at most once, and lookups ----------------------------------------------------------------------------------------


async def kinds(service: Service) -> list[int]:
    return [row["kind"] for row in await service.fetch("SELECT kind FROM skald_journal ORDER BY position")]


async def test_at_most_once_means_no_attempt_after_a_failure(tmp_path: Path) -> None:
    flow = flow_of(meet, at_most_once=True)
    async with playing(tmp_path, flow) as orders:
        world.answers = [OSError("refused")]
        assert (await failure_of(flow)).message == "refused"
        assert await kinds(orders) == [3, 1]
    assert world.calls == [1]


async def test_at_most_once_is_durable_before_it_begins(tmp_path: Path) -> None:
    begun = []

    async def working() -> str:
        begun.extend(await kinds(orders))
        return "done"

    flow = flow_of(working, at_most_once=True)
    async with playing(tmp_path, flow) as orders:
        assert await flow.run() == "done"
    assert begun == [3]


async def test_at_most_once_has_an_unknown_outcome_after_a_crash(tmp_path: Path) -> None:
    flow = flow_of(meet, at_most_once=True)
    await interrupted(tmp_path, flow)
    async with playing(tmp_path, flow) as orders:
        assert (await flow.handle("one").result()).startswith("failed: OutcomeUnknown: one had begun")
        assert await kinds(orders) == [3, 1]
    assert world.calls == [1]


async def interrupted(folder: Path, flow: Workflow[..., str]) -> None:
    """The workflow "one" in a process that ends in the midst of its step."""
    world.answers.insert(0, "hang")
    async with playing(folder, flow):
        await flow.start(id="one")
        await world.entered.wait()


@pytest.mark.parametrize("once", [True, False])
async def test_after_a_crash_a_lookup_finds_the_result(tmp_path: Path, once: bool) -> None:
    flow = flow_of(meet, at_most_once=once, lookup=look_up)
    await interrupted(tmp_path, flow)
    async with playing(tmp_path, flow):
        assert await flow.handle("one").result() == "found"
    assert world.calls == [1, "look up"]


@pytest.mark.parametrize("once", [True, False])
async def test_after_a_crash_what_was_not_done_is_done(tmp_path: Path, once: bool) -> None:
    flow = flow_of(meet, at_most_once=once, lookup=look_up)
    await interrupted(tmp_path, flow)
    world.lookups = [NOT_DONE]
    async with playing(tmp_path, flow):
        assert await flow.handle("one").result() == "done"
    assert world.calls == [1, "look up", 1]


async def test_a_lookup_is_asked_after_a_timeout_and_not_after_an_error(tmp_path: Path) -> None:
    flow = flow_of(meet, lookup=look_up, timeout=0.03, retry=AT_ONCE)
    async with playing(tmp_path, flow):
        world.answers, world.lookups = [OSError(), "hang"], [NOT_DONE]
        assert await flow.run(id="one") == "done"
        assert world.calls == [1, 2, "look up", 3]
        world.answers = ["hang"]
        assert await flow.run(id="two") == "found"


async def test_a_lookup_is_asked_before_a_step_fails(tmp_path: Path) -> None:
    flow = flow_of(meet, lookup=look_up, timeout=0.03, retry=NEVER)
    async with playing(tmp_path, flow):
        world.answers = ["hang", "hang"]
        assert await flow.run(id="one") == "found"
        world.lookups = [NOT_DONE]
        assert (await failure_of(flow, "two")).type == "TimeoutError"


async def test_a_lookup_need_not_give_heartbeats_and_is_not_asked_when_the_total_is_over(tmp_path: Path) -> None:
    async def slow() -> str | NotDone:
        await asyncio.sleep(0.05)  # sleep: longer than the heartbeat
        return await look_up()

    flow = flow_of(meet, lookup=slow, heartbeat=0.02, retry=NEVER)
    hasty = flow_of(meet, lookup=look_up, total=0.02)
    hasty.name = "hasty"
    async with playing(tmp_path, flow, hasty):
        world.answers = ["hang", "hang"]
        assert await flow.run(id="one") == "found"
        assert "total=0.02 s" in (await failure_of(hasty, "two")).message
    assert world.calls == [1, "look up", 1]


async def test_at_most_once_with_a_lookup_is_tried_once_more(tmp_path: Path) -> None:
    flow = flow_of(meet, at_most_once=True, lookup=look_up, timeout=0.03, retry=AT_ONCE)
    async with playing(tmp_path, flow):
        world.answers, world.lookups = ["hang"] * 9, [NOT_DONE] * 9
        assert (await failure_of(flow)).type == "TimeoutError"
    assert world.calls == [1, "look up", 2, "look up"]


async def test_a_lookup_that_fails_is_tried_again_like_the_step(tmp_path: Path) -> None:
    flow = flow_of(meet, lookup=look_up, retry=AT_ONCE)
    await interrupted(tmp_path, flow)
    world.lookups = [OSError(), OSError()]
    async with playing(tmp_path, flow):
        assert await flow.handle("one").result() == "found"
    assert world.calls == [1, *["look up"] * 3]


async def test_an_outcome_that_cannot_be_looked_up_is_unknown(tmp_path: Path) -> None:
    flow = flow_of(meet, lookup=look_up, retry=AT_ONCE)
    await interrupted(tmp_path, flow)
    world.lookups = [OSError("away")] * 3
    async with playing(tmp_path, flow):
        assert "OutcomeUnknown" in (said := await flow.handle("one").result())
        assert "OSError: away" in said
    assert world.calls == [1, *["look up"] * 3]


async def test_a_sync_lookup_runs_in_a_thread_with_the_arguments_and_the_key(tmp_path: Path) -> None:
    seen: list[Any] = []

    def look(n: int, *, name: str) -> str | NotDone:
        seen.append((n, name, attempt().key, threading.current_thread() is threading.main_thread()))
        return "found"

    @step(lookup=look)
    async def one(n: int, *, name: str) -> str:
        seen.append((n, name, attempt().key, False))
        world.entered.set()
        await asyncio.Event().wait()
        return "never"

    @workflow
    async def flow() -> str:
        return await one(7, name="a")

    async with playing(tmp_path, flow):
        await flow.start(id="one")
        await world.entered.wait()
    async with playing(tmp_path, flow):
        assert await flow.handle("one").result() == "found"
    assert len(seen) == 2
    assert len(set(seen)) == 1


# --- pausing ----------------------------------------------------------------------------------------------------------


async def test_a_step_that_pauses_waits_for_somebody_and_runs_anew(tmp_path: Path) -> None:
    flow = flow_of(meet, pause=True, retry=TWICE)

    async def paused() -> bool:
        [row] = await orders.fetch("SELECT state FROM skald_workflows")
        return bool(row["state"] == "paused")

    async with playing(tmp_path, flow) as orders:
        world.answers = [OSError("away"), OSError("away")]
        handle = await flow.start(id="one")
        await eventually(paused)
        assert await kinds(orders) == []
        await handle.resume()
        assert await handle.result() == "done"
    assert world.calls == [1, 2, 1]


# --- what makes no sense ----------------------------------------------------------------------------------------------


def other(n: int) -> None: ...


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"transactional": True, "at_most_once": True}, "leave out at_most_once="),
        ({"transactional": True, "lookup": look_up}, "leave out lookup="),
        ({"transactional": True, "heartbeat": 1}, "leave out heartbeat="),
        ({"at_most_once": True, "retry": AT_ONCE}, "leave out retry="),
        ({"at_most_once": True, "retry_if": bool}, "leave out retry_if="),
        ({"at_most_once": True, "pause": True}, "leave out pause="),
        ({"timeout": 0}, "timeout=0: a number of seconds above 0"),
        ({"total": -1.0}, r"total=-1\.0: "),
        ({"heartbeat": float("nan")}, "heartbeat=nan: "),
        ({"lookup": other}, "lookup= takes the parameters of the step"),
        ({"timeot": 3}, "no option 'timeot'; it has: name, retry, .*lookup"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_contradicts_itself_is_refused_at_its_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"test_workflow_steps\.py:\d+: meet: .*{text}"):
        step(**options)(meet)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each transaction that is opened from now on."""
    opened: list[None] = []
    plain = user_transaction

    def counting(*arguments: Any) -> AbstractAsyncContextManager[Transaction]:
        opened.append(None)
        return plain(*arguments)

    monkeypatch.setattr("skald.runtime.service.user_transaction", counting)
    return opened
