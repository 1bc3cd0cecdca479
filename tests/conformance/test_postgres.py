"""The PostgreSQL store passes the suite: a schema of its own per test, because a schema is named after its
service.
"""

from __future__ import annotations

import secrets

import pytest

from skald.stores.postgres import PostgresStore
from skald.testing.conformance import NewHandle, StoreConformance, StoreModelConformance


@pytest.fixture
def new_handle(postgres_url: str) -> NewHandle:
    service = f"origin_{secrets.token_hex(6)}"
    return lambda: PostgresStore(postgres_url, service)


class TestPostgres(StoreConformance):
    pass


class TestPostgresAgainstTheModel(StoreModelConformance):
    pass
