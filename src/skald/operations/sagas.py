"""Sagas as an operator sees them: listed by what has become of them, shown with what a person is asked, and answered.
Processes of choreographies are listed and shown among them.

Nothing is run here: an answer is a signal, and a process of the service goes on with it, now or when there is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from skald.app import App
from skald.clock import to_rfc3339
from skald.errors import ConfigurationError
from skald.operations.access import NotFound, OperationRefused, opened, scrubbed
from skald.operations.events import readable
from skald.operations.processes import ProcessView, has_role, process_view
from skald.operations.workflows import EntryView, Told, client_of, entry_view, json_body, only_one, told
from skald.sagas.machine import Status
from skald.sagas.question import (
    ANSWERS,
    Answer,
    Choice,
    Question,
    answered,
    decode_answer,
    decode_change,
    open_questions,
)
from skald.sagas.question import encode as encode_answer
from skald.sql import blocks
from skald.store import Store
from skald.unit import AddressKind, EntryKind, JournalEntry, LetterKind
from skald.workflows import journal
from skald.workflows.failure import Failure

_SQL = blocks("skald.operations", "sagas")
MAX_REASON = 500
"""Characters."""
MOST_NAMES = 100
"""Of sagas and processes with one id."""


class SagaView(msgspec.Struct, frozen=True):
    """A row of ``saga_state``."""

    service: str
    id: str
    saga: str
    style: str
    status: Status
    current_step: str | None
    created_at: str
    updated_at: str
    age_seconds: float
    key: str | None
    run: str | None
    """``None`` for a process."""


class SagaList(msgspec.Struct, frozen=True):
    sagas: list[SagaView]
    more: bool


class QuestionView(msgspec.Struct, frozen=True):
    """``failure`` is what has failed now; ``because`` is why the saga is being compensated."""

    number: int
    step: str
    choices: tuple[Choice, ...]
    compensation: str | None
    arguments: Any
    result: Any
    failure: str
    because: str | None


class ChangeView(msgspec.Struct, frozen=True):
    """A status that the saga has come to, or an answer."""

    time: str
    status: str | None
    step: str | None
    failure: str | None
    choice: Choice | None = None
    by: str | None = None
    reason: str | None = None


class SagaDetail(msgspec.Struct, frozen=True):
    saga: SagaView
    input: Any
    questions: list[QuestionView]
    changes: list[ChangeView]
    journal: list[EntryView]
    process: ProcessView | None = None


def _service_of(app: App, name: str | None) -> str:
    """The service that is named, or the only one that has workflows or processes."""
    return only_one(
        app, name, "workflows or processes", lambda one: bool(one.workflows) or any(map(has_role, one.handlers))
    )


async def list_sagas(
    app: App, service: str | None = None, *, statuses: Iterable[Status] = (), limit: int = 100
) -> SagaList:
    """Newest first; of an id that was started again the last run."""
    wanted = {f"status{n}": status.value for n, status in enumerate(statuses)}
    condition = f"status IN ({', '.join(f':{name}' for name in wanted)})" if wanted else "1 = 1"
    async with opened(app, _service_of(app, service)) as store:
        found = await _views(store, condition, limit + 1, wanted)
    return SagaList(found[:limit], len(found) > limit)


async def _views(store: Store, condition: str, limit: int, values: dict[str, Any]) -> list[SagaView]:
    found = []
    for name in ("list", "processes"):
        rows = await store.fetch(_SQL[name].format(conditions=condition), limit=limit, **values)
        found += [_view(store.service, row) for row in rows]
    return sorted(found, key=lambda view: view.created_at, reverse=True)[:limit]


def _view(service: str, row: dict[str, Any]) -> SagaView:
    status, age = Status(row["status"]), round(row["age_seconds"], 3)
    return SagaView(**{**row, "service": service, "status": status, "age_seconds": age})


class LockView(msgspec.Struct, frozen=True):
    """A row of ``skald_locks``: a saga has a lock, or waits for it at this ``place``; ``since`` this time."""

    service: str
    key: str
    state: str
    place: int
    id: str
    saga: str
    since: str
    run: str


class LockList(msgspec.Struct, frozen=True):
    locks: list[LockView]
    more: bool


async def list_locks(app: App, service: str | None = None, *, key: str | None = None, limit: int = 100) -> LockList:
    """By key, its holder first, and then who waits for it, in order."""
    conditions, values = ("1 = 1", {}) if key is None else ("key = :key", {"key": key})
    async with opened(app, _service_of(app, service)) as store:
        rows = await store.fetch(_SQL["locks"].format(conditions=conditions), limit=limit + 1, **values)
        found = [LockView(service=store.service, **row) for row in rows]
    return LockList(found[:limit], len(found) > limit)


async def show_saga(app: App, id: str, service: str | None = None, *, name: str | None = None) -> SagaDetail:
    """``name``: of the saga or the process, where several have this id."""
    async with opened(app, _service_of(app, service)) as store:
        view = await _found(store, id, name)
        if view.run is None:
            process = await process_view(store, view.saga, id)
            return SagaDetail(saga=view, input=None, questions=[], changes=[], journal=[], process=process)
        history = await journal.history(store, view.run)
        run = await journal.by_run(store, view.run)
    changes = [change for entry in history for change in _changes(entry, history)]
    return SagaDetail(
        saga=view,
        input=None if run is None else readable(run.input),
        questions=[_question(one) for one in _questions(view, history)],
        changes=changes,
        journal=[entry_view(entry) for entry in history],
    )


async def _found(store: Store, id: str, name: str | None) -> SagaView:
    found = [one for one in await _views(store, "saga_id = :id", MOST_NAMES, {"id": id}) if name in (None, one.saga)]
    if not found:
        of = "" if name is None else f" of {name}"
        raise NotFound(f"{store.service} has no saga{of} with the id {id!r}; see them with: skald sagas list")
    if len(found) > 1:
        names = ", ".join(sorted(one.saga for one in found))
        raise ConfigurationError(f"{store.service} has several with the id {id!r}, give one with --name: {names}")
    return found[0]


async def _known(store: Store, id: str) -> tuple[SagaView, str, tuple[JournalEntry, ...]]:
    """One that is orchestrated, with its run and history: nothing else can be answered."""
    for view in await _views(store, "saga_id = :id", MOST_NAMES, {"id": id}):
        if view.run is not None:
            return view, view.run, await journal.history(store, view.run)
    raise NotFound(f"{store.service} has no saga with the id {id!r}; see them with: skald sagas list")


def _questions(view: SagaView, history: Iterable[JournalEntry]) -> list[Question]:
    """One that was terminated did not come to close them."""
    return [] if view.status == Status.TERMINATED else open_questions(history)


def _question(one: Question) -> QuestionView:
    return QuestionView(
        one.number, one.step, one.choices, one.compensation, one.arguments, one.result, _text(one.failure) or "",
        _text(one.because),
    )  # fmt: skip


def _changes(entry: JournalEntry, history: Iterable[JournalEntry]) -> list[ChangeView]:
    time = to_rfc3339(entry.time)
    if entry.kind == EntryKind.STATUS:
        change = decode_change(entry.payload or b"{}")
        failure = change.failure if change.question is None else change.question.failure
        return [ChangeView(time, entry.name, change.step, _text(failure))]
    if (answer := answered(entry)) is None:
        return []
    asked = (decode_change(one.payload or b"{}").question for one in history if one.kind == EntryKind.STATUS)
    step = next((one.step for one in asked if one is not None and one.number == answer.number), None)
    return [ChangeView(time, None, step, None, answer.choice, answer.by, answer.reason)]


def _text(failure: Failure | None) -> str | None:
    if failure is None:
        return None
    doubt = " (and may have taken effect)" if failure.unknown else ""
    return scrubbed(f"{failure.type}: {failure.message}{doubt}")


async def resolve_saga(
    app: App,
    id: str,
    choice: Choice,
    step: str,
    *,
    by: str,
    reason: str,
    result: str | None = None,
    service: str | None = None,
) -> Told:
    """Answers what a saga asks about a step, which is named as the question names it, or as ``STEP#NUMBER``. ``result``
    is a JSON text."""
    if not reason.strip():
        raise ConfigurationError("say why: the reason is kept in the saga's history")
    body = msgspec.Raw(b"null" if result is None else json_body("the result", result))
    async with client_of(app, service) as client:
        # Before the history: an answer that is taken up in between stands there.
        given = await client.store.fetch(_SQL["answers"], id=id, name=ANSWERS)
        view, run, history = await _known(client.store, id)
        question = _asked(view, _questions(view, history), step)
        if choice not in question.choices:
            raise OperationRefused(f"{step} cannot be answered by {choice.value!r}; use: {', '.join(question.choices)}")
        if result is not None and (choice != Choice.DONE or question.compensation is not None):
            raise ConfigurationError("a result is what a step would have returned: it goes with --done, and a step")
        if any(decode_answer(row["payload"]).number == question.number for row in given):
            raise OperationRefused(f"{step} has been answered, and no process has taken that up yet")
        answer = Answer(question.number, choice, by, reason[:MAX_REASON], body)
        # Another run of the same id may ask by the same number.
        await client.send(LetterKind.SIGNAL, AddressKind.RUN, run, ANSWERS, encode_answer(answer))
        known = await journal.by_id(client.store, id)
        assert known is not None
        return await told(client.store, known)


def _asked(view: SagaView, questions: list[Question], step: str) -> Question:
    if not questions:
        raise OperationRefused(f"saga {view.id!r} is {view.status.value}, and asks nothing")
    names = [f"{one.step}#{one.number}" for one in questions]
    found = [one for one, name in zip(questions, names, strict=True) if step in (one.step, name)]
    if not found:
        raise NotFound(f"saga {view.id!r} does not ask about {step!r}, but about: {', '.join(names)}")
    if len(found) > 1:
        raise ConfigurationError(f"{step!r} is asked about several times, name one: {', '.join(names)}")
    return found[0]
