"""Sagas looked after from outside: listed by their status, shown with what they ask, and answered, on both stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from skald import App, SagaCompensated, Service, lock, saga, workflow
from skald.errors import ConfigurationError, WorkflowBusy
from skald.operations import NotFound, OperationRefused, workflows
from skald.operations import sagas as operations
from skald.sagas.machine import Status
from skald.sagas.question import Choice
from skald.workflows import Signal, saved
from skald.workflows.client import outside
from tests.simulation.stage import QUICK, eventually
from tests.unit.saga_programs import begin_anew, taken, three, told, trouble
from tests.unit.test_saga_forward import by_hand, twice_by_hand

go = Signal("go", str)


@workflow
async def no_saga(name: str) -> str:
    return name


@pytest.fixture(autouse=True)
def world() -> None:
    begin_anew()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


@asynccontextmanager
async def playing(url: str) -> AsyncIterator[App]:
    """An operator beside the running service, with a program of his own that does not have its sagas."""
    app = App(Service("orders", workflows=[three, by_hand, twice_by_hand, keep, no_saga]), store=url, settings=QUICK)
    await app.migrate()
    async with app.run():
        yield App(Service("orders", workflows=[workflow(name="other")(no_saga.function)]), store=url, settings=QUICK)


async def reaches(app: App, id: str, status: Status) -> None:
    async def check() -> bool:
        return any(one.id == id and one.status == status for one in (await operations.list_sagas(app)).sagas)

    await eventually(check)


async def stuck(app: App, id: str = "s-1") -> None:
    trouble.update({"look x": ValueError("no"), "give back b": OSError("closed at postgresql://me:secret@db/x")})
    await three.start("x", id=id)
    await reaches(app, id, Status.COMPENSATION_FAILED)


async def resolve(app: App, choice: Choice, step: str = "take", id: str = "s-1", **options: Any) -> None:
    await operations.resolve_saga(app, id, choice, step, by="ann", reason="called them", **options)


@saga
async def keep(key: str) -> None:
    await lock(key)
    await go.receive()


async def test_locks_are_listed_with_who_waits(url: str) -> None:
    async with playing(url) as app:

        async def listed(expected: list[tuple[str, int, str]], **options: Any) -> bool:
            found = await operations.list_locks(app, **options)
            return [(one.key, one.place, one.id) for one in found.locks] == expected

        for id, key in (("a", "k"), ("b", "k"), ("c", "k"), ("d", "l")):
            await keep.start(key, id=id)
            await eventually(partial(listed_for, app, id))
        await eventually(partial(listed, [("k", 0, "a"), ("k", 1, "b"), ("k", 2, "c"), ("l", 0, "d")]))
        assert await listed([("l", 0, "d")], key="l")
        found = await operations.list_locks(app, limit=1)
        assert (found.more, found.locks[0].saga, found.locks[0].state, found.locks[0].since[-1]) == (
            True, "keep", "held", "Z",
        )  # fmt: skip
        await keep.handle("b").terminate()
        await keep.handle("a").signal(go, "on")
        await eventually(partial(listed, [("k", 0, "c"), ("l", 0, "d")]))


async def listed_for(app: App, id: str) -> bool:
    return any(one.id == id for one in (await operations.list_locks(app)).locks)


async def test_sagas_are_listed_by_status(url: str) -> None:
    async with playing(url) as app:
        await no_saga.run("x", id="w-1")
        await three.run("fine", id="s-0")
        await stuck(app)
        found = await operations.list_sagas(app)
        assert [(one.id, one.saga, one.status, one.current_step) for one in found.sagas] == [
            ("s-1", "three", Status.COMPENSATION_FAILED, "take"), ("s-0", "three", Status.COMPLETED, "look"),
        ]  # fmt: skip
        stuck_ones = await operations.list_sagas(app, statuses=[Status.COMPENSATION_FAILED, Status.NEEDS_ATTENTION])
        assert [one.id for one in stuck_ones.sagas] == ["s-1"]
        assert (await operations.list_sagas(app, limit=1)).more


@pytest.mark.parametrize("choice", [Choice.RETRY, Choice.DONE, Choice.SKIP])
async def test_a_compensation_that_gave_up_is_resolved_and_it_goes_on(url: str, choice: Choice) -> None:
    async with playing(url) as app:
        await stuck(app)
        if choice == Choice.RETRY:
            del trouble["give back b"]
        await resolve(app, choice)
        with pytest.raises(SagaCompensated, match="look has failed"):
            await three.handle("s-1").result()
        assert told[-1] == "give back a"
        assert len(taken) == (0 if choice == Choice.RETRY else 1)
        shown = await operations.show_saga(app, "s-1")
        [answer] = [change for change in shown.changes if change.choice is not None]
        assert (answer.step, answer.choice, answer.by, answer.reason) == ("take", choice, "ann", "called them")
        assert shown.saga.status == Status.COMPENSATED


async def test_one_is_shown_with_everything_that_a_person_needs(url: str) -> None:
    async with playing(url) as app:
        await stuck(app)
        shown = await operations.show_saga(app, "s-1")
        assert shown.input == {"name": "x"}
        [question] = shown.questions
        assert (question.number, question.step, question.compensation) == (1, "take", "give_back")
        assert (question.arguments, question.result) == ({"name": "b"}, {"name": "b"})
        assert question.failure == "OSError: closed at postgresql://me:***@db/x"
        assert question.because == "ValueError: no"
        changes = [(one.status, one.step, one.failure) for one in shown.changes]
        assert changes == [
            ("COMPENSATING", "look", "ValueError: no"), ("COMPENSATION_FAILED", "take", question.failure),
        ]  # fmt: skip


async def test_a_step_gets_the_result_that_a_person_gives(url: str) -> None:
    async with playing(url) as app:
        trouble["take b"] = ValueError("none left")
        handle = await by_hand.start("b", id="s-1")
        await reaches(app, "s-1", Status.NEEDS_ATTENTION)
        await resolve(app, Choice.DONE, "take_by_hand", result='{"name": "found"}')
        assert await handle.result() == "Thing(name='found')"


async def test_wrong_answers_are_refused_with_what_would_be_right(url: str) -> None:
    async with playing(url) as app:
        with pytest.raises(NotFound, match="no saga with the id 's-1'; see them with: skald sagas list"):
            await resolve(app, Choice.SKIP)
        await three.run("fine", id="s-0")
        with pytest.raises(OperationRefused, match="saga 's-0' is COMPLETED, and asks nothing"):
            await resolve(app, Choice.SKIP, id="s-0")
        await stuck(app)
        with pytest.raises(NotFound, match="does not ask about 'look', but about: take#1"):
            await resolve(app, Choice.SKIP, "look")
        with pytest.raises(OperationRefused, match="take cannot be answered by 'fail'; use: retry, done, skip"):
            await resolve(app, Choice.FAIL)
        with pytest.raises(ConfigurationError, match="a result is what a step would have returned"):
            await resolve(app, Choice.DONE, result="1")
        with pytest.raises(ConfigurationError, match="'found' is no JSON"):
            await resolve(app, Choice.DONE, result="found")
        with pytest.raises(ConfigurationError, match="say why"):
            await operations.resolve_saga(app, "s-1", Choice.SKIP, "take", by="ann", reason=" ")
        trouble.update({"take b": ValueError("no"), "take c": ValueError("no")})
        await twice_by_hand.start("x", id="s-2")
        await eventually(lambda: _asks(app, "s-2", 2))
        with pytest.raises(ConfigurationError, match="several times, name one: take_by_hand#1, take_by_hand#2"):
            await resolve(app, Choice.SKIP, "take_by_hand", "s-2")
        await resolve(app, Choice.SKIP, "take_by_hand#2", "s-2")
        await eventually(lambda: _asks(app, "s-2", 1))
        await resolve(app, Choice.SKIP, "take_by_hand", "s-2")
        assert await twice_by_hand.handle("s-2").result() == "[None, None]"


async def _asks(app: App, id: str, number: int) -> bool:
    return len((await operations.show_saga(app, id)).questions) == number


async def test_an_answer_waits_for_a_process_and_is_given_once(url: str) -> None:
    async with playing(url) as app:
        await stuck(app)
    await resolve(app, Choice.SKIP)
    with pytest.raises(OperationRefused, match="has been answered, and no process has taken that up yet"):
        await resolve(app, Choice.RETRY)
    async with playing(url):
        with pytest.raises(SagaCompensated):
            await three.handle("s-1").result()


async def test_an_answer_is_for_the_run_that_asked(url: str) -> None:
    """Not for the next one of its id, which asks by the same number."""
    async with playing(url) as app:
        await stuck(app)
    await resolve(app, Choice.SKIP)
    await workflows.terminate_workflow(app, "s-1", reason="it begins anew")
    async with playing(url) as app:
        await reaches(app, "s-1", Status.TERMINATED)
        await three.start("x", id="s-1", existing="restart")
        await reaches(app, "s-1", Status.COMPENSATION_FAILED)
        await resolve(app, Choice.DONE)
        with pytest.raises(SagaCompensated):
            await three.handle("s-1").result()
        shown = await operations.show_saga(app, "s-1")
        assert [change.choice for change in shown.changes if change.choice is not None] == [Choice.DONE]


async def test_one_that_was_compensated_is_not_retried(url: str) -> None:
    async with playing(url) as app:
        trouble["look x"] = ValueError("no")
        with pytest.raises(SagaCompensated):
            await three.run("x", id="s-1")
        with pytest.raises(WorkflowBusy, match=r"saga 's-1' was compensated.*start it again"):
            await workflows.retry_workflow(app, "s-1")
        trouble.clear()
        assert await three.run("x", id="s-1", existing="restart") == "a b"
        assert told[-3:] == ["take a", "take b", "look x"]


async def test_a_saved_history_is_replayed_to_its_end(url: str, tmp_path: Path) -> None:
    async with playing(url) as app:
        await stuck(app)
        await resolve(app, Choice.SKIP)
        with pytest.raises(SagaCompensated):
            await three.handle("s-1").result()
        saved.write(await workflows.workflow_history(app, "s-1"), tmp_path / "s-1.json")
    history = saved.read(tmp_path / "s-1.json")
    same, lines = App(Service("orders", workflows=[three]), store=url), list[workflows.EntryView]()
    found = await outside(lambda: workflows.replay_history(same, history, tell=lines.append))
    assert found.state == "failed"
    assert found.outcome == {"type": "ValueError", "message": "no", "step": "look", "compensated": True}
    assert [one.name for one in lines if one.kind == "status"] == [
        "COMPENSATING", "COMPENSATION_FAILED", "COMPENSATING", "COMPENSATED",
    ]  # fmt: skip


async def test_a_check_replays_open_sagas(url: str) -> None:
    async with playing(url) as app:
        await stuck(app)
        same = App(Service("orders", workflows=[three]), store=url, settings=QUICK)
        assert (await workflows.check_workflows(same)).broken == []
        assert len((await workflows.check_workflows(app)).broken) == 1
