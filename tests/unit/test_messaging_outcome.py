"""The pure decisions of delivery: what follows a failure, how a stretch is cut, what a unit writes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skald.errors import UnreadableMessage
from skald.message import Record
from skald.messaging.definition import Handler
from skald.messaging.outcome import (
    MAX_ERROR,
    WAITING,
    Again,
    Done,
    Exhausted,
    Item,
    LaneState,
    Outcome,
    Taken,
    after_failure,
    cut,
    describe,
    resolve_unit,
    run_unit,
)
from skald.messaging.processes import ProcessNotStarted
from skald.retry import NEVER, Policy, Retry
from skald.unit import Delivery, DeliveryState


def handler(name: str = "h", *, transaction: bool = False, retry: Policy | None = None, **options: Any) -> Handler:
    return Handler(
        name=name, function=print, types=(), returns=(), message_parameter="event", injected={},
        transaction="tx" if transaction else None, is_async=True, retry=retry or Retry(),
        exhausted=options.get("exhausted"), timeout=30, queue=None, filename="f.py", line=1,
    )  # fmt: skip


def record(position: int = 1, key: str = "k") -> Record:
    return Record(position, f"id{position}", "topic", key, 0, "T", 1, 0, "c", None, None, b"{}")


@given(st.integers(1, 5), st.lists(st.floats(0, 100), max_size=5), st.integers(1, 15))
def test_attempts_end_exactly_when_the_policy_says(immediate: int, delays: list[float], attempts: int) -> None:
    retry = Retry(immediate, tuple(delays))
    decision = after_failure(handler(retry=retry), ValueError("x"), attempts, 1_000)
    if attempts >= retry.attempts:
        assert decision == Taken(DeliveryState.PARKED, attempts, 1_000, "ValueError: x")
    elif attempts < immediate or not delays[attempts - immediate]:
        assert decision == Again()
    else:
        due = 1_000 + round(delays[attempts - immediate] * 1e6)
        assert decision == Taken(DeliveryState.DELAYED, attempts, due, "ValueError: x")


def test_exhausted_comes_before_parking_but_not_for_the_unreadable() -> None:
    rescued = handler(retry=NEVER, exhausted=print)
    assert after_failure(rescued, ValueError(), 1, 0) == Exhausted()
    parked = after_failure(rescued, UnreadableMessage("T", "bad"), 1, 0)
    assert isinstance(parked, Taken)
    assert parked.state is DeliveryState.PARKED


def test_a_lane_is_clean_behind_as_many_messages_as_a_stretch_has_from_its_own_next_one_on() -> None:
    lane = LaneState("g", "origin", 0, "me", 0, None, 1, suspects=4)
    lane.passed([record(n) for n in range(1, 10)], own=None)
    assert lane.suspects == 4
    lane.passed([record(n) for n in range(10, 20)], own=19)
    assert lane.suspects == 3
    lane.passed([record(n) for n in range(20, 22)], own=None)
    assert lane.suspects == 1
    lane.doubt(2)  # two more in a run that is dropped, the lane's own the first of them
    lane.passed([record(22)], own=None)
    assert lane.suspects == 2
    lane.passed([record(23), record(24)], own=23)
    assert lane.suspects == 0
    assert not lane.counted


def test_what_waits_for_its_process_to_start_makes_no_attempt_and_comes_after_the_start() -> None:
    for due, expected in ((0, 1_001_000), (5_000_000, 5_000_000)):
        taken = after_failure(handler(retry=NEVER), ProcessNotStarted("Checkout", "o", due), 1, 1_000)
        assert isinstance(taken, Taken)
        assert (taken.state, taken.attempts, taken.due) == (DeliveryState.DELAYED, 0, expected)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize("error", [ValueError("a\0b\ud800" * 1_000), Unspeakable(), KeyError(None)])
def test_every_error_has_a_text_that_can_be_stored(error: Exception) -> None:
    text = describe(error)
    assert text.startswith(type(error).__name__)
    assert len(text.encode()) <= 2 * MAX_ERROR
    assert "\0" not in text


items = st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.booleans()), max_size=12)


@given(items)
def test_a_cut_never_lets_a_message_overtake_one_of_its_key(choices: list[tuple[str, bool, bool]]) -> None:
    """Within a segment those without a transaction run first: so none may stand behind one with a transaction."""
    left = [
        Item(record(n, key), handler(f"h{tx}", transaction=tx), 0) for n, (key, tx, _) in enumerate(choices, start=1)
    ]
    while left:
        size = cut(left)
        assert size >= 1
        segment, left = left[:size], left[size:]
        for index, item in enumerate(segment):
            earlier = [i for i in segment[:index] if i.record.key == item.record.key]
            assert item.handler.transaction is not None or all(i.handler.transaction is None for i in earlier)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.booleans(), min_size=1, max_size=3)), max_size=8))
def test_the_handlers_of_a_message_stay_together(messages: list[tuple[str, list[bool]]]) -> None:
    """The cursor passes a message with the segment that holds its first handler."""
    left = [
        Item(record(n, key), handler(f"h{m}", transaction=tx), 0)
        for n, (key, handlers) in enumerate(messages, start=1)
        for m, tx in enumerate(handlers)
    ]
    while left:
        size = cut(left)
        assert size >= 1
        segment, left = left[:size], left[size:]
        assert not left or left[0].record.position != segment[-1].record.position
        for index, item in enumerate(segment):
            earlier = [i for i in segment[:index] if i.record.key == item.record.key]
            behind = [i for i in earlier if i.record.position < item.record.position]
            assert item.handler.transaction is not None or all(i.handler.transaction is None for i in behind)


outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(lambda n: Done((record(n),), (record(n + 1),)), st.integers(1, 9)),
    st.just(WAITING),
    st.builds(Taken, st.sampled_from(DeliveryState), st.integers(0, 5), st.integers(0, 100), st.none()),
)


@given(st.lists(outcomes, min_size=1, max_size=8))
def test_the_unit_of_a_run_holds_every_outcome_and_the_cursor(found: list[Outcome]) -> None:
    lane = LaneState("g", "o", 3, "me", 5, "id5", 7, scanned=9, scanned_id="id9")
    run = [Item(record(10 + n), handler(), 3, outcome) for n, outcome in enumerate(found)]
    unit = run_unit(lane, run, record(99))
    assert unit.fence == "me"
    assert unit.cursor is not None
    assert (unit.cursor.position, unit.cursor.version) == (5, 7)
    assert (unit.cursor.to_position, unit.cursor.to_id) == (99, "id99")
    assert len(unit.events) == len(unit.messages) == sum(isinstance(o, Done) for o in found)
    taken = [(item.record.position, o.state) for item, o in zip(run, found, strict=True) if isinstance(o, Taken)]
    assert [(d.record.position, d.state) for d in unit.deliveries] == taken


@given(outcomes)
def test_the_end_of_a_delivery_is_guarded_by_its_row(outcome: Outcome) -> None:
    old = Delivery("g", "h", "o", 3, DeliveryState.RUNNING, record(4), attempts=2, owner="me")
    unit = resolve_unit("me", old, outcome)
    (resolve,) = unit.resolves
    assert (resolve.position, resolve.owner, unit.fence) == (4, "me", "me")
    if isinstance(outcome, Done):
        assert unit.deliveries == ()
    else:
        (new,) = unit.deliveries
        kept = msgspec.structs.replace(
            old, state=outcome.state, attempts=outcome.attempts, due=outcome.due, error=outcome.error, owner=None
        )
        assert new == kept
