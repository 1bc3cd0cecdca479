"""The message that the current code reacts to, so that whatever it publishes carries on its correlation and trace."""

from __future__ import annotations

from contextvars import ContextVar

import msgspec


class Cause(msgspec.Struct, frozen=True, gc=False):
    id: str | None
    correlation_id: str
    traceparent: str | None
    key: str | None


current_cause: ContextVar[Cause | None] = ContextVar("skald_cause", default=None)


def correlation() -> str | None:
    """Of what the current code reacts to."""
    cause = current_cause.get()
    return None if cause is None else cause.correlation_id
