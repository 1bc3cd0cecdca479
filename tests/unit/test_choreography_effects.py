"""The life of an effect, what a compensation's signature says, and how marks of one unit follow each other."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skald import App, CompensationFailed, Done, Event, Service, Transaction, Unknown
from skald.errors import ConfigurationError
from skald.message import Record
from skald.messaging import outcome
from skald.messaging.compensation import (
    MAX_REFUSED,
    TRANSITIONS,
    Effect,
    EffectState,
    Happening,
    Trigger,
    after,
    effect_of,
    finished_late,
    refusing,
)
from skald.messaging.outcome import Item, Ledger, Remembered, Taken, merged, release
from skald.unit import DeliveryState, Mark, MarkKind


class Placed(Event, key="order"):
    order: str


class Cancelled(Event, key="order"):
    order: str


class Charged(Event, key="order"):
    order: str


class Declined(Event, key="order"):
    order: str


# --- the life of an effect --------------------------------------------------------------------------------------------


def test_what_is_not_in_the_table_cannot_happen() -> None:
    for state in ["", *EffectState]:
        for happening in Happening:
            known = EffectState(state) if state else None
            if (known, happening) in TRANSITIONS:
                assert after(state, happening) is TRANSITIONS[known, happening]
            else:
                with pytest.raises(ValueError, match="cannot go on"):
                    after(state, happening)


def test_every_state_is_reached_and_nothing_is_undone_that_was_not_done_or_tried() -> None:
    assert set(TRANSITIONS.values()) == set(EffectState)
    undone_from = {state for (state, _), then in TRANSITIONS.items() if then is EffectState.UNDONE}
    assert undone_from == {EffectState.DONE, EffectState.FAILED, EffectState.UNKNOWN}


def test_only_what_no_effect_tells_of_yet_has_finished_late() -> None:
    mine, other = Effect(of="mine"), Effect(of="other")
    assert finished_late(EffectState.CANCELLED, Effect(), "mine")
    assert finished_late(EffectState.UNKNOWN, mine, "mine")
    assert finished_late(EffectState.UNDONE, mine, "mine")
    assert not finished_late(EffectState.UNDONE, other, "mine")
    assert not finished_late(EffectState.UNDONE, Effect(of="mine", finished=True), "mine")
    assert not finished_late(EffectState.DONE, other, "mine")


def test_an_effect_is_stored_whole() -> None:
    record = Record(3, "i", "t", "k", 7, "Cancelled", 1, 5, "c", None, None, b'{"order": "\xc3\xa9"}')
    effect = Effect("of", "payments:charge:k", (), Trigger("refund", "stock", record), ("a", "b"))
    assert effect_of(msgspec.json.encode(effect)) == effect
    assert effect_of(b"") == Effect()


def test_refused_ids_are_named_once_and_are_bounded() -> None:
    effect = Effect()
    for n in range(MAX_REFUSED + 5):
        effect = refusing(refusing(effect, str(n)), str(n))
    assert effect.refused == tuple(map(str, range(MAX_REFUSED)))


# --- signatures -------------------------------------------------------------------------------------------------------


def payments() -> tuple[Service, Any]:
    service = Service("payments")

    @service.on(Placed)
    async def charge(event: Placed) -> Charged | Declined | None: ...

    return service, charge


def test_a_compensation_says_what_it_undoes() -> None:
    service, charge = payments()

    @service.on(Cancelled, compensates=charge)
    async def refund(event: Cancelled, tx: Transaction, done: Done[Charged] | Unknown) -> None: ...

    forward, compensation = service.handlers
    assert forward.keeps is not None
    assert compensation.keeps is not None
    assert forward.keeps.compensated
    assert (compensation.keeps.undoes, compensation.keeps.done) == ("charge", "done")
    assert [kind.name for kind in compensation.keeps.wanted] == ["Charged"]
    assert compensation.keeps.takes_unknown
    assert compensation.injected == {}
    assert compensation.transaction == "tx"
    assert [kind.name for kind in compensation.returns] == ["CompensationFailed"]
    assert not compensation.keeps.takes_nothing


def test_one_that_publishes_nothing_can_be_compensated_too() -> None:
    service = Service("payments")

    @service.on(Placed)
    async def begin(event: Placed, tx: Transaction) -> None: ...

    @service.on(Cancelled, compensates=begin)
    async def end(event: Cancelled, done: Done[None] | None) -> None: ...

    keeps = service.handlers[1].keeps
    assert keeps is not None
    assert (keeps.undoes, keeps.wanted, keeps.takes_nothing, keeps.takes_unknown) == ("begin", (), True, False)


def test_several_messages_may_be_there_to_undo() -> None:
    service, charge = payments()

    @service.on(Cancelled, compensates=charge)
    async def refund(event: Cancelled, done: Done[Charged | Declined]) -> None: ...

    keeps = service.handlers[-1].keeps
    assert keeps is not None
    assert [kind.name for kind in keeps.wanted] == ["Charged", "Declined"]
    assert not keeps.takes_unknown


async def wrong_type(event: Cancelled, done: Done[Placed]) -> None: ...
async def no_type(event: Cancelled, done: Done) -> None: ...  # type: ignore[type-arg]
async def its_own(event: Placed) -> None: ...
async def fine(event: Cancelled) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (wrong_type, r"Done\[Placed\], but charge is annotated to publish Charged, Declined"),
        (no_type, r"say what it published, as in Done\[PaymentProcessed\]; Done\[None\] if it publishes nothing"),
        (its_own, "Placed is what charge handles, and cannot undo it as well"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(function: Any, says: str) -> None:
    service, charge = payments()
    with pytest.raises(ConfigurationError, match=rf"test_choreography_effects.py:\d+: {function.__name__}: .*{says}"):
        service.on(compensates=charge)(function)


def test_what_compensates_nothing_is_refused() -> None:
    service, charge = payments()
    with pytest.raises(ConfigurationError, match=r"fine is no handler of payments: register it first, with @payments"):
        service.on(compensates=fine)
    with pytest.raises(ConfigurationError, match="'done' takes what another handler did: name it in compensates="):
        service.on()(wrong_type)
    service.on(compensates=charge)(fine)
    with pytest.raises(ConfigurationError, match="which is a compensation itself"):
        service.on(compensates=fine)(its_own)


def test_work_of_a_queue_cannot_be_compensated() -> None:
    service = Service("payments")
    service.queue()(its_own)
    with pytest.raises(ConfigurationError, match="which works on a queue"):
        service.on(compensates=its_own)(fine)


def test_every_service_that_compensates_publishes_what_failed_and_anybody_reads_it() -> None:
    shop, one, two = Service("shop", publishes=[Placed, Cancelled]), *(Service(name) for name in ("one", "two"))

    async def charge(event: Placed) -> None: ...
    async def refund(event: Cancelled) -> None: ...
    async def attend(event: CompensationFailed) -> None: ...

    for service in (one, two):
        service.on()(charge)
        service.on(compensates=charge)(refund)
    shop.on()(attend)
    topology = App(shop, one, two).topology
    assert topology.topics[CompensationFailed] == "skald"
    assert {s.origin for s in topology.subscriptions["shop"]} == {"one", "two"}


# --- units ------------------------------------------------------------------------------------------------------------


def mark(key: str, expected: int, state: str = "done") -> Mark:
    return Mark(MarkKind.EFFECT, "charge", key, expected, state, 1)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=8))
def test_marks_that_follow_each_other_become_one_and_others_stay_double(steps: list[tuple[str, int]]) -> None:
    marks = [mark(key, expected, f"{n}") for n, (key, expected) in enumerate(steps)]
    found = merged(marks)
    for key in "ab":
        own = [m for m in marks if m.key == key]
        kept = [m for m in found if m.key == key]
        chain = bool(own) and all(b.expected == a.expected + 1 for a, b in pairwise(own))
        if chain:
            assert [(m.expected, m.state) for m in kept] == [(own[0].expected, own[-1].state)]
        else:
            assert len(kept) > 1 or not own


def item(name: str, key: str, decided: outcome.Outcome) -> Item:
    async def charge(event: Placed) -> None: ...

    service = Service("payments")
    service.on(name=name)(charge)
    record = Record(1, "i", "t", key, 0, "Placed", 1, 1, "c", None, None, b"{}")
    return Item(record, service.handlers[0], 0, decided)


def test_what_parks_beside_its_tombstone_is_due() -> None:
    parked = Taken(DeliveryState.PARKED, 2, 5, "ValueError")
    tombstone = item("refund", "a", outcome.Done(marks=(mark("a", 0, "cancelled"),)))
    items = [item("charge", "a", parked), item("charge", "b", parked), item("other", "a", parked), tombstone]
    release(items)
    states = [each.outcome.state for each in items if isinstance(each.outcome, Taken)]
    assert states == [DeliveryState.DELAYED, DeliveryState.PARKED, DeliveryState.PARKED]


def test_a_ledger_says_what_its_items_will_write_and_forgets_it() -> None:
    place = (MarkKind.EFFECT, "charge", "a")
    ledger = Ledger(read={place: Remembered(1, "done")})
    done = outcome.Done(marks=(mark("a", 1, "undone"),))
    one = item("refund", "a", done)
    ledger.written[place] = [one]
    assert ledger.find(place) == Remembered(2, "undone")
    one.outcome = None
    assert ledger.find(place) == Remembered(1, "done")
    ledger.settled()
    assert ledger.find(place) is None
