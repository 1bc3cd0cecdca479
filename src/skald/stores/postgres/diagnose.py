"""What the operator of a schema should know: unsafe settings, and who stalls the readers of its log."""

from __future__ import annotations

from typing import Any

from skald.errors import SkaldError, UnsafeSettings
from skald.store import Finding
from skald.stores.postgres.connecting import COMMITTER, Connection, check_settings, close, connect, shown
from skald.stores.postgres.failures import boundary
from skald.stores.postgres.statements import statements

STALLED = 1_000_000
"""Microseconds; an announcement that is older holds every reader of the log up for longer than anybody should."""
OLDEST = 140_000
LONGEST = 200
"""Characters of somebody's statement that are shown."""


async def diagnose(url: str, schema: str, service: str) -> list[Finding]:
    """On a connection of its own, so that it also works for a store that refuses to open."""
    sql = statements("diagnose", schema)
    try:
        connection = await connect(url, f"{service}:doctor", schema=schema)
    except SkaldError as error:
        remedy = "start the server, or correct the address of the store"
        return [Finding("error", "unreachable", str(error), remedy)]
    try:
        with boundary():
            return await _findings(connection, sql, url, schema)
    except SkaldError as error:
        return [Finding("error", "unreadable", f"{shown(url)}: {error}")]
    finally:
        await close(connection)


async def _findings(connection: Connection, sql: dict[str, str], url: str, schema: str) -> list[Finding]:
    found = await _settings(connection, sql, url)
    if await connection.fetchval(sql["has_log"], schema):
        found += [_horizon(row, schema) for row in await connection.fetch(sql["announcements"])]
        found += [_held(row) for row in await connection.fetch(sql["heads"])]
    return found


async def _settings(connection: Connection, sql: dict[str, str], url: str) -> list[Finding]:
    found: list[Finding] = []
    settings = dict(await connection.fetchrow(sql["settings"]))
    try:
        check_settings({**settings, "lock_timeout": COMMITTER["lock_timeout"]}, url)
    except UnsafeSettings as error:
        found.append(Finding("error", "settings", str(error)))
    if settings["version"] < OLDEST:
        text = f"{shown(url)} is PostgreSQL {settings['version'] // 10_000}"
        found.append(Finding("error", "version", text, "PostgreSQL 14 or later is needed"))
    if settings["autovacuum"] != "on":
        text = f"{shown(url)} runs with autovacuum=off: the tables of cursors and leases grow without end"
        found.append(Finding("warning", "settings", text, "set autovacuum = on in postgresql.conf"))
    if settings["used"] * 10 > settings["allowed"] * 9:
        text = f"{shown(url)} has {settings['used']} of {settings['allowed']} connections open"
        found.append(Finding("warning", "connections", text, "raise max_connections, or end what is idle"))
    return found


def _horizon(row: Any, schema: str) -> Finding:
    behind = f"{row['behind']} later positions of {schema} are not readable"
    if row["gid"] is not None:
        who = f"the prepared transaction {row['gid']!r} of {row['owner']}"
        text = f"{who} (since {_age(row['age'])}) holds the log: {behind}"
        quoted = row["gid"].replace("'", "''")
        return _stalling(row, text, f"COMMIT PREPARED '{quoted}' or ROLLBACK PREPARED '{quoted}'")
    text = f"{_session(row)} has appended and not committed: {behind}; its last statement: {_statement(row['query'])}"
    return _stalling(row, text, f"commit or end it: SELECT pg_terminate_backend({row['pid']})")


def _stalling(row: Any, text: str, remedy: str) -> Finding:
    # An append that is under way is no news; one that does not end is.
    stalls = row["age"] is None or row["age"] > STALLED
    return Finding("error" if stalls else "info", "horizon", text, remedy)


def _held(row: Any) -> Finding:
    text = f"{_session(row)} holds locks on streams, tags or cursors; its last statement: {_statement(row['query'])}"
    return Finding("warning", "locks", text, f"commit or end it: SELECT pg_terminate_backend({row['pid']})")


def _session(row: Any) -> str:
    name = f" ({row['application']})" if row["application"] else ""
    return f"process {row['pid']}{name} of {row['owner']}, {row['state']}, in a transaction since {_age(row['age'])},"


def _age(micros: int | None) -> str:
    return "an unknown time" if micros is None else f"{micros / 1e6:.1f} s"


def _statement(text: str | None) -> str:
    line = " ".join((text or "?").split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
