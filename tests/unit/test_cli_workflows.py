"""Workflows at the command line: what is printed, how it ends, and what is said about wrong input."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from skald.app import App
from skald.cli.application import load
from skald.errors import WorkflowFailed
from tests.simulation.stage import QUICK, eventually
from tests.unit.command_line import Run

PROGRAM = """
import msgspec
from skald import NEVER, App, Service, step, workflow
from skald.workflows import Query, Signal, Update

class Order(msgspec.Struct, frozen=True):
    id: str
    total: int = 0

approval = Signal("approval", str)
status = Query("status", str)
rename = Update("rename", str, str)

@step
async def charge(order: Order) -> str:
    return f"paid {order.total} \\x1b[31m" + "x" * 200

@step(retry=NEVER)
async def ship(order: Order) -> str:
    raise ValueError("lost\\nfake line at postgresql://me:secret@db/x")

@workflow
async def deliver(order: Order, note: str = "") -> str:
    print("printed by the workflow")

    @status.answered_by
    def _() -> str:
        return f"waits \\x1b[31m with {note!r}"

    @rename.handled_by
    async def _(new: str) -> str:
        nonlocal note
        before, note = note, new
        return before

    await charge(order)
    await approval.receive()
    return await ship(order)

orders = Service("orders", workflows=[deliver])
mail = Service("mail")
app = App(orders, mail, store="sqlite:data")
"""
CHANGED = PROGRAM.replace("await charge(order)", "await ship(order)")
MISTAKEN = PROGRAM.replace("await approval.receive()", "raise RuntimeError('no' + chr(27))")


@pytest.fixture
def played(program: str) -> App:
    """Two workflows: order:1 waits for an approval, and order:2 has failed."""
    app = load(program)
    app.settings = QUICK
    module = sys.modules[program.partition(":")[0]]

    async def play() -> None:
        await app.migrate()
        async with app.run("orders"):
            await module.deliver.start(module.Order("1", 7), id="order:1", key="basket")
            handle = await module.deliver.start(module.Order("2"), id="order:2")
            await handle.signal(module.approval, "yes")
            with pytest.raises(WorkflowFailed):
                await handle.result()
            count = "SELECT count(*) AS n FROM skald_journal"
            await eventually(lambda: _is(module.orders, count, 4))

    asyncio.run(play())
    return app


async def _is(service: Any, sql: str, wanted: int) -> bool:
    return bool((await service.fetch(sql))[0]["n"] == wanted)


@contextmanager
def served(app: App) -> Iterator[None]:
    """Its services run, beside the commands."""
    ready, enough = threading.Event(), threading.Event()

    async def serve() -> None:
        async with app.run("orders"):
            ready.set()
            await asyncio.to_thread(enough.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        enough.set()
        thread.join()


def edit(program: str, text: str) -> None:
    module = program.partition(":")[0]
    Path(f"{module}.py").write_text(text)
    sys.modules.pop(module, None)


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["workflows", "lst"], 2, 'Did you mean "list"?'),
        (["workflows", "list", "--state", "runing"], 2, "runing"),
        (["workflows", "list", "--limit", "0"], 2, '"0" for --limit'),
        (["workflows", "list", "--limit", "9" * 20], 2, "--limit"),
        (["check", "--limit", "0"], 2, "--limit"),
        (["check", "--limit", "-1"], 2, "--limit"),
        (["workflows", "show", "\udcff"], 2, "'\\udcff' has bytes that are no text"),
        (["workflows", "list", "--service", "ordrs"], 2, "did you mean 'orders'?"),
        (["workflows", "show"], 2, "give ID"),
        (["workflows", "show", "a", "b", "c"], 2, "give ID"),
        (["workflows", "show", "order:7"], 1, "no workflow with the id 'order:7'"),
        (["workflows", "show", "nowhere:app", "order:7"], 2, "no module 'nowhere'"),
        (["workflows", "history", "order:7"], 1, "no workflow with the id 'order:7'"),
        (["workflows", "start", "--id", "x"], 2, "name the workflow"),
        (["workflows", "start", "deliver", "{}"], 2, "--id"),
        (["workflows", "start", "delivr", "{}", "--id", "x"], 2, "did you mean 'deliver'?"),
        (["workflows", "start", "deliver", "{}", "--id", "x"], 2, "order.id: is missing"),
        (["workflows", "start", "deliver", "{", "--id", "x"], 2, "argument 1: '{' is no JSON"),
        (["workflows", "start", "deliver", '{"id": "1"}', "--id", "x", "--delay", "-1"], 1, "number of seconds"),
        (["workflows", "signal", "x", "approval"], 2, "give ID NAME JSON"),
        (["workflows", "signal", "approval", "--key", "k"], 2, "give NAME JSON"),
        (["workflows", "signal", "x", "approval", "yes"], 2, "strings have quotes"),
        (["workflows", "signal", "x", "approval", '"yes"'], 1, "no workflow with the id 'x'"),
        (["workflows", "signal", "--key", "k", "approval", '"yes"'], 1, "no open workflow with the key 'k'"),
        (["workflows", "query", "x"], 2, "give ID NAME"),
        (["workflows", "query", "x", "status"], 1, "no workflow with the id 'x'"),
        (["workflows", "update", "x", "rename"], 2, "give ID NAME JSON"),
        (["workflows", "update", "x", "rename", "new"], 2, "the update: 'new' is no JSON"),
        (["workflows", "update", "x", "rename", '"new"', "--timeout", "0"], 2, "--timeout 0.0: give a number"),
        (["workflows", "update", "x", "rename", '"new"'], 1, "no workflow with the id 'x'"),
        *((["workflows", do, "x"], 1, "'x'") for do in ("cancel", "terminate", "pause", "resume", "retry")),
        (["workflows", "resume", "x", "--reason", "r"], 2, "--reason"),
        (["check", "--service", "ordrs"], 2, "did you mean 'orders'?"),
        (["replay"], 2, "give FILE"),
        (["replay", "missing.json"], 1, "missing.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_clear_line(skald: Run, arguments: list[str], status: int, text: str) -> None:
    skald("migrate")
    ended = skald(*arguments)
    assert (ended.status, ended.out) == (status, "")
    assert ended.err.startswith("skald: ")
    assert len(ended.err.splitlines()) == 1
    assert text in ended.err


# --- what is printed --------------------------------------------------------------------------------------------------


COMMANDS = [
    ["workflows", "list"],
    ["workflows", "list", "--state", "failed", "--state", "running", "--workflow", "deliver", "--limit", "1"],
    ["workflows", "list", "--workflow", "nobody"],
    ["workflows", "show", "order:1"],
    ["workflows", "show", "order:2", "--full"],
    ["workflows", "history", "order:1"],
    ["workflows", "history", "order:1", "--output", "out.json"],
    ["workflows", "start", "deliver", '{"id": "3"}', "--id", "order:3", "--key", "k", "--delay", "5"],
    ["workflows", "signal", "order:1", "approval", '"yes"'],
    ["workflows", "signal", "--key", "basket", "approval", '"yes"'],
    ["workflows", "query", "order:1", "status"],
    ["workflows", "query", "order:2", "status"],
    ["workflows", "cancel", "order:1", "--reason", "late"],
    ["workflows", "terminate", "order:1", "--reason", "late"],
    ["workflows", "pause", "order:1", "--reason", "late"],
    ["workflows", "retry", "order:2"],
    ["check"],
    ["check", "--service", "orders", "--limit", "1"],
    ["replay", "kept.json"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_with_json_there_is_one_document_and_without_nothing_steers_the_terminal(
    skald: Run, played: App, arguments: list[str]
) -> None:
    skald("workflows", "history", "order:2", "-o", "kept.json")
    first = skald(*arguments, "--json")
    again = skald(*arguments) if "retry" not in arguments else first
    assert (first.status, again.status) == (0, 0)
    assert isinstance(first.document, dict)
    assert "\x1b" not in again.out + again.err
    assert "\nfake line" not in again.out + again.err
    if "history" not in arguments:
        assert "secret" not in again.out + again.err


def test_workflows_are_listed_one_per_line(skald: Run, played: App) -> None:
    lines = skald("workflows", "list").out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["order:2", "deliver", "failed"],
        ["order:1", "deliver", "running"],
    ]
    assert lines[1].endswith("ValueError")
    assert skald("workflows", "list", "--limit", "1").err == "and more: --limit 10\n"
    assert skald("workflows", "list", "--workflow", "other").out == "no workflow fits\n"


def test_payloads_are_cut_unless_all_of_them_is_asked_for(skald: Run, played: App) -> None:
    short, full = (skald("workflows", "show", "order:1", *options).out for options in ((), ("--full",)))
    assert "    1 " in short
    assert "step_done charge#1 " in short
    assert "x" * 200 not in short
    assert "x" * 200 in full
    assert len(skald("workflows", "show", "order:1", "--json").document["journal"][0]["payload"]) > 200


def test_what_nobody_can_take_yet_is_said(skald: Run, played: App) -> None:
    ended = skald("workflows", "start", "deliver", '{"id": "3"}', "--id", "order:3")
    assert ended.out == "orders: deliver order:3 started\n"
    assert ended.err == "no process of orders is running: it is taken when one starts\n"
    assert (
        "was started before, and is scheduled"
        in skald("workflows", "start", "deliver", '{"id": "3"}', "--id", "order:3").out
    )
    skald("workflows", "signal", "order:1", "approval", '"yes"')
    assert 'signal approval "yes"' in skald("workflows", "show", "order:1").out
    assert skald("workflows", "retry", "order:2").out == "orders: deliver order:2 goes on\n"
    ended = skald("workflows", "retry", "order:2")
    assert (ended.status, ended.err) == (1, "skald: workflow 'order:2' is running, and not failed\n")


def test_questions_are_answered_in_json(skald: Run, played: App) -> None:
    refused = skald("workflows", "update", "order:1", "rename", '"Ann"')
    assert (refused.status, refused.out) == (1, "")
    assert refused.err == "skald: no process of orders is running that could answer; nothing was sent\n"
    with served(played):
        # Behind what the workflow itself prints, which runs in this process.
        assert skald("workflows", "update", "order:1", "rename", '"Ann"').out.splitlines()[-1] == '""'
        found = skald("workflows", "update", "order:1", "rename", '"Bob"', "--json").document
        assert (found["workflow"], found["answer"]) == ("deliver", "Ann")
    assert skald("workflows", "query", "order:1", "status").out == "\"waits \\u001b[31m with 'Bob'\"\n"
    wrong = skald("workflows", "query", "order:1", "stats")
    assert (wrong.status, wrong.out) == (1, "")
    assert "answers no query 'stats'; it answers: status" in wrong.err


def test_of_a_paused_one_it_is_said_that_it_does_not_listen(skald: Run, played: App) -> None:
    async def pause() -> None:
        async with played.connect("orders"), played.service("orders").transaction() as tx:
            await tx.execute("UPDATE skald_workflows SET state = 'paused', wake_at = NULL WHERE id = 'order:1'")

    asyncio.run(pause())
    assert skald("workflows", "cancel", "order:1").err.startswith("it is paused: only its end reaches it")
    assert skald("workflows", "pause", "order:1").err == "skald: workflow 'order:1' is paused already\n"
    assert "it is paused" not in skald("workflows", "resume", "order:1").err


# --- on changed code --------------------------------------------------------------------------------------------------


def test_a_check_fails_on_code_that_would_break_a_workflow(skald: Run, program: str, played: App) -> None:
    fine = skald("check")
    assert (fine.status, fine.out) == (0, "1 checked, none would break\n")
    edit(program, CHANGED)
    broken = skald("check")
    assert broken.status == 1
    first, last = broken.out.splitlines()
    assert first.startswith("orders: deliver order:1: at position 1 the history has the end of charge#1")
    assert last == "1 checked, 1 would break"
    ended = skald("check", "--json")
    assert (ended.status, ended.document["checked"], len(ended.document["broken"])) == (1, 1, 1)


@pytest.mark.parametrize("time", ["1000000000000000000", "9" * 30, "-99999999999999999"])
def test_a_history_with_a_time_that_no_date_can_have_is_no_history(skald: Run, played: App, time: str) -> None:
    skald("workflows", "history", "order:1", "-o", "1.json")
    text = re.sub(r'"time": \d+', f'"time": {time}', Path("1.json").read_text(), count=1)
    Path("1.json").write_text(text)
    ended = skald("replay", "1.json")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("skald: the history 1.json cannot be read: ")


def test_a_replay_prints_each_entry_and_where_it_ends(skald: Run, program: str, played: App) -> None:
    for id in ("1", "2"):
        assert skald("workflows", "history", f"order:{id}", "-o", f"{id}.json").status == 0
    waiting = skald("replay", "1.json")
    assert waiting.out.splitlines()[0] == "printed by the workflow"
    assert waiting.out.splitlines()[1].startswith("    1 ")
    assert waiting.out.splitlines()[-1] == "waits for the signal approval"
    failed = skald("replay", "2.json")
    assert failed.status == 0
    assert failed.out.splitlines()[-1].startswith('failed: {"type":"ValueError"')
    edit(program, CHANGED)
    changed = skald("replay", "1.json")
    assert changed.status == 1
    assert "skald: at position 1 the history has the end of charge#1" in changed.err
    edit(program, MISTAKEN)
    mistaken = skald("replay", "1.json")
    assert mistaken.out.splitlines()[-1] == 'failed: {"type":"RuntimeError","message":"no\\u001b"}'
    assert "in deliver" in mistaken.err


def test_help_needs_no_application(skald: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKALD_APP")
    names = [
        "list",
        "show",
        "start",
        "signal",
        "query",
        "update",
        "cancel",
        "terminate",
        "pause",
        "resume",
        "retry",
        "history",
    ]
    assert all(name in skald("workflows", "--help").out for name in names)
    assert all(name in skald("--help").out for name in ("workflows", "check", "replay"))
    assert "debugger" in skald("replay", "--help").out
    assert "SKALD_APP" in skald("workflows", "list").err
