"""``skald migrate plan|print|up``"""

from __future__ import annotations

import cyclopts

from skald import operations
from skald.cli.application import AppName, Json, Services, ask
from skald.cli.output import print_json, say

migrate = cyclopts.App(name="migrate", help="Apply the numbered SQL files of the library and of the services.")


@migrate.command
def plan(app: AppName = None, /, *, service: Services = None, json: Json = False) -> int:
    """List the files that are still to be applied."""
    found = ask(app, lambda app: operations.plan_migrations(app, service or ()))
    if json:
        print_json([{"service": file.service, "name": file.name} for file in found])
    else:
        for file in found:
            say(f"{file.service}: {file.name}")
        if not found:
            say("nothing to apply")
    return 0


@migrate.command(name="print")
def print_sql(app: AppName = None, /, *, service: Services = None, json: Json = False) -> int:
    """Print the SQL that is still to be applied."""
    found = ask(app, lambda app: operations.plan_migrations(app, service or ()))
    if json:
        print_json(found)
    else:
        for file in found:
            say(f"-- {file.service}: {file.name}\n{file.sql.rstrip()}\n")
    return 0


@migrate.default
def up(app: AppName = None, /, *, service: Services = None, json: Json = False) -> int:
    """Apply what is still to be applied; safe when many processes do it at once."""
    done = ask(app, lambda app: operations.migrate(app, service or ()))
    if json:
        print_json(done)
    else:
        for one in done:
            say(f"{one.service}: {', '.join(one.applied) or 'up to date'}")
    return 0


migrate.command(up, name="up")
