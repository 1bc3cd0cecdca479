"""For HTTP services (any ASGI framework): requests that are idempotent by key, and overload answered as such."""

from skald.http.idempotency import IdempotencyMiddleware, request_transaction

__all__ = ["IdempotencyMiddleware", "request_transaction"]
