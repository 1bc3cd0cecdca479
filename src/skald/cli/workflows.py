"""``skald workflows list|show|start|signal|query|update|cancel|terminate|pause|resume|retry|history``, ``skald
check|replay``"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import msgspec
from cyclopts import Parameter

from skald.app import App
from skald.cli.application import COUNT, AppName, Json, Limit, Services, ask, checked, first_is_app, load, named
from skald.cli.events import show_payload
from skald.cli.output import note, plain, print_json, say, short, table
from skald.errors import ConfigurationError
from skald.operations import asking
from skald.operations import workflows as operations
from skald.operations.asking import Answered
from skald.operations.workflows import EntryView, Replayed, Told, WorkflowDetail, WorkflowView
from skald.unit import WorkflowState
from skald.workflows import saved

workflows = cyclopts.App(name="workflows", help="Look at durable workflows, start them and tell them something.")

PAYLOAD = 120
"""Characters of a payload, without ``--full``."""

Service = Annotated[str | None, Parameter(help="Of this service; not needed where only one has workflows.")]
Reason = Annotated[str, Parameter(help="Kept with it.", show_default=False)]
Key = Annotated[str | None, Parameter(help="Its business key.")]
_ENDED = {"completed", "failed", "cancelled", "terminated"}
Full = Annotated[bool, Parameter(show_default=False, help="Cut nothing off.")]


def words_of(names: tuple[str, ...], *wanted: str) -> tuple[str | None, tuple[str, ...]]:
    """Splits ``[module:attribute] WHAT…`` by number: the ids of workflows may well have a colon."""
    if len(names) == len(wanted):
        return None, names
    if len(names) == len(wanted) + 1:
        return names[0], names[1:]
    raise ConfigurationError(f"give {' '.join(wanted)}, and in front of it the application if SKALD_APP is not set")


# --- looking ----------------------------------------------------------------------------------------------------------


@workflows.command(name="list")
def list_all(
    app: AppName = None,
    /,
    *,
    state: Annotated[list[WorkflowState] | None, Parameter(help="Only in it; may be given several times.")] = None,
    workflow: Annotated[str | None, Parameter(help="Only of this name.")] = None,
    service: Service = None,
    limit: Limit = 100,
    json: Json = False,
) -> int:
    """List workflows, newest first. Of an id that was started again only the last run, but for --state continued."""
    found = ask(
        app, lambda app: operations.list_workflows(app, service, states=state or (), workflow=workflow, limit=limit)
    )
    if json:
        print_json(found)
        return 0
    if not found.workflows:
        say("no workflow fits" if state or workflow else "no workflow was started")
        return 0
    _table(found.workflows)
    if found.more:
        note(f"and more: --limit {limit * 10}")
    return 0


def _table(found: list[WorkflowView]) -> None:
    headers = ["id", "workflow", "state", "started", "ended or age", "waits for", "error"]
    table(headers, [[w.id, w.workflow, w.state, _second(w.started_at), _end(w), w.waits_for, w.error] for w in found])


def _second(time: str) -> str:
    return time[:19] + "Z"


def _end(view: WorkflowView) -> str:
    if view.ended_at is not None:
        return _second(view.ended_at)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if view.seconds >= size:
            return f"{view.seconds / size:.0f} {unit}"
    return f"{view.seconds:.0f} s"


@workflows.command
def show(*names: str, service: Service = None, full: Full = False, json: Json = False) -> int:
    """Show a workflow with its history, what it was sent and has not taken yet, and its children.

    Parameters
    ----------
    names
        [module:attribute] and the workflow's id.
    """
    app, (id,) = words_of(names, "ID")
    found = ask(app, lambda app: operations.show_workflow(app, id, service))
    if json:
        print_json(found)
    else:
        _show(found, full)
    return 0


def _show(found: WorkflowDetail, full: bool) -> None:
    view = found.workflow
    for name, value in msgspec.to_builtins(view).items():
        if value is not None:
            say(f"{name.replace('_', ' '):<12} {plain(str(value))}")
    if found.parent is not None:
        say(f"{'parent':<12} {plain(found.parent)}")
    for name, payload in (("input", found.input), ("outcome", found.outcome)):
        if payload is not None:
            say(f"{name}:")
            show_payload(payload)
    for entry in found.journal:
        say(entry_line(entry, full))
    for letter in found.letters:
        say(f"not taken: {letter.time} {letter.kind} {plain(letter.name)} {_payload(letter.payload, full)}".rstrip())
    for child in found.children:
        say(f"child: {plain(child.id)} {plain(child.workflow)} {child.state}")


def entry_line(entry: EntryView, full: bool) -> str:
    name = f"{plain(entry.name)}#{entry.occurrence}" if entry.occurrence else plain(entry.name)
    return f"{entry.position:>5} {entry.time} {entry.kind} {name} {_payload(entry.payload, full)}".rstrip()


def _payload(payload: Any, full: bool) -> str:
    text = "" if payload is None else msgspec.json.encode(payload).decode()
    return plain(text) if full else short(text, PAYLOAD)


@workflows.command
def history(
    *names: str,
    output: Annotated[Path | None, Parameter(alias="-o", help="A file, instead of stdout.")] = None,
    service: Service = None,
    json: Json = False,
) -> int:
    """Write the history of a workflow as one JSON document, which ``skald replay`` reads.

    Parameters
    ----------
    names
        [module:attribute] and the workflow's id.
    """
    app, (id,) = words_of(names, "ID")
    found = ask(app, lambda app: operations.workflow_history(app, id, service))
    if output is None:
        print_json(found)
        return 0
    saved.write(found, output)
    if json:
        print_json({"file": str(output), "id": id, "entries": len(found.entries)})
    else:
        say(f"{plain(str(output))}: {len(found.entries)} entries of {plain(id)}")
    return 0


# --- starting and telling ---------------------------------------------------------------------------------------------


@workflows.command
def start(
    *names: str,
    id: Annotated[str, Parameter(help="The same id and arguments again are the same workflow.")],
    key: Key = None,
    delay: Annotated[float, Parameter(help="Seconds.")] = 0.0,
    service: Service = None,
    json: Json = False,
) -> int:
    """Start a workflow; a process of its service runs it, now or when there is one.

    Parameters
    ----------
    names
        [module:attribute], the workflow's name, and its arguments as JSON values, in its own order.
    """
    app, words = first_is_app(names)
    if not words:
        raise ConfigurationError("name the workflow, and after it its arguments as JSON")
    done = ask(
        app,
        lambda app: operations.start_workflow(app, words[0], words[1:], id=id, key=key, delay=delay, service=service),
    )
    return tell(done, "started" if done.started else f"was started before, and is {done.state}", json)


@workflows.command
def signal(*names: str, key: Key = None, service: Service = None, json: Json = False) -> int:
    """Send a signal to an open workflow. Its type is known to the workflow's code alone: what does not fit fails there.

    Parameters
    ----------
    names
        [module:attribute], the workflow's id (or --key), the signal's name, and its value as JSON.
    """
    app, words = words_of(names, *([] if key else ["ID"]), "NAME", "JSON")
    id, (name, payload) = (None, words) if key else (words[0], words[1:])
    done = ask(app, lambda app: operations.signal_workflow(app, name, payload, id=id, key=key, service=service))
    return tell(done, f"sent {name}", json)


@workflows.command
def query(*names: str, service: Service = None, json: Json = False) -> int:
    """Ask a workflow something; it may have ended. Answered by a replay of its history on the present code, which calls
    no step.

    Parameters
    ----------
    names
        [module:attribute], the workflow's id, and the query's name.
    """
    app, (id, name) = words_of(names, "ID", "NAME")
    with redirect_stdout(sys.stderr):  # what the workflow prints is no part of the answer
        found = ask(app, lambda app: asking.query_workflow(app, id, name, service=service))
    return _answer(found, json)


@workflows.command
def update(
    *names: str,
    timeout: Annotated[float, Parameter(help="Seconds to wait for the answer.")] = 30.0,
    service: Service = None,
    json: Json = False,
) -> int:
    """Change an open workflow, and wait for its answer; a process of its service has to run. What does not fit fails in
    the workflow's code.

    Parameters
    ----------
    names
        [module:attribute], the workflow's id, the update's name, and its value as JSON.
    """
    app, (id, name, value) = words_of(names, "ID", "NAME", "JSON")
    if not timeout > 0:
        raise ConfigurationError(f"--timeout {timeout}: give a number of seconds above 0")
    return _answer(
        ask(app, lambda app: asking.update_workflow(app, id, name, value, timeout=timeout, service=service)), json
    )


def _answer(found: Answered, json: bool) -> int:
    if json:
        print_json(found)
    else:
        show_payload(found.answer)
    return 0


@workflows.command
def cancel(*names: str, reason: Reason = "", service: Service = None, json: Json = False) -> int:
    """Cancel a workflow: it may clean up, or go on.

    Parameters
    ----------
    names
        [module:attribute] and the workflow's id.
    """
    return _do(
        names, partial(operations.cancel_workflow, reason=reason, service=service), "is asked to cancel itself", json
    )


@workflows.command
def terminate(*names: str, reason: Reason = "", service: Service = None, json: Json = False) -> int:
    """End a workflow where it is, without clean-up.

    Parameters
    ----------
    names
        [module:attribute] and the workflow's id.
    """
    return _do(names, partial(operations.terminate_workflow, reason=reason, service=service), "is told to end", json)


@workflows.command
def pause(*names: str, reason: Reason = "", service: Service = None, json: Json = False) -> int:
    """Leave a workflow as it is until it is resumed; running steps are interrupted, and run again then.

    Parameters
    ----------
    names
        [module:attribute] and the workflow's id.
    """
    return _do(names, partial(operations.pause_workflow, reason=reason, service=service), "is told to pause", json)


@workflows.command
def resume(*names: str, service: Service = None, json: Json = False) -> int:
    """Let a paused workflow go on; a step that gave up is tried again.

    Parameters
    ----------
    names
        [module:attribute] and the workflow's id.
    """
    return _do(names, partial(operations.resume_workflow, service=service), "goes on", json)


@workflows.command
def retry(*names: str, service: Service = None, json: Json = False) -> int:
    """Let a failed workflow go on: what failed last is run again, and what depends on it.

    Parameters
    ----------
    names
        [module:attribute] and the workflow's id.
    """
    return _do(names, partial(operations.retry_workflow, service=service), "goes on", json)


def _do(names: tuple[str, ...], what: Callable[[App, str], Coroutine[Any, Any, Told]], words: str, json: bool) -> int:
    app, (id,) = words_of(names, "ID")
    return tell(ask(app, lambda app: what(app, id)), words, json)


def tell(done: Told, words: str, json: bool) -> int:
    if json:
        print_json(done)
        return 0
    say(f"{done.service}: {plain(done.workflow)} {plain(done.id)} {plain(words)}")
    if done.state == WorkflowState.PAUSED:
        note("it is paused: only its end reaches it before it is resumed")
    if not done.running and done.state not in _ENDED:
        note(f"no process of {done.service} is running: it is taken when one starts")
    return 0


# --- on the present code ----------------------------------------------------------------------------------------------


def check(
    app: AppName = None,
    /,
    *,
    service: Services = None,
    limit: Annotated[
        int | None, Parameter(help="At most so many, the oldest of each service first.", validator=COUNT)
    ] = None,
    json: Json = False,
) -> int:
    """Replay every open workflow on the present code, and name those that could not go on with it.

    For the pipeline that deploys the program. Only reads, and calls no step. The exit status is 1 if one would break.
    """
    with redirect_stdout(sys.stderr):  # what the workflows print is no part of the answer
        found = ask(app, lambda app: operations.check_workflows(app, service or (), limit=limit))
    if json:
        print_json(found)
    else:
        for one in found.broken:
            say(f"{one.service}: {plain(one.workflow)} {plain(one.id)}: {plain(one.reason)}")
        say(f"{found.checked} checked, {len(found.broken) or 'none'} would break")
    return int(bool(found.broken))


def replay(*names: str, service: Service = None, full: Full = False, json: Json = False) -> int:
    """Replay a saved history on the present code, in this process: a debugger stops in it. Calls no step.

    Prints each entry before it is delivered, and what the workflow waits for at the end. The exit status is 1 if the
    code does not do what the history says.

    Parameters
    ----------
    names
        [module:attribute] and a file that ``skald workflows history`` has written.
    """
    app_name, (file,) = words_of(names, "FILE")
    app, history = checked(load(named(app_name))), saved.read(Path(file))
    if json:
        with redirect_stdout(sys.stderr):
            found = operations.replay_history(app, history, service=service, tell=lambda entry: None)
        print_json(found)
        return 0
    found = operations.replay_history(app, history, service=service, tell=lambda entry: say(entry_line(entry, full)))
    _show_end(found, full)
    return 0


def _show_end(found: Replayed, full: bool) -> None:
    if found.state is not None:
        say(f"{found.state}: {_payload(found.outcome, full)}")
    elif found.waits_for:
        say(f"waits for {', '.join(plain(one) for one in found.waits_for)}")
    else:
        say("waits for nothing that is known here")
    if found.traceback is not None:
        for part in found.traceback.splitlines():
            note(plain(part))
