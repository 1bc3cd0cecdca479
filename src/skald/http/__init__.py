"""For HTTP services (any ASGI framework): requests that are idempotent by key, and overload answered as such; and steps
of workflows that are requests to others."""

from skald.http.idempotency import IdempotencyMiddleware, request_transaction
from skald.http.steps import HttpNotTakenUp, HttpRejected, HttpUnknown, HttpUnsendable, http_step

__all__ = [
    "HttpNotTakenUp",
    "HttpRejected",
    "HttpUnknown",
    "HttpUnsendable",
    "IdempotencyMiddleware",
    "http_step",
    "request_transaction",
]
