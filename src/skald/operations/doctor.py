"""What an operator should know about every service: findings by name, each with what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from skald.app import App
from skald.clock import Clock, SystemClock
from skald.errors import SkaldError
from skald.operations.access import chosen, members, opened, scrubbed
from skald.operations.subscriptions import SubscriptionView, list_subscriptions
from skald.sql import blocks
from skald.store import Finding, Member, Row, Store

_SQL = blocks("skald.operations", "doctor")
FAR_BEHIND = 10_000
"""Positions; a reader that is further behind than that is worth a warning."""
OVERDUE = 60.0
"""Seconds after which work that is due and not taken up is worth a warning."""

Level = Literal["error", "warning", "info"]


class Health(msgspec.Struct, frozen=True):
    """``store`` is the address without its password."""

    service: str
    store: str
    findings: list[Finding]

    @property
    def worst(self) -> Level | Literal["ok"]:
        levels = {finding.level for finding in self.findings}
        return next((level for level in ("error", "warning", "info") if level in levels), "ok")


async def examine(app: App, services: Iterable[str] = (), *, clock: Clock | None = None) -> list[Health]:
    """One report per service; trouble with one database never hides another's."""
    clock = clock or SystemClock()
    return [
        Health(name, app.shown_url(name), [_scrubbed(finding) for finding in await _findings(app, name, clock)])
        for name in chosen(app, services)
    ]


def _scrubbed(finding: Finding) -> Finding:
    return msgspec.structs.replace(finding, detail=scrubbed(finding.detail))


async def _findings(app: App, name: str, clock: Clock) -> list[Finding]:
    store = app.store(name)
    try:
        found = await _safely("diagnose", store.diagnose())
        if any(finding.what in ("missing", "unreachable", "unreadable") for finding in found):
            return found
        found += await _safely("schema", _schema(app, name, store))
        if any(finding.what == "schema" and finding.level == "error" for finding in found):
            return found
    finally:
        await store.close()
    try:
        async with opened(app, name) as store:
            found += await _of_open(app, name, store, clock)
    except SkaldError as error:
        if not any(finding.detail == str(error) for finding in found):
            found.append(Finding("error", type(error).__name__, str(error)))
    return found


async def _safely(what: str, question: Any) -> list[Finding]:
    try:
        return list(await question)
    except (SkaldError, OSError) as error:
        return [Finding("error", what, str(error))]


async def _schema(app: App, name: str, store: Store) -> list[Finding]:
    pending = [file for file, _ in await store.pending_migrations(app.service(name).migrations)]
    if not pending:
        return []
    return [Finding("error", "schema", f"{', '.join(pending)} not applied", f"skald migrate up --service {name}")]


async def _of_open(app: App, name: str, store: Store, clock: Clock) -> list[Finding]:
    found = await members(store)
    deliveries = await store.fetch(_SQL["deliveries"], group=name)
    subscriptions = await list_subscriptions(app, [name])
    return [
        *_members(name, found, bool(app.topology.subscriptions[name])),
        *(finding for view in subscriptions for finding in _subscription(view)),
        *_deliveries(app, name, deliveries, clock.now()),
    ]


def _members(name: str, found: list[tuple[Member, str | None]], consumes: bool) -> Iterator[Finding]:
    alive = [member.pid for member, gone in found if gone is None]
    if alive:
        yield Finding("info", "processes", f"{len(alive)} running (process {', '.join(map(str, alive))})")
    elif consumes:
        yield Finding("warning", "processes", "no process is running", f"skald run --service {name}")
    for member, gone in found:
        if gone is not None:
            text = f"process {member.pid} has not left its group: {gone}"
            remedy = "nothing: another process of the service takes over" if alive else f"skald run --service {name}"
            yield Finding("warning", "dead_process", text, remedy)


def _subscription(view: SubscriptionView) -> Iterator[Finding]:
    what = f"{view.group} on {view.origin}"
    if view.error is not None:
        yield Finding("error" if view.declared else "warning", "origin", f"{what}: {view.error}")
    if view.declared is None:
        text = f"{what}: the code does not read this log any more, and its cursor holds nothing back"
        yield Finding("info", "unused_cursor", text)
        return
    if not view.lanes:
        yield Finding("warning", "not_started", f"{what}: has never been read; retention of {view.origin} waits for it")
        return
    if len(view.lanes) != view.declared:
        remedy = f"stop {view.group} and run: skald subscriptions relane --group {view.group}"
        yield Finding("error", "lanes", f"{what}: {len(view.lanes)} lanes, the code says {view.declared}", remedy)
    for reason in dict.fromkeys(lane.stopped for lane in view.lanes if lane.stopped is not None):
        numbers = [str(lane.lane) for lane in view.lanes if lane.stopped == reason]
        remedy = f"skald subscriptions reset --group {view.group} --origin {view.origin} --to start|now|POSITION|TIME"
        yield Finding("error", "stopped", f"{what}: lane {', '.join(numbers)} is stopped: {reason}", remedy)
    lag = max((lane.lag for lane in view.lanes if lane.lag is not None), default=0)
    if lag < 0:
        text = f"{what}: the log ends {-lag} positions before the place that was read: it was restored or replaced"
        yield Finding("error", "fork", text, "see what was lost, then: skald subscriptions reset")
    else:
        yield Finding("warning" if lag > FAR_BEHIND else "info", "lag", f"{what}: {lag} positions behind")


def _deliveries(app: App, name: str, rows: list[Row], now: int) -> Iterator[Finding]:
    known = {handler.name for handler in app.service(name).handlers}
    for row in rows:
        state, count, where = row["state"], row["n"], f"{row['handler']} (from {row['origin']})"
        since = max(0.0, (now - row["due"]) / 1e6)
        if row["handler"] not in known:
            text = f"{where}: {count} {state}, and no handler has that name any more, so nobody will finish them"
            remedy = f"bring it back, or give another one name={row['handler']!r}"
            if state == "parked":
                remedy += f"; or skald parked discard --service {name} --handler {row['handler']}"
            yield Finding("error", "orphaned", text, remedy)
        elif state == "parked":
            remedy = f"skald parked list --service {name} --handler {row['handler']}, then redrive or discard"
            yield Finding("warning", "parked", f"{where}: {count} parked, the oldest for {_span(since)}", remedy)
        elif state in ("delayed", "queued"):
            late = since > OVERDUE
            text = f"{where}: {count} {state}" + (f", the oldest was due {_span(since)} ago" if late else "")
            remedy = f"are there enough processes? skald run --service {name}" if late else ""
            yield Finding("warning" if late else "info", state, text, remedy)
        else:
            yield Finding("info", state, f"{where}: {count} {state}")


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
