"""The booking example: its forty days in milliseconds, every row of its failure table, and crashes at every commit.

Whatever a test did, the audit of the world outside must balance for each booking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from examples.booking import steps
from examples.booking.app import booking as service
from examples.booking.booking import Booking, Cancellation, Status, answer, book, cancel, status
from examples.booking.terms import DAY, Policy, Request, refund_percent
from examples.booking.world import World
from skald import App
from skald.errors import UpdateFailed, WorkflowEnded
from skald.testing.workflows import Lab, crash_everywhere, laboratory

NewLab = Callable[..., AbstractAsyncContextManager[Lab]]

START = datetime.fromtimestamp(1_700_000_000, UTC)
"""When the lab's clock starts."""
CHECK_IN = date(2023, 12, 20)
ARRIVAL, DEPARTURE = datetime(2023, 12, 20, 15, tzinfo=UTC), datetime(2023, 12, 24, 11, tzinfo=UTC)
CABIN = Request("gus@example.com", "card-ok", "cabin", CHECK_IN, date(2023, 12, 24), 2)
PRICE, FEE = 4 * 12_000, 4 * 1_200


@pytest.fixture(params=[3_600.0, 0.0], ids=["in memory", "evicted"])
def workflow_lab(request: pytest.FixtureRequest) -> Callable[..., AbstractAsyncContextManager[Lab]]:
    """With workflows that stay in memory, and with such as leave it whenever they wait."""
    return partial(laboratory, idle=request.param)


def request(**changes: Any) -> Request:
    return Request(**{name: changes.get(name, getattr(CABIN, name)) for name in CABIN.__struct_fields__})


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()
    monkeypatch.setattr(steps, "world", world)
    yield world
    for id in {entry.booking for entry in world.entries.values()}:
        audit(world, id)


def audit(world: World, id: str) -> None:
    """Nothing was taken twice, and of a booking that is over, every cent is accounted for."""
    authorised, captured, voided = (world.sum(id, kind) for kind in ("authorised", "captured", "voided"))
    assert len(world.of(id, "authorised")) <= 1
    assert captured + voided <= authorised
    assert len(world.of(id, "captured")) <= 2, "the fee and the price"
    assert len(world.of(id, "refunded")) <= 1
    assert len(world.of(id, "paid out")) <= 1
    mails = [entry.text for entry in world.of(id, "mail")]
    assert len(set(mails)) == len(mails), "no mail twice"


def money(world: World, id: str) -> tuple[int, int, int, int]:
    captured, voided, refunded, paid = (world.sum(id, k) for k in ("captured", "voided", "refunded", "paid out"))
    return captured, voided, refunded, paid


def mails(world: World, id: str, to: str = "") -> list[str]:
    return [entry.text.partition(": ")[2] for entry in world.of(id, "mail") if entry.text.startswith(to)]


async def nights(id: str) -> list[str]:
    rows = await service.fetch("SELECT night FROM nights WHERE booking = :id ORDER BY night", id=id)
    return [row["night"] for row in rows]


async def recorded(id: str) -> str:
    [row] = await service.fetch("SELECT status FROM bookings WHERE id = :id", id=id)
    found: str = row["status"]
    return found


async def until(lab: Lab, moment: datetime) -> None:
    await lab.advance(moment - datetime.fromtimestamp(lab.clock.now() / 1e6, UTC))


# --- the happy path -------------------------------------------------------------------------------------------------


async def test_forty_days(workflow_lab: NewLab, world: World) -> None:
    async with workflow_lab(service) as lab:
        handle = await book.start(CABIN, id="b-1")
        await lab.settle()
        assert await handle.query(status) == Booking("b-1", Status.AUTHORISED, captured=FEE)
        assert mails(world, "b-1") == ["gus@example.com would like to stay: answer within 24 hours"]
        await lab.advance(timedelta(hours=23))
        await handle.signal(answer, True)
        await lab.settle()
        assert await handle.query(status) == Booking("b-1", Status.CONFIRMED, captured=PRICE + FEE)
        assert mails(world, "b-1", "gus") == ["your stay is confirmed"]
        await until(lab, ARRIVAL - DAY - timedelta(seconds=1))
        assert mails(world, "b-1", "gus") == ["your stay is confirmed"]
        await until(lab, ARRIVAL - DAY + timedelta(seconds=1))
        assert mails(world, "b-1", "gus")[1:] == ["your stay begins tomorrow"]
        await until(lab, DEPARTURE + timedelta(seconds=1))
        assert mails(world, "b-1", "gus")[2:] == ["how was your stay?"]
        assert mails(world, "b-1", "henri")[2:] == ["how was gus@example.com?"]
        await until(lab, DEPARTURE + 2 * DAY - timedelta(seconds=1))
        assert world.sum("b-1", "paid out") == 0
        await lab.advance(2)
        assert await handle.result() == Booking("b-1", Status.COMPLETED, PRICE + FEE, 0, PRICE)
        assert money(world, "b-1") == (PRICE + FEE, 0, 0, PRICE)
        assert await recorded("b-1") == "completed"
        assert await nights("b-1") == ["2023-12-20", "2023-12-21", "2023-12-22", "2023-12-23"]


async def test_an_instant_book_asks_nobody(workflow_lab: NewLab, world: World) -> None:
    async with workflow_lab(service) as lab:
        handle = await book.start(request(listing="loft"), id="b-1")
        await lab.settle()
        assert (await handle.query(status)).status == Status.CONFIRMED
        assert mails(world, "b-1", "hanna") == ["gus@example.com will stay with you"]


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"listing": "tent"}, "no listing 'tent'"),
        ({"check_out": CHECK_IN}, "1 to 30 nights"),
        ({"check_out": date(2024, 1, 20)}, "1 to 30 nights"),
        ({"check_in": date(2023, 11, 14), "check_out": date(2023, 11, 15)}, "in the future"),
        ({"check_in": date(2025, 1, 1), "check_out": date(2025, 1, 2)}, "at most 365 days"),
        ({"guests": 5}, "cabin sleeps 4"),
        ({"guest": "henri@example.com"}, "with themselves"),
    ],
)
async def test_what_cannot_be_had_is_refused(
    workflow_lab: NewLab, world: World, changes: dict[str, Any], reason: str
) -> None:
    async with workflow_lab(service) as lab:
        found = await lab.result(await book.start(request(**changes), id="b-1"))
        assert found.status == Status.REFUSED
        assert reason in found.reason
        assert reason in mails(world, "b-1")[0]
        assert await recorded("b-1") == "refused"
        assert {entry.kind for entry in world.entries.values()} == {"mail"}


async def test_a_card_that_is_declined_releases_the_dates(workflow_lab: NewLab, world: World) -> None:
    async with workflow_lab(service) as lab:
        found = await lab.result(await book.start(request(card="card-declined"), id="b-1"))
        assert found == Booking("b-1", Status.UNPAID, reason="no funds on card-declined")
        assert await nights("b-1") == []
        assert await recorded("b-1") == "unpaid"
        assert mails(world, "b-1") == ["your booking is unpaid: no funds on card-declined"]
        assert money(world, "b-1") == (0, 0, 0, 0)
        assert (await lab.result(await book.start(CABIN, id="b-2"), DAY + DAY)).status == Status.EXPIRED


async def test_money_set_aside_by_a_call_without_an_answer_is_released(workflow_lab: NewLab, world: World) -> None:
    async def lost(booking: str, card: str, amount: int) -> None:
        await world.authorise("lost", booking, card, amount)
        raise ConnectionError("no answer")

    async with workflow_lab(service) as lab:
        lab.mock(steps.authorise, lost)
        found = await lab.result(await book.start(CABIN, id="b-1"))
        assert found.status == Status.UNPAID
        assert len(lab.calls["authorise"]) == 30
        assert money(world, "b-1") == (0, PRICE + FEE, 0, 0)


@pytest.mark.parametrize("declines", [True, False])
async def test_a_host_who_declines_or_is_silent(workflow_lab: NewLab, world: World, declines: bool) -> None:
    async with workflow_lab(service) as lab:
        handle = await book.start(CABIN, id="b-1")
        await lab.advance(DAY - timedelta(seconds=1))
        assert (await handle.query(status)).status == Status.AUTHORISED
        if declines:
            await handle.signal(answer, False)
        await lab.advance(2)
        expected = Status.DECLINED if declines else Status.EXPIRED
        found = await handle.result()
        assert (found.status, found.captured, found.refunded) == (expected, FEE, FEE)
        assert money(world, "b-1") == (FEE, PRICE, FEE, 0)
        assert await nights("b-1") == []
        assert await recorded("b-1") == expected
        [told] = mails(world, "b-1", "gus")
        assert told.endswith("free on these dates: loft, castle")


async def test_alternatives_are_free_and_large_enough(workflow_lab: NewLab, world: World) -> None:
    async with workflow_lab(service) as lab:
        await book.start(request(listing="loft"), id="other")
        handle = await book.start(CABIN, id="b-1")
        await lab.settle()
        await handle.signal(answer, False)
        await lab.settle()
        assert mails(world, "b-1", "gus")[0].endswith("free on these dates: castle")


async def test_a_provider_that_is_down_for_hours(workflow_lab: NewLab, world: World) -> None:
    """The capture is tried until it works, and a mail that cannot be sent stops nothing."""
    async with workflow_lab(service) as lab:
        down = [ConnectionError("down")] * 15
        lab.mock(steps.capture, *down, lambda booking, amount: world.capture(f"{amount}", booking, amount))
        lab.mock(steps.mail, ConnectionError("down"))
        handle = await book.start(request(listing="loft"), id="b-1")
        assert (await lab.result(handle)).status == Status.COMPLETED
        assert world.of("b-1", "mail") == []


# --- cancelling -----------------------------------------------------------------------------------------------------


def test_the_policies_to_the_second() -> None:
    second = timedelta(seconds=1)
    for policy, share, limit in ((Policy.FLEXIBLE, 100, DAY), (Policy.MODERATE, 50, 5 * DAY)):
        assert refund_percent(policy, ARRIVAL - limit - second, ARRIVAL) == share
        assert refund_percent(policy, ARRIVAL - limit, ARRIVAL) == 0
    assert refund_percent(Policy.STRICT, START, ARRIVAL) == 0


SHARES = {
    ("cabin", 0): 100, ("cabin", 30): 100, ("cabin", 34): 100, ("cabin", 35): 0, ("cabin", 37): 0,
    ("loft", 0): 50, ("loft", 30): 50, ("loft", 31): 0, ("loft", 35): 0, ("loft", 37): 0,
    ("castle", 0): 0, ("castle", 20): 0, ("castle", 37): 0,
}  # fmt: skip
"""By listing and days after the booking: the guest arrives after 35 days and 17 hours."""


@pytest.mark.parametrize(("listing", "day"), SHARES)
async def test_the_guest_cancels_a_confirmed_booking(
    workflow_lab: NewLab, world: World, listing: str, day: int
) -> None:
    async with workflow_lab(service) as lab:
        handle = await book.start(request(listing=listing), id="b-1")
        if listing == "cabin":
            await handle.signal(answer, True)
        await lab.advance(day * DAY)
        before = await handle.query(status)
        assert before.status == Status.CONFIRMED
        percent = SHARES[listing, day]
        assert await handle.update(cancel, "ill") == Cancellation(percent)
        await lab.settle()
        found = await handle.result()
        total = before.captured
        price = total * 10 // 11
        assert found.status == Status.CANCELLED
        assert (found.captured, found.refunded, found.paid_out) == (
            total,
            total * percent // 100,
            price * (100 - percent) // 100,
        )
        assert money(world, "b-1") == (total, 0, found.refunded, found.paid_out)
        # 37 days after the booking the guest has slept there for two nights, and leaves on the third day.
        slept = ["2023-12-20"] if day == 37 else []
        assert await nights("b-1") == slept
        assert mails(world, "b-1", "gus")[-1] == "your booking is cancelled: ill"
        with pytest.raises(WorkflowEnded):
            await handle.update(cancel, "again")


@pytest.mark.parametrize("hours", [0, 1, 23])
async def test_the_guest_cancels_while_the_host_thinks(workflow_lab: NewLab, world: World, hours: int) -> None:
    async with workflow_lab(service) as lab:
        handle = await book.start(request(listing="cabin"), id="b-1")
        await lab.advance(timedelta(hours=hours))
        assert await handle.update(cancel, "found better") == Cancellation(100)
        await lab.settle()
        assert (await handle.result()).status == Status.CANCELLED
        assert money(world, "b-1") == (FEE, PRICE, FEE, 0)
        assert await nights("b-1") == []
        with pytest.raises(WorkflowEnded):
            await handle.signal(answer, True)


async def test_after_the_stay_nothing_can_be_cancelled(workflow_lab: NewLab, world: World) -> None:
    async with workflow_lab(service) as lab:
        handle = await book.start(request(listing="loft"), id="b-1")
        await until(lab, DEPARTURE + timedelta(seconds=1))
        with pytest.raises(UpdateFailed, match="NotOpen: the booking is stayed"):
            await handle.update(cancel, "too loud")
        assert (await lab.result(handle)).status == Status.COMPLETED


async def test_a_second_cancellation_is_refused(workflow_lab: NewLab, world: World) -> None:
    async with workflow_lab(service) as lab:
        lab.mock(steps.refund, ConnectionError("down"), lambda id, amount: world.refund("again", id, amount))
        handle = await book.start(request(listing="loft"), id="b-1")
        await lab.settle()
        assert await handle.update(cancel, "ill") == Cancellation(50)
        await lab.settle()
        with pytest.raises(UpdateFailed, match="NotOpen"):
            await handle.update(cancel, "still ill")
        assert (await lab.result(handle)).status == Status.CANCELLED
        assert len(lab.calls["refund"]) == 2
        assert len(world.of("b-1", "refunded")) == 1


async def test_a_cancellation_in_the_middle_of_a_capture_gives_everything_back(
    workflow_lab: NewLab, world: World
) -> None:
    """What was promised while the money was being taken holds, although it was taken."""

    async def slow(booking: str, amount: int) -> None:
        await world.capture("price", booking, amount)
        taking.set()
        await go_on.wait()

    taking, go_on = asyncio.Event(), asyncio.Event()
    total = 4 * 90_000 * 11 // 10
    async with workflow_lab(service) as lab:
        lab.mock(steps.capture, lambda booking, amount: world.capture("fee", booking, amount), slow)
        handle = await book.start(request(listing="castle"), id="b-1")
        await taking.wait()
        assert await handle.update(cancel, "ill") == Cancellation(100)
        go_on.set()
        assert (await lab.result(handle)).status == Status.CANCELLED
        assert money(world, "b-1") == (total, 0, total, 0), "a strict listing, and yet"


# --- no double booking ----------------------------------------------------------------------------------------------


def overlapping(count: int, listing: str = "loft") -> list[Request]:
    """Requests that all want the night of the 22nd, and others that differ."""
    first, last = [CHECK_IN + n * DAY for n in range(3)], [CHECK_IN + n * DAY for n in range(3, 6)]
    ways = [(check_in, check_out) for check_in in first for check_out in last]
    return [
        request(listing=listing, guest=f"guest-{n}@example.com", check_in=ways[n % 9][0], check_out=ways[n % 9][1])
        for n in range(count)
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_of_twenty_who_want_a_night_one_gets_it(workflow_lab: NewLab, world: World, seed: int) -> None:
    async with workflow_lab(service, seed=seed) as lab:
        wanted = overlapping(20)
        handles = await asyncio.gather(*(book.start(one, id=f"b-{n}") for n, one in enumerate(wanted)))
        found = [await lab.result(handle) for handle in handles]
        assert sorted(one.status for one in found) == ["completed"] + ["unavailable"] * 19
        [winner] = [n for n, one in enumerate(found) if one.status == Status.COMPLETED]
        assert await nights(f"b-{winner}") == [night.isoformat() for night in wanted[winner].nights]
        assert len(await service.fetch("SELECT night FROM nights")) == len(wanted[winner].nights)
        assert all(world.sum(one.id, "authorised") == 0 for one in found if one.status == Status.UNAVAILABLE)


async def test_dates_that_were_released_can_be_booked(workflow_lab: NewLab) -> None:
    async with workflow_lab(service) as lab:
        first = await book.start(request(listing="loft"), id="b-1")
        await lab.settle()
        assert (await lab.result(await book.start(request(listing="loft"), id="b-2"))).status == Status.UNAVAILABLE
        await first.update(cancel, "ill")
        await lab.settle()
        third = await book.start(request(listing="loft"), id="b-3")
        await lab.settle()
        assert (await third.query(status)).status == Status.CONFIRMED


# --- crashes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def world_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Lab], World]:
    """The world of one play: the same when it is played again because its start has failed."""
    worlds: dict[Lab, World] = {}

    def find(lab: Lab) -> World:
        world = worlds.setdefault(lab, World())
        monkeypatch.setattr(steps, "world", world)
        return world

    return find


async def test_crashes_at_every_commit_of_a_stay(world_of: Callable[[Lab], World]) -> None:
    async def scenario(lab: Lab) -> tuple[Any, ...]:
        world = world_of(lab)
        handle = await book.start(CABIN, id="b-1")
        await lab.advance(timedelta(hours=1))
        await handle.signal(answer, True)
        # A lab waits for ever for one that pauses itself because money would not move.
        found = await asyncio.wait_for(lab.result(handle), 20)
        audit(world, "b-1")
        return found.status, money(world, "b-1"), len(mails(world, "b-1")), len(await nights("b-1"))

    results = await crash_everywhere(scenario, service)
    assert len(results) > 2 * 15, "each commit, before and after"
    assert set(results) == {(Status.COMPLETED, (PRICE + FEE, 0, 0, PRICE), 6, 4)}


async def test_crashes_at_every_commit_of_a_cancellation(world_of: Callable[[Lab], World]) -> None:
    async def scenario(lab: Lab) -> tuple[Any, ...]:
        world = world_of(lab)
        handle = await book.start(request(listing="loft"), id="b-1")
        await lab.advance(3 * DAY)
        assert await handle.update(cancel, "ill") == Cancellation(50)
        # A lab waits for ever for one that pauses itself because money would not move.
        found = await asyncio.wait_for(lab.result(handle), 20)
        audit(world, "b-1")
        return found.status, money(world, "b-1"), len(mails(world, "b-1")), len(await nights("b-1"))

    results = await crash_everywhere(scenario, service)
    assert len(results) > 2 * 15
    assert set(results) == {(Status.CANCELLED, (66_000, 0, 33_000, 30_000), 4, 0)}


# --- PostgreSQL, and real time --------------------------------------------------------------------------------------


async def test_on_postgres_one_of_twenty_gets_it_and_cancels(postgres_url: str) -> None:
    soon = datetime.now(UTC).date() + 40 * DAY
    wanted = [
        request(listing="loft", guest=f"guest-{n}@example.com", check_in=soon, check_out=soon + (n % 5 + 1) * DAY)
        for n in range(20)
    ]
    app = App(service, store=postgres_url)
    await app.migrate()
    async with app.run(), asyncio.timeout(60):
        handles = await asyncio.gather(*(book.start(one, id=f"b-{n}") for n, one in enumerate(wanted)))
        losers = []
        for handle in asyncio.as_completed([handle.result() for handle in handles]):
            losers.append(await handle)
            if len(losers) == 19:
                break
        assert {one.status for one in losers} == {Status.UNAVAILABLE}
        [winner] = {handle.id for handle in handles} - {one.id for one in losers}
        while (await book.handle(winner).query(status)).status != Status.CONFIRMED:
            await asyncio.sleep(0)
        held = await service.fetch("SELECT booking FROM nights")
        assert {row["booking"] for row in held} == {winner}
        assert await book.handle(winner).update(cancel, "ill") == Cancellation(50)
        found = await book.handle(winner).result()
        assert (found.status, found.refunded) == (Status.CANCELLED, found.captured // 2)
        assert await service.fetch("SELECT booking FROM nights") == []
        assert await recorded(winner) == "cancelled"
