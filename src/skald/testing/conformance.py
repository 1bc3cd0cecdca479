"""The suite that every store passes. An adapter's own test is a factory and a few lines:

    @pytest.fixture
    def new_handle(tmp_path):
        return lambda: MyStore(tmp_path / "orders.db", "orders")

    class TestMyStore(StoreConformance): ...

    class TestMyStoreAgainstTheModel(StoreModelConformance): ...

``new_handle`` makes, at each call, another handle on one database that was empty at the start of the test, as
another process would have one: neither open nor migrated. What a store cannot do is asked of its
``features``. Nothing here sleeps: the tests wait on what happens, and bound how long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

_PARTS = ("units", "inbox", "log", "transactions", "schema", "members", "workflows", "sagas", "marks", "locks")
pytest.register_assert_rewrite(*(f"skald.testing.store_{part}" for part in _PARTS))

from skald.store import Store  # noqa: E402 — asserts are rewritten only in modules that are not imported yet
from skald.testing.model import check_against_model  # noqa: E402
from skald.testing.store_inbox import InboxConformance  # noqa: E402
from skald.testing.store_locks import LockConformance  # noqa: E402
from skald.testing.store_log import LogConformance  # noqa: E402
from skald.testing.store_marks import MarkConformance  # noqa: E402
from skald.testing.store_members import MembersConformance  # noqa: E402
from skald.testing.store_sagas import SagaConformance  # noqa: E402
from skald.testing.store_schema import SchemaConformance  # noqa: E402
from skald.testing.store_transactions import TransactionConformance  # noqa: E402
from skald.testing.store_units import UnitConformance  # noqa: E402
from skald.testing.store_workflows import WorkflowConformance  # noqa: E402

NewHandle = Callable[[], Store]
NewStore = Callable[[], Awaitable[Store]]


class StoreConformance(
    UnitConformance,
    InboxConformance,
    LogConformance,
    TransactionConformance,
    MembersConformance,
    SchemaConformance,
    WorkflowConformance,
    SagaConformance,
    MarkConformance,
    LockConformance,
):
    """Needs the fixture ``new_handle``; gives ``new_store`` (opens another handle) and ``store`` (the first
    one).
    """

    pytestmark = pytest.mark.asyncio

    @pytest_asyncio.fixture
    async def new_store(self, new_handle: NewHandle) -> AsyncIterator[NewStore]:
        opened: list[Store] = []

        async def open_store() -> Store:
            store = new_handle()
            if not opened:
                await store.migrate()
            await store.open()
            opened.append(store)
            return store

        yield open_store
        for store in opened:
            await store.close()

    @pytest_asyncio.fixture
    async def store(self, new_store: NewStore) -> Store:
        return await new_store()


class StoreModelConformance:
    """Random groups of units, whose outcomes and log are compared with ``skald.testing.model``."""

    examples = 30
    """Histories per run; each is some dozens of groups."""
    shrink = False
    """Whether to look for the shortest history that disagrees, for minutes; for whoever mends one."""

    def test_random_histories_agree_with_the_model(self, new_handle: NewHandle) -> None:
        with asyncio.Runner() as runner:
            store = new_handle()
            runner.run(store.migrate())
            runner.run(store.open())
            try:
                check_against_model(runner.run, store, self.examples, self.shrink)
            finally:
                runner.run(store.close())
