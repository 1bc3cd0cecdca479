"""``skald subscriptions list|reset|relane``"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from skald import operations
from skald.cli.application import AppName, Json, ask, moment
from skald.cli.output import note, plain, print_json, say, table
from skald.operations import LaneView, SubscriptionView

subscriptions = cyclopts.App(name="subscriptions", help="Who reads which log, how far, and from where.")

Group = Annotated[str, Parameter(name=["--group", "--service"], help="The service that reads.")]
Origin = Annotated[str, Parameter(help="The service whose log is read.")]


@subscriptions.command(name="list")
def list_all(
    app: AppName = None,
    /,
    *,
    group: Annotated[list[str] | None, Parameter(name=["--group", "--service"])] = None,
    origin: str | None = None,
    lanes: Annotated[bool, Parameter(show_default=False)] = False,
    json: Json = False,
) -> int:
    """List every reader's place in the logs that it reads.

    Parameters
    ----------
    group
        Only these readers; may be given several times.
    origin
        Only readers of this service's log.
    lanes
        One line per lane, instead of one for all lanes that are in the same state.
    """
    found = ask(app, lambda app: operations.list_subscriptions(app, group or (), origin))
    if json:
        print_json(found)
        return 0
    rows = [row for view in found for row in _rows(view, lanes)]
    if rows:
        table(["group", "origin", "lanes", "position", "lag", "owner", "state"], rows, right=(3, 4))
    else:
        say("no service reads a log")
    return 0


def _rows(view: SubscriptionView, each: bool) -> Iterable[list[object]]:
    if not view.lanes:
        yield [view.group, view.origin, "", "", "", "", view.error or "never read"]
        return
    alike: dict[object, list[LaneView]] = {}
    for lane in view.lanes:
        alike.setdefault(lane.lane if each else (lane.pid, lane.alive, lane.stopped), []).append(lane)
    for lanes in alike.values():
        first = lanes[0]
        lag = max((lane.lag for lane in lanes if lane.lag is not None), default=None)
        position = min(lane.position for lane in lanes)
        yield [view.group, view.origin, _ranges(lanes), position, lag, _owner(first), _state(view, first)]


def _ranges(lanes: list[LaneView]) -> str:
    """``0-3,7``"""
    parts: list[list[int]] = []
    for number in sorted(lane.lane for lane in lanes):
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _owner(lane: LaneView) -> str:
    if lane.owner is None:
        return ""
    return f"process {lane.pid}" if lane.pid is not None else lane.owner


def _state(view: SubscriptionView, lane: LaneView) -> str:
    if lane.stopped is not None:
        return f"stopped: {plain(lane.stopped)}"
    if view.error is not None:
        return view.error
    if view.declared is None:
        return "not read any more"
    if view.declared != len(view.lanes):
        return f"the code says {view.declared} lanes: relane"
    if lane.owner is None:
        return "free"
    return "running" if lane.alive else "its process is dead"


@subscriptions.command
def reset(
    app: AppName = None,
    /,
    *,
    group: Group,
    origin: Origin,
    to: str,
    all_lanes: Annotated[bool, Parameter(show_default=False)] = False,
    json: Json = False,
) -> int:
    """Let a reader go on from another place; stopped lanes run again.

    What was handled after that place is handled once more. If some lanes are stopped, only those are moved.

    Parameters
    ----------
    to
        start (all that is left), now, here (where each lane stands), a position (the next message is the one after
        it), or a time.
    all_lanes
        Move every lane, also those that are not stopped.
    """
    place = moment(to, "start", "now", "here")
    done = ask(app, lambda app: operations.reset_subscription(app, group, origin, place, every_lane=all_lanes))
    if json:
        print_json(done)
        return 0
    lanes = _count(len(done.lanes), "lane")
    where = f"where each of {lanes} stands" if place == "here" else f"behind position {done.position} in {lanes}"
    say(f"{group} goes on with {origin} {where}")
    if done.dropped:
        say(f"{_count(done.dropped, 'unfinished message')} behind that place will be read again")
    if done.kept:
        numbers = ", ".join(map(str, done.kept))
        note(f"lanes {numbers} were not stopped and stay where they are; --all-lanes would move them too")
    if not done.running:
        note(f"no process of {group} is running: skald run --service {group}")
    return 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@subscriptions.command
def relane(
    app: AppName = None, /, *, group: Group, origin: Annotated[str | None, Parameter()] = None, json: Json = False
) -> int:
    """Give a stopped service as many lanes as its code says now (Service(..., lanes=)).

    Parameters
    ----------
    origin
        Only on this service's log.
    """
    done = ask(app, lambda app: operations.relane_subscriptions(app, group, origin))
    if json:
        print_json(done)
    else:
        for one in done:
            say(f"{one.group} on {one.origin}: {one.before} lanes are {one.after} now")
        if not done:
            say(f"{group} has as many lanes as its code says")
    return 0
