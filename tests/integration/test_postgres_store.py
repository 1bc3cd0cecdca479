"""What only this store has to get right: lost replies, restarts, held keys, foreign sessions, plans, settings."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest

from skald.clock import SystemClock
from skald.errors import (
    Busy,
    ConfigurationError,
    Conflict,
    Rejection,
    StoreError,
    StoreUnavailable,
    TransactionTooLong,
    UnsafeSettings,
)
from skald.message import Record, child_traceparent, new_id, slot_of
from skald.stores.postgres import PostgresLog, PostgresStore, units_to_json
from skald.stores.postgres.statements import statements
from skald.unit import Append, Committed, CursorMove, Tag, Unit
from tests.postgres_server import PostgresServer


def record(key: str = "k", type: str = "T") -> Record:
    return Record(0, new_id(), "topic", key, slot_of(key), type, 1, 1, "c", None, None, b"{}")


def append(stream: str, expected: int | None = None) -> Unit:
    return Unit(appends=(Append(stream, (record(),), expected),))


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(postgres_url, "orders")
    await store.migrate()
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def plain(postgres_url: str) -> AsyncIterator[Any]:
    """A connection that has nothing to do with the library."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


# --- lost replies -----------------------------------------------------------------------------------------------------


class Cut:
    """A connection on which the reply to the first commit is lost: after it happened, or before."""

    def __init__(self, connection: Any, happened: bool) -> None:
        self._connection, self._happened, self._armed = connection, happened, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetchrow(self, sql: str, *values: Any) -> Any:
        if not self._armed or "skald_commit_1" not in sql:
            return await self._connection.fetchrow(sql, *values)
        self._armed = False
        if self._happened:
            await self._connection.fetchrow(sql, *values)
        self._connection.terminate()
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")


@pytest.mark.parametrize("happened", [True, False])
async def test_a_lost_reply_is_looked_up(store: PostgresStore, happened: bool) -> None:
    await store.commit([append("old"), append("other")])
    store._committers[0]._connection = Cut(store._committers[0]._connection, happened)
    units = [append("old", 1), append("other", 7), append("any"), Unit(events=(record(), record()))]
    outcomes = await store.commit(units)
    assert isinstance(outcomes[1], Conflict)
    assert outcomes[1].actual == 1
    committed = [outcome for outcome in outcomes if isinstance(outcome, Committed)]
    assert [outcome.versions for outcome in committed] == [(2,), (1,), ()]
    found = {r.position: r.id for r in await store.log.read(0, 100)}
    ids = [
        r.id for unit in (units[0], units[2], units[3]) for r in (*unit.events, *(a.records[0] for a in unit.appends))
    ]
    assert [found[p] for outcome in committed for p in outcome.positions] == ids
    assert len(found) == 2 + 4


@pytest.mark.parametrize("commits", [True, False])
async def test_a_first_run_that_is_still_under_way_excludes_the_second(
    store: PostgresStore, postgres_url: str, commits: bool
) -> None:
    unit = append("s", 0)
    committer = store._committers[0]
    connection = committer._connection

    class Twin(Cut):
        async def fetchrow(self, sql: str, *values: Any) -> Any:
            if self._armed and "skald_commit_1" in sql:
                self._armed = False
                self.task = asyncio.create_task(self.slowly(sql, values))
                await self.begun.wait()
                self._connection.terminate()
                raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
            return await self._connection.fetchrow(sql, *values)

        begun = asyncio.Event()

        async def slowly(self, sql: str, values: Any) -> None:
            settings = {"search_path": "orders", "plan_cache_mode": "force_generic_plan"}
            other = await asyncpg.connect(postgres_url, server_settings=settings)
            block = other.transaction()
            await block.start()
            await other.fetchrow(sql, *values)
            self.begun.set()
            await asyncio.sleep(0.3)  # sleep: the server is to see a stalled transaction
            await (block.commit() if commits else block.rollback())
            await other.close()

    twin = committer._connection = Twin(connection, True)
    [outcome] = await store.commit([unit])
    await twin.task
    assert isinstance(outcome, Committed | Busy)
    if isinstance(outcome, Busy):  # its own first run held the key
        assert not commits or len(await store.log.read(0, 10)) == 1
    else:
        assert [r.id for r in await store.log.read(0, 10)] == [unit.appends[0].records[0].id]


async def test_cut_connections_lose_and_double_nothing(store: PostgresStore, plain: Any) -> None:
    sent: list[str] = []
    ended = asyncio.Event()

    async def cut() -> None:
        for _ in range(20):
            await asyncio.sleep(0.02)  # sleep: cuts are to meet commits at many moments
            await plain.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'skald:orders'"
            )
        ended.set()

    cutting = asyncio.create_task(cut())
    while not ended.is_set():
        units = [Unit(events=(record(),)) for _ in range(20)]
        outcomes = await store.commit(units)
        assert all(isinstance(outcome, Committed) for outcome in outcomes)
        sent += [unit.events[0].id for unit in units]
    await cutting
    assert [r.id for r in await store.log.read(0, 1_000_000)] == sent


async def test_cancelled_commits_are_there_whole_or_not_at_all(store: PostgresStore) -> None:
    sent: list[str] = []
    for n in range(200):
        unit = Unit(events=(record(), record()))
        cancelled = asyncio.create_task(store.commit([unit]))
        await asyncio.sleep(n % 10 / 4_000)  # sleep: cancelled at many moments
        cancelled.cancel()
        sure = Unit(events=(record(),))
        [outcome] = await store.commit([sure])
        assert isinstance(outcome, Committed)
        sent += [sure.events[0].id]
    found = [r.id for r in await store.log.read(0, 10_000)]
    assert [id for id in found if id in sent] == sent
    assert len(found) == len(set(found))
    assert (len(found) - len(sent)) % 2 == 0


async def test_closing_ends_what_is_being_committed(store: PostgresStore) -> None:
    begun = asyncio.Event()

    class Slow(Cut):
        async def fetchrow(self, sql: str, *values: Any) -> Any:
            begun.set()
            return await self._connection.fetchrow("SELECT pg_sleep(60)")

    store._committers[0]._connection = Slow(store._committers[0]._connection, False)
    committing = asyncio.create_task(store.commit([Unit(events=(record(),))]))
    await begun.wait()
    await asyncio.wait_for(store.close(), 10)
    with pytest.raises(StoreUnavailable, match="the outcome of a commit could not be learned: the store is not open"):
        await committing


async def test_whatever_is_cancelled_leaves_the_store_usable(store: PostgresStore) -> None:
    await store.commit([append("s")])

    async def transact() -> None:
        async with store.transaction() as tx:
            await tx.fetch("SELECT pg_sleep(0.002)")
            async with tx.savepoint():
                await tx.apply(append("s"))

    async def nap() -> None:
        await store.fetch("SELECT pg_sleep(0.005)")

    async def read() -> None:
        await store.log.read(0, 10)

    for n in range(150):
        for act in (transact, nap, read):
            task = asyncio.create_task(act())
            await asyncio.sleep(n % 15 / 2_000)  # sleep: cancelled at many moments
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert await store.fetch("SELECT 1 AS one") == [{"one": 1}]
    versions = [r.stream_version for r in await store.log.read(0, 1_000)]
    assert versions == list(range(1, len(versions) + 1))
    async with store.transaction() as tx:
        await tx.apply(append("s", len(versions)))


# --- restarts ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"max_prepared_transactions": "10"}) as server:
        yield server


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_everything_goes_on_after_the_server_was_away(server: PostgresServer, how: str) -> None:
    service = f"s{uuid4().hex[:8]}"
    store = PostgresStore(server.url, service)
    await store.migrate()
    await store.open()
    heard = asyncio.Event()
    stop = store.log.listen(heard.set)
    member = store.membership()
    thread = ThreadPoolExecutor(1)  # as in a service: its connection is the thread's
    beat = partial(asyncio.get_running_loop().run_in_executor, thread, member.beat, "nobody", 5)
    try:
        before = await store.commit([append("s")])
        async with store.transaction() as tx:
            await tx.fetch("SELECT 1")
        await beat()
        if how == "kill":
            server.kill()
        else:
            server.crash()
        committing = asyncio.create_task(store.commit([append("s")]))
        await asyncio.sleep(0.1)  # sleep: that nothing happens takes a while to show
        assert not committing.done()
        await asyncio.to_thread(server.start)
        after = await committing
        assert isinstance(before[0], Committed)
        assert isinstance(after[0], Committed)
        assert after[0].positions > before[0].positions
        assert [r.stream_version for r in await store.log.read(0, 10)] == [1, 2]
        assert await store.fetch("SELECT 1 AS one") == [{"one": 1}]
        async with store.transaction() as tx:
            await tx.apply(append("s"))
        assert not await beat()
        heard.clear()
        async with asyncio.timeout(10):
            while not heard.is_set():  # the doorbell's connection comes back in its own time
                store.ring()
                await asyncio.wait([asyncio.create_task(heard.wait())], timeout=0.1)
    finally:
        stop()
        thread.submit(member.close)
        await asyncio.to_thread(thread.shutdown)
        await store.close()


async def test_a_server_that_stays_away_is_unavailable(server: PostgresServer) -> None:
    store = PostgresStore(server.url, f"s{uuid4().hex[:8]}", lease=0.3)
    await store.migrate()
    await store.open()
    server.crash()
    try:
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.commit([append("s")])
        with pytest.raises(StoreUnavailable):
            await store.log.read(0, 1)
        with pytest.raises(StoreUnavailable):
            await store.fetch("SELECT 1")
    finally:
        await asyncio.to_thread(server.start)
    assert isinstance((await store.commit([append("s")]))[0], Committed)
    await store.close()


async def test_a_prepared_transaction_holds_the_log_also_over_a_restart(server: PostgresServer) -> None:
    service = f"s{uuid4().hex[:8]}"
    store = PostgresStore(server.url, service)
    await store.migrate()
    await store.open()
    try:
        async with store.transaction() as tx:
            await tx.apply(append("s"))
            await tx.connection.execute(f"PREPARE TRANSACTION '{service}'")
        await store.commit([append("other")])
        assert await store.log.read(0, 10) == []
        await asyncio.to_thread(server.restart)
        assert await store.log.read(0, 10) == []
        [outcome] = await store.commit([append("s")])
        assert isinstance(outcome, Busy)
        connection = await asyncpg.connect(server.url)
        await connection.execute(f"COMMIT PREPARED '{service}'")
        await connection.close()
        assert [r.stream for r in await store.log.read(0, 10)] == ["s", "other"]
    finally:
        await store.close()


# --- held keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [True, False])
async def test_a_held_key_delays_nobody_else(store: PostgresStore, new: bool) -> None:
    if not new:
        await store.commit([append("held")])
    times: list[float] = []
    async with store.transaction() as tx:
        await tx.apply(append("held"))
        end = time.monotonic() + 2
        n = 0
        while time.monotonic() < end:
            n += 1
            began = time.monotonic()
            outcomes = await store.commit([append("held"), append(f"n{n}", 0), append("any"), Unit(events=(record(),))])
            times.append(time.monotonic() - began)
            assert [type(outcome) for outcome in outcomes] == [Busy, Committed, Committed, Committed]
            await tx.fetch("SELECT 1")
    times.sort()
    assert times[len(times) * 99 // 100] < 0.1
    assert isinstance((await store.commit([append("held")]))[0], Committed)


async def test_many_held_keys_cost_a_bounded_time(store: PostgresStore) -> None:
    async with store.transaction() as tx:
        for n in range(200):
            await tx.apply(append(f"held{n}", 0))
        waiting = asyncio.create_task(store.commit([append(f"held{n}") for n in range(200)], patient=True))
        await asyncio.sleep(0.5)  # sleep: longer than the bound that is tested
        times = []
        for _ in range(20):
            began = time.monotonic()
            assert isinstance((await store.commit([Unit(events=(record(),))]))[0], Committed)
            times.append(time.monotonic() - began)
        assert sorted(times)[10] < 0.1
    assert all(isinstance(outcome, Committed) and outcome.versions == (2,) for outcome in await waiting)


async def test_a_held_cursor_fence_and_table_are_busy(store: PostgresStore, plain: Any) -> None:
    await plain.execute("INSERT INTO orders.skald_cursors (group_name, origin, lane, position) VALUES ('g', 'o', 0, 0)")
    await plain.execute("UPDATE orders.skald_cursors SET owner = 'p'")
    await plain.execute("INSERT INTO orders.skald_fences VALUES ('p')")
    move = Unit(events=(record(),), cursor=CursorMove("g", "o", 0, "p", 0, 0, 1, "x"), fence="p")
    for statement in (
        "DELETE FROM orders.skald_fences",
        "UPDATE orders.skald_cursors SET version = 1",
        "LOCK orders.skald_cursors IN ACCESS EXCLUSIVE MODE",
    ):
        block = plain.transaction()
        await block.start()
        await plain.execute(statement)
        outcomes = await store.commit([move, Unit(events=(record(),))])
        assert [type(outcome) for outcome in outcomes] == [Busy, Committed], statement
        await block.rollback()
    assert isinstance((await store.commit([move]))[0], Committed)


# --- the mark ---------------------------------------------------------------------------------------------------------


async def test_services_in_one_database_do_not_stall_each_other(store: PostgresStore, postgres_url: str) -> None:
    other = PostgresStore(postgres_url, "payments")
    await other.migrate()
    await other.open()
    async with store.transaction() as tx:
        await tx.apply(append("s"))
        await other.commit([append("s")])
        assert len(await other.log.read(0, 10)) == 1
        assert len(await store.log.read(0, 10)) == 0
    await other.close()


async def test_positions_may_be_larger_than_32_bits(store: PostgresStore, plain: Any) -> None:
    await plain.execute("SELECT setval('orders.skald_position', $1)", (1 << 40) + 5)
    await store.commit([append("a")])
    async with store.transaction() as tx:
        await tx.apply(append("b"))
        await store.commit([append("c")])
        assert [r.position for r in await store.log.read(0, 10)] == [(1 << 40) + 6]
    assert [r.position for r in await store.log.read(0, 10)] == [(1 << 40) + n for n in (6, 7, 8)]


async def test_a_transaction_announces_once_however_much_it_appends(store: PostgresStore) -> None:
    sql = "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    async with store.transaction() as tx:
        for n in range(10):
            await tx.apply(append(f"s{n}"))
            await store.commit([append("other")])
        assert await tx.fetch(sql) == [{"n": 1}]


async def test_what_a_transaction_kept_back_is_rung_for_when_it_is_rolled_back(store: PostgresStore) -> None:
    rung, kept = asyncio.Event(), asyncio.Event()
    store.log.listen(rung.set)
    async with asyncio.timeout(30):
        await rung.wait()  # it listens

        async def fail() -> None:
            async with store.transaction() as tx:
                await tx.apply(append("a"))
                await store.commit([append("b")])
                await kept.wait()
                raise LookupError

        failing = asyncio.create_task(fail())
        rung.clear()
        await rung.wait()
        assert await store.log.read(0, 10) == []
        rung.clear()
        kept.set()
        with pytest.raises(LookupError):
            await failing
        await rung.wait()
    assert [record.key for record in await store.log.read(0, 10)] == ["k"]


async def test_reading_needs_no_more_than_select(store: PostgresStore, plain: Any, postgres_url: str) -> None:
    role = f"reader_{uuid4().hex[:8]}"
    await plain.execute(f"CREATE ROLE {role} LOGIN")
    try:
        await plain.execute(f"GRANT USAGE ON SCHEMA orders TO {role}")
        await plain.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA orders TO {role}")
        await plain.execute(f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA orders TO {role}")
        await store.commit([append("s")])
        parts = urlsplit(postgres_url)
        log = PostgresLog(parts._replace(netloc=f"{role}@{parts.hostname}:{parts.port}").geturl(), "orders")
        await log.open()
        heard = asyncio.Event()
        log.listen(heard.set)
        assert len(await log.read(0, 10, types=["T"])) == 1
        assert await log.versions(["stream:s"]) == {"stream:s": 1}
        assert (await log.end())[0] == 1
        async with asyncio.timeout(5):
            await heard.wait()
        async with store.transaction() as tx:
            await tx.apply(append("s"))
            assert (await log.end())[0] == 1
        await log.close()
    finally:
        await plain.execute(f"DROP OWNED BY {role}")
        await plain.execute(f"DROP ROLE {role}")


async def test_the_plan_of_reading_stays_right_when_the_log_grows(store: PostgresStore, postgres_url: str) -> None:
    """A generic plan that was made while the log was empty."""
    connection = await asyncpg.connect(
        postgres_url,
        server_settings={"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"},
    )
    sql = statements("log", "orders")
    await connection.execute(f"PREPARE reading AS {sql['read']}")
    await connection.execute("EXECUTE reading(1, 10, 10)")
    for _ in range(20):
        await store.commit([Unit(events=tuple(record() for _ in range(500)), messages=(record(),))])
    rows = await connection.fetch("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE reading(5000, 1000000, 100)")
    await connection.close()
    plan = json.loads(rows[0][0])[0]["Plan"]

    def most(node: dict[str, Any]) -> int:
        return max([node["Actual Rows"], *(most(child) for child in node.get("Plans", ()))])

    assert most(plan) <= 100
    assert "Merge Append" in json.dumps(plan)


# --- sessions of others -----------------------------------------------------------------------------------------------


async def test_publish_appends_in_the_callers_transaction(store: PostgresStore, postgres_url: str) -> None:
    heard = asyncio.Event()
    store.log.listen(heard.set)
    await asyncio.sleep(0.1)  # sleep: that nothing happens takes a while to show
    heard.clear()
    before = SystemClock().now()
    with psycopg.connect(postgres_url) as other:
        position = other.execute(
            "SELECT orders.skald_publish('OrderPlaced', %s, '{\"total\": 5}', correlation_id => 'saga-1')", ["größe"]
        ).fetchone()
        await store.commit([append("s")])
        assert await store.log.read(0, 10) == []
    async with asyncio.timeout(5):
        await heard.wait()
    found = (await store.log.read(0, 10))[0]
    assert (found.position,) == position
    assert (found.topic, found.key, found.slot) == ("orders", "größe", slot_of("größe"))
    assert (found.type, found.version, found.payload) == ("OrderPlaced", 1, b'{"total": 5}')
    assert found.correlation_id == "saga-1"
    assert found.traceparent == child_traceparent(None, "saga-1", found.id)
    assert UUID(found.id).version == 7
    assert abs((UUID(found.id).int >> 80) * 1000 - found.time) < 10_000
    assert before - 1_000_000 < found.time < SystemClock().now() + 1_000_000
    assert (await store.fetch("SELECT payload FROM skald_log WHERE position = 1"))[0]["payload"] == '{"total": 5}'


async def test_a_session_of_another_driver_carries_units(store: PostgresStore, postgres_url: str) -> None:
    await store.commit([append("taken")])
    unit = Unit(appends=(Append("s", (record(), record()), 0),), messages=(record(),), tags=(Tag("t", 0, True),))
    with psycopg.connect(postgres_url) as other:
        [answer] = other.execute("SELECT orders.skald_apply_1(%s)", [units_to_json([unit])]).fetchone() or [{}]
        assert answer["bad_unit"] == []
        [answer] = other.execute(
            "SELECT orders.skald_apply_1(%s)", [units_to_json([append("taken", 0)])]
        ).fetchone() or [{}]
        assert (answer["bad_code"], answer["bad_key"], answer["bad_actual"]) == ([1], ["stream:taken"], [1])
    assert await store.log.versions(["stream:s", "tag:t", "stream:taken"]) == {
        "stream:s": 2,
        "tag:t": 1,
        "stream:taken": 1,
    }
    assert [r.payload for r in await store.log.read(0, 10)] == [b"{}"] * 4


async def test_an_old_snapshot_is_a_conflict(store: PostgresStore) -> None:
    await store.commit([append("s")])
    async with store._pool.connection(reset=True) as connection:
        block = connection.transaction(isolation="repeatable_read")
        await block.start()
        await connection.fetchval("SELECT 1")
        await store.commit([append("s")])
        answer = json.loads(
            await connection.fetchval("SELECT skald_apply_1($1::text::jsonb)::text", units_to_json([append("s", 1)]))
        )
        assert (answer["bad_code"], answer["bad_key"]) == ([1], ["stream:s"])
        assert await connection.fetchval("SELECT 1") == 1
        await block.rollback()


async def test_a_value_that_is_refused_leaves_the_transaction_usable(store: PostgresStore) -> None:
    bad = Record(0, "no uuid", "t", "k", 1, "T", 1, 1, "c", None, None, b"")
    async with store.transaction() as tx:
        for unit in (Unit(events=(bad,)), append("a\0b")):
            with pytest.raises(Rejection):
                await tx.apply(unit)
        await tx.apply(append("s"))
    assert len(await store.log.read(0, 10)) == 1


async def test_a_transaction_that_was_left_open_says_so(postgres_url: str) -> None:
    store = PostgresStore(postgres_url, "orders", lease=0.2)
    await store.migrate()
    await store.open()
    with pytest.raises(TransactionTooLong, match="rolled back"):  # noqa: PT012
        async with store.transaction() as tx:
            await tx.apply(append("s"))
            await asyncio.sleep(0.5)  # sleep: longer than the bound that is tested
            await tx.execute("SELECT 1")
    assert isinstance((await store.commit([append("s", 0)]))[0], Committed)
    await store.close()


async def test_settings_of_a_user_do_not_reach_the_next_one(store: PostgresStore) -> None:
    async with store.transaction() as tx:
        await tx.execute("SET search_path = pg_catalog")
        await tx.apply(append("s"))
        await tx.execute("SET statement_timeout = 1")
    async with store.transaction() as tx:
        await tx.fetch("SELECT pg_sleep(0.01), key FROM skald_heads")


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("mysql://h/d", ConfigurationError),
        ("postgresql://h:port/d", ConfigurationError),
        ("postgresql://127.0.0.1:1/d", StoreUnavailable),
    ],
)
async def test_a_wrong_address_is_named(url: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await PostgresStore(url, "orders").open()


async def test_a_missing_database_and_a_wrong_user_are_named_without_the_password(postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    missing = parts._replace(path="/nowhere").geturl()
    nobody = parts._replace(netloc=f"nobody_here:secret@{parts.hostname}:{parts.port}").geturl()
    for url, text in ((missing, "nowhere"), (nobody, "nobody_here")):
        with pytest.raises(StoreError, match=text) as caught:
            await PostgresStore(url, "orders").open()
        assert "secret" not in str(caught.value)


async def test_a_session_that_does_not_keep_commits_is_refused(
    store: PostgresStore, plain: Any, postgres_url: str
) -> None:
    name = urlsplit(postgres_url).path[1:]
    await plain.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with pytest.raises(UnsafeSettings, match="synchronous_commit"):
        await PostgresStore(postgres_url, "orders").open()


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
async def test_a_server_that_does_not_keep_commits_is_refused(setting: str) -> None:
    with PostgresServer(settings={setting: "off"}) as server:
        store = PostgresStore(server.url, "orders")
        await store.migrate()
        with pytest.raises(UnsafeSettings, match=setting):
            await store.open()


async def test_a_process_needs_few_connections(store: PostgresStore, plain: Any, postgres_url: str) -> None:
    logs = [PostgresLog(postgres_url, "orders") for _ in range(8)]
    for log in logs:
        await log.open()
        log.listen(lambda: None)
    await store.commit([append("s")])
    await asyncio.gather(*(store.fetch("SELECT pg_sleep(0.01)") for _ in range(20)))
    await asyncio.sleep(0.2)  # sleep: connections close in their own time
    count = await plain.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'skald:%'"
    )
    assert count <= 4 + 4
    for log in logs:
        await log.close()
