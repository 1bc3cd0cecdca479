"""When something that failed is tried again: a table, and the rule that the most specific class decides."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skald.retry import NEVER, Policy, Retry, rule_for

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


# --- policies ---------------------------------------------------------------------------------------------------------


class Unreachable(ConnectionError):
    pass


class Both(Unreachable, ValueError):
    pass


OS, CONNECTION, VALUE, REST = (Retry(immediate=n) for n in (1, 2, 4, 5))
POLICY: Policy = {"*": REST, OSError: OS, ValueError: VALUE, ConnectionError: CONNECTION}


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
    ],
    ids=repr,
)
def test_the_most_specific_class_decides(error: BaseException, rule: Retry) -> None:
    assert rule_for(POLICY, error) == rule


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_policy_does_not_matter(order: int) -> None:
    policy: Policy = dict(list({OSError: OS, ConnectionError: CONNECTION, Exception: REST}.items())[::order])
    assert rule_for(policy, Unreachable()) == CONNECTION
    assert rule_for(policy, KeyError()) == REST


def test_one_rule_is_for_all_errors() -> None:
    assert rule_for(NEVER, KeyError()) is NEVER


def test_an_error_that_no_rule_names_is_tried_as_usual() -> None:
    assert rule_for({OSError: NEVER}, KeyError()) == Retry()
    assert rule_for({}, KeyError()) == Retry()
