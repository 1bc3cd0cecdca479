"""``skald run`` and ``skald dev``: services in this process until a signal ends them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from skald import operations
from skald.app import App
from skald.cli.application import AppName, BrokenProgram, Services, checked, load, named
from skald.cli.output import note, plain, print_json
from skald.cli.reloading import Times, Watch, all_files, imported_files, start_again, times_of
from skald.clock import to_rfc3339
from skald.runtime.memory import calm_collector

EXIT_LOST = 75
"""Exit status of a process whose work another one has taken over (EX_TEMPFAIL): start it again."""

JsonLog = Annotated[
    bool, Parameter(name="--json", show_default=False, help="Log JSON lines; at the end, one document on stdout.")
]
log = logging.getLogger("skald")


class End(Enum):
    STOPPED = "stopped"
    LOST = "lost"
    CHANGED = "changed"


def run(
    app: AppName = None,
    /,
    *,
    service: Services = None,
    migrate: Annotated[bool, Parameter(show_default=False, help="Apply pending migrations first.")] = False,
    json: Annotated[
        bool, Parameter(show_default=False, help="Log JSON lines; at the end, one document on stdout.")
    ] = False,
) -> int:
    """Run services until SIGTERM or Ctrl-C, then finish what runs and stop. Start as many processes as you like.

    Exits with 75 if another process has taken over from this one: start it again.
    """
    log_to_stderr(json)
    application = load(named(app))
    names = operations.chosen(application, service or ())
    try:
        end = on_loop(serve(application, names, migrate=migrate))
    finally:
        application.discard_memory()
    if json:
        print_json({"services": names, "end": end.value})
    return EXIT_LOST if end is End.LOST else 0


def dev(
    app: AppName = None,
    /,
    *,
    reload: Annotated[
        bool, Parameter(negative="--no-reload", help="Start again when a file of the program changes.")
    ] = True,
    json: Annotated[
        bool, Parameter(show_default=False, help="Log JSON lines; at the end, one document on stdout.")
    ] = False,
) -> int:
    """Run every service in this process, after applying pending migrations; for development."""
    log_to_stderr(json)
    files = times_of(all_files(Path.cwd())) if reload else {}
    try:
        application = checked(load(named(app)))
    except BrokenProgram as error:
        if not reload:
            raise
        return _wait_for_a_mend(error, files)
    names = operations.chosen(application)
    for name in names:
        log.info("%s keeps its data in %s", name, application.shown_url(name))
    watch = _watch(application, files) if reload else None
    try:
        end = on_loop(serve(application, names, migrate=True, watch=watch))
    finally:
        application.discard_memory()
    if end is not End.STOPPED:
        start_again()
    if json:
        print_json({"services": names, "end": end.value})
    return 0


def _watch(app: App, before: Times) -> Watch:
    folders = [service.migrations for service in app.services.values() if service.migrations is not None]
    return Watch(imported_files(Path.cwd()), folders, before)


def _wait_for_a_mend(error: BrokenProgram, before: Times) -> int:
    note(f"skald: {plain(str(error))}")
    note("waiting for a change")
    asyncio.run(_changes(Watch(all_files(Path.cwd()), before=before)))
    start_again()
    return 0


async def _changes(watch: Watch) -> None:
    changed = await watch.wait()
    log.info("changed: %s", ", ".join(os.path.relpath(name) for name in changed))


async def serve(app: App, names: Sequence[str], *, migrate: bool, watch: Watch | None = None) -> End:
    """Runs services until a signal, then drains; says what ended it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        # The next one ends the process at once, for whoever has no patience.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        log.info("stopping: what runs is finished first; a second signal ends it")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    if migrate:
        await app.migrate(names)
    async with app.run(*names) as running:
        log.info("running: %s (process %d)", ", ".join(names), os.getpid())
        changes = [asyncio.create_task(_changes(watch))] if watch is not None else []
        ends = [asyncio.ensure_future(event.wait()) for event in (stop, *(one.lost for one in running))]
        await asyncio.wait([*ends, *changes], return_when=asyncio.FIRST_COMPLETED)
        changed = any(task.done() for task in changes)
        for task in [*ends, *changes]:
            task.cancel()
        lost = any(one.lost.is_set() for one in running)
    if stop.is_set():
        return End.STOPPED
    return End.LOST if lost and not changed else End.CHANGED


def on_loop(work: Coroutine[Any, Any, End]) -> End:
    """On uvloop where it is installed."""
    calm_collector()
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        fields = {"time": to_rfc3339(round(record.created * 1e6)), "level": record.levelname, "logger": record.name}
        if record.name == "skald" and text.startswith("{"):
            line: dict[str, Any] = {**fields, "event": msgspec.Raw(text.encode())}
        else:
            line = {**fields, "message": text}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def log_to_stderr(as_json: bool = False, level: str = "INFO") -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    )
    logging.basicConfig(level=level, handlers=[handler])
