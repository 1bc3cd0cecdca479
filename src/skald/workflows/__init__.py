"""Durable workflows: asyncio that survives a crash.

What stands here is for the code of workflows and steps; ``skald.workflow`` and ``skald.step`` declare them.
"""

from skald.workflows.channels import Query, Signal, Update
from skald.workflows.context import (
    StepAttempt,
    attempt,
    blocking_transaction,
    continue_as_new,
    deprecate_patch,
    now,
    patched,
    random,
    stage,
    transaction,
    uuid,
    workflow_id,
)
from skald.workflows.definition import NOT_DONE, NotDone
from skald.workflows.mapping import Mapped, map

__all__ = [
    "NOT_DONE",
    "Mapped",
    "NotDone",
    "Query",
    "Signal",
    "StepAttempt",
    "Update",
    "attempt",
    "blocking_transaction",
    "continue_as_new",
    "deprecate_patch",
    "map",
    "now",
    "patched",
    "random",
    "stage",
    "transaction",
    "uuid",
    "workflow_id",
]
