"""What every test can ask for: a PostgreSQL database of its own. And in CI, a test that did not run is a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from tests.postgres_server import PostgresServer

_not_run: list[str] = []


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a superuser on a server that the whole run shares. A test that stops a server starts its own:
    ``with PostgresServer() as server``."""
    given = os.environ.get("SKALD_TEST_POSTGRES")
    if given:
        yield given
    else:
        with PostgresServer() as server:
            yield server.url


@pytest.fixture(scope="session")
def _postgres_admin(postgres_server: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def _spare_databases(_postgres_admin: psycopg.Connection) -> Iterator[list[str]]:
    spare: list[str] = []
    yield spare
    for name in spare:
        _postgres_admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(
    postgres_server: str, _postgres_admin: psycopg.Connection, _spare_databases: list[str]
) -> Iterator[str]:
    """The URL of an empty database that nobody else uses, whoever is still connected after the test."""

    def url(name: str) -> str:
        return urlsplit(postgres_server)._replace(path=f"/{name}").geturl()

    admin, spare = _postgres_admin, _spare_databases
    name = spare.pop() if spare else _created(admin)
    yield url(name)
    # To drop it is a checkpoint, which takes longer than many a test. Under another name nobody finds it again.
    spent = _new_name()
    try:
        admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name])
        admin.execute(f"ALTER DATABASE {name} RENAME TO {spent}")
        name = spent
        if _is_emptied(url(name)):
            spare.append(name)
            return
    except psycopg.Error:
        pass  # somebody was quick to connect again, or has a lock
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _new_name() -> str:
    return f"skald_{uuid4().hex[:12]}"


def _created(admin: psycopg.Connection) -> str:
    name = _new_name()
    admin.execute(f"CREATE DATABASE {name}")
    return name


_MORE = """
SELECT (SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
        WHERE d.datname = current_database())
     + (SELECT count(*) FROM pg_database
        WHERE datname = current_database() AND (datconnlimit <> -1 OR datacl IS NOT NULL))
     + (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database())
     + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())
     + (SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('public'))
     + (SELECT count(*) FROM pg_proc WHERE pronamespace = to_regnamespace('public'))
     + (SELECT count(*) FROM pg_type WHERE typnamespace = to_regnamespace('public'))
     + (SELECT count(*) FROM pg_extension WHERE extname <> 'plpgsql') + (SELECT count(*) FROM pg_publication)
     + (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_foreign_server)
     + (SELECT count(*) FROM pg_largeobject_metadata) + (SELECT count(*) FROM pg_default_acl)
     + (CASE WHEN to_regnamespace('public') IS NULL THEN 1 ELSE 0 END)
"""
_SCHEMAS = (
    "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')"
)


def _is_emptied(url: str) -> bool:
    """Drops all schemas; nothing, if there is more."""
    with psycopg.connect(url, autocommit=True, options="-c lock_timeout=2s") as connection:
        [more] = connection.execute(_MORE).fetchone() or [1]
        for (schema,) in connection.execute(_SCHEMAS).fetchall() if not more else ():
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    return not more


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "postgres_server" in getattr(item, "fixturenames", ()):
            item.add_marker("postgres")
    # Minutes each: last, one worker would be busy with them for long after the other one has ended.
    items.sort(key=lambda item: "test_shop_crash_sweep" not in item.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def _note(report: pytest.CollectReport | pytest.TestReport) -> None:
    if report.skipped or hasattr(report, "wasxfail"):
        _not_run.append(report.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _not_run and _in_ci() and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _not_run and _in_ci():
        terminalreporter.section("skipped or expected to fail: a failure, because CI=true", red=True)
        for test in _not_run:
            terminalreporter.line(test)


def _in_ci() -> bool:
    return os.environ.get("CI") == "true"
