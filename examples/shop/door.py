"""The gateway's door: how much comes in at once and how large, and how every refusal looks (RFC 9457)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from examples.shop.settings import Limits
from skald.errors import Overloaded, Stopped, StoreError


class Problem(Exception):
    """What a client is told: the status, a sentence, and whatever helps to mend the request."""

    def __init__(
        self,
        status: int,
        detail: str,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.more = status, detail, more
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, round(retry_after)))

    def response(self) -> JSONResponse:
        title = HTTPStatus(self.status).phrase
        body = {
            "type": "about:blank",
            "title": title,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return JSONResponse(body, self.status, self.headers, media_type="application/problem+json")


def problem_for(error: Exception) -> Problem | None:
    """The answer to what the library raises; ``None`` for a bug of our own."""
    match error:
        case Problem():
            return error
        case Overloaded():
            return Problem(503, str(error), retry_after=error.retry_after)
        case StoreError() | Stopped():
            return Problem(503, "the shop cannot take this now; nothing was changed", retry_after=1)
        case HTTPException():
            return Problem(error.status_code, error.detail, headers=error.headers)
        case _:
            return None


async def answer(request: Request, error: Exception) -> JSONResponse:
    """Starlette's exception handler for all of the above."""
    return (problem_for(error) or Problem(500, "this is our fault, and it was logged")).response()


HANDLERS: Mapping[Any, Any] = {
    kind: answer for kind in (Problem, Overloaded, StoreError, Stopped, HTTPException, Exception)
}


class Door:
    """Refuses what is too much before anything is read or written for it."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits, self._in_flight = app, limits, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Event streams are counted where they are made, and a full house is in good health.
        if scope["type"] != "http" or scope["path"].endswith("/events") or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        if self._in_flight >= self._limits.max_in_flight:
            await Problem(503, "too many requests at once", retry_after=1).response()(scope, receive, send)
            return
        self._in_flight += 1
        try:
            await self._pass(scope, receive, send)
        finally:
            self._in_flight -= 1

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, await self._body(receive), watch)
        except Exception as error:
            # What fails after the endpoint has answered (the commit, mostly) comes by here.
            problem = problem_for(error)
            if started or problem is None:
                raise
            await problem.response()(scope, receive, send)

    async def _body(self, receive: Receive) -> Receive:
        """Reads the body, at most up to the limits, and returns what hands it on."""
        try:
            async with asyncio.timeout(self._limits.body_within):
                return await self._whole_body(receive)
        except TimeoutError:
            detail = f"a request has to arrive within {self._limits.body_within:g} s"
            raise Problem(408, detail, headers={"Connection": "close"}) from None

    async def _whole_body(self, receive: Receive) -> Receive:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limits.max_body:
                raise Problem(413, f"a request has at most {self._limits.max_body} bytes")
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return replay
