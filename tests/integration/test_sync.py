"""Synchronous code publishes and writes with the same promises: durable, whole or not at all, from any thread."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

import skald.sync
from skald import App, BlockingTransaction, Event, Service
from skald.errors import ConfigurationError, Conflict, InvalidMessage, NestedCommit, Stopped, TransactionTooLong
from skald.message import new_id
from skald.messaging.context import Cause, current_cause
from skald.sync import BlockingService
from skald.unit import NEW

ROOT = Path(__file__).resolve().parents[2]


class Opened(Event, key="id"):
    id: str
    n: int = 0


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


@pytest.fixture
def app(store_url: str) -> App:
    app = App(Service("baskets", publishes=[Opened]), store=store_url)
    asyncio.run(app.migrate())
    return app


@pytest.fixture
def baskets(app: App) -> Iterator[BlockingService]:
    with skald.sync.connect(app, "baskets") as connected:
        connected_table(connected)
        yield connected


def connected_table(baskets: BlockingService) -> None:
    with baskets.transaction() as tx:
        tx.execute("CREATE TABLE rows (id text PRIMARY KEY)")


def events(baskets: BlockingService) -> list[str]:
    return [row["key"] for row in baskets.fetch("SELECT aggregateid AS key FROM skald_events ORDER BY position")]


def in_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def run(n: int) -> None:
        try:
            work(n)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []


def test_what_is_published_is_durable_when_it_returns(baskets: BlockingService) -> None:
    (first,) = baskets.publish(Opened("a"))
    second, third = baskets.publish(Opened("b"), Opened("c"))
    assert first < second < third
    assert events(baskets) == ["a", "b", "c"]


def test_rows_and_messages_of_a_transaction_are_one(baskets: BlockingService) -> None:
    with baskets.transaction() as tx:
        assert tx.execute("INSERT INTO rows VALUES (:id)", id="a") == 1
        tx.publish(Opened("a"))
        assert tx.fetch_one("SELECT id FROM rows") == {"id": "a"}

    def fail() -> None:
        with baskets.transaction() as tx:
            tx.execute("INSERT INTO rows VALUES (:id)", id="b")
            tx.publish(Opened("b"))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert events(baskets) == ["a"]
    assert baskets.fetch("SELECT id FROM rows") == [{"id": "a"}]


def test_a_savepoint_undoes_its_block_alone(baskets: BlockingService) -> None:
    def fail(tx: BlockingTransaction) -> None:
        with tx.savepoint():
            tx.execute("INSERT INTO rows VALUES (:id)", id="b")
            raise ValueError

    with baskets.transaction() as tx:
        tx.execute("INSERT INTO rows VALUES (:id)", id="a")
        with pytest.raises(ValueError):
            fail(tx)
        tx.execute("INSERT INTO rows VALUES (:id)", id="c")
    assert baskets.fetch("SELECT id FROM rows ORDER BY id") == [{"id": "a"}, {"id": "c"}]


def test_streams_keep_their_versions(baskets: BlockingService) -> None:
    assert baskets.append("basket-1", [Opened("a")], expected=NEW) == 1
    with pytest.raises(Conflict):
        baskets.append("basket-1", [Opened("a")], expected=NEW)
    with baskets.transaction() as tx:
        assert tx.append("basket-1", [Opened("a")], expected=1) == 2


def test_a_bad_message_raises_at_the_caller(baskets: BlockingService) -> None:
    with pytest.raises(InvalidMessage, match="n"):
        baskets.publish(Opened("a", "text"))  # type: ignore[arg-type]
    assert events(baskets) == []


def test_many_threads_share_their_commits(baskets: BlockingService, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    store = baskets._service.store
    commit, at_once = store.commit, store.commit_at_once

    async def counted(units: Any, **options: Any) -> Any:
        groups.append(len(units))
        return await commit(units, **options)

    def counted_at_once(units: Any) -> Any:
        if (outcomes := at_once(units)) is not None:
            groups.append(len(units))
        return outcomes

    monkeypatch.setattr(store, "commit", counted)
    monkeypatch.setattr(store, "commit_at_once", counted_at_once)
    begin = threading.Barrier(16)

    def publish(n: int) -> None:
        for m in range(20):
            begin.wait(20)
            baskets.publish(Opened(f"{n}-{m}"))

    in_threads(16, publish)
    assert sorted(events(baskets)) == sorted(f"{n}-{m}" for n in range(16) for m in range(20))
    assert sum(groups) == 320
    assert len(groups) < 320


def test_transactions_of_several_threads_do_not_mix(baskets: BlockingService) -> None:
    def work(n: int) -> None:
        for m in range(5):
            with baskets.transaction() as tx:
                tx.execute("INSERT INTO rows VALUES (:id)", id=f"{n}-{m}")
                tx.publish(Opened(f"{n}-{m}"))

    in_threads(8, work)
    wanted = sorted(f"{n}-{m}" for n in range(8) for m in range(5))
    assert sorted(events(baskets)) == wanted
    assert sorted(row["id"] for row in baskets.fetch("SELECT id FROM rows")) == wanted


def test_publishing_inside_a_transaction_that_it_would_wait_for_raises_at_once(
    baskets: BlockingService, store_url: str
) -> None:
    with baskets.transaction():
        if store_url.startswith("sqlite:"):
            for forbidden in (lambda: baskets.publish(Opened("a")), lambda: baskets.append("s", [Opened("a")])):
                with pytest.raises(NestedCommit, match=f"opened at {__file__}:"):
                    forbidden()
            with pytest.raises(NestedCommit), baskets.transaction():
                pass
        else:
            baskets.publish(Opened("a"))
            with baskets.transaction() as tx:
                tx.publish(Opened("b"))
    baskets.publish(Opened("c"))
    assert events(baskets)[-1] == "c"


def test_a_transaction_that_is_open_for_too_long_names_its_line(tmp_path: Path) -> None:
    app = App(Service("baskets", publishes=[Opened]), store=f"sqlite:{tmp_path}")
    asyncio.run(app.migrate())
    with skald.sync.connect(app, "baskets") as baskets:

        def linger() -> None:
            with baskets.transaction() as tx:
                while True:
                    tx.execute("SELECT 1")

        with pytest.raises(TransactionTooLong, match=f"opened at {__file__}:"):
            linger()
        assert baskets.publish(Opened("a"))


def test_the_cause_of_the_calling_thread_is_carried_on(baskets: BlockingService) -> None:
    cause = Cause(new_id(), "correlation", None, None)
    token = current_cause.set(cause)
    try:
        baskets.publish(Opened("a"))
    finally:
        current_cause.reset(token)
    (row,) = baskets.fetch("SELECT correlation_id, CAST(causation_id AS TEXT) AS causation_id FROM skald_events")
    assert row == {"correlation_id": "correlation", "causation_id": cause.id}


async def test_what_a_program_that_ends_at_once_has_published_is_heard_at_once(store_url: str) -> None:
    """Readers poll every few seconds; a script must not have to wait for that."""
    source, sink = Service("baskets", publishes=[Opened]), Service("sink")
    heard = asyncio.Event()

    @sink.on(Opened)
    async def hear(event: Opened) -> None:
        heard.set()

    app = App(source, sink, store=store_url)
    await app.migrate()

    def script() -> None:
        with skald.sync.connect(app, "baskets") as baskets:
            baskets.publish(Opened("a"))

    async with app.run("sink"), asyncio.timeout(4.5):
        await asyncio.to_thread(script)
        await heard.wait()
        heard.clear()
        await asyncio.to_thread(script)
        await heard.wait()


# --- the end ----------------------------------------------------------------------------------------------------------


def test_after_closing_it_says_so(app: App) -> None:
    baskets = skald.sync.connect(app, "baskets")
    baskets.close()
    baskets.close()
    with pytest.raises(Stopped, match="is closed"):
        baskets.publish(Opened("a"))
    with pytest.raises(Stopped, match="is closed"), baskets.transaction():
        pass
    with skald.sync.connect(app, "baskets") as again:
        assert again.publish(Opened("a"))
    assert not [thread for thread in threading.enumerate() if thread.name == "skald:baskets:sync"]


def test_closing_waits_for_what_other_threads_have_begun(app: App) -> None:
    baskets = skald.sync.connect(app, "baskets")
    inside, go_on = threading.Event(), threading.Event()
    ended: list[str] = []

    def work() -> None:
        with baskets.transaction() as tx:
            inside.set()
            go_on.wait(10)
            tx.publish(Opened("a"))
        ended.append("committed")

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    closing = threading.Thread(target=baskets.close)
    closing.start()

    def until_refused() -> None:
        while True:
            baskets.fetch("SELECT 1")

    with pytest.raises(Stopped):
        until_refused()
    go_on.set()
    closing.join(20)
    thread.join(20)
    assert ended == ["committed"]
    with skald.sync.connect(app, "baskets") as again:
        assert events(again) == ["a"]


def test_closing_inside_its_own_transaction_is_refused(baskets: BlockingService) -> None:
    with baskets.transaction() as tx:
        with pytest.raises(Stopped, match="leave it first"):
            baskets.close()
        tx.publish(Opened("a"))
    assert events(baskets) == ["a"]


def test_a_forked_child_is_told_and_can_connect_itself(app: App) -> None:
    with skald.sync.connect(app, "baskets") as baskets:
        baskets.publish(Opened("parent"))
        pid = os.fork()
        if pid == 0:
            os._exit(in_the_child(app, baskets))
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        baskets.publish(Opened("parent again"))
        assert events(baskets) == ["parent", "child", "parent again"]


def in_the_child(app: App, baskets: BlockingService) -> int:
    """The exit status; nothing of pytest may run in this process."""
    try:
        baskets.publish(Opened("lost"))
        return 1
    except Stopped as error:
        if "before this process was forked" not in str(error):
            return 2
    baskets.close()
    try:
        with skald.sync.connect(app, "baskets") as mine:
            mine.publish(Opened("child"))
    except BaseException:
        return 3
    return 0


def test_what_cannot_be_connected_says_why(app: App, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no service 'basket'"):
        skald.sync.connect(app, "basket")
    with skald.sync.connect(app, "baskets"), pytest.raises(ConfigurationError, match="connected already"):
        skald.sync.connect(app, "baskets")
    nowhere = App(Service("baskets", publishes=[Opened]), store=f"sqlite:{tmp_path / 'nowhere'}")
    with pytest.raises(Exception, match="skald migrate"):
        skald.sync.connect(nowhere, "baskets")


def test_a_program_that_forgets_to_close_ends_all_the_same(store_url: str, app: App) -> None:
    program = (
        "import sys, skald.sync\n"
        "from skald import App, Service\n"
        "from tests.integration.test_sync import Opened\n"
        "app = App(Service('baskets', publishes=[Opened]), store=sys.argv[1])\n"
        "baskets = skald.sync.connect(app, 'baskets')\n"
        "print(baskets.publish(Opened('a')))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, store_url], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[1]\n", "")


# --- the example ------------------------------------------------------------------------------------------------------


@pytest.fixture
def example(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("SKALD_STORE", store_url)
    names = [f"examples.publishing.{name}" for name in ("baskets", "web", "script")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("examples.publishing.baskets")
    for name in names:
        sys.modules.pop(name, None)


async def greeted(example: ModuleType, ids: list[str]) -> list[str]:
    """Runs the services until each basket has its greeting."""
    async with example.app.run(), asyncio.timeout(30):
        while True:
            rows = await example.baskets.fetch("SELECT id, greeting FROM baskets WHERE greeting IS NOT NULL")
            found = {row["id"]: row["greeting"] for row in rows}
            if found.keys() >= set(ids):
                return [found[id] for id in ids]
            await asyncio.sleep(0)


def test_the_script_publishes(example: ModuleType) -> None:
    asyncio.run(example.app.migrate())
    ids = importlib.import_module("examples.publishing.script").open_baskets(["Ada", "Grace"])
    assert asyncio.run(greeted(example, ids)) == ["Welcome, Ada!", "Welcome, Grace!"]


def test_the_web_application_publishes(example: ModuleType) -> None:
    asyncio.run(example.app.migrate())
    web = importlib.import_module("examples.publishing.web").web

    @asynccontextmanager
    async def visiting() -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(web)
        async with web.router.lifespan_context(web), httpx.AsyncClient(transport=transport, base_url="http://x") as it:
            yield it

    async def open_basket() -> str:
        async with visiting() as client:
            answer = await client.post("/baskets", params={"customer": "Ada"})
            assert answer.status_code == 201
            basket_id: str = answer.json()["basket_id"]
            before = await client.get(f"/baskets/{basket_id}")
            assert before.json() == {"id": basket_id, "customer": "Ada", "greeting": None}
            assert (await client.get("/baskets/unknown")).status_code == 404
        return basket_id

    async def read_greeting(basket_id: str) -> object:
        async with visiting() as client:
            return (await client.get(f"/baskets/{basket_id}")).json()["greeting"]

    basket_id = asyncio.run(open_basket())
    assert asyncio.run(greeted(example, [basket_id])) == ["Welcome, Ada!"]
    assert asyncio.run(read_greeting(basket_id)) == "Welcome, Ada!"
