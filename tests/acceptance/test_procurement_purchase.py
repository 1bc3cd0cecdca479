"""The process of one order at the purchasing team, by itself: what comes in whatever order, and how long it waits."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest

from examples.procurement.messages import (
    CancelPurchaseOrder,
    GoodsReceived,
    PurchaseOrderCancelled,
    PurchaseOrderCreated,
    VendorAcknowledged,
    VendorDeclined,
)
from examples.procurement.purchasing import NoSuchOrder, OverBudget, Purchase, cancel, order, patience, purchasing
from skald.testing.scenario import Scenario

CREATED = PurchaseOrderCreated("o-1", "paper-mill", "paper", 1_200)
YES, NO = VendorAcknowledged("o-1", "paper-mill"), VendorDeclined("o-1", "paper-mill", "sold out")
HERE, BACK = GoodsReceived("o-1", "paper-mill"), CancelPurchaseOrder("o-1", "changed my mind")
ORDER, MONEY = "SELECT state, reason FROM orders", "SELECT free, committed, spent FROM budgets"
OPEN = {ORDER: [("OPEN", None)], MONEY: [(998_800, 1_200, 0)]}
RECEIVED = {ORDER: [("RECEIVED", "the goods are here")], MONEY: [(998_800, 0, 1_200)]}

WAITING, COMING = Purchase("o-1", "waits for the vendor"), Purchase("o-1", "waits for the goods")
DONE, OFF = Purchase("o-1", "received"), Purchase("o-1", "cancelled")


async def buy() -> None:
    await order("o-1", "office", "paper-mill", "paper", 1_200)


BOUGHT = Scenario(purchasing).given(buy)


def given_up(reason: str) -> dict[str, Any]:
    return {"state": OFF, "ended": True, "rows": {ORDER: [("CANCELLED", reason)], MONEY: [(1_000_000, 0, 0)]}}


def test_an_order_commits_the_money_and_waits_for_the_vendor() -> None:
    bought = Scenario(purchasing).when(buy)
    bought.then(CREATED, state=WAITING, timeouts={"silent": patience}, rows=OPEN)
    bought.when(buy).then(CREATED, state=WAITING, timeouts={"silent": patience}, rows=OPEN)


def test_facts_that_come_again_do_not_prolong_the_patience() -> None:
    BOUGHT.after(600).when(CREATED).then(state=WAITING, timeouts={"silent": patience - 600})
    BOUGHT.when(YES, CREATED).then(state=COMING, timeouts={})


def test_a_silent_vendor_is_waited_for_as_long_as_that_and_no_longer() -> None:
    BOUGHT.after(timedelta(days=3) - timedelta(seconds=1)).then(state=WAITING, timeouts={"silent": 1}, rows=OPEN)
    reason = "the vendor is silent"
    BOUGHT.after(timedelta(days=3)).then(PurchaseOrderCancelled("o-1", reason), **given_up(reason))


def test_a_vendor_who_answers_is_waited_for_without_end() -> None:
    BOUGHT.when(YES).after(timedelta(days=300)).then(state=COMING, timeouts={}, rows=OPEN)


def test_a_vendor_who_declines() -> None:
    reason = "paper-mill has declined: sold out"
    BOUGHT.when(NO).then(PurchaseOrderCancelled("o-1", reason), **given_up(reason))


@pytest.mark.parametrize("before", [[], [YES]], ids=["asked", "acknowledged"])
def test_an_order_is_cancelled_until_the_goods_are_here(before: list[Any]) -> None:
    reason = "changed my mind"
    bought = BOUGHT.given(*before)
    bought.when(BACK).then(PurchaseOrderCancelled("o-1", reason), **given_up(reason))
    bought.given(BACK).when(BACK, YES, NO, HERE).then(**given_up(reason))
    bought.given(HERE).when(BACK).then(state=DONE, ended=True, rows=RECEIVED)


@pytest.mark.parametrize("facts", list(permutations([CREATED, YES, HERE])))
def test_facts_of_different_teams_come_in_any_order(facts: tuple[Any, ...]) -> None:
    """As where this service was away for long. One that has ended does not start again."""
    row = "INSERT INTO orders (id, team, vendor, goods, amount, state) VALUES ('o-1', 'office', 'x', 'y', 1200, 'OPEN')"
    committed = "UPDATE budgets SET free = 998800, committed = 1200"
    Scenario(purchasing).given(row, committed).when(*facts).after(patience).then(state=DONE, ended=True, rows=RECEIVED)


def test_what_the_desk_refuses() -> None:
    async def too_much() -> None:
        with pytest.raises(OverBudget, match="office has no 999999 left for a yacht"):
            await order("o-2", "office", "wharf", "a yacht", 999_999)
        with pytest.raises(NoSuchOrder, match="'o-2' was never ordered"):
            await cancel("o-2", "a typo")

    BOUGHT.when(too_much).then(rows=OPEN)
