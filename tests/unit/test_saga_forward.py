"""Steps that only go forward, that may fail, or whose failure a person decides; and outcomes that nobody knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from skald import NEVER, Retry, SagaCompensated, Service, compensation, saga, step, telemetry, workflows
from skald.errors import SkaldError, StepFailed, WorkflowFailed
from skald.testing.workflows import Lab, crash_everywhere, laboratory
from skald.workflows import NOT_DONE, NotDone, turner
from tests.unit.saga_programs import (
    BACK,
    Thing,
    answer,
    asked,
    begin_anew,
    give_back,
    happen,
    look,
    state,
    statuses,
    take,
    taken,
    told,
    trouble,
)

pytest_plugins = ["skald.testing.plugin"]
NewLab = Callable[..., AbstractAsyncContextManager[Lab]]

go = workflows.Signal("go", str)
cut_off: list[str] = []


@pytest.fixture(autouse=True)
def world() -> None:
    begin_anew()
    cut_off.clear()


@step(pivot=True, retry=NEVER)
async def hand_over(name: str) -> str:
    happen(f"hand over {name}")
    if name == "slowly":
        await asyncio.Event().wait()
    return name


@saga(deadline=60)
async def past_the_pivot(name: str) -> str:
    await take("a")
    await hand_over(name)
    return str(await look("x"))


@saga(deadline=60)
async def catching_it(name: str) -> str:
    await take("a")
    try:
        return await hand_over(name)
    except StepFailed:
        return await go.receive()


@saga
async def beside_the_pivot(name: str) -> str:
    return " ".join(await asyncio.gather(hand_over(name), look(name)))


@saga
async def impatient(name: str) -> str:
    await take("a")
    async with asyncio.timeout(5):
        return await hand_over(name)


@saga
async def failing_after_the_pivot(name: str) -> str:
    await hand_over(name)
    await go.receive()
    raise RuntimeError("a mistake of the code")


@step(human=True, retry=NEVER, compensate=give_back)
async def take_by_hand(name: str) -> Thing:
    happen(f"take {name}")
    taken[workflows.attempt().key] = name
    return Thing(name)


@saga
async def by_hand(name: str) -> str:
    await take("a")
    return repr(await take_by_hand(name))


@saga(deadline=60)
async def by_hand_in_time(name: str) -> str:
    await take("a")
    return repr(await take_by_hand(name))


class Refused(Exception):
    pass


@step(forward=True, retry={Refused: NEVER})
async def insist(name: str) -> str:
    happen(f"insist {name}")
    return name


@saga
async def insisting(name: str) -> str:
    await take("a")
    return str(await insist(name))


async def find(name: str) -> Thing | NotDone:
    happen(f"find {name}")
    return Thing(name) if name in taken.values() else NOT_DONE


@step(lookup=find, compensate=give_back, retry=NEVER)
async def take_findable(name: str) -> Thing:
    happen(f"take {name}")
    if name != "nothing":
        taken[workflows.attempt().key] = name
    try:
        await asyncio.Event().wait()
    finally:
        cut_off.append(name)
    raise AssertionError


@saga(deadline=60)
async def findable(name: str) -> str:
    return (await take_findable(name)).name


@saga
async def leaving_findable(name: str) -> str:
    await asyncio.gather(look("x"), take_findable(name))
    return "never"


@saga
async def twice_by_hand(name: str) -> str:
    found = await asyncio.gather(take_by_hand("b"), take_by_hand("c"))
    return repr(found)


SAGAS: list[Any] = [
    past_the_pivot, catching_it, beside_the_pivot, impatient, failing_after_the_pivot, by_hand, insisting, findable,
    twice_by_hand, by_hand_in_time, leaving_findable,
]  # fmt: skip
SERVICE = Service("sagas", workflows=SAGAS)


@pytest.fixture
async def lab(workflow_lab: NewLab) -> AsyncIterator[Lab]:
    async with workflow_lab(SERVICE) as lab:
        yield lab


# --- the pivot --------------------------------------------------------------------------------------------------------


async def test_a_pivot_that_fails_for_sure_is_a_failure_like_others(lab: Lab) -> None:
    trouble["hand over x"] = ValueError("no")
    with pytest.raises(SagaCompensated, match="hand_over has failed"):
        await lab.result(await past_the_pivot.start("x", id="s-1"))
    assert told == ["take a", "hand over x", "give back a"]


@pytest.mark.parametrize(("choice", "result"), [("retry", "x"), ("done", "by hand"), ("skip", "None")])
async def test_after_it_nothing_is_undone_and_a_person_decides(lab: Lab, choice: str, result: str) -> None:
    trouble["look x"] = ValueError("no")
    handle = await past_the_pivot.start("x", id="s-1")
    await lab.advance(timedelta(days=1))
    await handle.cancel("never mind")
    await lab.settle()
    assert await statuses(lab, "s-1") == ["NEEDS_ATTENTION"]
    [question] = await asked(lab, "s-1")
    assert (question.step, question.choices) == ("look", ("retry", "done", "skip"))
    trouble.clear()
    await answer(lab, "s-1", choice, result="by hand")
    assert await lab.result(handle) == result
    assert "give back a" not in told
    assert await statuses(lab, "s-1") == ["NEEDS_ATTENTION", "IN_PROGRESS"]


@pytest.mark.parametrize("choice", ["done", "fail", "retry"])
async def test_a_pivot_whose_outcome_is_unknown_waits_for_a_person(lab: Lab, choice: str) -> None:
    trouble["hand over x"] = TimeoutError("no answer")
    handle = await past_the_pivot.start("x", id="s-1")
    await lab.settle()
    [question] = await asked(lab, "s-1")
    assert (question.step, question.choices) == ("hand_over", ("retry", "done", "fail"))
    del trouble["hand over x"]
    await answer(lab, "s-1", choice, result="handed over")
    if choice == "fail":
        with pytest.raises(SagaCompensated):
            await lab.result(handle)
        assert told == ["take a", "hand over x", "give back a"]
    else:
        assert await lab.result(handle) == "x"
        assert told == ["take a", "hand over x", *(["hand over x"] if choice == "retry" else []), "look x"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("by", ["cancel", "deadline"])
async def test_while_it_runs_cancel_and_deadline_wait_for_its_outcome(lab: Lab, by: str, fails: bool) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slowly(name: str) -> str:
        begun.set()
        await may_end.wait()
        if fails:
            raise ValueError("no")
        return name

    lab.mock(hand_over, slowly)
    handle = await past_the_pivot.start("x", id="s-1")
    await begun.wait()
    if by == "cancel":
        await handle.cancel("never mind")
        await lab.settle()
    else:
        await lab.advance(timedelta(seconds=61))
    may_end.set()
    if not fails:
        assert await lab.result(handle) == "x"
        assert told == ["take a", "look x"]
        return
    with pytest.raises(SagaCompensated, match="hand_over has failed"):
        await lab.result(handle)
    assert told == ["take a", "give back a"]


@pytest.mark.parametrize("by", ["cancel", "deadline"])
async def test_code_that_goes_on_without_it_is_stopped_then(lab: Lab, by: str) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slowly(name: str) -> str:
        begun.set()
        await may_end.wait()
        raise ValueError("no")

    lab.mock(hand_over, slowly)
    handle = await catching_it.start("x", id="s-1")
    await begun.wait()
    if by == "cancel":
        await handle.cancel("never mind")
        await lab.settle()
    else:
        await lab.advance(timedelta(seconds=61))
    assert told == ["take a"]
    may_end.set()
    with pytest.raises(WorkflowFailed, match="never mind" if by == "cancel" else "TimeoutError: the saga took longer"):
        await lab.result(handle)
    assert told == ["take a", "give back a"]


async def test_they_wait_for_the_pivot_alone_and_not_for_what_runs_beside_it(lab: Lab) -> None:
    begun, may_end, beside = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slowly(name: str) -> str:
        begun.set()
        await may_end.wait()
        return name

    async def looks(name: str) -> str:
        await beside.wait()
        return name

    lab.mock(hand_over, slowly)
    lab.mock(look, looks)
    handle = await beside_the_pivot.start("x", id="s-1")
    await begun.wait()
    await handle.cancel("never mind")
    await lab.settle()
    beside.set()
    await lab.settle()
    may_end.set()
    assert await lab.result(handle) == "x x"


@pytest.mark.parametrize("end", ["done", "fails", "unknown"])
async def test_when_something_beside_it_fails_its_outcome_is_waited_for(lab: Lab, end: str) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slowly(name: str) -> str:
        begun.set()
        await may_end.wait()
        if end != "done":
            raise ValueError("no") if end == "fails" else TimeoutError("no answer")
        return name

    lab.mock(hand_over, slowly)
    trouble["look x"] = ValueError("no such thing")
    handle = await beside_the_pivot.start("x", id="s-1")
    await begun.wait()
    await lab.settle()
    assert told == ["look x"]
    assert await statuses(lab, "s-1") == []
    may_end.set()
    await lab.settle()
    if end == "fails":
        with pytest.raises(SagaCompensated, match="look has failed: ValueError: no such thing"):
            await lab.result(handle)
        return
    if end == "unknown":
        await lab.resolve(handle, "done", "hand_over", "by hand")
    await lab.resolve(handle, "done", "beside_the_pivot", "mended")
    assert await lab.result(handle) == "mended"


@pytest.mark.parametrize("choice", ["done", "fail"])
async def test_one_that_the_code_gives_up_waits_for_a_person_too(lab: Lab, choice: str) -> None:
    handle = await impatient.start("slowly", id="s-1")
    await lab.advance(timedelta(seconds=6))
    [question] = await asked(lab, "s-1")
    assert (question.step, question.choices) == ("hand_over", ("done", "fail"))
    await answer(lab, "s-1", choice, result="it was")
    if choice == "fail":
        with pytest.raises(SagaCompensated, match="TimeoutError"):
            await lab.result(handle)
        assert told == ["take a", "hand over slowly", "give back a"]
        return
    # It was done, and the code has failed all the same.
    assert [one.step for one in await asked(lab, "s-1")] == ["hand_over", "impatient"]
    await answer(lab, "s-1", "done", number=2, result="handed over")
    assert await lab.result(handle) == "handed over"
    assert told == ["take a", "hand over slowly"]


async def test_code_that_fails_after_it_waits_for_a_person(lab: Lab) -> None:
    handle = await failing_after_the_pivot.start("x", id="s-1")
    await handle.signal(go, "on")
    await lab.settle()
    [question] = await asked(lab, "s-1")
    assert (question.step, question.failure.message) == ("failing_after_the_pivot", "a mistake of the code")
    await answer(lab, "s-1", "done", result=7)  # which is no text
    assert [one.failure.type for one in await asked(lab, "s-1")] == ["RuntimeError", "UnreadableMessage"]
    await answer(lab, "s-1", "done", number=2, result="mended by hand")
    assert await lab.result(handle) == "mended by hand"
    assert await state(lab, handle) == "completed"


# --- a person ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("idle", [0.0, 3_600.0])
@pytest.mark.parametrize("choice", ["retry", "done", "skip", "fail"])
async def test_a_step_for_which_a_person_decides(workflow_lab: NewLab, choice: str, idle: float) -> None:
    async with workflow_lab(SERVICE, idle=idle) as lab:
        trouble["take b"] = ValueError("none left")
        handle = await by_hand.start("b", id="s-1")
        await lab.advance(timedelta(days=3))
        assert await statuses(lab, "s-1") == ["NEEDS_ATTENTION"]
        trouble.clear()
        await answer(lab, "s-1", choice, result={"name": "found"})
        if choice == "fail":
            with pytest.raises(SagaCompensated, match="take_by_hand has failed: ValueError: none left"):
                await lab.result(handle)
            assert await statuses(lab, "s-1") == ["NEEDS_ATTENTION", "IN_PROGRESS", *BACK]
            assert told == ["take a", "take b", "give back a"]
            return
        found = {"retry": "Thing(name='b')", "done": "Thing(name='found')", "skip": "None"}
        assert await lab.result(handle) == found[choice]


async def test_the_test_kit_answers_by_name(lab: Lab) -> None:
    trouble["take b"] = ValueError("none left")
    handle = await by_hand.start("b", id="s-1")
    await lab.settle()
    with pytest.raises(SkaldError, match="saga 's-1' does not ask about 'take', but about take_by_hand"):
        await lab.resolve(handle, "skip", "take")
    await lab.resolve(handle, "done", "take_by_hand", {"name": "found"})
    assert await lab.result(handle) == "Thing(name='found')"


async def test_one_try_more_has_the_same_key(lab: Lab) -> None:
    keys: list[str] = []

    async def note(name: str) -> Thing:
        keys.append(workflows.attempt().key)
        if len(keys) < 3:
            raise ValueError("no")
        return Thing(name)

    lab.mock(take_by_hand, note)
    handle = await by_hand.start("b", id="s-1")
    await lab.settle()
    await answer(lab, "s-1", "retry", number=1)
    await answer(lab, "s-1", "retry", number=2)
    await lab.result(handle)
    assert len(keys) == 3
    assert len(set(keys)) == 1


async def test_a_cancel_reaches_one_that_waits_for_a_person(lab: Lab) -> None:
    trouble["take b"] = ValueError("none left")
    handle = await by_hand.start("b", id="s-1")
    await lab.settle()
    await handle.cancel("enough")
    with pytest.raises(WorkflowFailed, match="CancelledError"):
        await lab.result(handle)
    assert await statuses(lab, "s-1") == ["NEEDS_ATTENTION", "IN_PROGRESS", "COMPENSATING", "CANCELLED"]


async def test_a_deadline_does_not_wait_for_a_person(lab: Lab) -> None:
    trouble["take b"] = ValueError("none left")
    handle = await by_hand_in_time.start("b", id="s-1")
    await lab.advance(timedelta(seconds=59))
    assert await statuses(lab, "s-1") == ["NEEDS_ATTENTION"]
    with pytest.raises(SagaCompensated, match="TimeoutError: the saga took longer than deadline=60 s"):
        await lab.result(handle)
    assert told == ["take a", "take b", "give back a"]


async def test_two_questions_at_once(lab: Lab) -> None:
    heard: list[telemetry.Occurrence] = []
    stop = telemetry.listen(heard.append)
    trouble.update({"take b": ValueError("no"), "take c": ValueError("no")})
    handle = await twice_by_hand.start("x", id="s-1")
    await lab.settle()
    assert [(one.number, one.arguments["name"]) for one in await asked(lab, "s-1")] == [(1, "b"), (2, "c")]
    await answer(lab, "s-1", "skip", number=1)
    assert [one.number for one in await asked(lab, "s-1")] == [1, 2, 2]
    await answer(lab, "s-1", "skip", number=2)
    assert await lab.result(handle) == "[None, None]"
    stop()
    asking = telemetry.SagaNeedsPerson("sagas", "twice_by_hand", "s-1", "NEEDS_ATTENTION", "take_by_hand", "ValueError")
    assert heard == [asking, asking]
    assert (await statuses(lab, "s-1"))[-1] == "IN_PROGRESS"


# --- forward ----------------------------------------------------------------------------------------------------------


async def test_a_forward_step_is_tried_until_it_succeeds(lab: Lab) -> None:
    trouble["insist x"] = OSError("away")
    handle = await insisting.start("x", id="s-1")
    await lab.advance(timedelta(hours=3))
    assert told.count("insist x") > 30
    assert await statuses(lab, "s-1") == []
    trouble.clear()
    assert await lab.result(handle) == "x"


async def test_an_error_with_a_rule_of_its_own_goes_to_a_person(lab: Lab) -> None:
    trouble["insist x"] = Refused("never")
    handle = await insisting.start("x", id="s-1")
    await lab.settle()
    assert told == ["take a", "insist x"]
    await answer(lab, "s-1", "skip")
    assert await lab.result(handle) == "None"


# --- unknown outcomes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "undone"), [("thing", "give back thing"), ("nothing", None)])
async def test_one_that_was_given_up_is_looked_up(lab: Lab, name: str, undone: str | None) -> None:
    handle = await findable.start(name, id="s-1")
    with pytest.raises(SagaCompensated, match="because take_findable has failed: TimeoutError"):
        await lab.result(handle)
    assert told == [f"take {name}", f"find {name}", *([undone] if undone else [])]
    assert not taken


async def test_one_in_a_task_that_nobody_awaits_is_looked_up_too(lab: Lab) -> None:
    trouble["look x"] = ValueError("no")
    with pytest.raises(SagaCompensated):
        await lab.result(await leaving_findable.start("thing", id="s-1"), timedelta(0))
    assert told == ["look x", "take thing", "find thing", "give back thing"]
    assert cut_off == ["thing"]
    assert not taken


async def test_one_that_cannot_be_looked_up_is_undone_too(lab: Lab) -> None:
    trouble["find thing"] = OSError("away")
    with pytest.raises(SagaCompensated):
        await lab.result(await findable.start("thing", id="s-1"))
    assert told[-1] == "give back thing, if anything"


# --- the worker stops -------------------------------------------------------------------------------------------------


async def test_a_compensation_ends_before_the_worker_does(tmp_path: Path) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slowly(thing: object, name: str, failed: object, key: str) -> None:
        told.append("begin to give back")
        begun.set()
        await may_end.wait()
        told.append("given back")

    trouble["look x"] = ValueError("no")
    alone = Service("sagas", workflows=[_taking])
    async with laboratory(alone, folder=tmp_path) as lab:
        lab.mock(give_back.step, slowly)
        await _taking.start("x", id="s-1")
        await begun.wait()
        ending = asyncio.create_task(end_when_it_stops(lab, may_end))
    await ending
    assert told[2:] == ["begin to give back", "given back"]
    async with laboratory(alone, folder=tmp_path) as lab:
        with pytest.raises(SagaCompensated):
            await lab.result(_taking.handle("s-1"))
        assert told[2:] == ["begin to give back", "given back"]


async def test_a_compensation_of_a_process_that_was_replaced_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor runs it, too."""
    monkeypatch.setattr(turner, "PATIENCE", None)  # whoever waits for it waits for ever
    begun = asyncio.Event()

    async def hang(thing: object, name: str, failed: object, key: str) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cut_off.append(name)

    trouble["look x"] = ValueError("no")
    async with laboratory(Service("sagas", workflows=[_taking]), folder=tmp_path) as lab:
        lab.mock(give_back, hang)
        await _taking.start("x", id="s-1")
        await begun.wait()
        await lab._executors[0].stop(lost=True)
    assert cut_off == ["a"]


async def end_when_it_stops(lab: Lab, may_end: asyncio.Event) -> None:
    while not lab._executors[0].turner.stopping:
        await asyncio.sleep(0)
    may_end.set()


async def test_one_that_rests_between_two_attempts_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turner, "PATIENCE", None)  # whoever waits for it waits for ever
    alone = Service("sagas", workflows=[_taking_patiently])
    trouble.update({"look x": ValueError("no"), "tidy x": OSError("away")})
    async with laboratory(alone, folder=tmp_path) as lab:
        handle = await _taking_patiently.start("x", id="s-1")
        await lab.settle()
        assert told == ["look x", "tidy x"]
    trouble.clear()
    async with laboratory(alone, folder=tmp_path) as lab:
        with pytest.raises(SagaCompensated):
            await lab.result(_taking_patiently.handle(handle.id))
    assert told == ["look x", "tidy x", "tidy x"]


@compensation(retry=Retry(immediate=1, delays=(600,)))
async def tidy(name: str) -> None:
    happen(f"tidy {name}")


@step(compensate=tidy)
async def use(name: str) -> None: ...


@saga
async def _taking_patiently(name: str) -> None:
    await use(name)
    await look(name)


@saga
async def _taking(name: str) -> None:
    await take("a")
    await look(name)


# --- crashes ----------------------------------------------------------------------------------------------------------


async def test_a_crash_at_every_commit_of_one_that_a_person_helps_past_its_pivot() -> None:
    async def scenario(lab: Lab) -> tuple[str, list[str]]:
        trouble["look x"] = ValueError("no")
        handle = await past_the_pivot.start("x", id="s-1")
        await lab.settle()
        trouble.clear()
        await answer(lab, "s-1", "retry", number=(await asked(lab, "s-1"))[-1].number)
        return await lab.result(handle), await statuses(lab, "s-1")

    results = await crash_everywhere(scenario, SERVICE)
    assert all(result == ("x", ["NEEDS_ATTENTION", "IN_PROGRESS"]) for result in results)
    assert len(results) > 9
