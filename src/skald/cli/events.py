"""``skald events tail|show``"""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

import cyclopts
import msgspec
from cyclopts import Parameter

from skald import operations
from skald.app import App
from skald.cli.application import AppName, Json, Services, ask, first_is_app, moment, position
from skald.cli.output import note, plain, print_json, print_json_array, say, short
from skald.errors import ConfigurationError, StoreUnavailable

events = cyclopts.App(name="events", help="Look at what the services have published.")

PAYLOAD = 200
"""Characters of a payload in the list; ``show`` has all of it."""


@events.command
def tail(
    app: AppName = None,
    /,
    *,
    service: Services = None,
    last: Annotated[int, Parameter(alias="-n")] = 20,
    since: str | None = None,
    type: Annotated[list[str] | None, Parameter(name="--type")] = None,
    key: str | None = None,
    follow: Annotated[bool, Parameter(alias="-f", show_default=False)] = False,
    json: Json = False,
) -> int:
    """Show the last messages of the services' logs.

    Parameters
    ----------
    last
        How many.
    since
        All from a position or a time on, or from the start, instead of the last ones.
    type
        Only messages of this type; may be given several times.
    key
        Only messages with this key.
    follow
        Go on with what comes, until Ctrl-C. With --json: one document per line.
    """
    if last < 0:
        raise ConfigurationError(f"--last {last}: a number of messages is not negative")
    place = None if since is None else moment(since, "start")

    def left_out(error: StoreUnavailable) -> None:
        note(f"skald: {'waiting' if follow else 'left out'}: {operations.scrubbed(plain(str(error)))}")

    async def show_all(app: App) -> None:
        if type:
            _require_types(app, type)
        found = operations.tail_events(
            app, service or (), last=last, since=place, types=type or (), key=key, follow=follow, absent=left_out
        )
        async with aclosing(found):
            if json and not follow:
                await print_json_array(found)
                return
            async for event in found:
                text = msgspec.json.encode(event).decode() if json else line(event)
                print(text, flush=follow)

    ask(app, show_all)
    return 0


def _require_types(app: App, types: list[str]) -> None:
    for name in types:
        if name not in app.topology.owners:
            raise operations.unknown("message type", name, app.topology.owners)


def line(event: operations.EventView) -> str:
    payload = short(msgspec.json.encode(event.payload).decode(), PAYLOAD)
    return f"{event.time} {event.service} {event.position} {plain(event.type)} {plain(event.key)} {payload}"


@events.command
def show(*names: str, service: Services = None, json: Json = False) -> int:
    """Show one message, and what became of it at every reader.

    Parameters
    ----------
    names
        [module:attribute] and the message's id; or its position, with --service.
    """
    app, wanted = first_is_app(names)
    if len(wanted) != 1:
        raise ConfigurationError("name one message, by its id, or by its position with --service")
    what: str | int = position(wanted[0]) if wanted[0].isascii() and wanted[0].isdigit() else wanted[0]
    found = ask(app, lambda app: operations.show_event(app, what, service or ()))
    if json:
        print_json(found)
        return 0
    event = found.event
    say(f"{'position':<16} {event.position} of {event.service}")
    for name, value in found.envelope.items():
        say(f"{name:<16} {plain(value)}")
    show_payload(event.payload)
    for reading in found.readers:
        detail = f": {plain(reading.detail)}" if reading.detail else ""
        say(f"{reading.service}.{plain(reading.handler)}: {reading.state}{detail}")
    if not found.readers:
        say("no service of this application handles it")
    return 0


def show_payload(payload: object) -> None:
    text = msgspec.json.format(msgspec.json.encode(payload), indent=2).decode()
    for part in text.splitlines():
        say(plain(part))
