"""Everything with an effect. What concerns the service's own tables commits with its step; money and mail go out with
an idempotency key, which is the same at every attempt.
"""

from __future__ import annotations

import os
from datetime import date, datetime
from pathlib import Path

import msgspec

from examples.booking.terms import Listing, Quote, Refused, Request, quoted
from examples.booking.world import Declined, World
from skald import NEVER, Backoff, Retry, step, workflows
from skald.retry import Policy as RetryPolicy

world = World(Path(os.environ.get("BOOKING_LEDGER", ".skald/booking-ledger.jsonl")))

MONEY: RetryPolicy = {Declined: NEVER, "*": Backoff(first=1, longest=3_600, attempts=30)}
"""For about a day. After that a person has to look: ``pause=True`` lets the booking wait for one."""
MAIL = Retry(immediate=2, delays=(5, 60, 600))


class DatesTaken(Exception):
    """Somebody else has one of the nights."""


# --- our own tables ---------------------------------------------------------------------------------------------------


@step(transactional=True, retry={Refused: NEVER})
async def quote(request: Request, now: datetime) -> Quote:
    tx = workflows.transaction()
    row = await tx.fetch_one("SELECT * FROM listings WHERE id = :id", id=request.listing)
    return quoted(request, msgspec.convert(row, Listing, strict=False) if row else None, now)


@step(transactional=True, retry={DatesTaken: NEVER})
async def hold(booking: str, request: Request) -> None:
    """All nights or none: the exception undoes the transaction."""
    tx = workflows.transaction()
    for night in request.nights:  # always in this order, so that two guests never wait for each other
        taken = not await tx.execute(
            "INSERT INTO nights (listing, night, booking) VALUES (:listing, :night, :booking) ON CONFLICT DO NOTHING",
            listing=request.listing,
            night=night.isoformat(),
            booking=booking,
        )
        if taken:
            raise DatesTaken(f"{request.listing} is taken on {night}")


@step(transactional=True)
async def release(booking: str, since: date) -> None:
    tx = workflows.transaction()
    await tx.execute(
        "DELETE FROM nights WHERE booking = :booking AND night >= :since", booking=booking, since=since.isoformat()
    )


@step(transactional=True)
async def record(booking: str, request: Request, status: str) -> None:
    tx = workflows.transaction()
    await tx.execute(
        "INSERT INTO bookings (id, listing, guest, status) VALUES (:id, :listing, :guest, :status)"
        " ON CONFLICT (id) DO UPDATE SET status = excluded.status",
        id=booking,
        listing=request.listing,
        guest=request.guest,
        status=status,
    )


@step(transactional=True)
async def alternatives(request: Request) -> list[str]:
    """Other listings that are free on all these nights, the cheapest first."""
    tx = workflows.transaction()
    rows = await tx.fetch(
        "SELECT id FROM listings WHERE id <> :listing AND sleeps >= :guests AND NOT EXISTS"
        " (SELECT 1 FROM nights WHERE listing = listings.id AND night >= :first AND night < :last)"
        " ORDER BY nightly LIMIT 3",
        listing=request.listing,
        guests=request.guests,
        first=request.check_in.isoformat(),
        last=request.check_out.isoformat(),
    )
    return [row["id"] for row in rows]


# --- the world outside ------------------------------------------------------------------------------------------------


@step(retry=MONEY)
async def authorise(booking: str, card: str, amount: int) -> None:
    await world.authorise(workflows.attempt().key, booking, card, amount)


@step(retry=MONEY, pause=True)
async def capture(booking: str, amount: int) -> None:
    await world.capture(workflows.attempt().key, booking, amount)


@step(retry=MONEY, pause=True)
async def void(booking: str) -> None:
    await world.void(workflows.attempt().key, booking)


@step(retry=MONEY, pause=True)
async def refund(booking: str, amount: int) -> None:
    await world.refund(workflows.attempt().key, booking, amount)


@step(retry=MONEY, pause=True)
async def pay_out(booking: str, host: str, amount: int) -> None:
    await world.pay_out(workflows.attempt().key, booking, host, amount)


@step(retry=MAIL)
async def mail(booking: str, to: str, text: str) -> None:
    await world.mail(workflows.attempt().key, booking, to, text)
