"""The command line: ``skald run``, ``skald migrate`` and the operator's commands, all through ``operations``."""

from __future__ import annotations

import asyncio
import sys

from skald.errors import SkaldError


def main() -> None:
    try:
        import cyclopts
    except ImportError:
        sys.exit("the command line needs its extra: pip install 'skald[cli]'")
    from skald.cli.running import load, log_to_stderr, run_loop

    cli = cyclopts.App(name="skald", help="Event-driven services: run, migrate, inspect, repair.")

    @cli.command
    def run(app: str, /, *, service: list[str] | None = None, migrate: bool = False) -> int:
        """Run services of an application until SIGTERM.

        Parameters
        ----------
        app
            The application as module:attribute.
        service
            Which services to run; all by default. Start as many processes as you like.
        migrate
            Apply pending migrations first.
        """
        log_to_stderr()
        return run_loop(load(app), service or (), migrate=migrate)

    @cli.command
    def migrate(app: str, /, *, service: list[str] | None = None) -> int:
        """Apply the pending SQL files of the library and of the services."""
        for name, applied in asyncio.run(load(app).migrate(service)).items():
            print(f"{name}: {', '.join(applied) if applied else 'up to date'}")
        return 0

    try:
        result = cli(result_action="return_value")
        sys.exit(result if isinstance(result, int) else 0)
    except SkaldError as error:
        sys.exit(f"skald: {error}")
