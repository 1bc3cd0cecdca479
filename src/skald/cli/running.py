"""Loads an application by name and runs its services until a signal ends them."""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import sys
from collections.abc import Sequence

from skald.app import App
from skald.errors import ConfigurationError

EXIT_LOST = 75
"""Exit status of a process whose work another one has taken over (EX_TEMPFAIL): start it again."""


def load(name: str) -> App:
    """The application ``module:attribute``, imported from the current folder or the installed packages.

    The name comes from whoever starts the process, never from stored or received data.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigurationError(f"{name!r}: name the application as module:attribute, for example shop.app:app")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.startswith(error.name):
            raise ConfigurationError(f"there is no module {error.name!r} below the current folder") from error
        raise
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        raise ConfigurationError(f"{name}: {attribute!r} is {'missing' if app is None else 'not a skald.App'}")
    return app


def log_to_stderr(level: str = "INFO") -> None:
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")


async def serve(app: App, services: Sequence[str], *, migrate: bool) -> int:
    """Runs services until SIGTERM or SIGINT, then drains; the exit status."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    names = tuple(services) or tuple(app.services)
    if migrate:
        await app.migrate(names)
    async with app.run(*names) as running:
        logging.getLogger("skald").info("running: %s", ", ".join(names))
        ends = [asyncio.ensure_future(event.wait()) for event in (stop, *(one.lost for one in running))]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        lost = any(one.lost.is_set() for one in running)
    return EXIT_LOST if lost and not stop.is_set() else 0


def run_loop(app: App, services: Sequence[str], *, migrate: bool) -> int:
    try:
        import uvloop

        return uvloop.run(serve(app, services, migrate=migrate))
    except ImportError:
        return asyncio.run(serve(app, services, migrate=migrate))
