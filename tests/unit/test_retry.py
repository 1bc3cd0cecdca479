"""When something that failed is tried again: a table, and the rule that the most specific class decides."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skald.message import Event
from skald.messaging.definition import define
from skald.messaging.outcome import Taken, after_failure
from skald.retry import NEVER, Backoff, Policy, Retry, Rule, rule_for
from skald.unit import DeliveryState

NO_MORE = None


@pytest.mark.parametrize(
    ("rule", "after"),
    [
        (Retry(), [0, 0, 0, 1, 5, 30, NO_MORE, NO_MORE]),
        (Retry(immediate=1, delays=(2.5,)), [0, 2.5, NO_MORE]),
        (Retry(immediate=1, delays=(0, 0)), [0, 0, 0, NO_MORE]),
        (Retry(immediate=2, delays=()), [0, 0, NO_MORE]),
        (NEVER, [0, NO_MORE, NO_MORE]),
    ],
    ids=str,
)
def test_after_so_many_failures_it_waits_so_many_seconds(rule: Retry, after: list[float | None]) -> None:
    assert [rule.after(failures) for failures in range(len(after))] == after


@given(st.integers(1, 20), st.lists(st.floats(0, 1000), max_size=10).map(tuple))
def test_there_are_exactly_as_many_attempts_as_it_says(immediate: int, delays: tuple[float, ...]) -> None:
    rule = Retry(immediate, delays)
    attempts = 1
    while rule.after(attempts) is not None:
        attempts += 1
    assert attempts == rule.attempts
    assert rule.after(attempts + 1000) is None


@pytest.mark.parametrize("immediate", [0, -1])
def test_the_first_attempt_counts(immediate: int) -> None:
    with pytest.raises(ValueError, match=f"immediate={immediate}: the first attempt counts"):
        Retry(immediate=immediate)


@pytest.mark.parametrize("delay", [-1, -0.001, math.nan, math.inf, -math.inf, 31_536_000])
def test_a_delay_is_a_time_that_one_can_wait(delay: float) -> None:
    with pytest.raises(ValueError, match="each is a number of seconds"):
        Retry(delays=(1, delay))


def test_a_rule_cannot_change_and_can_be_compared() -> None:
    with pytest.raises(AttributeError):
        Retry().immediate = 5  # type: ignore[misc]
    assert Retry() == Retry(3, (1.0, 5.0, 30.0))
    assert len({Retry(), Retry()}) == 1


# --- backoff ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "after"),
    [
        (Backoff(), [1, 2, 4, 8, 16, 32, 60, 60, 60, NO_MORE]),
        (Backoff(first=0.5, factor=3, longest=5, attempts=5), [0.5, 1.5, 4.5, 5, NO_MORE]),
        (Backoff(first=2, factor=1, attempts=3), [2, 2, NO_MORE]),
        (Backoff(attempts=1), [NO_MORE]),
    ],
    ids=str,
)
def test_a_backoff_grows_up_to_its_longest_delay(rule: Backoff, after: list[float | None]) -> None:
    assert [rule.after(failures) for failures in range(1, len(after) + 1)] == after


def test_the_jitter_of_a_rule_is_for_whoever_waits() -> None:
    assert (Backoff().jitter, Backoff(jitter=0).jitter, Retry().jitter) == (0.2, 0, 0)
    assert {Backoff(jitter=1).after(3) for _ in range(20)} == {4}


@given(st.integers(1, 10**9), st.floats(1, 1e300))
def test_a_backoff_has_no_number_of_attempts_at_which_it_fails(failures: int, factor: float) -> None:
    rule = Backoff(factor=factor, attempts=10**9 + 1)
    delay = rule.after(failures)
    assert delay is not None
    assert 1 <= delay <= 60


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"first": 0}, "first=0: seconds above 0"),
        ({"first": math.nan}, "first=nan"),
        ({"first": 100}, "longest=60.0: seconds, at least first=100"),
        ({"factor": 0.9}, "factor=0.9: delays grow"),
        ({"factor": math.inf}, "factor=inf"),
        ({"longest": 31_536_000}, "below a year"),
        ({"longest": math.nan}, "longest=nan"),
        ({"attempts": 0}, "attempts=0: the first attempt counts"),
        ({"jitter": -0.1}, "jitter=-0.1: the share"),
        ({"jitter": 1.1}, "jitter=1.1"),
        ({"jitter": math.nan}, "jitter=nan"),
    ],
    ids=str,
)
def test_a_backoff_that_makes_no_sense_is_refused(fields: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Backoff(**fields)  # type: ignore[arg-type]


class Placed(Event, key="id"):
    id: str


def test_messages_are_due_after_a_backoff_at_the_plain_times() -> None:
    def book(event: Placed) -> None: ...

    handler = define(book, retry={OSError: Backoff(first=3, attempts=3), "*": NEVER})
    due = [after_failure(handler, OSError("away"), attempts, 1_000_000) for attempts in (1, 2, 3)]
    delayed, parked = DeliveryState.DELAYED, DeliveryState.PARKED
    text = "OSError: away"
    assert due == [
        Taken(delayed, 1, 4_000_000, text),
        Taken(delayed, 2, 7_000_000, text),
        Taken(parked, 3, 1_000_000, text),
    ]


# --- policies ---------------------------------------------------------------------------------------------------------


class Unreachable(ConnectionError):
    pass


class Both(Unreachable, ValueError):
    pass


OS, CONNECTION, VALUE, REST = (Retry(immediate=n) for n in (1, 2, 4, 5))
SLOWLY = Backoff()
POLICY: Policy = {"*": REST, ArithmeticError: SLOWLY, OSError: OS, ValueError: VALUE, ConnectionError: CONNECTION}


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (OSError(), OS),
        (FileNotFoundError(), OS),
        (ConnectionError(), CONNECTION),
        (ConnectionResetError(), CONNECTION),
        (Unreachable(), CONNECTION),
        (ValueError(), VALUE),
        (UnicodeError(), VALUE),
        (Both(), CONNECTION),
        (KeyError(), REST),
        (KeyboardInterrupt(), REST),
        (ArithmeticError(), SLOWLY),
    ],
    ids=repr,
)
def test_the_most_specific_class_decides(error: BaseException, rule: Rule) -> None:
    assert rule_for(POLICY, error) == rule


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_policy_does_not_matter(order: int) -> None:
    policy: Policy = dict(list({OSError: OS, ConnectionError: CONNECTION, Exception: REST}.items())[::order])
    assert rule_for(policy, Unreachable()) == CONNECTION
    assert rule_for(policy, KeyError()) == REST


def test_one_rule_is_for_all_errors() -> None:
    assert rule_for(NEVER, KeyError()) is NEVER
    assert rule_for(SLOWLY, KeyError()) is SLOWLY


def test_an_error_that_no_rule_names_is_tried_as_usual() -> None:
    assert rule_for({OSError: NEVER}, KeyError()) == Retry()
    assert rule_for({}, KeyError()) == Retry()
