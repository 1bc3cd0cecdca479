"""The workflow: one booking from the request to the host's payout, weeks later, read from top to bottom.

REQUESTED → HELD → AUTHORISED → CONFIRMED → STAYED → COMPLETED. Whatever ends it early raises ``Off`` with the status in
which it ends: REFUSED, UNAVAILABLE, UNPAID, DECLINED, EXPIRED, CANCELLED. One place undoes what was done until then.

The guest cancels by an update and not by a signal, because he wants an answer: a refusal, or what he gets back. The
handler notes it and answers; the workflow leaves off where it waits, never in the middle of a step that moves money.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from examples.booking import steps
from examples.booking.terms import DAY, Quote, Request, refund_percent
from skald import workflow, workflows
from skald.errors import StepFailed
from skald.workflows import Query, Signal, Update

T = TypeVar("T")

PATIENCE = DAY
"""For how long the host may think."""
PAYOUT = 2 * DAY
"""After the stay."""


class Status(StrEnum):
    REQUESTED = "requested"
    HELD = "held"
    AUTHORISED = "authorised"
    CONFIRMED = "confirmed"
    STAYED = "stayed"
    COMPLETED = "completed"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"
    UNPAID = "unpaid"
    DECLINED = "declined"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


OPEN = {Status.REQUESTED, Status.HELD, Status.AUTHORISED, Status.CONFIRMED}
"""In these the guest may cancel."""


class Booking(msgspec.Struct):
    """What everybody may know about it."""

    id: str
    status: Status = Status.REQUESTED
    captured: int = 0
    refunded: int = 0
    paid_out: int = 0
    reason: str = ""
    """Why it ended early."""


class Cancellation(msgspec.Struct, frozen=True):
    percent: int
    """Of what the guest has paid: so much comes back."""


class Off(Exception):
    """The booking ends here."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class NotOpen(Exception):
    """Too late to cancel."""


answer = Signal("answer", bool)
"""The host's: whether he takes the guest."""
status = Query("status", Booking)
cancel = Update("cancel", str, Cancellation)
"""The guest's, with his reason."""


@workflow
async def book(request: Request) -> Booking:
    stay = Stay(request)
    try:
        await stay.reserve()
        await stay.agree()
        await stay.take_place()
    except Off as off:
        await stay.call_off(off)
    return stay.booking


class Stay:
    def __init__(self, request: Request) -> None:
        self._request = request
        self.booking = Booking(workflows.workflow_id())
        self._quote: Quote | None = None
        self._cancelled = asyncio.Event()
        self._cancellation, self._percent = "", 100
        status.answered_by(lambda: self.booking)
        cancel.handled_by(self._cancel, validator=self._may_cancel)

    # --- what the guest may do at any time ----------------------------------------------------------------------------

    def _may_cancel(self, reason: str) -> None:
        if self._cancelled.is_set() or self.booking.status not in OPEN:
            raise NotOpen(f"the booking is {'being cancelled' if self._cancelled.is_set() else self.booking.status}")

    async def _cancel(self, reason: str) -> Cancellation:
        if self.booking.status == Status.CONFIRMED and self._quote is not None:
            self._percent = refund_percent(self._quote.policy, workflows.now(), self._request.arrival)
        self._cancellation = reason
        self._cancelled.set()
        return Cancellation(self._percent)

    async def _unless_cancelled(self, awaited: Coroutine[Any, Any, T]) -> T:
        """Waits for something, or for the guest to cancel."""
        work, leaving = asyncio.create_task(awaited), asyncio.create_task(self._cancelled.wait())
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            self._stop_if_cancelled()
            return work.result()
        finally:
            work.cancel()
            leaving.cancel()

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Off(Status.CANCELLED, self._cancellation)

    # --- the way ------------------------------------------------------------------------------------------------------

    async def reserve(self) -> None:
        """The dates are held, and the money is set aside."""
        id, request = self.booking.id, self._request
        try:
            self._quote = await steps.quote(request, workflows.now())
            await steps.hold(id, request)
        except StepFailed as failure:
            refused = self._quote is None
            raise Off(Status.REFUSED if refused else Status.UNAVAILABLE, failure.message) from failure
        self.booking.status = Status.HELD
        await steps.record(id, request, Status.HELD)
        try:
            await steps.authorise(id, request.card, self._quote.total)
        except StepFailed as failure:
            raise Off(Status.UNPAID, failure.message) from failure
        self.booking.status = Status.AUTHORISED

    async def agree(self) -> None:
        """The host agrees, and the money is taken; our fee before that."""
        id, quote = self.booking.id, self._agreed
        self._stop_if_cancelled()
        await self._capture(quote.fee)
        if not quote.instant:
            await self._tell(quote.host, f"{self._request.guest} would like to stay: answer within 24 hours")
            try:
                async with asyncio.timeout(PATIENCE.total_seconds()):
                    agreed = await self._unless_cancelled(answer.receive())
            except TimeoutError as silent:
                raise Off(Status.EXPIRED, "the host has not answered") from silent
            if not agreed:
                raise Off(Status.DECLINED, "the host has declined")
        self._stop_if_cancelled()
        await self._capture(quote.price)
        self.booking.status = Status.CONFIRMED
        await steps.record(id, self._request, Status.CONFIRMED)

    async def take_place(self) -> None:
        quote, request = self._agreed, self._request
        await self._tell(request.guest, "your stay is confirmed")
        await self._tell(quote.host, f"{request.guest} will stay with you")
        await self._unless_cancelled(_until(request.arrival - DAY))
        await self._tell(request.guest, "your stay begins tomorrow")
        await self._unless_cancelled(_until(request.departure))
        self.booking.status = Status.STAYED
        await self._tell(request.guest, "how was your stay?")
        await self._tell(quote.host, f"how was {request.guest}?")
        await _until(request.departure + PAYOUT)
        await self._pay_out(quote.price)
        self.booking.status = Status.COMPLETED
        await steps.record(self.booking.id, request, Status.COMPLETED)

    # --- the way back -------------------------------------------------------------------------------------------------

    async def call_off(self, off: Off) -> None:
        """Gives the money back first, since somebody waits for it; the dates from today on are free again."""
        booking, request, quote, before = self.booking, self._request, self._quote, self.booking.status
        booking.status, booking.reason = off.status, str(off)
        if before != Status.REQUESTED and quote is not None:
            # Also if it has failed: a provider that was away may have set the money aside all the same.
            await steps.void(booking.id)
            if back := booking.captured * self._percent // 100:
                await steps.refund(booking.id, back)
                booking.refunded = back
            if before == Status.CONFIRMED and (kept := quote.price * (100 - self._percent) // 100):
                await self._pay_out(kept)
        await steps.release(booking.id, max(request.check_in, workflows.now().date()))
        await steps.record(booking.id, request, off.status)
        offers = ""
        if off.status in (Status.UNAVAILABLE, Status.DECLINED, Status.EXPIRED):
            offers = f"; free on these dates: {', '.join(await steps.alternatives(request)) or 'nothing'}"
        await self._tell(request.guest, f"your booking is {off.status}: {off}{offers}")
        if off.status == Status.CANCELLED and quote is not None:
            await self._tell(quote.host, f"{request.guest} has cancelled: {off}")

    async def _capture(self, amount: int) -> None:
        await steps.capture(self.booking.id, amount)
        self.booking.captured += amount

    async def _pay_out(self, amount: int) -> None:
        await steps.pay_out(self.booking.id, self._agreed.host, amount)
        self.booking.paid_out = amount

    async def _tell(self, to: str, text: str) -> None:
        with suppress(StepFailed):  # a mail that cannot be delivered stops no booking
            await steps.mail(self.booking.id, to, text)

    @property
    def _agreed(self) -> Quote:
        assert self._quote is not None, "reserve() comes first"
        return self._quote


async def _until(moment: datetime) -> None:
    """A durable timer; the past is now."""
    await asyncio.sleep((moment - workflows.now()).total_seconds())
