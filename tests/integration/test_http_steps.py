"""Steps over HTTP: the key that is sent, and what status codes mean to a saga."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import pytest

from skald import Backoff, Retry, SagaCompensated, Service, compensation, saga
from skald.errors import ConfigurationError
from skald.http import HttpRejected, http_step
from skald.retry import NEVER, rule_for
from skald.testing.workflows import Lab, laboratory

Answers = list[int | Exception]


class Charge(msgspec.Struct, frozen=True):
    order: str
    amount: int


class Charged(msgspec.Struct, frozen=True):
    id: str


answers: Answers = []
seen: list[httpx.Request] = []
refunds: list[str] = []


def answer(request: httpx.Request) -> httpx.Response:
    seen.append(request)
    found = answers.pop(0) if answers else 200
    if isinstance(found, Exception):
        raise found
    return httpx.Response(found, json={"id": "c-1"} if found < 300 else {"error": "no funds"})


@compensation
async def refund(request: Charge, key: str) -> None:
    refunds.append(key)


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="https://pay.example")


retry = Retry(immediate=2, delays=())
charge = http_step(
    "charge", client, "post", "/charges/{order}", takes=Charge, returns=Charged, compensate=refund, retry=retry,
    unknown=[202],
)  # fmt: skip
look = http_step("look", client, "GET", "/charges/{order}", takes=Charge, returns=type(None), rejected=[503])


@saga
async def pay(order: str) -> str:
    charged = await charge(Charge(order, 5))
    await look(Charge(order, 5))
    return charged.id


def closing(url: str, **options: Any) -> Any:
    return http_step("close", client, "DELETE", url, takes=Charge, returns=type(None), **options)


close_holds = closing("/accounts/{order}/holds", compensate=refund, retry={"*": retry})
close_both = closing("/accounts/.{order}?note={order}", compensate=refund)


@saga
async def close(order: str) -> None:
    await close_holds(Charge(order, 5))


@saga
async def close_with_a_note(order: str) -> None:
    await close_both(Charge(order, 5))


ORDERS = Service("orders", workflows=[pay, close, close_with_a_note])


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    for used in (answers, seen, refunds):
        used.clear()
    async with laboratory(ORDERS) as found:
        yield found


async def test_a_request_carries_the_key_of_its_step(lab: Lab) -> None:
    answers[:] = [503]
    handle = await pay.start("o/1", id="w1")
    assert await lab.result(handle) == "c-1"
    first, again, looked = seen
    assert (first.method, first.url.raw_path) == ("POST", b"/charges/o%2F1")
    assert first.content == b'{"order":"o/1","amount":5}'
    assert first.headers["content-type"] == "application/json"
    assert first.headers["idempotency-key"] == again.headers["idempotency-key"] != looked.headers["idempotency-key"]
    assert (looked.method, looked.content) == ("GET", b"")


REQUEST = httpx.Request("POST", "https://pay.example")


@pytest.mark.parametrize(
    ("given", "attempts", "type", "undone"),
    [
        ([402], 1, "HttpRejected", False),
        ([409], 1, "HttpRejected", False),
        ([429, 429], 2, "HttpNotTakenUp", False),
        ([httpx.ConnectError("away"), httpx.ConnectTimeout("away")], 2, "HttpNotTakenUp", False),
        ([500, 500], 2, "HttpUnknown", True),
        ([202, 202], 2, "HttpUnknown", True),
        ([httpx.ReadTimeout("late"), httpx.ReadError("cut")], 2, "HttpUnknown", True),
        ([httpx.ReadTimeout("late"), 402], 2, "HttpRejected", True),
        ([304], 1, "HttpRejected", False),
    ],
    ids=str,
)
async def test_what_an_answer_means(lab: Lab, given: Answers, attempts: int, type: str, undone: bool) -> None:
    answers[:] = given
    handle = await pay.start("o-1", id="w1")
    with pytest.raises(SagaCompensated) as failed:
        await lab.result(handle)
    assert (failed.value.step, failed.value.type) == ("charge", type)
    assert len(seen) == attempts
    assert refunds == ([seen[0].headers["idempotency-key"]] if undone else [])


async def test_an_answer_that_cannot_be_read_is_undone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>")

    monkeypatch.setattr("tests.integration.test_http_steps.answer", odd)
    handle = await pay.start("o-1", id="w1")
    with pytest.raises(SagaCompensated, match="the answer to charge"):
        await lab.result(handle)
    assert len(refunds) == 1


async def test_codes_that_mean_something_else(lab: Lab) -> None:
    answers[:] = [200, 503]
    handle = await pay.start("o-1", id="w1")
    with pytest.raises(SagaCompensated) as failed:
        await lab.result(handle)
    assert (failed.value.step, failed.value.type) == ("look", "HttpRejected")
    assert len(refunds) == 1


def test_a_field_that_is_not_there_is_told_at_its_line() -> None:
    make: Callable[[], object] = lambda: http_step(  # noqa: E731
        "charge", client, "POST", "/charges/{id}", takes=Charge, returns=Charged
    )
    with pytest.raises(
        ConfigurationError, match=r"test_http_steps\.py:\d+: .*\{id\} in the URL is not a field of Charge"
    ):
        make()


@pytest.mark.parametrize(
    ("which", "order", "place"),
    [(close, "", "{order}"), (close, ".", "{order}"), (close, "..", "{order}"), (close_with_a_note, ".", ".{order}")],
)
async def test_a_field_does_not_leave_its_place_in_the_url(lab: Lab, which: Any, order: str, place: str) -> None:
    """The request would be another one. It is not sent, so nothing was done, and nothing is undone."""
    handle = await which.start(order, id="w1")
    with pytest.raises(SagaCompensated) as failed:
        await lab.result(handle)
    assert (failed.value.step, failed.value.type) == ("close", "HttpUnsendable")
    assert f"DELETE /accounts/{place}" in str(failed.value)
    assert f"{place} is {place.format(order=order)!r}" in str(failed.value)
    assert (seen, refunds) == ([], [])


async def test_fields_that_stay_at_their_place(lab: Lab) -> None:
    await lab.result(await close.start("...", id="w1"))
    await lab.result(await close_with_a_note.start("../a", id="w2"))
    assert [request.url.raw_path for request in seen] == [b"/accounts/.../holds", b"/accounts/...%2Fa?note=..%2Fa"]


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("charge", "charge"),
        ("a:b.c-d_e~f/g+h=i@j#k(l)", "a:b.c-d_e~f/g+h=i@j#k(l)"),
        ("close account", "close%20account"),
        ("fermé", "ferm%C3%A9"),
        ("close%20account", "close%2520account"),
    ],
)
async def test_a_key_can_stand_in_a_header_whatever_the_name_of_its_step(name: str, sent: str) -> None:
    seen.clear()
    named = http_step(name, client, "POST", "/", takes=Charge, returns=Charged, retry=NEVER)

    @saga
    async def one(order: str) -> None:
        await named(Charge(order, 5))

    async with laboratory(Service("one", workflows=[one])) as lab:
        await lab.result(await one.start("o-1", id="w1"))
    [request] = seen
    assert f":{sent}:" in request.headers["idempotency-key"]


def test_a_forward_step_is_retried_to_the_end() -> None:
    for given in (None, Backoff(first=1, attempts=3)):
        policy = closing("/", forward=True, retry=given).retry
        assert rule_for(policy, OSError()).after(10_000) is not None
        assert rule_for(policy, HttpRejected("DELETE /", 404, "")) == NEVER
    # A rule of one's own for a class of errors is one.
    assert rule_for(closing("/", forward=True, retry={"*": retry}).retry, OSError()) == retry
    assert rule_for(closing("/", retry=Backoff(attempts=3)).retry, OSError()).after(3) is None
    with pytest.raises(ConfigurationError, match="a forward step is retried to the end"):
        closing("/", forward=True, retry=retry)
