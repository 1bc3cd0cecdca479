"""Sagas as graphs: what waits for what, what runs at once, and in which order it is undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from skald import NEVER, Saga, SagaCompensated, Service, compensation, step
from skald.errors import ConfigurationError, WorkflowFailed
from skald.testing.workflows import Lab, crash_everywhere, laboratory
from tests.unit.saga_programs import begin_anew, happen, told, trouble

pytest_plugins = ["skald.testing.plugin"]
NewLab = Callable[..., AbstractAsyncContextManager[Lab]]


class Trip(msgspec.Struct, frozen=True):
    city: str


class Ticket(msgspec.Struct, frozen=True):
    what: str


@compensation(retry=NEVER)
async def give_up(ticket: Ticket | None) -> None:
    happen(f"give up {ticket.what if ticket else 'something'}")


@step(compensate=give_up, retry=NEVER)
async def reserve_flight(trip: Trip) -> Ticket:
    happen("flight")
    return Ticket(f"flight to {trip.city}")


@step(compensate=give_up, retry=NEVER)
async def reserve_hotel(trip: Trip, nights: int = 3) -> Ticket:
    happen("hotel")
    return Ticket(f"{nights} nights in {trip.city}")


@step(compensate=give_up, retry=NEVER)
async def insure(trip: Trip, flight: Ticket) -> Ticket:
    happen("insurance")
    return Ticket(f"insurance of {flight.what}")


@step(retry=NEVER)
async def pay(flight: Ticket, hotel: Ticket) -> int:
    happen("pay")
    return 100


@step(critical=False, retry=NEVER)
async def wish(trip: Trip) -> str:
    happen("wish")
    return f"a good time in {trip.city}"


travel = (
    Saga("travel", deadline=600)
    .step("flight", reserve_flight)
    .step("hotel", reserve_hotel)
    .step("insurance", insure)
    .step("payment", pay, after=["insurance"])
    .step("wishes", wish, after=["payment"])
)
SERVICE = Service("travels", workflows=[travel])


@pytest.fixture(autouse=True)
def world() -> None:
    begin_anew()


@pytest.fixture
async def lab(workflow_lab: NewLab) -> AsyncIterator[Lab]:
    async with workflow_lab(SERVICE) as lab:
        yield lab


async def test_steps_run_as_soon_as_what_they_wait_for_is_done(lab: Lab) -> None:
    outcome = await lab.result(await travel.start(Trip("Rome"), id="t-1"))
    assert outcome.flight == Ticket("flight to Rome")
    assert outcome.hotel == Ticket("3 nights in Rome")
    assert outcome.insurance == Ticket("insurance of flight to Rome")
    assert (outcome.payment, outcome.wishes) == (100, "a good time in Rome")
    assert sorted(told[:2]) == ["flight", "hotel"]
    assert told[2:] == ["insurance", "pay", "wish"]


async def test_its_arguments_are_those_that_no_step_gives(lab: Lab) -> None:
    outcome = await lab.result(await travel.start(Trip("Rome"), 7, id="t-1"))
    assert outcome.hotel == Ticket("7 nights in Rome")


async def test_one_that_is_not_critical_leaves_nothing(lab: Lab) -> None:
    trouble["wish"] = ValueError("no words")
    outcome = await lab.result(await travel.start(Trip("Rome"), id="t-1"))
    assert outcome.wishes is None


async def test_outside_of_workflows_it_is_a_plain_function() -> None:
    assert (await travel(Trip("Rome"))).payment == 100
    trouble["pay"] = ValueError("no money")
    with pytest.raises(ValueError, match="no money"):
        await travel(Trip("Rome"))


async def test_it_is_undone_from_the_last_on_and_at_once_where_no_path_is_between(lab: Lab) -> None:
    trouble["pay"] = ValueError("no money")
    with pytest.raises(SagaCompensated, match="because pay has failed: ValueError: no money"):
        await lab.result(await travel.start(Trip("Rome"), id="t-1"))
    undone = told[told.index("pay") + 1 :]
    # Nothing was built on the hotel and on the insurance: these two at once, and then the flight.
    assert sorted(undone[:2]) == ["give up 3 nights in Rome", "give up insurance of flight to Rome"]
    assert undone[2:] == ["give up flight to Rome"]


async def test_when_one_fails_those_that_run_may_end_and_no_others_begin(lab: Lab) -> None:
    trouble["flight"] = ValueError("sold out")
    with pytest.raises(SagaCompensated, match="because reserve_flight has failed"):
        await lab.result(await travel.start(Trip("Rome"), id="t-1"))
    assert sorted(told[:2]) == ["flight", "hotel"]
    assert told[2:] == ["give up 3 nights in Rome"]


async def test_a_cancel_undoes_it() -> None:
    begun = Saga("begun").step("flight", reserve_flight).step("waiting", wait, after=["flight"])
    async with laboratory(Service("alone", workflows=[begun])) as lab:
        handle = await begun.start(Trip("Rome"), id="t-1")
        await lab.settle()
        await handle.cancel("changed my mind")
        with pytest.raises(WorkflowFailed, match="CancelledError: changed my mind"):
            await lab.result(handle, timedelta(0))
        assert told == ["flight", "wait", "give up something", "give up flight to Rome"]


@step(compensate=give_up)
async def wait(trip: Trip) -> Ticket:
    happen("wait")
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_crash_at_every_commit() -> None:
    async def scenario(lab: Lab) -> str:
        trouble["pay"] = ValueError("no money")
        with pytest.raises(SagaCompensated) as failure:
            await lab.result(await travel.start(Trip("Rome"), id="t-1"))
        return str(failure.value)

    results = await crash_everywhere(scenario, SERVICE)
    assert len(set(results)) == 1
    assert len(results) > 9


async def plain(trip: Trip) -> None: ...


@step
async def of_another_type(trip: int) -> None: ...


WRONG: list[tuple[Callable[[Saga], Any], str]] = [
    (lambda g: g.step("pay", plain), "is no step; make it one with @step"),
    (lambda g: g.step("not a name", pay), "use a name that a parameter and an attribute can have"),
    (lambda g: g.step("class", pay), "use a name that a parameter and an attribute can have"),
    (lambda g: g.step("flight", pay), "there is a step of this name already"),
    (lambda g: g.step("trip", pay), "an earlier step takes 'trip': add this one before it, or rename it"),
    (lambda g: g.step("payment", wish, after=["hotle"]), r"after='hotle': .* \(flight, hotel\), .* no cycles"),
    (lambda g: g.step("payment", wish, after=["payment"]), "after='payment': it can wait only for steps that were"),
    (lambda g: g.step("other", of_another_type), "'trip' is <class 'int'> here, and .*Trip"),
    (lambda g: Saga("a,b"), "a printable name without a comma"),
    (lambda g: Saga("late", deadline=0), "more than 0 seconds"),
]


@pytest.mark.parametrize(("declare", "text"), WRONG)
def test_graphs_that_make_no_sense_are_refused(declare: Callable[[Saga], Any], text: str) -> None:
    graph = Saga("trips").step("flight", reserve_flight).step("hotel", reserve_hotel)
    with pytest.raises(ConfigurationError, match=rf"test_saga_graph.py:\d+: .*{text}"):
        declare(graph)
