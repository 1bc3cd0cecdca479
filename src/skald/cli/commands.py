"""Every command by its name."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import cyclopts

from skald.cli.doctor import doctor
from skald.cli.events import events
from skald.cli.graph import graph
from skald.cli.migrate import migrate
from skald.cli.parked import parked
from skald.cli.running import dev, run
from skald.cli.sagas import sagas
from skald.cli.subscriptions import subscriptions
from skald.cli.workflows import check, replay, workflows

_EPILOGUE = (
    "The application is given as module:attribute, or once and for all as SKALD_APP. Exit status: 0 done, "
    "1 refused or failed (the line on stderr says why), 2 wrong use."
)


def command_line() -> cyclopts.App:
    cli = cyclopts.App(
        name="skald",
        help="Event-driven services: run them, and look after them.",
        help_epilogue=_EPILOGUE,
        version=_version(),
        default_parameter=cyclopts.Parameter(negative=()),
        suppress_keyboard_interrupt=False,
    )
    for command in (dev, run, check, replay):
        cli.command(command)
    for group in (migrate, doctor, events, parked, subscriptions, workflows, sagas, graph):
        cli.command(group)
    return cli


def _version() -> str:
    try:
        return version("skald")
    except PackageNotFoundError:
        return "unknown (not installed)"
