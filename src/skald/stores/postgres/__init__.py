"""The store on PostgreSQL 14 and later: a schema per service, through asyncpg."""

from __future__ import annotations

from skald.stores.postgres.group import units_to_json
from skald.stores.postgres.log import PostgresLog
from skald.stores.postgres.store import PostgresStore

__all__ = ["PostgresLog", "PostgresStore", "units_to_json"]
