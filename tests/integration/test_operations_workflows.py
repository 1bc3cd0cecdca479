"""Workflows looked after from outside: found, started, told something, and tried on other code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from skald import NEVER, App, Service, step, workflow
from skald.errors import (
    ConfigurationError,
    Diverged,
    UnreadableMessage,
    WorkflowBusy,
    WorkflowEnded,
    WorkflowFailed,
    WorkflowMismatch,
)
from skald.operations import NotFound, UnknownName
from skald.operations import workflows as operations
from skald.operations.workflows import Broken, EntryView
from skald.unit import WorkflowState
from skald.workflows import Signal, context, saved
from skald.workflows.executor import ExecutorSettings
from tests.simulation.stage import QUICK, eventually


class Order(msgspec.Struct, frozen=True):
    id: str
    total: int = 0


done: list[str] = []
approval = Signal("approval", str)


@step
async def charge(order: Order) -> str:
    done.append(f"charge {order.id}")
    return f"paid {order.total}"


@step
async def ship(order: Order) -> str:
    done.append(f"ship {order.id}")
    return f"shipped {order.id}"


@step(retry=NEVER)
async def decline(order: Order) -> str:
    raise LookupError("no card at postgresql://me:secret@db/x")


@step(name="decline")
async def accept(order: Order) -> str:
    return f"accepted {order.id}"


@step
async def hang(order: Order) -> None:
    done.append(f"hang {order.id}")
    await asyncio.Event().wait()


@workflow
async def deliver(order: Order, note: str = "") -> list[str]:
    return [await charge(order), await approval.receive(), await ship(order)]


@workflow(name="deliver")
async def deliver_changed(order: Order, note: str = "") -> list[str]:
    return [await ship(order), await charge(order)]


@workflow(name="deliver")
async def deliver_mistaken(order: Order, note: str = "") -> list[str]:
    await charge(order)
    raise TypeError("a mistake at postgresql://me:secret@db/x")


class Sale(msgspec.Struct, frozen=True):
    number: int


@workflow(name="deliver")
async def deliver_sale(order: Sale) -> list[str]:
    return []


@workflow
async def declined(order: Order) -> list[str]:
    return [await charge(order), await decline(order)]


@workflow(name="declined")
async def declined_mended(order: Order) -> list[str]:
    return [await charge(order), await accept(order)]


@workflow
async def cleaning(order: Order) -> str:
    try:
        await hang(order)
    except asyncio.CancelledError:
        await ship(order)
        raise
    return "never"


@workflow
async def family(order: Order) -> list[str]:
    return await deliver.run(order, id=f"{order.id}/child")


@workflow
async def patient(order: Order) -> str:
    await asyncio.sleep(3_600)  # sleep: a durable timer
    return "late"


@workflow
async def varied(order: Order) -> str:
    """A timer, a patch, random numbers, a failure, a signal, and a reason that is no JSON."""
    await asyncio.sleep(0.001 * context.random().random())  # sleep: a durable timer
    try:
        if context.patched("with a card"):
            await decline(order)
    except Exception:
        await approval.receive()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as error:
        done.append(f"cancelled {error}")
    return await charge(order)


@workflow
async def counting(n: int) -> int:
    await charge(Order(str(n)))
    if n < 2:
        context.continue_as_new(n + 1)
    return n


WORKFLOWS = (deliver, declined, cleaning, family, patient, varied, counting)


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


def app_of(url: str, *workflows: Any) -> App:
    return App(Service("orders", workflows=workflows or WORKFLOWS), store=url, settings=QUICK)


@asynccontextmanager
async def playing(url: str, *workflows: Any) -> AsyncIterator[App]:
    """An operator beside the running service, with a program of his own that does not have its workflows."""
    app = app_of(url, *workflows)
    await app.migrate()
    async with app.run():
        yield app_of(url, patient)


async def reaches(app: App, id: str, state: str) -> None:
    async def check() -> None:
        assert (await operations.show_workflow(app, id)).workflow.state == state

    await eventually(check)


async def charged(app: App, id: str) -> None:
    """It is journalled, and not only done."""
    await eventually(lambda: _has_entries(app, id, "step_done"))


async def _has_entries(app: App, id: str, *kinds: str) -> bool:
    try:
        found = await operations.show_workflow(app, id)
    except NotFound:
        return False
    return set(kinds) <= {entry.kind for entry in found.journal}


# --- looking ----------------------------------------------------------------------------------------------------------


async def test_workflows_are_listed_newest_first_with_what_they_wait_for(url: str) -> None:
    async with playing(url) as operator:
        await deliver.start(Order("a"), id="a", key="basket")
        with pytest.raises(WorkflowFailed):
            await declined.run(Order("b"), id="b")
    operator = app_of(url)
    await operations.start_workflow(operator, "patient", ['{"id": "c"}'], id="c", delay=60)
    await operations.start_workflow(operator, "deliver", ['{"id": "d"}'], id="d")

    found = await operations.list_workflows(operator)
    views = {view.id: view for view in found.workflows}

    assert ([view.id for view in found.workflows], found.more) == (["d", "c", "b", "a"], False)
    assert [view.state for view in found.workflows] == ["scheduled", "scheduled", "failed", "running"]
    assert (views["d"].waits_for, views["b"].waits_for) == ("a process", None)
    assert views["c"].started_at < str(views["c"].waits_for) < "3"
    assert (views["a"].key, views["a"].service, views["a"].workflow) == ("basket", "orders", "deliver")
    assert views["b"].error == "LookupError"
    assert views["b"].ended_at is not None
    assert [view.error for view in found.workflows].count(None) == 3
    assert all(0 <= view.seconds < 60 for view in found.workflows)


async def test_a_selection_and_a_limit_choose(url: str) -> None:
    operator = app_of(url)
    await operator.migrate()
    for name, id in (("deliver", "a"), ("patient", "b"), ("deliver", "c")):
        await operations.start_workflow(operator, name, ['{"id": "o"}'], id=id)

    async def ids(**wanted: Any) -> tuple[list[str], bool]:
        found = await operations.list_workflows(operator, **wanted)
        return [view.id for view in found.workflows], found.more

    assert await ids(workflow="deliver") == (["c", "a"], False)
    assert await ids(limit=2) == (["c", "b"], True)
    assert await ids(limit=3) == (["c", "b", "a"], False)
    assert await ids(states=[WorkflowState.RUNNING, WorkflowState.FAILED]) == ([], False)
    assert await ids(states=[WorkflowState.SCHEDULED, WorkflowState.FAILED], limit=1) == (["c"], True)


async def test_of_a_workflow_that_continued_as_another_run_the_last_one_is_listed(url: str) -> None:
    async with playing(url) as operator:
        assert await counting.run(0, id="a") == 2
        listed = await operations.list_workflows(operator)
        earlier = await operations.list_workflows(operator, states=[WorkflowState.CONTINUED])

    assert [view.state for view in listed.workflows] == ["completed"]
    assert [view.state for view in earlier.workflows] == ["continued", "continued"]


async def test_a_workflow_is_shown_with_all_that_is_known_of_it(url: str) -> None:
    async with playing(url) as operator:
        with pytest.raises(WorkflowFailed):
            await declined.run(Order("a", 7), id="a")
        await family.start(Order("f"), id="f")
        await charged(operator, "f/child")
        child = await operations.show_workflow(operator, "f/child")
        await operations.pause_workflow(operator, "f/child")
        await reaches(operator, "f/child", "paused")
        await operations.signal_workflow(operator, "approval", '"yes"', id="f/child")
        await operations.cancel_workflow(operator, "f/child", reason="12")
        paused = await operations.show_workflow(operator, "f/child")
    failed, parent = [await operations.show_workflow(operator, id) for id in ("a", "f")]

    assert failed.input == {"order": {"id": "a", "total": 7}}
    assert failed.outcome == {"type": "LookupError", "message": "no card at postgresql://me:***@db/x"}
    first, second = failed.journal
    assert (first.position, first.kind, first.name, first.payload) == (1, "step_done", "charge", "paid 7")
    assert (second.kind, second.payload["message"]) == ("step_failed", "no card at postgresql://me:***@db/x")
    assert child.parent == "f"
    assert [view.id for view in parent.children] == ["f/child"]
    assert [(letter.kind, letter.name, letter.payload) for letter in paused.letters] == [
        ("signal", "approval", "yes"),
        ("cancel", "", "12"),
    ]
    assert (paused.workflow.waits_for, paused.outcome["type"]) == ("resume", "Paused")


# --- starting and telling ---------------------------------------------------------------------------------------------


async def test_what_is_started_from_outside_is_what_the_program_itself_would_start(url: str) -> None:
    operator = app_of(url)
    await operator.migrate()
    started = await operations.start_workflow(operator, "deliver", ['{"total": 7, "id": "a"}', '""'], id="a", key="k")
    again = await operations.start_workflow(operator, "deliver", ['{"id": "a", "total": 7}'], id="a")
    assert (started.started, started.running, started.state) == (True, False, "scheduled")
    assert again.started is False

    async with playing(url) as operator:
        handle = await deliver.start(Order("a", 7), id="a")
        told = await operations.signal_workflow(operator, "approval", '"go"', key="k")
        assert await handle.result() == ["paid 7", "go", "shipped a"]
    assert (told.id, told.running) == ("a", True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (['{"id": "a", "total": "much"}'], "the arguments of deliver: order.total: Expected `int`, got `str`"),
        (["{}"], "deliver: order.id: is missing"),
        ([], "deliver: order: is missing"),
        (['{"id": "a"}', '""', "1"], r"takes 2 arguments (order, note), and 3 were given"),
        (['{"id": "a"}', "urgent"], "argument 2: 'urgent' is no JSON"),
        (["\udcff"], "argument 1"),
    ],
)
async def test_wrong_arguments_are_refused_by_name_and_nothing_is_started(
    tmp_path: Path, arguments: list[str], text: str
) -> None:
    operator = app_of(f"sqlite:{tmp_path}")
    await operator.migrate()
    with pytest.raises(ConfigurationError) as refused:
        await operations.start_workflow(operator, "deliver", arguments, id="a")
    assert text in str(refused.value)
    assert (await operations.list_workflows(operator)).workflows == []


async def test_an_id_with_other_arguments_is_refused(url: str) -> None:
    operator = app_of(url)
    await operator.migrate()
    await operations.start_workflow(operator, "deliver", ['{"id": "a"}'], id="a")
    with pytest.raises(WorkflowMismatch, match="other arguments"):
        await operations.start_workflow(operator, "deliver", ['{"id": "b"}'], id="a")
    with pytest.raises(UnknownName, match="did you mean 'deliver'"):
        await operations.start_workflow(operator, "delivr", [], id="b")


async def test_a_cancelled_workflow_cleans_up_and_a_terminated_one_does_not(url: str) -> None:
    async with playing(url) as operator:
        first, second = [await cleaning.start(Order(id), id=id) for id in ("a", "b")]
        await eventually(lambda: _has_done("hang a", "hang b"))
        await operations.cancel_workflow(operator, "a", reason="too late")
        with pytest.raises(WorkflowFailed, match="Cancelled"):
            await first.result()
        await operations.terminate_workflow(operator, "b", reason="é" * 3_000)
        with pytest.raises(WorkflowFailed, match="Terminated: éé"):
            await second.result()
        states = [(await operations.show_workflow(operator, id)).workflow.state for id in ("a", "b")]
        with pytest.raises(WorkflowEnded, match="'b' has ended: terminated"):
            await operations.cancel_workflow(operator, "b")
    assert states == ["cancelled", "terminated"]
    assert "ship a" in done
    assert "ship b" not in done


async def _has_done(*what: str) -> bool:
    return set(what) <= set(done)


async def test_a_long_reason_in_other_letters_does_not_stop_a_workflow(url: str) -> None:
    async with playing(url) as operator:
        handle = await cleaning.start(Order("a"), id="a")
        await operations.cancel_workflow(operator, "a", reason="x" + "€" * 3_000)
        with pytest.raises(WorkflowFailed, match="Cancelled"):
            await handle.result()


async def test_a_paused_workflow_goes_on_only_when_it_is_resumed(url: str) -> None:
    async with playing(url) as operator:
        handle = await deliver.start(Order("a"), id="a")
        await charged(operator, "a")
        await operations.pause_workflow(operator, "a")
        await reaches(operator, "a", "paused")
        with pytest.raises(WorkflowBusy, match="paused already"):
            await operations.pause_workflow(operator, "a")
        told = await operations.signal_workflow(operator, "approval", '"go"', id="a")
        # Whoever delivers this one's letter has seen the other's too.
        other = await deliver.start(Order("b"), id="b")
        await operations.signal_workflow(operator, "approval", '"go"', id="b")
        await other.result()
        assert "ship a" not in done
        assert told.state == "paused"

        resumed = await operations.resume_workflow(operator, "a")
        assert await handle.result() == ["paid 0", "go", "shipped a"]
        with pytest.raises(WorkflowBusy, match="is completed, and not paused"):
            await operations.resume_workflow(operator, "a")
    assert resumed.state in ("running", "completed")
    assert done.count("charge a") == 1


async def test_a_failed_workflow_is_retried_on_mended_code(url: str) -> None:
    async with playing(url) as operator:
        with pytest.raises(WorkflowFailed):
            await declined.run(Order("a"), id="a")
    async with playing(url, declined_mended) as operator:
        told = await operations.retry_workflow(operator, "a")
        assert await declined_mended.handle("a").result() == ["paid 0", "accepted a"]
        with pytest.raises(WorkflowBusy, match="is completed, and not failed"):
            await operations.retry_workflow(operator, "a")
    assert told.state in ("running", "completed")
    assert done == ["charge a"]


async def test_a_running_service_hears_of_it_at_once(url: str) -> None:
    app = app_of(url)
    app.settings = replace(QUICK, workflows=ExecutorSettings(poll=600.0))
    await app.migrate()
    async with app.run():
        operator = app_of(url)
        await operations.start_workflow(operator, "deliver", ['{"id": "a"}'], id="a")
        await charged(operator, "a")
        await operations.pause_workflow(operator, "a")
        await reaches(operator, "a", "paused")
        await operations.signal_workflow(operator, "approval", '"go"', id="a")
        await operations.resume_workflow(operator, "a")
        await reaches(operator, "a", "completed")


async def test_an_id_that_nobody_has_is_said_to_be_wrong(url: str) -> None:
    operator = app_of(url)
    await operator.migrate()
    for use in (
        operations.show_workflow,
        operations.workflow_history,
        operations.cancel_workflow,
        operations.terminate_workflow,
        operations.pause_workflow,
        operations.resume_workflow,
        operations.retry_workflow,
        partial(operations.signal_workflow, signal="approval", payload="1"),
    ):
        with pytest.raises(NotFound, match=r"'nobody'.*skald workflows list"):
            await use(operator, id="nobody")
    with pytest.raises(NotFound, match="the key 'nobody'"):
        await operations.signal_workflow(operator, "approval", "1", key="nobody")


async def test_which_service_is_clear_or_asked_for(tmp_path: Path) -> None:
    two = App(
        Service("orders", workflows=[deliver]), Service("stock", workflows=[patient]), Service("mail"),
        store=f"sqlite:{tmp_path}",
    )  # fmt: skip
    await two.migrate()
    with pytest.raises(ConfigurationError, match="--service: orders, stock"):
        await operations.list_workflows(two)
    with pytest.raises(UnknownName, match="did you mean 'stock'"):
        await operations.list_workflows(two, "stck")
    await operations.start_workflow(two, "patient", ['{"id": "a"}'], id="a", service="stock")
    assert len((await operations.list_workflows(two, "stock")).workflows) == 1
    assert (await operations.list_workflows(two, "orders")).workflows == []
    with pytest.raises(ConfigurationError, match="no service of this application has workflows"):
        await operations.list_workflows(App(Service("mail"), store=f"sqlite:{tmp_path}"))


# --- on the present code ----------------------------------------------------------------------------------------------


async def test_a_check_finds_what_would_break(url: str) -> None:
    async with playing(url) as operator:
        for n in range(3):
            await deliver.start(Order(f"d{n}"), id=f"d{n}")
            await charged(operator, f"d{n}")
        await family.start(Order("f"), id="f")
        await patient.start(Order("p"), id="p")
        await charged(operator, "f/child")
        with pytest.raises(WorkflowFailed):
            await declined.run(Order("b"), id="b")
    await operations.start_workflow(app_of(url), "deliver", ['{"id": "new"}'], id="new")

    same = await operations.check_workflows(app_of(url))
    changed = await operations.check_workflows(app_of(url, deliver_changed, family, patient))
    mistaken = await operations.check_workflows(app_of(url, deliver_mistaken, family, patient))
    retyped = await operations.check_workflows(app_of(url, deliver_sale, family, patient))
    gone = await operations.check_workflows(app_of(url, patient))

    assert (same.checked, same.broken) == (7, [])
    assert {one.id for one in changed.broken} == {"d0", "d1", "d2", "f/child"}
    assert changed.checked == 7
    assert changed.broken[0].id == "d0"
    assert changed.broken[0].reason.startswith("at position 1 the history has the end of charge#1")
    assert "waits for ship#1" in changed.broken[0].reason
    assert mistaken.broken[0].reason == "it fails at once: TypeError: a mistake at postgresql://me:***@db/x"
    assert "order.number: is missing" in retyped.broken[0].reason
    assert {one.id for one in retyped.broken} == {"d0", "d1", "d2", "f/child", "new"}
    assert gone.broken[-1] == Broken("orders", "new", "deliver", "there is no workflow 'deliver' in this program")
    assert len(gone.broken) == 6


async def test_a_check_goes_through_in_batches_up_to_its_limit(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "BATCH", 2)
    async with playing(url) as operator:
        for n in range(5):
            await deliver.start(Order(f"d{n}"), id=f"d{n}")
            await charged(operator, f"d{n}")
    changed = app_of(url, deliver_changed)
    assert [one.id for one in (await operations.check_workflows(changed)).broken] == [f"d{n}" for n in range(5)]
    some = await operations.check_workflows(changed, ["orders"], limit=3)
    assert (some.checked, [one.id for one in some.broken]) == (3, ["d0", "d1", "d2"])


async def test_a_check_changes_nothing_and_may_run_beside_the_service(url: str) -> None:
    async with playing(url) as operator:
        handle = await deliver.start(Order("a"), id="a")
        await charged(operator, "a")
        operator = app_of(url)
        before = await operations.show_workflow(operator, "a")
        assert (await operations.check_workflows(operator)).checked == 1
        after = await operations.show_workflow(operator, "a")
        await handle.signal(approval, "go")
        await handle.result()
    assert (before.journal, before.letters) == (after.journal, after.letters)
    assert done == ["charge a", "ship a"]


async def saved_history(url: str, folder: Path, id: str) -> saved.History:
    found = await operations.workflow_history(app_of(url), id)
    saved.write(found, folder / f"{id}.json")
    return saved.read(folder / f"{id}.json")


async def test_a_saved_history_is_the_same_and_replays_to_the_same_place(url: str, tmp_path: Path) -> None:
    async with playing(url) as operator:
        handle = await varied.start(Order("v", 3), id="v")
        await eventually(lambda: _has_entries(operator, "v", "timer", "patch", "step_failed"))
        await operations.signal_workflow(operator, "approval", '"ü {"', id="v")
        await eventually(lambda: _has_entries(operator, "v", "signal"))
        await operations.cancel_workflow(operator, "v", reason="no JSON: {")
        result = await handle.result()
        await deliver.start(Order("d"), id="d")
        await charged(operator, "d")
        shown = await operations.show_workflow(operator, "v")
    history, waiting = [await saved_history(url, tmp_path, id) for id in ("v", "d")]
    app, seen = app_of(url), list[EntryView]()
    done.clear()

    ended, waits = await asyncio.to_thread(
        lambda: [operations.replay_history(app, one, tell=seen.append) for one in (history, waiting)]
    )

    assert (ended.state, ended.outcome, ended.waits_for, ended.entries) == ("completed", result, [], len(shown.journal))
    assert seen[:-1] == shown.journal
    assert [entry.payload for entry in seen if entry.kind == "cancel"] == ["no JSON: {"]
    assert (waits.state, waits.outcome, waits.waits_for) == (None, None, ["the signal approval"])
    assert done == ["cancelled no JSON: {"]


async def test_a_history_on_other_code_is_told_up_to_where_it_differs(url: str, tmp_path: Path) -> None:
    async with playing(url) as operator:
        await deliver.start(Order("d"), id="d")
        await charged(operator, "d")
    history, seen = await saved_history(url, tmp_path, "d"), list[EntryView]()

    def replay(changed: Any) -> operations.Replayed:
        return operations.replay_history(app_of(url, changed), history, tell=seen.append)

    with pytest.raises(Diverged, match="at position 1 the history has the end of charge"):
        await asyncio.to_thread(replay, deliver_changed)
    assert [entry.name for entry in seen] == ["charge"]
    failed = await asyncio.to_thread(replay, deliver_mistaken)
    assert failed.state == "failed"
    assert failed.outcome["message"] == "a mistake at postgresql://me:***@db/x"
    assert "in deliver_mistaken\n" in str(failed.traceback)
    with pytest.raises(UnknownName, match="no workflow 'deliver'"):
        await asyncio.to_thread(replay, patient)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"workflow": 1}',
        '{"workflow":"w","id":"i","run":"r","started_at":0,"input":1,"entries":[{"position":1,"kind":"x","time":0}]}',
        '{"workflow":"w","id":"i","run":"r","started_at":0,"input":1,'
        '"entries":[{"position":1,"kind":"timer","time":0,"digest":"xyz"}]}',
        '{"workflow":"w","id":"i","run":"r","started_at":0,"input":1,'
        '"entries":[{"position":1,"kind":"timer","time":0,"base64":"?"}]}',
    ],
)
def test_a_file_that_holds_no_history_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kept.json"
    path.write_text(text)
    with pytest.raises(UnreadableMessage, match=r"kept\.json cannot be read"):
        saved.read(path)
