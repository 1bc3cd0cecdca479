"""What becomes of a saga when something fails, is cut off, cancelled or late."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from skald import NEVER, App, FailedExecution, SagaCompensated, Service, compensation, saga, step, workflow, workflows
from skald.errors import Diverged, StepFailed, WorkflowFailed
from skald.sagas.course import Course
from skald.sagas.definition import Executed
from skald.testing.workflows import Lab, crash_everywhere, replay_saved
from skald.workflows import saved
from skald.workflows.replay import Machine
from tests.unit.saga_programs import (
    BACK,
    Thing,
    answer,
    asked,
    begin_anew,
    failures,
    give_back,
    happen,
    look,
    state,
    statuses,
    take,
    taken,
    three,
    told,
    trouble,
)

pytest_plugins = ["skald.testing.plugin"]
NewLab = Callable[..., AbstractAsyncContextManager[Lab]]

go = workflows.Signal("go", str)


@pytest.fixture(autouse=True)
def world() -> None:
    begin_anew()


@saga
async def catching(name: str) -> str:
    await take("a")
    try:
        await look(name)
    except StepFailed as failure:
        return f"without: {failure.message}"
    return "with"


@saga
async def waiting(name: str) -> str:
    await take("a")
    try:
        return await go.receive()
    finally:
        await look("cleaning up")


@saga(deadline=60)
async def late(name: str) -> str:
    await take("a")
    return await go.receive()


@step(compensate=give_back, retry=NEVER)
async def take_slowly(name: str) -> Thing:
    happen(f"take {name}")
    await asyncio.Event().wait()
    raise AssertionError


@saga
async def cutting(name: str) -> str:
    async with asyncio.TaskGroup() as group:
        group.create_task(take_slowly("slow"))
        group.create_task(failing_after(name))
    return "never"


async def failing_after(name: str) -> None:
    await take("a")
    await look(name)


@saga
async def leaving(name: str) -> str:
    """With a task that nobody awaits."""
    task = asyncio.create_task(take_slowly("slow"))
    await take("a")
    await look(name)
    return str(task.done())


@step(critical=False, compensate=give_back, retry=NEVER)
async def take_if_possible(name: str) -> Thing:
    happen(f"take {name}")
    return Thing(name)


@saga
async def forgiving(name: str) -> str:
    found = await take_if_possible("luxury")
    await look(name)
    return repr(found)


@saga
async def again(name: str) -> str:
    await take("a")
    workflows.continue_as_new(name)


@workflow
async def parent(name: str) -> str:
    try:
        return await three.run(name)
    except SagaCompensated as failure:
        return f"{failure.step}: {failure.type}"


SERVICE = Service(
    "sagas", workflows=[three, catching, waiting, late, cutting, leaving, forgiving, again, parent]
)  # fmt: skip


@pytest.fixture
async def lab(workflow_lab: NewLab) -> AsyncIterator[Lab]:
    async with workflow_lab(SERVICE) as lab:
        yield lab


# --- it goes well -----------------------------------------------------------------------------------------------------


async def test_one_that_goes_well_writes_what_a_workflow_writes(lab: Lab) -> None:
    handle = await three.start("x", id="s-1")
    assert await lab.result(handle) == "a b"
    entries = (await lab.history("s-1")).entries
    assert [(entry.kind, entry.name) for entry in entries] == [
        ("step_done", "take"), ("step_done", "take"), ("step_done", "look"),
    ]  # fmt: skip
    assert sorted(taken.values()) == ["a", "b"]


async def test_an_error_that_the_code_catches_is_no_failure(lab: Lab) -> None:
    trouble["look x"] = ValueError("no")
    assert await lab.result(await catching.start("x", id="s-1")) == "without: no"
    assert list(taken.values()) == ["a"]
    assert await statuses(lab, "s-1") == []


async def test_one_that_is_not_critical_may_fail(lab: Lab) -> None:
    trouble["take luxury"] = ValueError("sold out")
    assert await lab.result(await forgiving.start("x", id="s-1")) == "None"


async def test_called_outside_of_workflows_it_is_the_plain_function() -> None:
    assert await three("x") == "a b"
    trouble["look x"] = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await three("x")


# --- it fails ---------------------------------------------------------------------------------------------------------


async def test_what_was_done_is_undone_last_first(lab: Lab) -> None:
    trouble["look x"] = ValueError("no such thing")
    handle = await three.start("x", id="s-1")
    with pytest.raises(SagaCompensated, match="saga s-1 was compensated, because look has failed: ValueError: no") as e:
        await lab.result(handle)
    assert (e.value.step, e.value.type, e.value.id) == ("look", "ValueError", "s-1")
    assert told == ["take a", "take b", "look x", "give back b", "give back a"]
    assert not taken
    assert await statuses(lab, "s-1") == BACK
    assert await state(lab, handle) == "failed"


async def test_a_definite_failure_is_not_undone(lab: Lab) -> None:
    trouble["take b"] = ValueError("none left")
    with pytest.raises(SagaCompensated):
        await lab.result(await three.start("x", id="s-1"))
    assert told == ["take a", "take b", "give back a"]


async def test_one_that_fails_before_it_has_done_anything_is_compensated_too(lab: Lab) -> None:
    trouble["take a"] = ValueError("none left")
    with pytest.raises(SagaCompensated):
        await lab.result(await three.start("x", id="s-1"))
    assert told == ["take a"]
    assert await statuses(lab, "s-1") == BACK


async def test_a_timeout_leaves_the_outcome_unknown(lab: Lab) -> None:
    trouble["take b"] = TimeoutError("no answer")
    with pytest.raises(SagaCompensated):
        await lab.result(await three.start("x", id="s-1"))
    assert told == ["take a", "take b", "give back b, if anything", "give back a"]


async def test_compensations_see_the_whole_failed_execution(lab: Lab) -> None:
    trouble["look x"] = ValueError("no")
    with pytest.raises(SagaCompensated):
        await lab.result(await three.start("x", id="s-1"))
    done = tuple(Executed("take", "done", {"name": n}, {"name": n}) for n in "ab")
    executions = (*done, Executed("look", "failed", {"name": "x"}))
    failed = FailedExecution("three", "s-1", "look", "ValueError", "no", executions)
    assert failures == [failed, failed]


async def test_a_step_that_is_mocked_is_undone_by_its_own_arguments(lab: Lab) -> None:
    lab.mock(take, Thing("mocked"))
    trouble["look x"] = ValueError("no")
    with pytest.raises(SagaCompensated, match="look has failed"):
        await lab.result(await three.start("x", id="s-1"))
    assert told == ["look x", "give back b", "give back a"]


async def test_what_still_runs_is_given_up_and_undone(lab: Lab) -> None:
    trouble["look x"] = ValueError("no")
    with pytest.raises(SagaCompensated, match="because look has failed: ValueError: no"):
        await lab.result(await cutting.start("x", id="s-1"))
    assert told == ["take slow", "take a", "look x", "give back a", "give back slow, if anything"]


async def test_so_is_a_task_that_nobody_awaits(lab: Lab) -> None:
    trouble["look x"] = ValueError("no")
    with pytest.raises(SagaCompensated):
        await lab.result(await leaving.start("x", id="s-1"))
    assert told == ["take a", "take slow", "look x", "give back slow, if anything", "give back a"]


async def test_one_that_was_compensated_leaves_nothing_to_the_collector(tmp_path: Path) -> None:
    """Its exceptions hold frames, and these hold it: many that fail would be as many that stay."""
    app = App(SERVICE, store=f"sqlite:{tmp_path}")
    await app.migrate()
    async with app.run():
        gc.collect()
        gc.disable()
        try:
            for n in range(5):
                trouble["look x"] = ValueError("no")
                with pytest.raises(SagaCompensated):
                    await three.run("x", id=f"s-{n}")
            failures.clear()
            assert [one for one in gc.get_objects() if isinstance(one, Machine | Course)] == []
        finally:
            gc.enable()


async def test_what_the_code_has_used_is_freed_before_anything_is_undone() -> None:
    """Compensations may take long, and a saga that fails often does so with many others."""
    used: list[weakref.ref[set[str]]] = []
    kept: list[bool] = []

    @compensation
    async def undo(name: str) -> None:
        kept.append(used[0]() is not None)

    @step(compensate=undo)
    async def use(name: str) -> None:
        pass

    @saga
    async def holding(name: str) -> None:
        large = {name}
        used.append(weakref.ref(large))
        await use(name)
        await look(name)

    trouble["look x"] = ValueError("no")
    async with _lab_with(holding) as lab:
        with pytest.raises(SagaCompensated):
            await lab.result(await holding.start("x", id="s-1"))
    assert kept == [False]


async def test_a_parent_is_told_that_its_child_was_compensated(lab: Lab) -> None:
    trouble["look x"] = ValueError("no")
    assert await lab.result(await parent.start("x", id="p-1")) == "look: ValueError"


async def test_it_cannot_begin_anew_and_forget_what_it_has_to_undo(lab: Lab) -> None:
    with pytest.raises(SagaCompensated, match="cannot continue as new"):
        await lab.result(await again.start("x", id="s-1"))
    assert told == ["take a", "give back a"]


# --- it is stopped ----------------------------------------------------------------------------------------------------


async def test_a_cancel_undoes_it(lab: Lab) -> None:
    handle = await waiting.start("x", id="s-1")
    await lab.settle()
    await handle.cancel("changed their mind")
    with pytest.raises(WorkflowFailed, match="CancelledError: changed their mind") as e:
        await lab.result(handle)
    assert not isinstance(e.value, SagaCompensated)
    assert told == ["take a", "look cleaning up", "give back a"]
    assert await statuses(lab, "s-1") == ["COMPENSATING", "CANCELLED"]
    assert await state(lab, handle) == "cancelled"


async def test_a_terminate_undoes_nothing(lab: Lab) -> None:
    handle = await waiting.start("x", id="s-1")
    await lab.settle()
    await handle.terminate("by hand")
    with pytest.raises(WorkflowFailed, match="Terminated"):
        await lab.result(handle)
    assert told == ["take a"]


async def test_after_its_deadline_it_is_undone(lab: Lab) -> None:
    handle = await late.start("x", id="s-1")
    await lab.advance(timedelta(seconds=59))
    assert told == ["take a"]
    with pytest.raises(SagaCompensated, match="TimeoutError: the saga took longer than deadline=60 s"):
        await lab.result(handle)
    assert told == ["take a", "give back a"]
    assert await statuses(lab, "s-1") == BACK


async def test_a_deadline_that_is_kept_leaves_no_timer(lab: Lab) -> None:
    handle = await late.start("x", id="s-1")
    await handle.signal(go, "now")
    assert await lab.result(handle, timedelta(0)) == "now"


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancel_while_it_is_compensated_changes_nothing(lab: Lab, fails: bool) -> None:
    """Compensations are shielded: the sequence is the same as without."""
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slowly(thing: object, name: str, failed: object, key: str) -> None:
        told.append(f"begin {name}")
        begun.set()
        await may_end.wait()
        if fails and name == "b":
            raise ValueError("not now")
        told.append(f"end {name}")

    trouble["look x"] = ValueError("no")
    lab.mock(give_back.step, slowly)
    handle = await three.start("x", id="s-1")
    await begun.wait()
    await handle.cancel("too late")
    await lab.settle()
    assert told[3:] == ["begin b"]
    may_end.set()
    await lab.settle()
    if fails:
        await handle.cancel("too late")
        await lab.settle()
        assert await statuses(lab, "s-1") == ["COMPENSATING", "COMPENSATION_FAILED"]
        await answer(lab, "s-1", "skip")
    with pytest.raises(SagaCompensated, match="look has failed"):
        await lab.result(handle)
    assert told[3:] == ["begin b", *([] if fails else ["end b"]), "begin a", "end a"]
    kinds = [entry.kind for entry in (await lab.history("s-1")).entries]
    assert kinds.count("cancel") == 1 + fails


async def test_what_the_code_calls_while_it_is_compensated_is_refused(lab: Lab) -> None:
    @saga
    async def stubborn(name: str) -> None:
        async def later() -> None:
            try:
                await go.receive()
            finally:
                found.append("called")
                await take("too late")

        task = asyncio.create_task(later())
        await take("a")
        await go.receive()
        assert task

    found: list[str] = []
    async with _lab_with(stubborn) as lab:
        trouble["give back a"] = ValueError("no")
        handle = await stubborn.start("x", id="s-1")
        await lab.settle()
        await handle.cancel()
        await lab.settle()
        await handle.signal(go, "on")
        await lab.settle()
        assert set(found) == {"called"}
        assert "take too late" not in told


def _lab_with(one: object) -> AbstractAsyncContextManager[Lab]:
    from skald.testing.workflows import laboratory

    return laboratory(Service("alone", workflows=[one]))  # type: ignore[list-item]


# --- compensations that fail ------------------------------------------------------------------------------------------


@compensation(retry=NEVER, guarantee="best_effort")
async def tidy(name: str) -> None:
    happen(f"tidy {name}")


@step(compensate=tidy, retry=NEVER)
async def litter(name: str) -> None:
    happen(f"litter {name}")


@saga
async def messy(name: str) -> None:
    await take("a")
    await litter(name)
    await look(name)


async def test_the_best_effort_is_passed_over() -> None:
    trouble.update({"look x": ValueError("no"), "tidy x": ValueError("broken broom")})
    async with _lab_with(messy) as lab:
        with pytest.raises(SagaCompensated):
            await lab.result(await messy.start("x", id="s-1"))
        assert told == ["take a", "litter x", "look x", "tidy x", "give back a"]
        failed = [entry.name for entry in (await lab.history("s-1")).entries if entry.kind == "step_failed"]
        assert failed == ["look", "tidy"]


async def fail_to_give_back(lab: Lab, id: str = "s-1") -> None:
    trouble.update({"look x": ValueError("no such thing"), "give back b": OSError("shop closed")})
    handle = await three.start("x", id=id)
    await lab.settle()
    assert await statuses(lab, handle.id) == ["COMPENSATING", "COMPENSATION_FAILED"]


@pytest.mark.parametrize("idle", [0.0, 3_600.0])
@pytest.mark.parametrize("choice", ["done", "skip", "retry"])
async def test_a_compensation_that_gives_up_waits_for_a_person(workflow_lab: NewLab, choice: str, idle: float) -> None:
    async with workflow_lab(SERVICE, idle=idle) as lab:
        await fail_to_give_back(lab)
        await lab.advance(timedelta(days=40))
        if choice == "retry":
            del trouble["give back b"]
        await answer(lab, "s-1", choice)
        with pytest.raises(SagaCompensated, match="because look has failed: ValueError: no such thing"):
            await lab.result(three.handle("s-1"))
        once_more = ["give back b"] if choice == "retry" else []
        assert told == ["take a", "take b", "look x", "give back b", *once_more, "give back a"]
        assert list(taken.values()) == ([] if choice == "retry" else ["b"])
        assert await statuses(lab, "s-1") == ["COMPENSATING", "COMPENSATION_FAILED", *BACK]


async def test_the_dead_letter_has_what_a_person_needs(lab: Lab) -> None:
    await fail_to_give_back(lab)
    [question] = await asked(lab, "s-1")
    assert (question.saga, question.id, question.step, question.compensation) == ("three", "s-1", "take", "give_back")
    assert (question.arguments, question.result) == ({"name": "b"}, {"name": "b"})
    assert (question.failure.type, question.failure.message) == ("OSError", "shop closed")
    assert (question.because.type, question.because.message) == ("ValueError", "no such thing")


async def test_one_that_fails_again_asks_again_and_late_answers_are_ignored(lab: Lab) -> None:
    await fail_to_give_back(lab)
    await answer(lab, "s-1", "retry")
    assert [question.number for question in await asked(lab, "s-1")] == [1, 2]
    await answer(lab, "s-1", "skip", number=1)
    await answer(lab, "s-1", "fail", number=2)  # which is no choice here
    assert await statuses(lab, "s-1") == ["COMPENSATING", "COMPENSATION_FAILED", "COMPENSATING", "COMPENSATION_FAILED"]
    await answer(lab, "s-1", "skip", number=2)
    with pytest.raises(SagaCompensated):
        await lab.result(three.handle("s-1"))


async def test_one_that_hangs_is_cut_off_and_gives_up() -> None:
    @compensation(retry=NEVER, timeout=0.01)
    async def hang(name: str) -> None:
        await asyncio.Event().wait()

    @step(compensate=hang)
    async def use(name: str) -> None: ...

    @saga
    async def hanging(name: str) -> None:
        await use(name)
        await look(name)

    trouble["look x"] = ValueError("no")
    async with _lab_with(hanging) as lab:
        handle = await hanging.start("x", id="s-1")
        await lab.settle()
        [question] = await asked(lab, "s-1")
        assert (question.failure.type, question.failure.unknown) == ("TimeoutError", True)
        await lab.resolve(handle, "skip", "use")
        with pytest.raises(SagaCompensated):
            await lab.result(handle)


async def test_a_synchronous_one_runs_in_a_thread() -> None:
    threads: list[threading.Thread] = []

    @compensation
    def undo(result: str | None, name: str, failed: FailedExecution) -> None:
        threads.append(threading.current_thread())
        told.append(f"undo {result} for {failed.step}")

    @step(compensate=undo)
    def use(name: str) -> str:
        return f"used {name}"

    @saga
    async def threaded(name: str) -> None:
        await use(name)
        await look(name)

    trouble["look x"] = ValueError("no")
    async with _lab_with(threaded) as lab:
        with pytest.raises(SagaCompensated):
            await lab.result(await threaded.start("x", id="s-1"))
    assert told == ["look x", "undo used x for look"]
    assert threads[0] is not threading.main_thread()


async def test_independent_ones_run_at_once() -> None:
    begun = {name: asyncio.Event() for name in "ab"}

    @compensation(independent=True, retry=NEVER)
    async def undo(name: str) -> None:
        begun[name].set()
        await begun["a" if name == "b" else "b"].wait()  # each waits for the other one

    @step(compensate=undo)
    async def use(name: str) -> None: ...

    @saga
    async def aside(name: str) -> None:
        await use("a")
        await use("b")
        await look(name)

    trouble["look x"] = ValueError("no")
    async with _lab_with(aside) as lab:
        with pytest.raises(SagaCompensated):
            await lab.result(await aside.start("x", id="s-1"))


async def test_a_step_that_is_cut_off_by_its_timeout_is_undone() -> None:
    @step(compensate=give_back, retry=NEVER, timeout=0.01)
    async def take_too_long(name: str) -> Thing:
        await asyncio.Event().wait()
        raise AssertionError

    @saga
    async def slow(name: str) -> None:
        await take_too_long(name)

    async with _lab_with(slow) as lab:
        with pytest.raises(SagaCompensated, match=r"TimeoutError: the attempt took longer than timeout=0\.01 s"):
            await lab.result(await slow.start("x", id="s-1"))
    assert told == ["give back x, if anything"]


async def test_a_result_that_cannot_be_stored_was_done_all_the_same() -> None:
    @step(compensate=give_back, retry=NEVER)
    async def take_oddly(name: str) -> Thing:
        return name  # type: ignore[return-value]

    @saga
    async def odd(name: str) -> None:
        await take_oddly(name)

    async with _lab_with(odd) as lab:
        with pytest.raises(SagaCompensated, match="InvalidMessage"):
            await lab.result(await odd.start("x", id="s-1"))
    assert told == ["give back x, if anything"]


async def test_a_cancel_that_was_too_late_is_so_at_every_replay(workflow_lab: NewLab) -> None:
    """With ``idle=0`` it leaves memory at every wait, and is brought back from its journal."""
    async with workflow_lab(SERVICE, idle=0.0) as lab:
        await fail_to_give_back(lab)
        await three.handle("s-1").cancel("too late")
        await lab.settle()
        await answer(lab, "s-1", "skip")
        with pytest.raises(SagaCompensated):
            await lab.result(three.handle("s-1"))
        assert await statuses(lab, "s-1") == ["COMPENSATING", "COMPENSATION_FAILED", *BACK]


# --- replays ----------------------------------------------------------------------------------------------------------


async def compensated_history(lab: Lab) -> saved.History:
    trouble["look x"] = ValueError("no")
    with pytest.raises(SagaCompensated):
        await lab.result(await three.start("x", id="s-1"))
    return await lab.history("s-1")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda found: found[:-1], "has no change of its status, and the code is COMPENSATED"),
        (lambda found: [*found[:-1], replace(found[-1], name="CANCELLED")], "has the status CANCELLED"),
        (lambda found: [*found, replace(found[-1], position=len(found) + 1)], "has the status COMPENSATED"),
    ],
)
async def test_a_history_with_other_statuses_is_refused(
    lab: Lab, tmp_path: Path, change: Callable[[list[saved.SavedEntry]], list[saved.SavedEntry]], text: str
) -> None:
    history = await compensated_history(lab)
    saved.write(replace(history, entries=change(history.entries)), tmp_path / "s-1.json")
    with pytest.raises(Diverged, match=text):
        await replay_saved(tmp_path / "s-1.json", SERVICE)


async def test_a_deadline_that_has_fired_and_was_not_told_yet_is_no_other_history(lab: Lab, tmp_path: Path) -> None:
    """As a process writes it for sagas that nobody owns; a query and ``skald check`` may see it so."""
    await late.start("x", id="s-1")
    await lab.settle()
    history = await lab.history("s-1")
    fired = saved.SavedEntry(len(history.entries) + 1, "timer", lab.clock.now() + 60_000_001, "", 1)
    saved.write(replace(history, entries=[*history.entries, fired]), tmp_path / "s-1.json")
    await replay_saved(tmp_path / "s-1.json", SERVICE)


# --- crashes ----------------------------------------------------------------------------------------------------------


async def test_a_crash_at_every_commit_of_one_that_completes() -> None:
    async def scenario(lab: Lab) -> str:
        return await lab.result(await three.start("x", id="s-1"))

    assert set(await crash_everywhere(scenario, SERVICE)) == {"a b"}


async def test_a_crash_at_every_commit_of_one_that_is_compensated() -> None:
    async def scenario(lab: Lab) -> tuple[str, list[str]]:
        taken.clear()
        trouble["look x"] = ValueError("no")
        try:
            await lab.result(await three.start("x", id="s-1"))
        except SagaCompensated as failure:
            assert not taken
            return str(failure), await statuses(lab, "s-1")
        raise AssertionError

    results = await crash_everywhere(scenario, SERVICE)
    assert all(result == results[0] for result in results)
    assert len(results) > 9


async def test_a_crash_at_every_commit_of_one_whose_compensation_fails_and_is_resolved() -> None:
    async def scenario(lab: Lab) -> tuple[str, list[str]]:
        taken.clear()
        trouble.update({"look x": ValueError("no"), "give back b": OSError("closed")})
        handle = await three.start("x", id="s-1")
        await lab.settle()
        trouble.pop("give back b")
        await answer(lab, "s-1", "retry", number=(await asked(lab, "s-1"))[-1].number)
        try:
            await lab.result(handle)
        except SagaCompensated as failure:
            assert not taken
            return str(failure), await statuses(lab, "s-1")
        raise AssertionError

    results = await crash_everywhere(scenario, SERVICE)
    assert all(result == results[0] for result in results)
    assert len(results) > 13
