"""The saga, as a graph: flight and hotel at once, the charge when both are there, and then the itinerary.

    flight ──┐
             ├── payment ── itinerary
    hotel ───┘

The edges to the payment need not be drawn: it takes what both have come to. When the payment fails, flight and hotel
are given back at once, because no path is between them; one of them that fails leaves only the other to be given back.
A trip whose itinerary cannot be sent is a trip all the same.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from examples.travel.partners import Partners, Refused
from skald import NEVER, Retry, Saga, compensation, step, workflows
from skald.retry import Policy

partners = Partners(Path(os.environ.get("TRAVEL_PARTNERS", ".skald/travel-partners.jsonl")))
letters: dict[str, str] = {}
"""By idempotency key; stands in for the mail."""

FLIGHTS = {"Rome": 180_00, "Oslo": 95_00, "Reykjavik": 240_00}
NIGHTS = {"Rome": 110_00, "Oslo": 140_00}
"""What one costs. There is a flight to Reykjavik, but no hotel."""

PATIENTLY: Policy = {Refused: NEVER, "*": Retry(immediate=1, delays=(1, 5, 30))}


class Trip(msgspec.Struct, frozen=True):
    id: str
    traveller: str
    city: str
    nights: int = 3
    card: str = "card-ok"


class Reservation(msgspec.Struct, frozen=True):
    number: str
    price: int


# --- the steps, each with what undoes it ------------------------------------------------------------------------------


@compensation(retry=Retry(delays=(1, 5, 30, 300)), timeout=10)
async def give_back(taken: Reservation | None, key: str) -> None:
    """By the key of the step, because a step whose answer was lost has no number to name."""
    await partners.give_back(key)


@step(retry=PATIENTLY, timeout=10, compensate=give_back)
async def reserve_flight(trip: Trip) -> Reservation:
    if trip.city not in FLIGHTS:
        raise Refused(f"nobody flies to {trip.city}")
    price = FLIGHTS[trip.city]
    return Reservation(await partners.take(workflows.attempt().key, trip.id, "flight", price), price)


@step(retry=PATIENTLY, timeout=10, compensate=give_back)
async def reserve_hotel(trip: Trip) -> Reservation:
    if trip.city not in NIGHTS:
        raise Refused(f"no room in {trip.city}")
    price = trip.nights * NIGHTS[trip.city]
    return Reservation(await partners.take(workflows.attempt().key, trip.id, "hotel", price), price)


@step(retry=PATIENTLY, timeout=30, compensate=give_back)
async def charge(trip: Trip, flight: Reservation, hotel: Reservation) -> Reservation:
    if trip.card.endswith("declined"):
        raise Refused(f"no funds on {trip.card}")
    price = flight.price + hotel.price
    return Reservation(await partners.take(workflows.attempt().key, trip.id, "payment", price), price)


@step(retry=PATIENTLY, critical=False)
async def send_itinerary(trip: Trip, flight: Reservation, hotel: Reservation) -> str:
    text = f"{trip.traveller}: {flight.number}, {hotel.number}, {trip.nights} nights in {trip.city}"
    return letters.setdefault(workflows.attempt().key, text)


# --- the saga ---------------------------------------------------------------------------------------------------------

travel = (
    Saga("travel", deadline=600)
    .step("flight", reserve_flight)
    .step("hotel", reserve_hotel)
    .step("payment", charge)
    .step("itinerary", send_itinerary, after=["payment"])
)
