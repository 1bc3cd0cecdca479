"""Opens connections: settings of each role, clean errors for a wrong address, pauses while a server is away."""

from __future__ import annotations

import asyncio
import random
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from skald.errors import ConfigurationError, StoreError, StoreUnavailable, UnsafeSettings
from skald.stores.postgres.failures import is_gone, translated
from skald.stores.postgres.statements import quoted

Connection = Any
"""asyncpg has no stubs that mypy accepts."""

COMMITTER = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "lock_timeout": "50ms",
}
"""Plans made while the tables were empty must stay right when they are full; a wait ends after 50 ms."""

LOST = (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)


def check_url(url: str) -> None:
    """Refuses an address that can never work, without repeating its password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # The text of this error has what stands in the port's place: the password, if a / in it is not quoted.
        raise ConfigurationError(
            "the address of PostgreSQL cannot be read: its port is no number up to 65535, or its password is not "
            "quoted: write %2F for /, %3F for ?, %23 for #, %40 for @, %5B for ["
        ) from None
    if parts.scheme not in ("postgres", "postgresql"):
        raise ConfigurationError(
            f"{parts.scheme or 'nothing'}:// is no address of PostgreSQL: write postgresql://USER@HOST:PORT/DATABASE"
        )


def shown(url: str) -> str:
    """The address for people, without its password."""
    parts = urlsplit(url)
    if "@" in parts.path + parts.query + parts.fragment:  # what looks like the port may be a password's beginning
        return "***"
    return f"{parts.hostname or 'local'}:{parts.port or 5432}{parts.path}"


async def connect(
    url: str,
    role: str,
    *,
    schema: str | None = None,
    settings: dict[str, str] | None = None,
    timeout: float = 10.0,
    statements: int = 500,
) -> Connection:
    """One connection. ``timeout`` bounds connecting and every statement, so that a silent network is noticed;
    ``statements`` is how many it keeps prepared."""
    check_url(url)
    chosen = {"application_name": f"skald:{role}"[:63], **(settings or {})}
    if schema is not None:
        chosen["search_path"] = quoted(schema)
    try:
        return await asyncpg.connect(
            url,
            timeout=timeout,
            command_timeout=timeout,
            server_settings=chosen,
            statement_cache_size=statements,
            max_cached_statement_lifetime=0,
        )
    except LOST as error:
        raise StoreError(f"{shown(url)}: {error}: check user, password and database in the address") from error
    except (ValueError, asyncpg.ClientConfigurationError) as error:
        raise ConfigurationError(f"{shown(url)}: {error}") from error
    except Exception as error:
        if "unsupported startup parameter" in str(error):
            raise UnsafeSettings(
                f"{shown(url)} is a connection pooler that refuses session settings: give the address of the server"
            ) from error
        ours = translated(error)
        if ours is None:
            raise
        raise StoreUnavailable(f"{shown(url)}: {ours}") if isinstance(ours, StoreUnavailable) else ours from error


async def connect_patiently(url: str, role: str, within: float, **options: Any) -> Connection:
    """Tries again with growing pauses while the server is away, for at most ``within`` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    pause = 0.02
    while True:
        try:
            return await connect(url, role, **options)
        except StoreUnavailable:
            if loop.time() + pause > deadline:
                raise
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, 1.0)


async def close(connection: Connection | None) -> None:
    """Closes politely, and at once where that does not work."""
    if connection is None or connection.is_closed():
        return
    try:
        await connection.close(timeout=2)
    except Exception as error:
        if not is_gone(error) and not isinstance(error, asyncpg.InterfaceError):
            raise
        connection.terminate()


def check_settings(found: Any, url: str) -> None:
    """Refuses a server or session that does not keep what it acknowledges, naming the setting and the remedy."""
    for name in ("fsync", "full_page_writes"):
        if found[name] != "on":
            raise UnsafeSettings(
                f"{shown(url)} runs with {name}=off and can lose or corrupt committed data in a crash: "
                f"set {name} = on in postgresql.conf and restart"
            )
    if found["synchronous_commit"] == "off":
        raise UnsafeSettings(
            f"{shown(url)} acknowledges commits before they are on disk (synchronous_commit=off): "
            "set it to on for this role or database (ALTER ROLE … SET synchronous_commit = on)"
        )
    if found["lock_timeout"] != COMMITTER["lock_timeout"]:
        raise UnsafeSettings(
            f"{shown(url)} does not keep session settings (a transaction pooler?): give the server's own address"
        )
