"""What every test can ask for: a PostgreSQL database of its own. And in CI, a test that did not run is a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

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


@pytest.fixture
def postgres_url(postgres_server: str, _postgres_admin: psycopg.Connection) -> Iterator[str]:
    """The URL of a fresh, empty database that is dropped after the test, whoever is still connected."""
    name = f"skald_{uuid4().hex[:12]}"
    _postgres_admin.execute(f"CREATE DATABASE {name}")
    yield urlsplit(postgres_server)._replace(path=f"/{name}").geturl()
    _postgres_admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


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
