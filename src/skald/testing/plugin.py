"""A plugin for pytest, ``pytest_plugins = ["skald.testing.plugin"]``: the fixture ``workflow_lab``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from skald.testing.workflows import Lab


@pytest.fixture
def workflow_lab() -> Callable[..., AbstractAsyncContextManager[Lab]]:
    """``async with workflow_lab(service, seed=7) as lab``; see ``skald.testing.workflows.laboratory``."""
    # Not before: pytest rewrites the asserts of modules that it is the first to import.
    from skald.testing.workflows import laboratory

    return laboratory
