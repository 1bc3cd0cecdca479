"""PURE. What is asked for, whether it can be had, what it costs, and what a guest who cancels gets back.

Money is in cents. A stay begins at 15:00 and ends at 11:00, UTC.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum

import msgspec

DAY = timedelta(days=1)
ARRIVAL, DEPARTURE = time(15, tzinfo=UTC), time(11, tzinfo=UTC)
LONGEST, FARTHEST = 30, 365
"""Nights of a stay, days until it begins."""
FEE = 10
"""Of the price, in per cent: what the guest pays for the service."""


class Policy(StrEnum):
    FLEXIBLE = "flexible"
    MODERATE = "moderate"
    STRICT = "strict"


class Listing(msgspec.Struct, frozen=True):
    id: str
    host: str
    nightly: int
    sleeps: int
    policy: Policy
    instant: bool
    """Booked without asking the host."""


class Request(msgspec.Struct, frozen=True):
    guest: str
    card: str
    listing: str
    check_in: date
    check_out: date
    guests: int = 1

    @property
    def nights(self) -> list[date]:
        return [self.check_in + n * DAY for n in range((self.check_out - self.check_in).days)]

    @property
    def arrival(self) -> datetime:
        return datetime.combine(self.check_in, ARRIVAL)

    @property
    def departure(self) -> datetime:
        return datetime.combine(self.check_out, DEPARTURE)


class Quote(msgspec.Struct, frozen=True):
    host: str
    price: int
    fee: int
    policy: Policy
    instant: bool

    @property
    def total(self) -> int:
        return self.price + self.fee


class Refused(Exception):
    """The request cannot be had by anybody, or not by this guest."""


def quoted(request: Request, listing: Listing | None, now: datetime) -> Quote:
    """``Refused`` says why not."""
    if listing is None:
        raise Refused(f"there is no listing {request.listing!r}")
    if not 1 <= len(request.nights) <= LONGEST:
        raise Refused(f"a stay has 1 to {LONGEST} nights")
    if not now < request.arrival <= now + FARTHEST * DAY:
        raise Refused(f"a stay begins in the future, at most {FARTHEST} days from now")
    if not 1 <= request.guests <= listing.sleeps:
        raise Refused(f"{listing.id} sleeps {listing.sleeps}")
    if request.guest == listing.host:
        raise Refused("hosts do not book with themselves")
    price = listing.nightly * len(request.nights)
    return Quote(listing.host, price, price * FEE // 100, listing.policy, listing.instant)


def refund_percent(policy: Policy, cancelled: datetime, arrival: datetime) -> int:
    """Of what a confirmed guest has paid."""
    left = arrival - cancelled
    if policy == Policy.FLEXIBLE:
        return 100 if left > DAY else 0
    if policy == Policy.MODERATE:
        return 50 if left > 5 * DAY else 0
    return 0
