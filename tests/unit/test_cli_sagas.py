"""Sagas at the command line: what is printed, how it ends, and what is said about wrong input."""

from __future__ import annotations

import asyncio
import shlex
import sys

import msgspec
import pytest

from skald.app import App
from skald.cli.application import load
from tests.simulation.stage import QUICK, eventually
from tests.unit.command_line import Run

PROGRAM = """
from skald import NEVER, App, Service, compensation, lock, saga, step

@compensation(retry=NEVER)
async def free(name: str) -> None:
    raise OSError("closed \\x1b[31m")

@step(compensate=free)
async def take(name: str) -> str:
    return name

@step(retry=NEVER)
async def fail(name: str) -> None:
    raise ValueError("lost")

@saga
async def buy(name: str) -> None:
    await lock(f"shelf of {name}")
    await take(name)
    if name != "fine":
        await fail(name)

orders = Service("orders", workflows=[buy])
app = App(orders, store="sqlite:data")
"""


async def asks(app: App, id: str) -> bool:
    found = await app.service("orders").fetch("SELECT status FROM saga_state WHERE saga_id = :id", id=id)
    return bool(found[0]["status"] == "COMPENSATION_FAILED")


@pytest.fixture(autouse=True)
def _played(program: str) -> None:
    """The saga s-1 asks a person, and s-0 has completed."""
    app = load(program)
    app.settings = QUICK
    module = sys.modules[program.partition(":")[0]]

    async def play() -> None:
        await app.migrate()
        async with app.run():
            await module.buy.run("fine", id="s-0")
            await module.buy.start("tea", id="s-1")
            await eventually(lambda: asks(app, "s-1"))

    asyncio.run(play())


def test_they_are_listed(skald: Run) -> None:
    lines = skald("sagas", "list").out.splitlines()
    assert lines[0].split() == ["id", "saga", "status", "step", "created", "updated"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["s-1", "buy", "COMPENSATION_FAILED", "take"], ["s-0", "buy", "COMPLETED", "take"],
    ]  # fmt: skip
    found = skald("sagas", "list", "--status", "completed", "--json").document
    assert [one["id"] for one in found["sagas"]] == ["s-0"]
    assert skald("sagas", "list", "--status", "cancelled").out == "no saga fits\n"


def test_one_is_shown_with_what_can_be_done(skald: Run) -> None:
    out = skald("sagas", "show", "s-1").out
    assert "asks #1: the compensation free of take has failed: OSError: closed \\x1b[31m" in out
    assert "it is compensated because of ValueError: lost" in out
    assert "skald sagas resolve s-1 --skip take#1 --reason" in out
    shown = skald("sagas", "show", "s-1", "--json").document
    assert shown["questions"][0]["arguments"] == {"name": "tea"}


def test_what_can_be_done_is_safe_to_paste_whatever_the_id_is(skald: Run, program: str) -> None:
    app, id = load(program), "$(reboot) o'clock"

    async def play() -> None:
        async with app.run():
            await sys.modules[program.partition(":")[0]].buy.start("ink", id=id)
            await eventually(lambda: asks(app, id))

    asyncio.run(play())
    [line] = [line for line in skald("sagas", "show", id).out.splitlines() if "--skip" in line]
    assert shlex.split(line) == ["skald", "sagas", "resolve", id, "--skip", "take#1", "--reason", "…"]


def test_locks_are_listed(skald: Run) -> None:
    [headers, line] = skald("sagas", "locks").out.splitlines()
    assert headers.split() == ["key", "place", "id", "saga", "since"]
    assert line.split()[:7] == ["shelf", "of", "tea", "has", "it", "s-1", "buy"]
    [found] = msgspec.json.decode(skald("sagas", "locks", "--key", "shelf of tea", "--json").out)["locks"]
    assert (found["state"], found["id"], found["since"][-1]) == ("held", "s-1", "Z")
    assert skald("sagas", "locks", "--key", "shelf").out == "no saga has the lock shelf\n"
    assert "lock_held shelf of tea" in skald("workflows", "show", "s-1").out


def test_it_is_resolved(skald: Run) -> None:
    done = skald("sagas", "resolve", "s-1", "--skip", "take", "--reason", "it is gone", "--by", "ann")
    assert (done.status, done.out) == (0, "orders: buy s-1 is told: skip take\n")
    assert "no process of orders is running" in done.err


def test_a_user_without_a_name_says_who_decides(skald: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    ended = skald("sagas", "resolve", "s-1", "--skip", "take", "--reason", "it is gone")
    assert (ended.status, ended.out) == (2, "")
    assert "add --by NAME" in ended.err
    assert skald("sagas", "resolve", "s-1", "--skip", "take", "--reason", "it is gone", "--by", "ann").status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("s-1", "--reason", "x"), 2, "one of --retry STEP, --done STEP, --skip STEP, --fail STEP"),
        (("s-1", "--skip", "take", "--done", "take", "--reason", "x"), 2, "one of --retry STEP"),
        (("s-1", "--skip", "take"), 2, "--reason"),
        (("s-1", "--skip", "take", "--reason", ""), 2, "say why"),
        (("s-1", "--skip", "other", "--reason", "x"), 1, "does not ask about 'other', but about: take#1"),
        (("s-0", "--skip", "take", "--reason", "x"), 1, "saga 's-0' is COMPLETED, and asks nothing"),
        (("s-9", "--skip", "take", "--reason", "x"), 1, "orders has no saga with the id 's-9'"),
    ],
)
def test_wrong_input_is_refused(skald: Run, arguments: tuple[str, ...], status: int, text: str) -> None:
    ended = skald("sagas", "resolve", *arguments)
    assert ended.status == status
    assert text in ended.err
