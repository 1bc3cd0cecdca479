"""Trips: each step of the graph fails in turn, and what is stored says that nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from examples.travel import travel as travelling
from examples.travel.app import travels
from examples.travel.partners import Partners, Refused
from examples.travel.travel import Reservation, Trip, charge, give_back, reserve_flight, reserve_hotel, travel
from skald import SagaCompensated
from skald.testing.sagas import SagaScenario, each_step
from skald.testing.workflows import Lab, crash_everywhere

ROME = Trip("t-1", "ada", "Rome")
FLIGHT, HOTEL = 180_00, 330_00
ALL = {"flight": FLIGHT, "hotel": HOTEL, "payment": FLIGHT + HOTEL}
LETTER = "ada: flight-of-t-1, hotel-of-t-1, 3 nights in Rome"
TRIP = SagaScenario(travel, travels)


@pytest.fixture(autouse=True)
def partners(monkeypatch: pytest.MonkeyPatch) -> Partners:
    partners = Partners()
    monkeypatch.setattr(travelling, "partners", partners)
    monkeypatch.setattr(travelling, "letters", {})
    return partners


async def sagas() -> dict[str, str]:
    rows = await travels.fetch("SELECT saga_id, status FROM saga_state")
    return {row["saga_id"]: row["status"] for row in rows}


def test_a_trip(partners: Partners) -> None:
    trip = TRIP.when(ROME).play()
    trip.then(steps=[{"flight", "hotel"}, "payment", "itinerary"])
    assert trip.result.flight == Reservation("flight-of-t-1", FLIGHT)
    assert trip.result.hotel == Reservation("hotel-of-t-1", HOTEL)
    assert trip.result.payment == Reservation("payment-of-t-1", FLIGHT + HOTEL)
    assert trip.result.itinerary == LETTER
    assert partners.held("t-1") == ALL
    assert list(travelling.letters.values()) == [LETTER]


@pytest.mark.parametrize("lost", [False, True], ids=["refused", "lost"])
def test_a_failure_at_any_step_gives_back_what_was_taken(partners: Partners, lost: bool) -> None:
    """``refused``: it was not done. ``lost``: it was, and nobody was told."""
    for failed in each_step(TRIP.when(ROME), lost=lost):
        if failed.failing != "itinerary":
            taken = set(failed.steps if lost else failed.done)
            failed.then(status="COMPENSATED", compensated=[*({"payment"} & taken), taken - {"payment"}])
            assert partners.taken("t-1").keys() == taken
            assert partners.held("t-1") == {}
            assert travelling.letters == {}
        else:
            # A trip stands without it.
            failed.then(status="COMPLETED")
            assert failed.result.itinerary is None
            assert partners.held("t-1") == ALL
        partners.entries.clear()


def test_flight_and_hotel_are_reserved_at_once_and_given_back_at_once(partners: Partners) -> None:
    """Each of the two waits until the other one has begun, forward and back."""
    both_begin, both_end = asyncio.Barrier(2), asyncio.Barrier(2)

    def together(barrier: asyncio.Barrier, function: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*args: Any) -> Any:
            await barrier.wait()
            return await function(*args)

        return run

    declined = TRIP.given(give_back, together(both_end, give_back.step.function))
    for one in (reserve_flight, reserve_hotel):
        declined = declined.given(one, together(both_begin, one.function))
    declined.when(Trip("t-1", "ada", "Rome", card="declined")).then(
        failed="charge", error=Refused("no funds on declined"), compensated=[{"flight", "hotel"}]
    )
    assert partners.taken("t-1") == {"flight": FLIGHT, "hotel": HOTEL}
    assert partners.held("t-1") == {}


def test_no_hotel_in_reykjavik(partners: Partners) -> None:
    TRIP.when(Trip("t-1", "ada", "Reykjavik")).then(error=Refused("no room in Reykjavik"), compensated=["flight"])
    assert partners.taken("t-1") == {"flight": 240_00}
    assert partners.held("t-1") == {}


def test_a_cancel_while_it_is_charged_undoes_all(partners: Partners) -> None:
    async def hangs(*args: Any) -> Reservation:
        assert partners.held("t-1") == {"flight": FLIGHT, "hotel": HOTEL}
        await asyncio.Event().wait()
        raise AssertionError

    cancelled = TRIP.given(charge, hangs).when(ROME).cancel("changed my mind")
    cancelled.then(status="CANCELLED", compensated=["payment", {"flight", "hotel"}])
    assert partners.held("t-1") == {}


def test_a_refund_that_gives_up_waits_for_a_person(partners: Partners) -> None:
    booked = TRIP.fail("hotel", Refused("fully booked")).fail_compensation("flight").when(ROME)
    booked.then(status="COMPENSATION_FAILED", asks="reserve_flight")
    assert partners.held("t-1") == {"flight": FLIGHT}
    partners.entries.clear()
    booked.decide("retry", "reserve_flight").then(error=Refused("fully booked"), compensated=["flight"])
    assert partners.held("t-1") == {}


@pytest.mark.parametrize("card", ["card-ok", "card-declined"])
async def test_a_crash_at_every_commit(partners: Partners, card: str) -> None:
    async def scenario(lab: Lab) -> tuple[dict[str, int], int, dict[str, str]]:
        handle = await travel.start(Trip("t-1", "ada", "Rome", card=card), id="t-1")
        try:
            await lab.result(handle)
        except SagaCompensated as failure:
            assert failure.step == "charge"  # noqa: PT017 (it may also go well)
        found = (dict(partners.held("t-1")), len(travelling.letters), await sagas())
        partners.entries.clear()
        travelling.letters.clear()
        return found

    results = await crash_everywhere(scenario, travels)
    expected = (ALL, 1, {"t-1": "COMPLETED"}) if card == "card-ok" else ({}, 0, {"t-1": "COMPENSATED"})
    assert len(results) > 10
    assert all(result == expected for result in results)
