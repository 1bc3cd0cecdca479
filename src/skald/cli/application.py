"""Which application is meant, and asking it something."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Coroutine
from contextlib import redirect_stdout
from datetime import datetime
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number

import skald
from skald.app import App
from skald.cli.output import short
from skald.clock import to_rfc3339
from skald.errors import ConfigurationError

T = TypeVar("T")

AppName = Annotated[
    str | None,
    Parameter(help="The application as module:attribute; by default what SKALD_APP says.", show_default=False),
]
Services = Annotated[list[str] | None, Parameter(name="--service", help="Only these; may be given several times.")]
Json = Annotated[bool, Parameter(name="--json", show_default=False, help="Print one JSON document and nothing else.")]
MOST = 10**15
"""What stays a number to every database."""
COUNT = Number(gte=1, lte=MOST)
Limit = Annotated[int, Parameter(help="At most so many.", validator=COUNT)]


class BrokenProgram(ConfigurationError):
    """It exists, but as it stands it cannot be used; whoever edits it will try again."""


def named(name: str | None) -> str:
    """The application's name as given, or from the environment."""
    found = name or os.environ.get("SKALD_APP")
    if not found:
        raise ConfigurationError("which application? Name it as module:attribute (shop.app:app), or set SKALD_APP")
    return found


def first_is_app(names: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Splits ``[module:attribute] WHAT…``: ids have no colon, applications do."""
    if names and ":" in names[0]:
        return names[0], names[1:]
    return None, names


def load(name: str) -> App:
    """The application ``module:attribute``, imported from the current folder or the installed packages.

    The name comes from whoever starts the process, never from stored or received data.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigurationError(f"{name!r}: name the application as module:attribute, for example shop.app:app")
    if module_name.startswith("."):
        raise ConfigurationError(f"{name!r}: name the module in full, for example shop.app:app")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        # What it prints while it is imported is no part of a command's answer.
        with redirect_stdout(sys.stderr):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"there is no module {error.name!r} in {os.getcwd()}") from error
        raise _broken(module_name, error) from error
    except Exception as error:
        raise _broken(module_name, error) from error
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        raise BrokenProgram(f"{name}: {_not_an_app(module, attribute, app)}")
    return app


_NOT_THEIRS = (os.path.join(*skald.__path__, ""), os.path.join(*importlib.__path__, ""), "<frozen ")
"""Where a program's own line is not, which is what has to be changed."""


def _broken(module: str, error: Exception) -> BrokenProgram:
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
        frame = (theirs or frames)[-1]
        where = f"{frame.filename}:{frame.lineno}"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return BrokenProgram(
        f"{module} cannot be imported: {type(error).__name__}: {text} ({where}); in full: python -c 'import {module}'"
    )


def _not_an_app(module: object, attribute: str, found: object) -> str:
    apps = sorted(name for name, value in vars(module).items() if isinstance(value, App))
    what = f"{attribute!r} is {'missing' if found is None else 'not a skald.App'}"
    return f"{what}; the module has {', '.join(apps)}" if apps else f"{what}, and the module has none"


def checked(app: App) -> App:
    """Raises ``BrokenProgram`` if its services do not fit together."""
    try:
        _ = app.topology
    except ConfigurationError as error:
        raise BrokenProgram(str(error)) from error
    return app


def ask(name: str | None, question: Callable[[App], Coroutine[Any, Any, T]]) -> T:
    """Runs a use case on the named application."""
    app = checked(load(named(name)))
    try:
        return asyncio.run(question(app))
    finally:
        app.discard_memory()


def position(digits: str) -> int:
    if len(digits) > len(str(MOST)):
        raise ConfigurationError(f"{short(digits, 40)}: no log has so many messages")
    return int(digits)


def moment(text: str, *words: str) -> str | int | datetime:
    """One of the words, a position, or a time."""
    if text in words:
        return text
    if text.isascii() and text.isdigit():
        return position(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"{text!r}: give {', '.join(words)}, a position, or a time like {_EXAMPLE}") from error
    if found.tzinfo is None:
        raise ConfigurationError(f"{text!r} has no zone: write {found.isoformat()}Z for UTC, or +02:00 for another")
    return found


_EXAMPLE = to_rfc3339(1_767_225_600_000_000)[:19] + "Z"
