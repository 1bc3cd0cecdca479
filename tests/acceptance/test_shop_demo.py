"""The demo as a person runs it: the command, its folder, its processes, its exit status."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import IO, Any

import pytest

from examples.shop import demo
from examples.shop.audit import Audit, Finding
from examples.shop.house import House
from examples.shop.stage import Result, Stage

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 100.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "examples.shop.demo", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(), text=True, capture_output=True, timeout=WITHIN, check=False
    )


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The demo as it keeps running, and what it has printed until then."""
    process = subprocess.Popen(
        command("--serve", *arguments), cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process, list(until_serving(process.stdout))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.stdout.close()
        process.wait(WITHIN)


def test_a_store_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    for store, text in (
        ("postgresql://u:hunter2@127.0.0.1:1/d", "127.0.0.1:1/d: PostgreSQL cannot be reached"),
        ("mysql://u:hunter2@h/d", "use sqlite:FOLDER"),
    ):
        ended = run(tmp_path, "--store", store)
        assert ended.returncode == 1
        [line] = ended.stderr.splitlines()
        assert line.startswith("demo: ")
        assert text in line
        assert "hunter" not in line + ended.stdout


def until_serving(lines: IO[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if line.startswith("Serving"):
            return


def pids(folder: Path) -> dict[str, int]:
    return {path.stem: int(path.read_text()) for path in (folder / ".skald" / "run").glob("*.pid")}


def gone(process_ids: list[int]) -> bool:
    """Waits for the end of processes that are not our children."""
    for process_id in process_ids:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(process_id)
            try:
                if not select.select([handle], [], [], WITHIN)[0]:
                    return False
            finally:
                os.close(handle)
    return True


def test_the_ledger_balances_in_a_long_path_with_spaces(tmp_path: Path) -> None:
    deep = tmp_path / "a folder with spaces" / ("x" * max(1, 150 - len(str(tmp_path)) - 22))
    deep.mkdir(parents=True)
    first = run(deep, "--orders", "25", "--seed", "3", "--json")
    second = run(deep, "--style", "orchestration", "--orders", "20", "--json")

    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["balanced"] is True
    assert sum(found["orders"].values()) == 25
    assert found["orders"]["PENDING"] == 0
    assert found["latency_ms"]["p50"] > 0
    assert second.returncode == 0, second.stderr
    assert sum(json.loads(second.stdout)["orders"].values()) == 20, "a second run starts clean"
    assert pids(deep) == {}
    lines = (deep / ".skald" / "providers" / "keyed.jsonl").read_text().splitlines()
    charged = [json.loads(line) for line in lines]
    assert {"charge", "label"} <= {entry["kind"] for entry in charged}


def test_the_ledger_balances_while_processes_are_killed(tmp_path: Path) -> None:
    done = run(tmp_path, "--orders", "80", "--chaos", "--json")

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["balanced"] is True
    assert found["kills"] > 0
    assert found["restarts"] > 0


def test_what_it_prints_what_it_serves_and_that_nothing_outlives_it(tmp_path: Path) -> None:
    with socket.socket() as occupied:
        occupied.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # then somebody else has it, which is as good
            occupied.bind(("127.0.0.1", demo.PREFERRED_PORT))
            occupied.listen()
        with serving(tmp_path, "--orders", "5") as (process, printed):
            begun = next(number for number, line in enumerate(printed) if line.startswith("  placed"))
            assert begun <= 6
            assert printed[-2] == "The ledger balances.\n"
            assert f":{demo.PREFERRED_PORT}/" not in printed[-1]
            running = pids(tmp_path)
            assert len(running) == 10
            second = run(tmp_path)
            assert second.returncode == 2
            assert f"process {process.pid}" in second.stderr
            os.kill(process.pid, signal.SIGKILL)
            assert gone(list(running.values()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_process(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, "--orders", "0") as (process, _):
        running = pids(tmp_path)
        process.send_signal(number)
        assert process.wait(WITHIN) == 130
        assert gone(list(running.values()))
        assert pids(tmp_path) == {}


def test_a_folder_that_is_not_its_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".skald").mkdir()
    (tmp_path / ".skald" / "orders.db").write_text("precious")
    done = run(tmp_path)

    assert done.returncode == 2
    assert "left alone" in done.stderr
    assert (tmp_path / ".skald" / "orders.db").read_text() == "precious"


async def test_books_that_do_not_balance_are_said_so_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def perform(stage: Stage) -> Result:
        finding = Finding("no order is pending", False, "1: abc")
        zero = dict.fromkeys(("charged", "refunded", "kept", "open", "received", "available", "reserved", "shipped"), 0)
        found = Audit((finding,), {"PENDING": 1}, zero, zero, {"sent": 0, "doubled": 0}, (), ())
        return Result(found, 1.0, [0.1], [], 0, 0, 0)

    monkeypatch.setattr(Stage, "perform", perform)
    out = StringIO()
    chosen = demo.options(["--store", f"sqlite:{tmp_path}", "--orders", "0"])

    assert await demo.run(chosen, tmp_path, out) == 1
    assert "broken     no order is pending: 1: abc" in out.getvalue()
    assert out.getvalue().splitlines()[-1] == "The ledger does NOT balance."


@pytest.mark.parametrize(
    ("arguments", "why"), [(["--orders", "-1"], "0 or more"), (["--style", "baroque"], "choose from 'choreography'")]
)
def test_options_that_do_not_fit_are_refused(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[Any]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        demo.options(arguments)
    assert refusal.value.code == 2
    assert why in capsys.readouterr().err


async def test_a_used_store_is_not_emptied_for_anybody(tmp_path: Path) -> None:
    folder, store = tmp_path / "house", f"sqlite:{tmp_path / 'store'}"
    async with House(folder, store) as house:
        await place_one(house)
    done = run(tmp_path, "--store", store)

    assert done.returncode == 2
    assert "earlier run" in done.stderr


async def place_one(house: House) -> None:
    orders = house.app.service("orders")
    async with house.app.connect("orders"), orders.transaction() as tx:
        await tx.execute(
            "INSERT INTO orders (order_id, customer, total, status, placed_at)"
            " VALUES ('an-order', 'ada', 0, 'CANCELLED', 0)"
        )
