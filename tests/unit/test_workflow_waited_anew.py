"""A call that had no answer in time is waited for anew after a retry: what its history says then, told by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec
import pytest

from skald import Command, Event, Service, call, step, workflow
from skald.messaging.calls import Answer
from skald.unit import EntryKind, JournalEntry
from skald.workflows.calling import Route
from skald.workflows.client import outside
from skald.workflows.failure import decode_failure
from skald.workflows.forgetting import Forgotten
from skald.workflows.replay import Machine
from skald.workflows.signature import identity_of

T = TypeVar("T")
RUN, START, SECOND = "01890a5d-ac96-774b-bcce-b302099a8057", 1_700_000_000_000_000, 1_000_000
RETRIED = START + 3_600 * SECOND


class Reserved(Event, key="order"):
    order: str


class Reserve(Command[Reserved], key="order"):
    order: str


@step
async def first() -> str:
    raise AssertionError


@step
async def second() -> str:
    raise AssertionError


@step
async def clean_up() -> str:
    raise AssertionError


@workflow
async def hurried(order: str) -> list[str]:
    async def reserving() -> str:
        try:
            return (await call(Reserve(order), timeout=5)).order
        except TimeoutError:
            await clean_up()
            raise

    async def other() -> str:
        return await first() + await second()

    found = await asyncio.gather(reserving(), other(), return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [str(one) for one in found]


ORDERS = Service("orders", workflows=[hurried], calls=[Reserve])
ORDERS.calls.routes = {Reserve: Route("stock", "stock.calls", {"Reserved": Reserved})}


class Played:
    """A machine, and what it was told."""

    def __init__(self, history: list[JournalEntry] | None = None) -> None:
        self.machine = Machine(hurried, RUN, hurried.signature.encode(("o-1",), {}), START, id="o-1")
        self.history = list(history or [])
        if history is None:
            self.machine.begin()
        else:
            self.machine.replay(history)

    def tell(self, name: str, seconds: float) -> None:
        time, place = START + round(seconds * SECOND), self.machine.position + 1
        if name == "timer":
            told = JournalEntry(RUN, place, EntryKind.TIMER, "", b"", 0, time, None)
        else:
            [waiting] = [one for one in self.machine.calls.values() if one.identity[0] == name]
            kind, body = EntryKind.STEP_DONE, msgspec.json.encode(name)
            if name == "Reserve":
                kind = EntryKind.CALL_DONE
                body = msgspec.json.encode(Answer("Reserved", msgspec.Raw(b'{"order":"o-1"}')))
            told = JournalEntry(RUN, place, kind, *waiting.identity, time, body)
        self.machine.deliver(told)
        self.history.append(told)

    def retried(self, at: int = RETRIED) -> Played:
        """As ``journal.reopen`` does it."""
        assert self.machine.end is not None
        failure = decode_failure(self.machine.end.body)
        assert failure.unanswered is not None
        assert failure.entry is not None
        name, digest, occurrence = identity_of(failure.unanswered)
        last = len(self.history)
        note = Forgotten(last, at, failure.entry, digest).encode()
        noted = JournalEntry(RUN, last + 1, EntryKind.FORGOTTEN, name, note, occurrence, at, None)
        return Played([*self.history, noted])

    def waits_for(self) -> set[str]:
        return {identity[0] for identity in self.machine.calls}


async def playing(check: Callable[[Played], T]) -> T:
    return await outside(lambda: check(Played()))


@pytest.mark.parametrize("noticed_with", ["timer", "first"])
async def test_what_was_told_with_the_timeout_stays_told_and_what_it_led_to_is_passed_over(noticed_with: str) -> None:
    def check(played: Played) -> None:
        if noticed_with == "timer":
            played.tell("first", 1)
            played.tell("timer", 5.1)
        else:
            played.tell("first", 6)  # the same entry moves the clock
        played.tell("clean_up", 7)
        played.tell("second", 8)
        again = played.retried()
        assert again.waits_for() == {"Reserve"}
        assert again.machine.wake_at() == RETRIED + 5 * SECOND + 1
        again.tell("Reserve", 3_601)
        final = Played(again.history)
        assert again.machine.end is not None
        assert final.machine.end == again.machine.end
        assert again.machine.end.body == b'["o-1","firstsecond"]'

    await playing(check)


async def test_each_retry_waits_anew() -> None:
    def check(played: Played) -> None:
        played.tell("first", 1)
        played.tell("second", 2)
        for hours in range(1, 4):
            late = (RETRIED - START) / SECOND * (hours - 1)
            played.tell("timer", late + 5.1)
            played.tell("clean_up", late + 6)
            played = played.retried(START + 3_600 * SECOND * hours)
            assert played.waits_for() == {"Reserve"}
            assert played.machine.wake_at() == START + (3_600 * hours + 5) * SECOND + 1
        played.tell("Reserve", 3 * 3_600 + 1)
        assert played.machine.end is not None
        assert Played(played.history).machine.end == played.machine.end

    await playing(check)
