"""The doctor names what is wrong, each with what to do, and says nothing where nothing is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from skald import NEVER, App, ManualClock, RuntimeSettings, Service, operations
from skald.operations import Health
from skald.runtime.process import this_process
from skald.store import Finding
from skald.stores.sqlite import diagnose
from tests.postgres_server import PostgresServer
from tests.simulation.stage import MIGRATIONS, QUICK, Job, Placed, caught_up, eventually, playing


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


class Stage:
    def __init__(self, url: str, settings: RuntimeSettings = QUICK) -> None:
        self.source = Service("source", publishes=[Placed, Job])
        self.sink = Service("sink", migrations=MIGRATIONS)
        self.app = App(self.source, self.sink, store=url, settings=settings)
        self.sink.on(Placed, retry=NEVER)(self.handle)
        self.sink.queue(Job)(self.work)

    async def handle(self, event: Placed) -> None:
        if event.n == 13:
            raise ValueError("unlucky")

    async def work(self, job: Job) -> None: ...

    async def sink_health(self) -> Health:
        (health,) = await operations.examine(self.app, ["sink"])
        return health


def found(health: Health, what: str) -> Finding:
    (finding,) = [finding for finding in health.findings if finding.what == what]
    return finding


def wrong(health: Health) -> list[str]:
    return [finding.what for finding in health.findings if finding.level != "info"]


async def test_a_healthy_application_has_nothing_to_do(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.source.publish(Placed("a", 1), Job("b", 2))
        assert await eventually(lambda: caught_up(stage.sink, stage.source))

        async def healthy() -> list[Health]:
            found = await operations.examine(stage.app)
            assert [wrong(health) for health in found] == [[], []]
            return found

        source, sink = await eventually(healthy)

    assert found(sink, "processes").detail.startswith("1 running (process ")
    assert found(sink, "lag").detail == "sink on source: 0 positions behind"
    assert source.worst == "info"


async def test_a_database_without_tables_says_how_to_make_them(store_url: str) -> None:
    stage = Stage(store_url)
    health = await stage.sink_health()
    (finding,) = health.findings
    assert (finding.level, health.worst) == ("error", "error")
    assert finding.remedy.startswith("skald migrate")


async def test_files_of_the_service_that_are_not_applied_are_named(store_url: str) -> None:
    stage = Stage(store_url)
    await App(stage.source, Service("sink"), store=store_url).migrate()
    finding = found(await stage.sink_health(), "schema")
    assert finding.level == "error"
    assert next(MIGRATIONS.glob("0001_*.sql")).name in finding.detail
    assert finding.remedy == "skald migrate up --service sink"


async def test_parked_and_orphaned_messages_are_counted(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.source.publish(Placed("a", 13), Placed("a", 14), Placed("b", 13))
        assert await eventually(lambda: caught_up(stage.sink, stage.source))
        health = await stage.sink_health()
    parked = found(health, "parked")
    assert parked.level == "warning"
    assert parked.detail.startswith("handle (from source): 2 parked, the oldest for ")
    assert found(health, "waiting").level == "info"

    renamed = Service("sink", migrations=MIGRATIONS)
    renamed.on(Placed, name="another")(stage.handle)
    renamed.queue(Job)(stage.work)
    (health,) = await operations.examine(App(stage.source, renamed, store=store_url), ["sink"])
    assert [f.level for f in health.findings if f.what == "orphaned"] == ["error", "error"]
    assert "no handler has that name any more" in health.findings[-1].detail


async def test_work_that_nobody_takes_up_is_overdue(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        assert await eventually(lambda: caught_up(stage.sink, stage.source))
        await stage.source.publish(Job("a", 1), delay=30)
        assert await eventually(lambda: caught_up(stage.sink, stage.source))
    now = ManualClock()
    async with stage.app.connect("sink"):
        (row,) = await stage.sink.fetch("SELECT due FROM skald_deliveries")
    now.advance((row["due"] - now.now()) / 1e6)
    (health,) = await operations.examine(stage.app, ["sink"], clock=now)
    assert found(health, "queued").level == "info"
    now.advance(600)
    (health,) = await operations.examine(stage.app, ["sink"], clock=now)
    assert found(health, "queued").detail.endswith("1 queued, the oldest was due 10 min ago")
    assert found(health, "queued").level == "warning"


async def test_a_stopped_lane_and_a_log_that_lost_its_end_are_errors(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.source.publish(Placed("a", 1))
        assert await eventually(lambda: caught_up(stage.sink, stage.source))
    async with stage.app.connect("sink"), stage.sink.transaction() as tx:
        await tx.execute("UPDATE skald_cursors SET stopped = 'it forked' WHERE lane IN (1, 2)")
        await tx.execute("UPDATE skald_cursors SET position = 100")
    health = await stage.sink_health()
    assert found(health, "stopped").detail == "sink on source: lane 1, 2 is stopped: it forked"
    assert "skald subscriptions reset --group sink --origin source" in found(health, "stopped").remedy
    assert "99 positions before the place that was read" in found(health, "fork").detail
    assert health.worst == "error"


async def test_another_number_of_lanes_and_a_dead_process_are_told(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.source.publish(Placed("a", 1))
        assert await eventually(lambda: caught_up(stage.sink, stage.source))
    async with stage.app.connect("sink"):
        membership = stage.sink.store.membership()

        def join() -> None:
            membership.join(this_process("sink"), -1.0)
            membership.close()

        await asyncio.to_thread(join)
    other = Service("sink", lanes=3, migrations=MIGRATIONS)
    other.on(Placed)(stage.handle)
    other.queue(Job)(stage.work)
    (health,) = await operations.examine(App(stage.source, other, store=store_url), ["sink"])
    assert found(health, "lanes").detail == "sink on source: 8 lanes, the code says 3"
    assert "its lease has run out" in found(health, "dead_process").detail


async def test_far_behind_is_a_warning(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skald.operations.doctor.FAR_BEHIND", 2)
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.source.publish(Placed("a", 1))
        assert await eventually(lambda: caught_up(stage.sink, stage.source))
    async with stage.app.connect("source"):
        await stage.source.publish(*(Placed("a", n) for n in range(3)))
    finding = found(await stage.sink_health(), "lag")
    assert (finding.level, finding.detail) == ("warning", "sink on source: 3 positions behind")


async def test_one_database_that_cannot_be_reached_hides_no_other(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    nowhere = "postgresql://somebody:hunter2@127.0.0.1:1/nowhere?password=hunter3"
    app = App(stage.source, stage.sink, store=store_url, stores={"source": nowhere})
    source, sink = await operations.examine(app)
    [finding] = source.findings
    assert (finding.level, finding.what) == ("error", "unreachable")
    assert finding.detail.startswith("127.0.0.1:1/nowhere: PostgreSQL cannot be reached")
    assert "start the server" in finding.remedy
    assert source.store == "postgresql://somebody@127.0.0.1:1/nowhere"
    assert "hunter" not in repr([source, sink])
    assert found(sink, "not_started")


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


async def horizon(app: App) -> list[Finding]:
    (health,) = await operations.examine(app, ["source"])
    return [finding for finding in health.findings if finding.what == "horizon"]


async def test_who_stalls_the_readers_of_a_log_is_named(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skald.stores.postgres.diagnose.STALLED", 0)
    stage = Stage(postgres_url)
    await stage.app.migrate()
    assert await horizon(stage.app) == []
    connection = await asyncpg.connect(postgres_url, server_settings={"application_name": "import"})
    try:
        block = connection.transaction()
        await block.start()
        await connection.execute("SET LOCAL search_path = source")
        await connection.execute("SELECT skald_publish('Placed', 'a', '{}')")
        async with stage.app.connect("source"):
            await stage.source.publish(Placed("b", 1), Placed("b", 2))
        (finding,) = await horizon(stage.app)
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        assert finding.level == "error"
        assert f"process {pid} (import) of" in finding.detail
        assert "idle in transaction" in finding.detail
        assert "3 later positions of source are not readable" in finding.detail
        assert f"pg_terminate_backend({pid})" in finding.remedy
        await block.rollback()
        assert await horizon(stage.app) == []

        await connection.execute("BEGIN")
        # A transaction that has sent a NOTIFY cannot be prepared.
        await connection.execute("SET LOCAL search_path = source; SET LOCAL skald.notify = off")
        await connection.execute("SELECT skald_publish('Placed', 'a', '{}')")
        await connection.execute("PREPARE TRANSACTION 'somebody''s'")
        (finding,) = await horizon(stage.app)
        assert 'prepared transaction "somebody\'s"' in finding.detail
        assert finding.remedy == "COMMIT PREPARED 'somebody''s' or ROLLBACK PREPARED 'somebody''s'"
        await connection.execute("ROLLBACK PREPARED 'somebody''s'")
    finally:
        await connection.close()


async def test_settings_that_lose_what_was_acknowledged_are_named() -> None:
    with PostgresServer(settings={"synchronous_commit": "off", "autovacuum": "off"}) as server:
        app = Stage(urlsplit(server.url)._replace(path="/postgres").geturl()).app
        await app.migrate()
        (health,) = await operations.examine(app, ["source"])
    settings = [(f.level, f.detail) for f in health.findings if f.what == "settings"]
    assert [level for level, _ in settings] == ["error", "warning"]
    assert "synchronous_commit=off" in settings[0][1]
    assert "autovacuum=off" in settings[1][1]


# --- SQLite -----------------------------------------------------------------------------------------------------------


def test_a_large_wal_and_a_full_disk_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "LARGE_WAL", 100)
    monkeypatch.setattr(diagnose, "LITTLE_SPACE", 1 << 60)
    file = tmp_path / "a.db"
    file.touch()
    (tmp_path / "a.db-wal").write_bytes(b"x" * 5000)
    levels = {finding.what: finding.level for finding in diagnose.diagnose(file)}
    assert levels["wal_size"] == "warning"
    assert levels["disk"] == "warning"


def test_a_file_on_a_network_file_system_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    place = tmp_path / "a folder"
    place.mkdir()
    escaped = str(place).replace(" ", "\\040")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {escaped} nfs4 rw 0 0\nproc /proc proc rw 0 0\n")
    assert diagnose.file_system(place / "a.db", mounts) == "nfs4"
    assert diagnose.file_system(tmp_path / "a.db", mounts) == "ext4"
    assert diagnose.file_system(place, tmp_path / "missing") is None
    monkeypatch.setattr(diagnose, "file_system", lambda path: "nfs4")
    (place / "a.db").touch()
    assert [f.level for f in diagnose.diagnose(place / "a.db") if f.what == "file_system"] == ["error"]
