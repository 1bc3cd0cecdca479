"""Durable workflows as an operator sees them: listed, shown, started, told something, replayed on the present code.

Nothing is run here: what is started or told is written, and a process of the service takes it, now or when there is
one. Only ``check_workflows`` and ``replay_history`` enter the code of workflows, and it can do no more than wait: its
steps are not called, and nothing is written.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec

from skald.app import App
from skald.clock import SystemClock, to_rfc3339
from skald.errors import ConfigurationError, SkaldError, UnreadableMessage, WorkflowBusy, WorkflowEnded
from skald.messaging.service import Service
from skald.operations.access import NotFound, change, chosen, members, opened, scrubbed, unknown
from skald.operations.events import readable
from skald.sql import blocks
from skald.store import Store
from skald.unit import AddressKind, Committed, EntryKind, JournalEntry, LetterKind, Unit, WorkflowState
from skald.workflows import journal
from skald.workflows.client import AnyWorkflow, Client, outside
from skald.workflows.failure import FOR_RETRY, decode_failure
from skald.workflows.replay import Machine
from skald.workflows.saved import History, Replayer, saved
from skald.workflows.signature import identity_of
from skald.workflows.starting import Options

_SQL = blocks("skald.operations", "workflows")
BATCH = 200
FIRST_RUN = "00000000-0000-0000-0000-000000000000"
MAX_REASON = 500
"""Characters."""
_FAILURES = (EntryKind.STEP_FAILED, EntryKind.CHILD_FAILED, EntryKind.FORGOTTEN)
_TEXTS = (LetterKind.CANCEL, LetterKind.TERMINATE, LetterKind.PAUSE)

_stubborn: list[Any] = []
"""Tasks that would not end; dropping one would never come back."""


class WorkflowView(msgspec.Struct, frozen=True):
    """``seconds``: how long it has run, or how long ago it was started. ``waits_for`` is a time, ``"a letter"``,
    ``"a process"`` or ``"resume"``, and ``None`` in a process's memory. ``error``: the type of what failed."""

    service: str
    id: str
    run: str
    workflow: str
    state: str
    started_at: str
    ended_at: str | None
    seconds: float
    key: str | None
    owner: str | None
    waits_for: str | None
    error: str | None


class WorkflowList(msgspec.Struct, frozen=True):
    workflows: list[WorkflowView]
    more: bool


class EntryView(msgspec.Struct, frozen=True):
    position: int
    time: str
    kind: str
    name: str
    occurrence: int
    payload: Any


class LetterView(msgspec.Struct, frozen=True):
    time: str
    kind: str
    name: str
    payload: Any


class WorkflowDetail(msgspec.Struct, frozen=True):
    """``letters`` were not taken yet; a ``call`` waits for its answer, and a
    lock stays while it is waited for or held. ``outcome`` is the result, the failure, or why
    it is paused."""

    workflow: WorkflowView
    parent: str | None
    input: Any
    outcome: Any
    journal: list[EntryView]
    letters: list[LetterView]
    children: list[WorkflowView]


class Told(msgspec.Struct, frozen=True):
    """A workflow after it was started or told something. ``running``: a process of its service runs."""

    service: str
    id: str
    workflow: str
    state: str
    running: bool
    started: bool = False
    """By this very call, and not before."""


class Broken(msgspec.Struct, frozen=True):
    service: str
    id: str
    workflow: str
    reason: str


class Check(msgspec.Struct, frozen=True):
    checked: int
    broken: list[Broken]


class Replayed(msgspec.Struct, frozen=True):
    """``state`` and ``outcome`` once it has ended; ``traceback``, of places in the code alone, if an exception has
    ended it."""

    workflow: str
    id: str
    entries: int
    waits_for: list[str]
    state: str | None
    outcome: Any
    traceback: str | None


# --- which one --------------------------------------------------------------------------------------------------------


def service_of(app: App, name: str | None = None) -> str:
    """The service that is named, or the only one that has workflows."""
    return only_one(app, name, "workflows", lambda service: bool(service.workflows))


def only_one(app: App, name: str | None, what: str, has: Callable[[Service], bool]) -> str:
    if name is not None:
        return chosen(app, [name])[0]
    having = [service.name for service in app.services.values() if has(service)]
    if len(having) != 1:
        raise ConfigurationError(
            f"which service? These have {what}, name one with --service: {', '.join(sorted(having))}"
            if having
            else f"no service of this application has {what}"
        )
    return having[0]


def declared(app: App, service: str, name: str) -> AnyWorkflow:
    known = {workflow.name: workflow for workflow in app.service(service).workflows}
    if name not in known:
        raise unknown("workflow", name, known)
    return known[name]


async def last_run(store: Store, id: str) -> journal.Known:
    known = await journal.by_id(store, id)
    if known is None:
        raise NotFound(f"{store.service} has no workflow with the id {id!r}; see them with: skald workflows list")
    return known


# --- looking ----------------------------------------------------------------------------------------------------------


async def list_workflows(
    app: App,
    service: str | None = None,
    *,
    states: Iterable[WorkflowState] = (),
    workflow: str | None = None,
    limit: int = 100,
) -> WorkflowList:
    """The last run of each id, newest first; with the state ``continued`` the earlier runs too."""
    name, wanted = service_of(app, service), {f"state{n}": state.value for n, state in enumerate(states)}
    conditions = [] if WorkflowState.CONTINUED in wanted.values() else ["w.latest = 1"]
    values: dict[str, Any] = {**wanted}
    if wanted:
        conditions.append(f"w.state IN ({', '.join(f':{state}' for state in wanted)})")
    if workflow is not None:
        conditions.append("w.workflow = :workflow")
        values["workflow"] = workflow
    async with opened(app, name) as store:
        found = await _views(store, conditions, limit + 1, values)
    return WorkflowList(found[:limit], len(found) > limit)


async def _views(store: Store, conditions: Sequence[str], limit: int, values: dict[str, Any]) -> list[WorkflowView]:
    sql = _SQL["list"].format(conditions=" AND ".join(conditions) or "1 = 1")
    rows, now = await store.fetch(sql, limit=limit, **values), await store.now()
    return [_view(store.service, row, now) for row in rows]


def _view(service: str, row: dict[str, Any], now: int) -> WorkflowView:
    ended = row["ended_at"]
    outcome = None if row["outcome"] is None else readable(row["outcome"])
    return WorkflowView(
        service=service,
        id=row["id"],
        run=row["run"],
        workflow=row["workflow"],
        state=row["state"],
        started_at=to_rfc3339(row["started_at"]),
        ended_at=None if ended is None else to_rfc3339(ended),
        seconds=max(0, (now if ended is None else ended) - row["started_at"]) / 1e6,
        key=row["key"],
        owner=row["owner"],
        waits_for=None if ended is not None or row["owner"] else _waits_for(row["state"], row["wake_at"]),
        error=str(outcome["type"]) if isinstance(outcome, dict) and "type" in outcome else None,
    )


def _waits_for(state: str, wake_at: int | None) -> str:
    if state == WorkflowState.PAUSED and wake_at is None:
        return "resume"
    if wake_at is None:
        return "a letter"
    return "a process" if wake_at < 1 else to_rfc3339(wake_at)


async def show_workflow(app: App, id: str, service: str | None = None) -> WorkflowDetail:
    """The last run of an id."""
    async with opened(app, service_of(app, service)) as store:
        known = await last_run(store, id)
        [view] = await _views(store, ["w.run = :run"], 1, {"run": known.run})
        key = None if view.ended_at else view.key  # of an ended one it is somebody else's
        letters = await store.fetch(_SQL["letters"], run=known.run, id=id, key=key)
        children = await _views(store, ["w.parent = :run"], 1_000, {"run": known.run})
        parent = known.parent and await journal.by_run(store, known.parent)
        return WorkflowDetail(
            workflow=view,
            parent=parent.id if parent else known.parent,
            input=readable(known.input),
            outcome=_shown(known.outcome, failure=known.state != WorkflowState.COMPLETED),
            journal=[entry_view(entry) for entry in await journal.history(store, known.run)],
            letters=[_letter(row) for row in letters],
            children=children,
        )


def entry_view(entry: JournalEntry) -> EntryView:
    payload = _shown(entry.payload, failure=entry.kind in _FAILURES, text=entry.kind == EntryKind.CANCEL)
    kind = entry.kind.name.lower()
    return EntryView(entry.position, to_rfc3339(entry.time), kind, entry.name, entry.occurrence, payload)


def _letter(row: dict[str, Any]) -> LetterView:
    kind = LetterKind(row["kind"])
    payload = _shown(row["payload"], text=kind in _TEXTS)
    name = row["name"]
    if kind in (LetterKind.LOCK, LetterKind.LOCK_WAITS, LetterKind.LOCK_HELD):
        return LetterView(to_rfc3339(row["time"]), kind.name.lower(), name, None)
    if kind in (LetterKind.CALL, LetterKind.ANSWER):
        command, _, occurrence = identity_of(name)
        name = f"{command}#{occurrence}"
    return LetterView(to_rfc3339(row["time"]), kind.name.lower(), name, payload)


def _shown(body: bytes | None, *, failure: bool = False, text: bool = False) -> Any:
    """Stored data for people. The text of an error may hold an address with its password."""
    if text or not body:
        return body.decode(errors="replace") if body else None
    found = readable(body)
    if failure and isinstance(found, dict) and isinstance(found.get("message"), str):
        found["message"] = scrubbed(found["message"])
        found = {name: value for name, value in found.items() if name not in FOR_RETRY}
    return found


async def workflow_history(app: App, id: str, service: str | None = None) -> History:
    """The last run of an id, to be saved."""
    async with opened(app, service_of(app, service)) as store:
        known = await last_run(store, id)
        entries = [saved(entry) for entry in await journal.history(store, known.run)]
    return History(known.workflow, id, known.run, known.started_at, msgspec.Raw(known.input), entries)


# --- starting and telling ---------------------------------------------------------------------------------------------


class _Committer:
    """Without a queue: an operator has one unit. A client of its own, because this process may run the service too."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def submit(self, unit: Unit) -> Committed:
        return await change(self._store, lambda tx: tx.apply(unit))


@asynccontextmanager
async def client_of(app: App, service: str | None) -> AsyncIterator[Client]:
    name = service_of(app, service)
    async with opened(app, name) as store:
        yield Client(name, app.service(name).workflows, store, _Committer(store), SystemClock())


async def told(store: Store, known: journal.Known, started: bool = False) -> Told:
    running = any(gone is None for _, gone in await members(store))
    return Told(store.service, known.id, known.workflow, known.state.value, running, started)


async def start_workflow(
    app: App,
    name: str,
    arguments: Sequence[str],
    *,
    id: str,
    key: str | None = None,
    delay: float = 0.0,
    service: str | None = None,
) -> Told:
    """``arguments`` are JSON texts, by position. The same id and arguments again are the same workflow."""
    workflow = declared(app, service_of(app, service), name)
    args = _arguments(workflow, arguments)
    async with client_of(app, service) as client:
        before = await journal.by_id(client.store, id)
        await client.start_workflow(workflow, args, Options(id, key, delay))
        known = await last_run(client.store, id)
        return await told(client.store, known, before is None or before.run != known.run)


def _arguments(workflow: AnyWorkflow, texts: Sequence[str]) -> tuple[Any, ...]:
    """By the workflow's own types: what is stored is what its program would have stored."""
    names = [p.name for p in inspect.signature(workflow.function).parameters.values() if p.kind != p.KEYWORD_ONLY]
    if len(texts) > len(names):
        takes = ", ".join(names) or "none"
        raise ConfigurationError(f"{workflow.name} takes {len(names)} arguments ({takes}), and {len(texts)} were given")
    given = [msgspec.Raw(json_body(f"argument {n}", text)) for n, text in enumerate(texts, start=1)]
    try:
        args, _ = workflow.signature.decode(msgspec.json.encode(dict(zip(names, given, strict=False))))
    except UnreadableMessage as error:
        raise ConfigurationError(f"the arguments of {workflow.name}: {error.reason}") from error
    return tuple(args)


def json_body(what: str, text: str) -> bytes:
    body = text.encode(errors="surrogateescape")
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{what}: {text!r} is no JSON: {error}; strings have quotes: '\"text\"'") from error
    return body


async def signal_workflow(
    app: App, signal: str, payload: str, *, id: str | None = None, key: str | None = None, service: str | None = None
) -> Told:
    """``payload`` is a JSON text and sent as it is: what type the workflow expects is known to its code alone."""
    body = json_body("the signal", payload)
    if (id is None) == (key is None):
        raise ConfigurationError("whom is the signal for? Name the workflow by its id, or by --key, and not both")
    async with client_of(app, service) as client:
        if key is not None:
            found = await client.store.fetch(_SQL["by_key"], key=key)
            if not found:
                raise NotFound(f"{client.store.service} has no open workflow with the key {key!r}")
            id = found[0]["id"]
        assert id is not None
        known = await open_run(client.store, id)
        by, address = (AddressKind.ID, id) if key is None else (AddressKind.KEY, key)
        await client.send(LetterKind.SIGNAL, by, address, signal, body)
        return await told(client.store, known)


async def open_run(store: Store, id: str) -> journal.Known:
    known = await last_run(store, id)
    if known.end is not None:
        raise WorkflowEnded(id, known.state.value)
    return known


async def cancel_workflow(app: App, id: str, *, reason: str = "", service: str | None = None) -> Told:
    """Raises CancelledError in it, where it waits."""
    return await _send(app, LetterKind.CANCEL, id, reason, service)


async def terminate_workflow(app: App, id: str, *, reason: str = "", service: str | None = None) -> Told:
    """Ends it where it is, without clean-up."""
    return await _send(app, LetterKind.TERMINATE, id, reason, service)


async def pause_workflow(app: App, id: str, *, reason: str = "", service: str | None = None) -> Told:
    return await _send(app, LetterKind.PAUSE, id, reason, service)


async def _send(app: App, kind: LetterKind, id: str, reason: str, service: str | None) -> Told:
    """Also to a workflow whose code this program does not have."""
    async with client_of(app, service) as client:
        known = await open_run(client.store, id)
        if kind == LetterKind.PAUSE and known.state == WorkflowState.PAUSED:
            # It would find the letter when it is resumed, and pause again.
            raise WorkflowBusy(f"workflow {id!r} is paused already")
        await client.send(kind, AddressKind.ID, id, "", reason[:MAX_REASON].encode(errors="replace"))
        return await told(client.store, known)


async def resume_workflow(app: App, id: str, *, service: str | None = None) -> Told:
    """Lets a paused one go on; a step that gave up is tried again."""
    return await _reopen(app, journal.resume, id, service)


async def retry_workflow(app: App, id: str, *, service: str | None = None) -> Told:
    """Lets a failed one go on: what failed last is forgotten, and is run again."""
    return await _reopen(app, journal.retry, id, service)


async def _reopen(app: App, how: Callable[[Store, str], Any], id: str, service: str | None) -> Told:
    async with opened(app, service_of(app, service)) as store:
        await last_run(store, id)
        await how(store, id)
        store.workflows.ring()
        return await told(store, await last_run(store, id))


# --- on the present code ----------------------------------------------------------------------------------------------


async def check_workflows(app: App, services: Iterable[str] = (), *, limit: int | None = None) -> Check:
    """Replays every open workflow, at most ``limit``, the oldest of each service first; says which would break."""
    checked, broken = 0, list[Broken]()
    _ = app.topology  # says what answers the calls of workflows
    for name in chosen(app, services):
        known = {workflow.name: workflow for workflow in app.service(name).workflows}
        async with opened(app, name) as store:
            after = FIRST_RUN
            while batch := await _batch(store, after, BATCH if limit is None else min(BATCH, limit - checked)):
                for one in batch:
                    reason = await outside(partial(_breaks, known.get(one.workflow), one))
                    if reason is not None:
                        broken.append(Broken(name, one.id, one.workflow, scrubbed(reason)))
                checked, after = checked + len(batch), batch[-1].run
    return Check(checked, broken)


async def _batch(store: Store, after: str, most: int) -> list[journal.Open]:
    rows = await store.fetch(_SQL["open"], after=after, most=most)
    if not rows:
        return []
    histories: dict[str, list[JournalEntry]] = {str(row["run"]): [] for row in rows}
    for row in await store.fetch(_SQL["journals"], first=min(histories), last=max(histories)):
        if (of_run := histories.get(str(row["run"]))) is not None:
            of_run.append(JournalEntry(**{**row, "run": str(row["run"]), "kind": EntryKind(row["kind"])}))
    return [
        journal.Open(**{**row, "run": run, "parent": None}, history=tuple(histories[run]))
        for row in rows
        for run in [str(row["run"])]
    ]


def _breaks(workflow: AnyWorkflow | None, one: journal.Open) -> str | None:
    """Why it cannot go on with this code."""
    if workflow is None:
        return f"there is no workflow {one.workflow!r} in this program"
    machine = Machine(workflow, one.run, one.input, one.started_at, id=one.id)
    try:
        machine.replay(one.history)
    except Exception as error:
        return str(error) if isinstance(error, SkaldError) else f"{type(error).__name__}: {error}"
    finally:
        _stubborn.extend(machine.leave())
    if machine.end is not None and machine.end.state == WorkflowState.FAILED:
        failure = decode_failure(machine.end.body)
        return f"it fails at once: {failure.type}: {failure.message}"
    return None


def replay_history(
    app: App, history: History, *, service: str | None = None, tell: Callable[[EntryView], None]
) -> Replayed:
    """On the code of this process, and on this thread, so that a debugger stops in it. Raises ``Diverged``; call it
    outside of any task."""
    workflow, _ = declared(app, service_of(app, service), history.workflow), app.topology
    machine = Replayer(workflow, history, lambda entry: tell(entry_view(entry)))
    try:
        machine.replay(history.journal())
        end, error = machine.end, machine.error
        return Replayed(
            workflow=workflow.name,
            id=history.id,
            entries=machine.position,
            waits_for=machine.waits_for(),
            state=None if end is None else end.state.value,
            outcome=None if end is None else _shown(end.body, failure=end.state != WorkflowState.COMPLETED),
            traceback="".join(traceback.format_tb(error.__traceback__)) if isinstance(error, Exception) else None,
        )
    finally:
        _stubborn.extend(machine.leave())
