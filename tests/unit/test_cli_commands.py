"""The command line as its users meet it: what it prints, how it ends, and what it says about wrong input."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from skald import App
from skald.cli.application import load
from tests.simulation.stage import caught_up, eventually
from tests.unit.command_line import Run

PROGRAM = """
from skald import NEVER, App, Command, Event, RuntimeSettings, Service
from skald.messaging.consumer import ConsumerSettings

print("printed while it was imported")

class Placed(Event, key="id"):
    id: str
    n: int = 0

class Paid(Event, key="id"):
    id: str

class Mail(Command, key="id"):
    id: str

orders = Service("orders", team="shop", publishes=[Placed])
payments = Service("payments", lanes=2)

@payments.on(Placed, retry=NEVER)
async def charge(event: Placed) -> Paid:
    if event.n == 13:
        raise ValueError("declined \\x1b[31mred\\x1b[0m at postgresql://me:secret@db/x")
    return Paid(event.id)

@orders.on(Paid)
async def paid(event: Paid) -> Mail | None:
    return None

@payments.queue(Mail)
async def mail(command: Mail) -> None: ...

quick = RuntimeSettings(consumer=ConsumerSettings(checkpoint=0.02))
app = App(orders, payments, store="sqlite:data", settings=quick)
"""


@pytest.fixture
def played(program: str, skald: Run) -> App:
    """Migrated; four orders were handled, the second one of key b was declined and a third one waits behind it."""
    app = load(program)

    async def play() -> None:
        await app.migrate()
        module = sys.modules[program.partition(":")[0]]
        async with app.run():
            orders, payments = app.service("orders"), app.service("payments")
            for key, n in [("a", 1), ("b", 13), ("b", 2), ("c\nfake line", 3)]:
                await orders.publish(module.Placed(key, n))
            assert await eventually(lambda: caught_up(payments, orders))
            assert await eventually(lambda: caught_up(orders, payments))

    asyncio.run(play())
    return app


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["evnts"], 2, 'did you mean "events"?'),
        (["events", "tial"], 2, 'did you mean "tail"?'),
        (["events", "tail", "--folow"], 2, "did you mean --follow?"),
        (["events", "tail", "--last", "many"], 2, '"many"'),
        (["events", "tail", "--last", "-1"], 2, "not negative"),
        (["events", "tail", "--service", "ordres"], 2, "did you mean 'orders'?"),
        (["events", "tail", "--type", "Palced"], 2, "did you mean 'Placed'?"),
        (["events", "tail", "--since", "2026-01-01T10:00"], 2, "has no zone: write 2026-01-01T10:00:00Z"),
        (["events", "tail", "--since", "noon"], 2, "a position, or a time like"),
        (["events", "show"], 2, "name one message"),
        (["events", "show", "7"], 2, "which log?"),
        (["parked", "redrive"], 2, "--all"),
        (["parked", "discard"], 2, "--all"),
        (["parked", "discard", "--handler", "chrage"], 2, "did you mean 'charge'?"),
        (["parked", "show"], 2, "by its id"),
        (["subscriptions", "reset", "--group", "payments"], 2, "--origin"),
        (["subscriptions", "reset", "--group", "payments", "--origin", "orders", "--to", "soon"], 2, "start, now"),
        (["subscriptions", "reset", "--group", "payments", "--origin", "orders", "--to", "now"], 1, "never read"),
        (["run", "--service", "order"], 2, "did you mean 'orders'?"),
        (["migrate", "up", "a:b", "c:d"], 2, "unexpected: c:d"),
        (["graph", "nowhere:app"], 2, "there is no module 'nowhere'"),
        (["graph", "graph"], 2, "module:attribute"),
        (["graph", "msgspec:app"], 2, "'app' is missing"),
        (["graph", "../shop:app"], 2, "name the module in full"),
        (["nothing-like-it"], 2, "parked, ... (see"),
        (["events", "show", "9" * 20, "--service", "orders"], 2, "no log has so many messages"),
        (["events", "tail", "--since", "9" * 5000], 2, "no log has so many messages"),
        (["subscriptions", "reset", "--group", "payments", "--origin", "orders", "--to", "9" * 20], 2, "so many"),
        (["parked", "list", "--limit", "0"], 2, "--limit"),
        (["parked", "list", "--limit", "9" * 20], 2, "--limit"),
        (["parked", "redrive", "--all", "--canary", "-1"], 2, "--canary"),
        (["parked", "redrive", "--all", "--canary", "1", "--timeout", "nan"], 2, "--timeout nan"),
        (["parked", "redrive", "--all", "--canary", "1", "--timeout", "-1"], 2, "--timeout -1"),
        (["events", "show", "\udcff"], 2, "'\\udcff' has bytes that are no text"),
        (["parked", "list", "--error", "\udcff"], 2, "that are no text"),
    ],
)
def test_wrong_input_is_one_clear_line(skald: Run, arguments: list[str], status: int, text: str) -> None:
    skald("migrate")
    ended = skald(*arguments)
    assert ended.status == status
    assert ended.out == ""
    lines = [line for line in ended.err.splitlines() if line != "printed while it was imported"]
    assert len(lines) == 1
    assert lines[0].startswith("skald: ")
    assert text.lower() in lines[0].lower()


def test_without_an_application_it_says_how_to_name_one(skald: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKALD_APP")
    for command in (["graph"], ["doctor"], ["events", "show", "x"], ["parked", "redrive", "--all"], ["dev"]):
        ended = skald(*command)
        assert (ended.status, ended.out) == (2, "")
        assert "SKALD_APP" in ended.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 +", "SyntaxError: invalid syntax"),
        ("import missing_module", "No module named 'missing_module'"),
        ("raise ValueError('a\\nb')", "ValueError: a\\nb"),
        ("from skald import Retry\nRetry(immediate=0)", "ValueError: immediate=0"),
        ("from skald import App\nbackend = App()", "'app' is missing; the module has backend"),
        ("app = 3", "'app' is not a skald.App, and the module has none"),
    ],
)
def test_a_broken_program_is_named_with_its_line(skald: Run, program: str, text: str, message: str) -> None:
    name = program.partition(":")[0]
    Path(f"{name}.py").write_text(text)
    ended = skald("graph")
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == 1
    if "Error" in message:
        assert f"{name}.py:" in ended.err


def test_services_that_do_not_fit_together_are_named(skald: Run, program: str) -> None:
    path = Path(f"{program.partition(':')[0]}.py")
    path.write_text(PROGRAM.replace("publishes=[Placed]", ""))
    ended = skald("doctor")
    assert ended.status == 2
    assert "which no service publishes" in ended.err


def test_a_database_that_is_not_there_is_a_failure_not_wrong_use(skald: Run) -> None:
    for command in (["events", "tail"], ["parked", "list"], ["run"]):
        ended = skald(*command)
        assert (ended.status, ended.out) == (1, "")
        assert "migrate" in ended.err


def test_a_folder_that_cannot_be_made_is_named(skald: Run) -> None:
    Path("data").write_text("a file")
    ended = skald("migrate")
    assert (ended.status, ended.out) == (1, "")
    assert "skald: the folder data of orders.db cannot be made: File exists" in ended.err


def test_a_folder_in_the_place_of_a_database_is_named(skald: Run) -> None:
    Path("data/orders.db").mkdir(parents=True)
    for command in (["migrate"], ["parked", "list"], ["events", "tail"], ["doctor"]):
        ended = skald(*command)
        assert ended.status == 1
        assert "data/orders.db is a folder, where the database should be" in ended.out + ended.err


def test_a_password_is_never_printed(skald: Run, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (
        "postgresql://me:hunter2@127.0.0.1:1/db?password=hunter3",
        "postgre://me:hunter2@host/db",
        "postgresql://me:hunter2/3@127.0.0.1:1/db",
        "postgresql://me:hunter2?3@127.0.0.1:1/db",
        "postgresql://me:hunter2#3@127.0.0.1:1/db",
        "postgresql://me:[hunter2@127.0.0.1:1/db",
        "postgresql://me:3/hunter2@127.0.0.1:1/db",
        "postgre://me:hunter2?3@host/db",
    ):
        sys.modules.pop(program.partition(":")[0], None)
        monkeypatch.setenv("SKALD_STORE", url)
        for command in (["doctor"], ["doctor", "--json"], ["migrate"], ["events", "tail"], ["subscriptions", "list"]):
            ended = skald(*command)
            assert ended.status != 0 or command[0] == "subscriptions"
            assert "hunter" not in ended.out + ended.err


# --- what is printed --------------------------------------------------------------------------------------------------


JSON = [
    ["events", "tail"],
    ["events", "tail", "--since", "start", "--type", "Placed"],
    ["events", "tail", "--key", "nobody"],
    ["events", "show", "1", "--service", "orders"],
    ["parked", "list"],
    ["parked", "list", "--handler", "mail"],
    ["parked", "redrive", "--all"],
    ["parked", "discard", "--all"],
    ["subscriptions", "list"],
    ["subscriptions", "reset", "--group", "payments", "--origin", "orders", "--to", "start"],
    ["subscriptions", "relane", "--group", "payments"],
    ["migrate", "plan"],
    ["migrate", "print"],
    ["migrate", "up"],
    ["doctor"],
    ["graph"],
]


@pytest.mark.parametrize("arguments", JSON, ids=" ".join)
def test_with_json_there_is_one_document_and_nothing_else(skald: Run, played: App, arguments: list[str]) -> None:
    ended = skald(*arguments, "--json")
    assert ended.status == 0
    assert isinstance(ended.document, dict | list)


@pytest.mark.parametrize("arguments", JSON, ids=" ".join)
def test_stored_data_cannot_steer_a_terminal(skald: Run, played: App, arguments: list[str]) -> None:
    ended = skald(*arguments)
    assert ended.status == 0
    assert "\x1b" not in ended.out + ended.err
    assert "\nfake line" not in ended.out
    assert "secret" not in ended.out


def test_the_application_may_be_named_in_front_of_ids(skald: Run, program: str, played: App) -> None:
    (parked,) = skald("parked", "list", program, "--json").document["parked"]
    for arguments in (["parked", "show", program, parked["id"]], ["parked", "show", parked["id"]]):
        assert "parked message 2 of orders" in skald(*arguments).out
    shown = skald("events", "show", program, parked["id"], "--json").document
    assert shown["readers"] == [
        {
            "service": "payments",
            "handler": "charge",
            "state": "parked",
            "detail": "ValueError: declined \x1b[31mred\x1b[0m at postgresql://me:***@db/x",
        }
    ]


def test_events_are_shown_one_per_line(skald: Run, played: App) -> None:
    lines = skald("events", "tail", "--service", "orders", "-n", "2").out.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        'orders 3 Placed b {"id":"b","n":2}',
        'orders 4 Placed c\\nfake line {"id":"c\\nfake line","n":3}',
    ]


def test_parked_messages_are_redriven_and_discarded(skald: Run, played: App) -> None:
    assert "ValueError: declined" in skald("parked", "list").out
    redriven = skald("parked", "redrive", "--type", "Placed")
    assert redriven.out == "payments: 1 redriven\n"
    assert "no process of payments is running" in redriven.err
    assert skald("parked", "redrive", "--all").out == "no parked message fits\n"
    assert skald("parked", "list").out == "nothing is parked\n"
    assert skald("parked", "discard", "--all", "--json").document == []


def test_a_canary_that_fails_ends_with_a_failure(skald: Run, played: App) -> None:
    ended = skald("parked", "redrive", "--all", "--canary", "1", "--timeout", "0.1")
    assert ended.status == 1
    assert "is payments running?" in ended.err


def test_subscriptions_are_listed_in_short_and_by_lane(skald: Run, played: App) -> None:
    lines = skald("subscriptions", "list", "--group", "payments").out.splitlines()
    assert lines[0].split() == ["group", "origin", "lanes", "position", "lag", "owner", "state"]
    assert [line.split() for line in lines[1:]] == [["payments", "orders", "0-1", "4", "0", "free"]]
    assert len(skald("subscriptions", "list", "--group", "payments", "--lanes").out.splitlines()) == 3
    reset = skald("subscriptions", "reset", "--group", "payments", "--origin", "orders", "--to", "1")
    assert "payments goes on with orders behind position 1 in 2 lanes" in reset.out
    assert "2 unfinished messages" in reset.out


def test_the_doctor_fails_on_errors_alone(skald: Run, played: App) -> None:
    ended = skald("doctor")
    assert ended.status == 0
    assert "warn  parked: charge (from orders): 1 parked" in ended.out
    Path("data/payments.db").unlink()
    ended = skald("doctor")
    assert ended.status == 1
    assert "ERROR missing" in ended.out
    assert ended.out.splitlines()[-1].startswith("2 errors")


def test_migrations_are_planned_printed_and_applied(skald: Run) -> None:
    assert skald("migrate", "plan").out == (
        "orders: 0001_log.sql\norders: 0002_workflows.sql\npayments: 0001_log.sql\npayments: 0002_workflows.sql\n"
    )
    assert not Path("data").exists()
    assert "CREATE TABLE skald_events" in skald("migrate", "print", "--service", "orders").out
    assert skald("migrate", "up", "--service", "orders").out == "orders: 0001_log.sql, 0002_workflows.sql\n"
    assert skald("migrate").out == "orders: up to date\npayments: 0001_log.sql, 0002_workflows.sql\n"
    assert skald("migrate", "plan").out == "nothing to apply\n"


def test_a_graph_is_mermaid(skald: Run) -> None:
    assert skald("graph").out.startswith("flowchart LR\n")


def test_help_and_version_need_no_application(skald: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKALD_APP")
    assert "Usage: skald COMMAND" in skald("--help").out
    assert skald("--version").out.strip()
    commands = skald("--help").out
    for name in ("dev", "run", "migrate", "doctor", "events", "parked", "subscriptions", "graph"):
        assert name in commands


# --- where it is printed ----------------------------------------------------------------------------------------------


def finished(arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """As the shell runs it; the arguments may redirect."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = f"{sys.executable} -m skald {arguments}"
    return subprocess.run(command, shell=True, env=environment, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_written_as_json_writes_it(
    skald: Run, program: str, played: App, encoding: str
) -> None:
    module = sys.modules[program.partition(":")[0]]

    async def publish() -> None:
        async with played.connect("orders"):
            await played.service("orders").publish(module.Placed("é☃😀", 1))

    asyncio.run(publish())
    ended = finished("events tail --service orders --last 1", PYTHONIOENCODING=encoding)
    assert ended.returncode == 0
    assert {"ascii": "\\u00e9\\u2603\\ud83d\\ude00", "latin-1": "é\\u2603\\ud83d\\ude00", "utf-8": "é☃😀"}[
        encoding
    ] in ended.stdout.decode(encoding)
    ended = finished("events tail --service orders --last 1 --json", PYTHONIOENCODING=encoding)
    [event] = json.loads(ended.stdout.decode(encoding))
    assert event["key"] == "é☃😀"


def test_a_closed_stdout_or_stderr_is_nobody_who_reads(skald: Run, played: App) -> None:
    ended = finished("parked list >&-")
    assert (ended.returncode, ended.stderr) == (0, b"printed while it was imported\n")
    ended = finished("events show nowhere 2>&-")
    assert (ended.returncode, ended.stdout) == (1, b"")
