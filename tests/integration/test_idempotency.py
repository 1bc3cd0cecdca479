"""Requests with an Idempotency-Key, on both stores: one effect and one answer per key, whatever is in between."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import StreamingResponse

from skald import App, Service
from skald.http import IdempotencyMiddleware, request_transaction
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.stage import MIGRATIONS, QUICK, Placed, effect, effects

BIG = "x" * 300_000
Message = MutableMapping[str, Any]
"""Of ASGI."""


class Crash(BaseException):
    """Ends a request as a killed process would: nobody gets to answer it."""


class Shop:
    """A web application whose endpoints note what they did, in the request's transaction."""

    def __init__(self, url: str, wrapped: Callable[[FastAPI, Service], Any]) -> None:
        self.service = Service("shop", publishes=[Placed], migrations=MIGRATIONS)
        self.app = App(self.service, store=url, settings=QUICK)
        self.calls = 0
        self.inside = asyncio.Event()
        self.go_on = asyncio.Event()
        self.limit = asyncio.timeout(None)
        self.web = wrapped(self._endpoints(), self.service)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.web), base_url="http://shop")

    def _endpoints(self) -> FastAPI:
        web = FastAPI()

        @web.post("/orders/{how}")
        async def place(how: str, request: Request) -> Response:
            body = (await request.body()).decode()
            async with request_transaction(self.service) as tx:
                self.calls += 1
                await effect(tx, "place", body, how, self.calls)
                tx.publish(Placed(how, self.calls))
                return await self._answer(how)

        @web.post("/hasty")
        async def hasty() -> Response:
            self.limit = asyncio.timeout(None)
            try:
                async with self.limit, request_transaction(self.service) as tx:
                    await effect(tx, "place", "a chair", "hasty", 1)
                    tx.publish(Placed("hasty", 1))
                    return await self._answer("waiting")
            except TimeoutError:
                return Response("too late", 408)

        return web

    async def _answer(self, how: str) -> Response:
        if how == "waiting":
            self.inside.set()
            await self.go_on.wait()
        if how == "raising":
            raise HTTPException(409, "no")
        if how == "crashing":
            raise Crash
        if how == "streaming":
            return StreamingResponse(iter([b"a" * 70_000, b"b" * 70_000]), 202)
        if how.isdigit():
            return Response(f"status {how}", int(how))
        headers = {"Location": f"/orders/{self.calls}", "X-Name": "käse".encode("latin-1").decode("latin-1")}
        return Response(BIG if how == "big" else f"order {self.calls}", 202, headers)

    async def post(self, how: str = "plain", body: str = "a chair", key: str | None = "k1") -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self.http.post(f"/orders/{how}", content=body, headers=headers)

    async def hasten(self) -> httpx.Response:
        return await self.http.post("/hasty", headers={"Idempotency-Key": "k1"})

    async def done(self) -> int:
        """Effects, of which each has its message."""
        rows = await effects(self.service, "place")
        records = await self.service.store.log.read(1, 100)
        assert len(rows) == len(records)
        return len(rows)


class Passing(BaseHTTPMiddleware):
    """One of those that run the application in a task group of their own."""

    async def dispatch(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["X-Passed"] = "yes"
        return response


def plain(web: FastAPI, service: Service) -> Any:
    return IdempotencyMiddleware(web, service, max_body=1000)


def inside(web: FastAPI, service: Service) -> Any:
    return IdempotencyMiddleware(Passing(web), service)


def outside(web: FastAPI, service: Service) -> Any:
    return Passing(IdempotencyMiddleware(web, service))


def twice(web: FastAPI, service: Service) -> Any:
    return Passing(IdempotencyMiddleware(Passing(Passing(web)), service))


@asynccontextmanager
async def opened(url: str, wrapped: Callable[[FastAPI, Service], Any] = plain) -> AsyncIterator[Shop]:
    shop = Shop(url, wrapped)
    await shop.app.migrate()
    async with shop.app.connect(), shop.http:
        yield shop


def same(one: httpx.Response, other: httpx.Response) -> bool:
    return (one.status_code, one.content, one.headers) == (other.status_code, other.content, other.headers)


@pytest.mark.parametrize("wrapped", [plain, inside, outside, twice])
async def test_a_repeated_request_gets_the_same_answer_and_has_no_second_effect(
    store_url: str,  # noqa: F811
    wrapped: Callable[[FastAPI, Service], Any],
) -> None:
    async with opened(store_url, wrapped) as shop:
        first = await shop.post()
        assert (first.status_code, first.text, first.headers["location"]) == (202, "order 1", "/orders/1")
        for _ in range(3):
            assert same(await shop.post(), first)
        assert (shop.calls, await shop.done()) == (1, 1)
        assert (await shop.post(key="k2")).text == "order 2"
        assert (await shop.post(key=None)).text == "order 3"
        assert await shop.done() == 3


@pytest.mark.parametrize("how", ["big", "streaming"])
async def test_large_and_streamed_answers_are_kept_whole(store_url: str, how: str) -> None:  # noqa: F811
    async with opened(store_url) as shop:
        first = await shop.post(how)
        assert len(first.content) >= 140_000
        assert same(await shop.post(how), first)
        assert await shop.done() == 1


@pytest.mark.parametrize("wrapped", [plain, inside])
async def test_a_key_belongs_to_one_body_and_one_place(
    store_url: str,  # noqa: F811
    wrapped: Callable[[FastAPI, Service], Any],
) -> None:
    async with opened(store_url, wrapped) as shop:
        await shop.post()
        other = await shop.post(body="a table")
        assert (other.status_code, other.headers["content-type"]) == (422, "application/problem+json")
        assert "another request body" in other.json()["detail"]
        assert await shop.done() == 1
        assert (await shop.post("big")).status_code == 202
        assert await shop.done() == 2


async def test_a_key_belongs_to_one_query(store_url: str) -> None:  # noqa: F811
    async with opened(store_url) as shop:
        first = await shop.post("plain?dry_run=true")
        assert same(await shop.post("plain?dry_run=true"), first)
        for other in ("plain?dry_run=false", "plain"):
            answer = await shop.post(other)
            assert answer.status_code == 422
            assert "another request body or query" in answer.json()["detail"]
        # Neither what stands in the body of a request without a query.
        for body in ("dry_run=truea chair", "dry_run=true\0a chair", "dry_run=true\na chair"):
            assert (await shop.post(body=body)).status_code == 422
        assert await shop.done() == 1


async def test_without_a_query_the_hash_is_that_of_the_body(store_url: str) -> None:  # noqa: F811
    """Keys that were stored by an earlier release stay valid."""
    async with opened(store_url) as shop:
        await shop.post("plain?")
        [row] = await shop.service.fetch("SELECT body_hash FROM skald_idempotency")
        assert row["body_hash"] == hashlib.sha256(b"a chair").hexdigest()


async def test_two_at_the_same_moment_are_one(store_url: str) -> None:  # noqa: F811
    """The second one waits for the first, and gets its answer."""
    async with opened(store_url) as shop:
        first = asyncio.create_task(shop.post("waiting"))
        await shop.inside.wait()
        second = asyncio.create_task(shop.post("waiting"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not second.done()
        shop.go_on.set()
        assert same(await first, await second)
        assert (shop.calls, await shop.done()) == (1, 1)


async def test_many_at_the_same_moment_are_one(store_url: str) -> None:  # noqa: F811
    async with opened(store_url) as shop:
        answers = await asyncio.gather(*(shop.post(key=f"k{n % 3}") for n in range(24)))
        assert {answer.status_code for answer in answers} == {202}
        for n in range(3):
            assert all(same(answer, answers[n]) for answer in answers[n::3])
        assert (shop.calls, await shop.done()) == (3, 3)


@pytest.mark.parametrize("status", ["429", "500", "503"])
async def test_answers_that_promise_nothing_are_not_kept(store_url: str, status: str) -> None:  # noqa: F811
    async with opened(store_url) as shop:
        for times in (1, 2):
            assert (await shop.post(status)).status_code == int(status)
            assert (shop.calls, await shop.done()) == (times, 0)


async def test_an_answer_of_refusal_is_kept(store_url: str) -> None:  # noqa: F811
    async with opened(store_url) as shop:
        first = await shop.post("404")
        assert same(await shop.post("404"), first)
        assert shop.calls == 1


async def test_what_an_endpoint_left_by_an_exception_did_is_undone_and_the_key_is_free(store_url: str) -> None:  # noqa: F811
    async with opened(store_url) as shop:
        for times in (1, 2):
            assert (await shop.post("raising")).status_code == 409
            assert (shop.calls, await shop.done()) == (times, 0)


async def test_a_crash_before_the_answer_leaves_nothing(store_url: str) -> None:  # noqa: F811
    async with opened(store_url) as shop:
        with pytest.raises(Crash):
            await shop.post("crashing")
        assert await shop.done() == 0
        # The key is asked for again, by the same request.
        with pytest.raises(Crash):
            await shop.post("crashing")
        assert shop.calls == 2


async def test_a_client_that_leaves_gets_its_answer_when_it_asks_again(store_url: str) -> None:  # noqa: F811
    """It was cancelled before the commit, so nothing has happened; the next request does the work."""
    async with opened(store_url) as shop:
        first = asyncio.create_task(shop.post("waiting"))
        await shop.inside.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        shop.go_on.set()
        assert (await shop.post("waiting")).status_code == 202
        assert await shop.done() == 1


async def test_a_client_that_leaves_in_the_middle_of_its_body_runs_nothing(store_url: str) -> None:  # noqa: F811
    sent: list[Message] = []
    parts: list[Message] = []

    async def receive() -> Message:
        return parts.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async with opened(store_url) as shop:
        headers, path = [(b"idempotency-key", b"k1")], "/orders/plain"
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        # The second time there is an answer for what has come of the body.
        for calls in (0, 1):
            parts[:] = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]
            await shop.web(dict(scope), receive, send)
            assert (sent, shop.calls, await shop.done()) == ([], calls, calls)
            assert (await shop.post(body="a")).text == "order 1"


async def test_a_block_that_is_cut_off_is_undone_and_the_key_is_free(store_url: str) -> None:  # noqa: F811
    async with opened(store_url) as shop:
        first = asyncio.create_task(shop.hasten())
        await shop.inside.wait()
        shop.limit.reschedule(0)
        assert (await first).status_code == 408
        assert await shop.done() == 0
        shop.go_on.set()
        assert (await shop.hasten()).status_code == 202
        assert await shop.done() == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "tab\t", "käse"])
async def test_unusable_keys_are_refused(store_url: str, key: str) -> None:  # noqa: F811
    async with opened(store_url) as shop:
        headers = [(b"Idempotency-Key", key.encode("latin-1"))]
        answer = await shop.http.post("/orders/plain", content="a", headers=headers)
        assert (answer.status_code, answer.json()["title"]) == (400, "Bad Request")
        assert shop.calls == 0


async def test_a_body_that_is_too_large_is_refused(store_url: str) -> None:  # noqa: F811
    async with opened(store_url) as shop:
        assert (await shop.post(body="x" * 1001)).status_code == 413
        assert shop.calls == 0
        assert (await shop.post(body="x" * 1000)).status_code == 202


async def test_reading_requests_pass(store_url: str) -> None:  # noqa: F811
    async with opened(store_url) as shop:
        answer = await shop.http.get("/openapi.json", headers={"Idempotency-Key": "k1"})
        assert answer.status_code == 200
        assert (await shop.post()).text == "order 1"
