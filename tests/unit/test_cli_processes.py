"""The command line as a process: pipes, signals, terminals, and starting again when the program changes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from skald import App, Event, Service

class Placed(Event, key="id"):
    id: str

orders = Service("orders", publishes=[Placed])
payments = Service("payments")

@payments.on(Placed)
async def charge(event: Placed) -> None: ...

app = App(orders, payments, store="sqlite:data")
"""
FILL = """
import asyncio, sys
from shop import Placed, app, orders
async def fill():
    async with app.connect("orders"):
        await orders.publish(*(Placed(f"{n} " + "x" * 100) for n in range(int(sys.argv[1]))))
asyncio.run(fill())
"""


class Shop:
    """A small program in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "SKALD_APP": "shop:app"}
        self.environment.pop("SKALD_STORE", None)
        self.write(PROGRAM)
        (folder / "fill.py").write_text(FILL)

    def write(self, text: str) -> None:
        (self.folder / "shop.py").write_text(text)

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": 60, **options}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.environment, check=False, **options)

    def skald(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "skald", *arguments, **options)

    def fill(self, count: int) -> None:
        assert self.run("fill.py", str(count)).returncode == 0

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Ended by its id, if the test has not ended it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "skald", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    assert shop.skald("migrate").returncode == 0
    return shop


def until(stream: Any, text: str) -> list[str]:
    """Reads lines up to one with this text."""
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"ended without {text!r}: {lines}")


# --- pipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--since", "start"], ["--since", "start", "--json"], ["-f", "--last", "9999"]])
def test_a_reader_that_has_seen_enough_is_no_error(shop: Shop, arguments: list[str]) -> None:
    shop.fill(3_000)
    with shop.started("events", "tail", *arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        shop.fill(300)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert "Placed" in first


def test_a_full_disk_is_one_line_and_a_failure(shop: Shop) -> None:
    shop.fill(3)
    if not Path("/dev/full").exists():
        return
    with Path("/dev/full").open("w") as full:
        ended = shop.skald("events", "tail", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "No space left" in ended.stderr


def test_a_long_log_is_one_json_document(shop: Shop) -> None:
    shop.fill(3_000)
    ended = shop.skald("events", "tail", "--since", "start", "--json")
    assert len(msgspec.json.decode(ended.stdout)) == 3_000


def test_tables_have_lines_on_a_terminal_alone(shop: Shop) -> None:
    plain = shop.skald("subscriptions", "list").stdout
    ours, theirs = pty.openpty()
    try:
        assert shop.skald("subscriptions", "list", capture_output=False, stdout=theirs).returncode == 0
    finally:
        os.close(theirs)
    drawn = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "never read" in plain
    assert "never read" in drawn
    assert "─" in drawn
    assert plain.isascii()


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell without jobs begins what it runs in the background with SIGINT ignored, and this suite's children
    inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_following_in_the_background_leaves_ctrl_c_to_the_others(shop: Shop) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shop.fill(1)
    with shop.started("events", "tail", "--follow", "--json") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        shop.fill(1)
        assert msgspec.json.decode(process.stdout.readline())["position"] == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM


def test_ctrl_c_ends_following_quietly(shop: Shop) -> None:
    shop.fill(1)
    with shop.started("events", "tail", "--follow", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = msgspec.json.decode(process.stdout.readline())
        shop.fill(1)
        second = msgspec.json.decode(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == ""
    assert [first["position"], second["position"]] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_services_stop_in_order(shop: Shop, number: signal.Signals) -> None:
    with shop.started("run", "--service", "payments", "--service", "orders", "--json") as process:
        assert process.stderr is not None
        lines = until(process.stderr, "running")
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0
    assert msgspec.json.decode(out) == {"services": ["payments", "orders"], "end": "stopped"}
    for line in [*lines, *err.splitlines()]:
        assert {"time", "level", "logger"} <= msgspec.json.decode(line).keys()
    free = msgspec.json.decode(shop.skald("subscriptions", "list", "--json").stdout)
    assert {lane["owner"] for view in free for lane in view["lanes"]} == {None}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_process_that_waits_for_its_handlers(shop: Shop, number: signal.Signals) -> None:
    stuck = (
        "async def charge(event: Placed) -> None:\n    print('stuck', file=sys.stderr)\n    await asyncio.sleep(100)"
    )
    shop.write("import asyncio, sys\n" + PROGRAM.replace("async def charge(event: Placed) -> None: ...", stuck))
    shop.fill(1)
    with shop.started("run", "--service", "payments") as process:
        assert process.stderr is not None
        until(process.stderr, "stuck")
        process.send_signal(number)
        until(process.stderr, "stopping")
        process.send_signal(number)
        assert process.wait(10) in (-number, 130)


def test_a_process_that_was_taken_over_from_says_so_by_its_status(shop: Shop) -> None:
    steal = (
        "import asyncio\n"
        "from shop import app, payments\n"
        "from skald.messaging import cursor\n"
        "async def steal():\n"
        "    async with app.connect('payments'):\n"
        "        rows = await payments.fetch('SELECT process FROM skald_fences')\n"
        "        membership = payments.store.membership()\n"
        "        for row in rows:\n"
        "            await cursor.take_over(payments.store, row['process'])\n"
        "            membership.remove(row['process'])\n"
        "        membership.close()\n"
        "asyncio.run(steal())\n"
    )
    with shop.started("run", "--service", "payments") as process:
        assert process.stderr is not None
        until(process.stderr, "running")
        assert shop.run("-c", steal).returncode == 0
        assert process.wait(30) == 75


# --- development ------------------------------------------------------------------------------------------------------


def test_development_migrates_runs_everything_and_starts_again_when_a_file_changes(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    with shop.started("dev") as process:
        assert process.stderr is not None
        until(process.stderr, "running: orders, payments")
        shop.write(PROGRAM.replace('"payments"', '"billing"'))
        until(process.stderr, "changed: shop.py")
        until(process.stderr, "running: orders, billing")

        shop.write("1 +\n")
        until(process.stderr, "shop cannot be imported: SyntaxError")
        shop.write(PROGRAM)
        until(process.stderr, "running: orders, payments")

        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert {path.name for path in (tmp_path / "data").glob("*.db")} >= {"orders.db", "billing.db"}


def test_development_without_reloading_ends_on_a_broken_program(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.write("app = None\n")
    ended = shop.skald("dev", "--no-reload")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1


# --- services that have no database yet -------------------------------------------------------------------------------


def test_a_service_without_a_database_is_left_out_with_a_word(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    only_orders = "import asyncio; from shop import app; asyncio.run(app.migrate(['orders']))"
    assert shop.skald("events", "tail").returncode == 1
    assert shop.run("-c", only_orders).returncode == 0
    shop.fill(1)
    ended = shop.skald("events", "tail", "--json")
    assert ended.returncode == 0
    assert [event["position"] for event in msgspec.json.decode(ended.stdout)] == [1]
    assert len(ended.stderr.splitlines()) == 1
    assert "left out" in ended.stderr
    assert "payments" in ended.stderr
