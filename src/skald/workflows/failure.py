"""PURE. Ends and exceptions as data: type and text, never executed."""

from __future__ import annotations

import msgspec

from skald.errors import StepFailed
from skald.unit import WorkflowState

MAX_ERROR = 2_000
"""Characters of an error's text that are stored."""


class Failure(msgspec.Struct, frozen=True):
    """An exception as data."""

    type: str
    message: str


class End(msgspec.Struct, frozen=True):
    """How a workflow has ended: ``body`` is its result, or the ``Failure``."""

    state: WorkflowState
    body: bytes


encode = msgspec.json.Encoder().encode
decode_failure = msgspec.json.Decoder(Failure).decode


def failure_of(error: BaseException) -> Failure:
    """Its type and text, fit to be stored whatever they hold. A failed step's own are passed on."""
    if isinstance(error, StepFailed):
        return Failure(error.type, error.message)
    try:
        text = str(error)
    except Exception:
        # An error whose own text fails is still an error.
        text = ""
    return Failure(type(error).__name__, text.encode("utf-8", "replace").decode()[:MAX_ERROR])


def encode_failure(error: BaseException) -> bytes:
    return encode(failure_of(error))
