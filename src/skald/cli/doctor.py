"""``skald doctor``"""

from __future__ import annotations

import cyclopts

from skald import operations
from skald.cli.application import AppName, Json, Services, ask
from skald.cli.output import plain, print_json, say

doctor = cyclopts.App(name="doctor", help="Examine the services and their databases.")

_MARKS = {"error": "ERROR", "warning": "warn ", "info": "     "}


@doctor.default
def examine(app: AppName = None, /, *, service: Services = None, json: Json = False) -> int:
    """Examine the services and their databases; the exit status is 1 if there is an error.

    Says what cannot be reached or is not safe, what stalls the readers of a log, dead processes, stopped lanes, parked
    and overdue messages, and how far every reader is behind; each with what to do.
    """
    found = ask(app, lambda app: operations.examine(app, service or ()))
    if json:
        print_json(found)
    else:
        for health in found:
            _show(health)
        say(_verdict(found))
    return int(any(health.worst == "error" for health in found))


def _show(health: operations.Health) -> None:
    say(f"{health.service} ({plain(health.store)})")
    order = {"error": 0, "warning": 1, "info": 2}
    for finding in sorted(health.findings, key=lambda finding: order[finding.level]):
        say(f"  {_MARKS[finding.level]} {finding.what}: {plain(finding.detail)}")
        if finding.remedy:
            say(f"        -> {plain(finding.remedy)}")


def _verdict(found: list[operations.Health]) -> str:
    levels = [finding.level for health in found for finding in health.findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    if not errors and not warnings:
        return "nothing to do"
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
