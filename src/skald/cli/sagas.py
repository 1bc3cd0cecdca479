"""``skald sagas list|show|locks|resolve``"""

from __future__ import annotations

import getpass
import shlex
from typing import Annotated, Any

import cyclopts
import msgspec
from cyclopts import Parameter

from skald.cli.application import AppName, Json, Limit, ask
from skald.cli.events import show_payload
from skald.cli.output import note, plain, print_json, say, table
from skald.cli.workflows import Full, Service, entry_line, tell, words_of
from skald.errors import ConfigurationError
from skald.operations import sagas as operations
from skald.operations.processes import ProcessView
from skald.operations.sagas import ChangeView, QuestionView, SagaDetail
from skald.sagas.machine import Status
from skald.sagas.question import Choice

sagas = cyclopts.App(name="sagas", help="Look at sagas, and decide what they ask a person.")


@sagas.command(name="list")
def list_all(
    app: AppName = None,
    /,
    *,
    status: Annotated[list[Status] | None, Parameter(help="Only in it; may be given several times.")] = None,
    service: Service = None,
    limit: Limit = 100,
    json: Json = False,
) -> int:
    """List sagas and processes, newest first. Of an id that was started again only the last run."""
    found = ask(app, lambda app: operations.list_sagas(app, service, statuses=status or (), limit=limit))
    if json:
        print_json(found)
        return 0
    if not found.sagas:
        say("no saga fits" if status else "no saga was started")
        return 0
    headers = ["id", "saga", "status", "step", "created", "updated"]
    table(
        headers,
        [[one.id, one.saga, one.status, one.current_step, one.created_at, one.updated_at] for one in found.sagas],
    )
    if found.more:
        note(f"and more: --limit {limit * 10}")
    return 0


@sagas.command
def show(
    *names: str,
    name: Annotated[str | None, Parameter(help="Of the saga or process, where several have this id.")] = None,
    service: Service = None,
    full: Full = False,
    json: Json = False,
) -> int:
    """Show a saga: what has become of it, what a person is asked, and its history. Of a process: its state, timeouts,
    and what handlers did for its key.

    Parameters
    ----------
    names
        [module:attribute] and the saga's id, or the key of a process.
    """
    app, (id,) = words_of(names, "ID")
    found = ask(app, lambda app: operations.show_saga(app, id, service, name=name))
    if json:
        print_json(found)
    else:
        _show(found, full)
    return 0


def _show(found: SagaDetail, full: bool) -> None:
    for name, value in msgspec.to_builtins(found.saga).items():
        if value is not None:
            say(f"{name.replace('_', ' '):<12} {plain(str(value))}")
    if found.process is not None:
        _show_process(found.process)
        return
    say("input:")
    show_payload(found.input)
    for entry in found.journal:
        say(entry_line(entry, full))
    for change in found.changes:
        say(_change(change))
    for question in found.questions:
        _ask(found.saga.id, question)


def _show_process(process: ProcessView) -> None:
    say("state:")
    show_payload(process.state)
    for timeout in process.timeouts:
        say(f"timeout {plain(timeout.name)}: due {timeout.due}" + (", has failed" if timeout.state == "parked" else ""))
    for effect in process.effects:
        refused = f", refused {', '.join(map(plain, effect.refused))}" if effect.refused else ""
        say(f"{effect.updated_at} {plain(effect.handler)}: {effect.state}{refused}")


def _change(change: ChangeView) -> str:
    if change.choice is not None:
        said = f"{change.choice} {change.step}, said {change.by}: {change.reason}"
    else:
        said = " ".join(word for word in (change.status, change.step, change.failure) if word)
    return f"{change.time} {plain(said)}"


def _ask(id: str, question: QuestionView) -> None:
    what = f"the compensation {question.compensation} of {question.step}" if question.compensation else question.step
    say(f"asks #{question.number}: {plain(what)} has failed: {plain(question.failure)}")
    if question.because is not None:
        say(f"it is compensated because of {plain(question.because)}")
    for name, payload in (("arguments", question.arguments), ("result", question.result)):
        if payload is not None:
            say(f"{name}:")
            show_payload(payload)
    for choice in question.choices:
        saga, step = shlex.quote(plain(id)), shlex.quote(plain(question.step))
        say(f"  skald sagas resolve {saga} --{choice} {step}#{question.number} --reason …")


@sagas.command
def locks(
    app: AppName = None,
    /,
    *,
    key: Annotated[str | None, Parameter(help="Only of this one.")] = None,
    service: Service = None,
    limit: Limit = 100,
    json: Json = False,
) -> int:
    """List the locks of sagas: who has each since when, and below, who waits for it, in order."""
    found = ask(app, lambda app: operations.list_locks(app, service, key=key, limit=limit))
    if json:
        print_json(found)
        return 0
    if not found.locks:
        say("no saga has a lock, or waits for one" if key is None else f"no saga has the lock {plain(key)}")
        return 0
    headers = ["key", "place", "id", "saga", "since"]
    place = {0: "has it"}
    table(
        headers, [[one.key, place.get(one.place, str(one.place)), one.id, one.saga, one.since] for one in found.locks]
    )
    if found.more:
        note(f"and more: --limit {limit * 10}")
    return 0


@sagas.command
def resolve(
    *names: str,
    retry: Annotated[str | None, Parameter(help="Run this step or its compensation once more.")] = None,
    done: Annotated[str | None, Parameter(help="Somebody has seen to this one.")] = None,
    skip: Annotated[str | None, Parameter(help="Go on without this one.")] = None,
    fail: Annotated[str | None, Parameter(help="Fail the saga with this step, and compensate it.")] = None,
    reason: Annotated[str, Parameter(help="Why; it is kept in the saga's history.")],
    result: Annotated[str | None, Parameter(help="With --done: what the step would have returned, as JSON.")] = None,
    by: Annotated[str | None, Parameter(help="Who has decided; by default who runs the command.")] = None,
    service: Service = None,
    json: Json = False,
) -> int:
    """Decide what a saga asks about a step. STEP#NUMBER where it asks about several calls of one.

    Parameters
    ----------
    names
        [module:attribute] and the saga's id.
    """
    app, (id,) = words_of(names, "ID")
    given = {Choice.RETRY: retry, Choice.DONE: done, Choice.SKIP: skip, Choice.FAIL: fail}
    chosen = [(choice, step) for choice, step in given.items() if step is not None]
    if len(chosen) != 1:
        raise ConfigurationError("say what is to be done: one of --retry STEP, --done STEP, --skip STEP, --fail STEP")
    [(choice, step)] = chosen
    options: dict[str, Any] = {"by": by or _user(), "reason": reason, "result": result, "service": service}
    found = ask(app, lambda app: operations.resolve_saga(app, id, choice, step, **options))
    return tell(found, f"is told: {choice} {step}", json)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # a container's user without a name; OSError from Python 3.13 on
        raise ConfigurationError("who has decided? The user who runs this has no name here: add --by NAME") from error
