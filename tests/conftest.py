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
    name = _spare_databases.pop() if _spare_databases else f"skald_{uuid4().hex[:12]}"
    if not _postgres_admin.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount:
        _postgres_admin.execute(f"CREATE DATABASE {name}")
    url = urlsplit(postgres_server)._replace(path=f"/{name}").geturl()
    yield url
    if _is_emptied(url):
        _spare_databases.append(name)
    else:
        _postgres_admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _is_emptied(url: str) -> bool:
    """Empties the database; not, if it has more than what is in schemas. To drop it is a checkpoint, which takes longer
    than many a test."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        [more] = connection.execute(
            """
            SELECT (SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
                    WHERE d.datname = current_database())
                 + (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database())
                 + (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace)
                 + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)
                 + (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_event_trigger)
                 + (SELECT count(*) FROM pg_extension WHERE extname <> 'plpgsql')
            """
        ).fetchone() or [1]
        if more:
            return False
        schemas = connection.execute(
            "SELECT nspname FROM pg_namespace"
            " WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')"
        )
        for (schema,) in schemas.fetchall():
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    return True


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
