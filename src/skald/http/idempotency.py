"""Idempotency by key: the key, a hash of the request and the answer are stored in the transaction of the effect.

The endpoint takes its transaction from ``request_transaction(service)``. The first use opens it and looks the key up
under its lock; the middleware keeps the answer back, writes it into the same transaction, commits, and only then
sends it. So there is one commit, and whoever was told "202" finds the same answer under the same key for ever.

A second request with the same key waits for the first and gets its answer; with another body or query it gets 422.
Answers that promise nothing (429, and from 500 on) are not kept, and neither is what an endpoint answers after its
transaction's block was left by an exception or cut off: the transaction is rolled back, and the key can be used again.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import msgspec

from skald.clock import SystemClock
from skald.errors import Busy, Overloaded, StoreUnavailable, TransactionTooLong
from skald.messaging.service import Service
from skald.messaging.transaction import Transaction
from skald.sql import blocks

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_SQL = blocks("skald.http", "idempotency")
_METHODS = {"POST", "PUT", "PATCH", "DELETE"}


class Answer(msgspec.Struct, frozen=True):
    """A stored HTTP answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class _Replay(BaseException):
    """Unwinds the endpoint when the answer is known already. Not an ``Exception``, so that no endpoint swallows it."""


class _Request:
    """One request with an idempotency key, and the transaction that it may open."""

    def __init__(self, service: Service, scope: str, key: str, body_hash: str) -> None:
        self.service, self.scope, self.key, self.body_hash = service, scope, key, body_hash
        self.stack = AsyncExitStack()
        self.transaction: Transaction | None = None
        self.failed = False
        """The endpoint's block was left by an exception or cut off, so what it wrote must not be committed."""
        self.known: Answer | None = None
        """What is answered instead of what the application says; nothing is committed then."""

    async def open(self) -> Transaction:
        if self.transaction is None:
            tx = await self.stack.enter_async_context(self.service.transaction())
            claimed = await tx.execute(
                _SQL["claim"], scope=self.scope, key=self.key, body_hash=self.body_hash, answer=b"",
                created_at=SystemClock().now(),
            )  # fmt: skip
            if not claimed:
                row = await tx.fetch_one(_SQL["find"], scope=self.scope, key=self.key)
                assert row is not None
                self.known = self._replayed(row)
                raise _Replay
            self.transaction = tx
        return self.transaction

    def _replayed(self, row: dict[str, Any]) -> Answer:
        if row["body_hash"] != self.body_hash:
            return problem(422, "this Idempotency-Key was used with another request body or query; take a new key")
        return msgspec.json.decode(bytes(row["answer"]), type=Answer)

    async def keep(self, answer: Answer) -> None:
        if self.transaction is not None:
            await self.transaction.execute(
                _SQL["keep"], scope=self.scope, key=self.key, answer=msgspec.json.encode(answer)
            )


_current: ContextVar[_Request | None] = ContextVar("skald_request", default=None)


@asynccontextmanager
async def request_transaction(service: Service) -> AsyncIterator[Transaction]:
    """The transaction of the current request: with an idempotency key the one that also stores the answer (committed
    when the endpoint has answered), otherwise one of its own (committed at the end of the block)."""
    request = _current.get()
    if request is None or request.service is not service:
        async with service.transaction() as tx:
            yield tx
        return
    try:
        yield await request.open()
    except BaseException:  # also a cancellation, which a timeout around the block makes an answer of
        request.failed = True
        raise


class IdempotencyMiddleware:
    """``max_body`` bounds what is read of a request (bytes): 413 beyond it. Keys have 1 to 255 characters."""

    def __init__(self, app: AsgiApp, service: Service, *, max_body: int = 1 << 20) -> None:
        self._app, self._service, self._max_body = app, service, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _METHODS:
            await self._app(scope, receive, send)
            return
        try:
            answer = await self._answer(scope, receive, send)
        except Overloaded as error:
            answer = problem(503, str(error), [("retry-after", f"{max(1, round(error.retry_after))}")])
        except (StoreUnavailable, Busy, TransactionTooLong) as error:
            answer = problem(503, str(error), [("retry-after", "1")])
        if answer is not None:
            await _send(send, answer)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """The answer to send, or ``None`` if the application has sent its own, or nobody is there to get one."""
        key = next((value for name, value in scope["headers"] if name.lower() == b"idempotency-key"), None)
        if key is None:
            await self._app(scope, receive, send)
            return None
        if not 1 <= len(key) <= 255 or not all(33 <= byte < 127 for byte in key):
            return problem(400, "Idempotency-Key must have 1 to 255 printable ASCII characters")
        body = await self._read(receive)
        if body is None:
            return None
        if len(body) > self._max_body:
            return problem(413, f"the body is larger than {self._max_body} bytes")
        where = f"{scope['method']} {scope['path']}"
        request = _Request(self._service, where, key.decode(), _hash(body, scope.get("query_string", b"")))
        return await self._run(request, scope, body, receive)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, no further than to where it is too large; ``None`` if the client has left before its end."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            parts.append(part)
            if size > self._max_body or not message.get("more_body"):
                return b"".join(parts)

    async def _run(self, request: _Request, scope: Scope, body: bytes, receive: Receive) -> Answer:
        replayed = False

        async def receive_again() -> MutableMapping[str, Any]:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        collector = _Collector()
        token = _current.set(request)
        try:
            async with request.stack:
                await self._app(scope, receive_again, collector)
                answer = collector.answer()
                if request.failed or answer.status == 429 or answer.status >= 500:
                    request.known = answer
                    raise _Replay
                await request.keep(answer)
            return answer
        except (_Replay, BaseExceptionGroup):
            # A group where a middleware in between (Starlette's BaseHTTPMiddleware) has a task group of its own.
            if request.known is None:
                raise
            return request.known
        finally:
            _current.reset(token)


def _hash(body: bytes, query: bytes) -> str:
    """Without a query it is that of the body alone, as in what was stored before queries were looked at."""
    found = hashlib.sha256(body).hexdigest()
    return f"{found}?{hashlib.sha256(query).hexdigest()}" if query else found


class _Collector:
    """Keeps an application's answer back until its transaction has committed."""

    def __init__(self) -> None:
        self._status, self._headers, self._parts = 500, list[tuple[str, str]](), list[bytes]()

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in message.get("headers", [])]
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))

    def answer(self) -> Answer:
        return Answer(self._status, self._headers, b"".join(self._parts))


def problem(status: int, detail: str, headers: list[tuple[str, str]] | None = None) -> Answer:
    """Problem details (RFC 9457)."""
    from http import HTTPStatus

    title = HTTPStatus(status).phrase
    body = msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})
    fixed = [("content-type", "application/problem+json"), ("content-length", str(len(body)))]
    return Answer(status, fixed + (headers or []), body)


async def _send(send: Send, answer: Answer) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
