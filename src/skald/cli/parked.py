"""``skald parked list|show|redrive|discard``"""

from __future__ import annotations

from typing import Annotated

import cyclopts
from cyclopts import Parameter
from cyclopts.validators import Number

from skald import operations
from skald.cli.application import MOST, AppName, Json, Limit, Services, ask, first_is_app
from skald.cli.events import show_payload
from skald.cli.output import note, plain, print_json, say, short, table
from skald.errors import ConfigurationError
from skald.operations import ParkedMessage, Redriven, Selection

parked = cyclopts.App(name="parked", help="Messages that a handler could not handle, and that wait for a person.")

Handler = Annotated[str | None, Parameter(help="Only of this handler.")]
Origin = Annotated[str | None, Parameter(help="Only from this service's log.")]
Type = Annotated[str | None, Parameter(name="--type", help="Only messages of this type.")]
Key = Annotated[str | None, Parameter(help="Only messages with this key.")]
Error = Annotated[str | None, Parameter(help="Only those with this text in their error.")]
All = Annotated[bool, Parameter(name="--all", show_default=False, help="Every parked message (of the services named).")]


@parked.command(name="list")
def list_all(
    app: AppName = None,
    /,
    *,
    service: Services = None,
    handler: Handler = None,
    origin: Origin = None,
    type: Type = None,
    key: Key = None,
    error: Error = None,
    limit: Limit = 100,
    json: Json = False,
) -> int:
    """List parked messages, the oldest of each service first."""
    selection = _selection((), service, handler, origin, type, key, error)
    found = ask(app, lambda app: operations.list_parked(app, selection, limit=limit))
    if json:
        print_json(found)
        return 0
    if not found.total:
        say("nothing is parked" if selection.is_everything else "no parked message fits")
        return 0
    table(
        ["service", "handler", "origin", "position", "type", "key", "attempts", "waiting", "parked at", "id", "error"],
        [_row(message) for message in found.parked],
        right=(3, 6, 7),
    )
    if found.total > len(found.parked):
        note(f"and {found.total - len(found.parked)} more: --limit {found.total}")
    return 0


def _row(m: ParkedMessage) -> list[object]:
    error = short(m.error or "", 120)
    return [
        m.service, m.handler, m.origin, m.position, m.type, m.key, m.attempts, m.waiting, m.parked_at[:19] + "Z", m.id,
        error,
    ]  # fmt: skip


@parked.command
def show(*names: str, service: Services = None, handler: Handler = None, json: Json = False) -> int:
    """Show parked messages with their payload and error.

    Parameters
    ----------
    names
        [module:attribute] and the ids of messages.
    """
    app, ids = first_is_app(names)
    if not ids:
        raise ConfigurationError("name the message by its id: skald parked list shows them")
    found = ask(app, lambda app: operations.show_parked(app, _selection(ids, service, handler)))
    if json:
        print_json(found)
        return 0
    for one in found:
        message = one.parked
        say(f"{message.service}.{plain(message.handler)} parked message {message.position} of {message.origin}")
        say(f"after            {message.attempts} attempts, at {message.parked_at}; {message.waiting} wait behind it")
        say(f"error            {plain(message.error or '')}")
        for name, value in one.envelope.items():
            say(f"{name:<16} {plain(value)}")
        show_payload(one.payload)
        say()
    return 0


@parked.command
def redrive(
    *names: str,
    service: Services = None,
    handler: Handler = None,
    origin: Origin = None,
    type: Type = None,
    key: Key = None,
    error: Error = None,
    all: All = False,
    canary: Annotated[
        int,
        Parameter(help="Try so many alone first; go on only if each succeeds.", validator=Number(gte=0, lte=MOST)),
    ] = 0,
    timeout: Annotated[float, Parameter(help="Seconds to wait for a canary.")] = 60.0,
    json: Json = False,
) -> int:
    """Try parked messages again, with all their attempts; each key's in order.

    Parameters
    ----------
    names
        [module:attribute] and the ids of messages, or none to choose by the options.
    """
    app, ids = first_is_app(names)
    selection = _selection(ids, service, handler, origin, type, key, error)
    _require_choice(selection, all)
    if not timeout > 0:
        raise ConfigurationError(f"--timeout {timeout}: give a number of seconds above 0")
    done = ask(app, lambda app: operations.redrive(app, selection, canary=canary, timeout=timeout))
    if json:
        print_json(done)
    else:
        for one in done:
            _tell(one)
        if not done:
            say("no parked message fits")
    return int(any(one.stopped is not None for one in done))


def _tell(one: Redriven) -> None:
    say(f"{one.service}: {one.redriven} redriven" + (f", {one.left} left parked" if one.left else ""))
    if one.stopped is not None:
        note(f"skald: {plain(one.stopped)}")
    elif not one.running:
        note(f"no process of {one.service} is running: they are tried when one starts")


@parked.command
def discard(
    *names: str,
    service: Services = None,
    handler: Handler = None,
    origin: Origin = None,
    type: Type = None,
    key: Key = None,
    error: Error = None,
    all: All = False,
    json: Json = False,
) -> int:
    """Delete parked messages for good; what waits behind them goes on.

    Parameters
    ----------
    names
        [module:attribute] and the ids of messages, or none to choose by the options.
    """
    app, ids = first_is_app(names)
    selection = _selection(ids, service, handler, origin, type, key, error)
    _require_choice(selection, all)
    done = ask(app, lambda app: operations.discard(app, selection))
    if json:
        print_json(done)
    else:
        for one in done:
            say(f"{one.service}: {one.discarded} discarded")
        if not done:
            say("no parked message fits")
    return 0


def _selection(
    ids: tuple[str, ...],
    services: list[str] | None,
    handler: str | None = None,
    origin: str | None = None,
    type: str | None = None,
    key: str | None = None,
    error: str | None = None,
) -> Selection:
    return Selection(
        ids=ids, services=tuple(services or ()), handler=handler, origin=origin, type=type, key=key, error=error
    )


def _require_choice(selection: Selection, everything: bool) -> None:
    if selection.is_everything and not everything:
        raise ConfigurationError("which ones? Name ids, choose with --handler, --type, --key or --error, or say --all")
