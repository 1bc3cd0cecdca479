"""The protocol of sagas holds in every order of what can happen; and a flaw in it would be found."""

from __future__ import annotations

import pytest

from skald.messaging.compensation import EffectState
from skald.sagas.machine import Status
from tests.unit.saga_protocol import Counterexample, Flaw, explore, is_over, status_of

BREAKS = {
    Flaw.MARK_BEFORE_ACT: "it is COMPLETED, and of its steps",
    Flaw.NO_TOMBSTONE: "it is COMPENSATED, and",
    Flaw.ZOMBIE_COMMITS: "the journal has something twice",
    Flaw.REPLY_BEFORE_COMMIT: "it is COMPLETED, and of its steps",
    Flaw.DOUBLE_COMPENSATE: "undone 2 times",
    Flaw.FORGETS_THE_UNASKED: "it is COMPENSATED, and",
}


def test_every_order_ends_with_all_done_or_all_undone() -> None:
    found = explore()
    over = [state for state in found if is_over(state)]
    assert {status_of(state.journal) for state in over} == {Status.COMPLETED, Status.COMPENSATED}
    assert {mine.state for state in over for mine in state.participants} == {
        "", EffectState.DONE, EffectState.UNDONE, EffectState.CANCELLED,
    }  # fmt: skip
    print(f"{len(found)} states, {len(over)} of them ends")


@pytest.mark.parametrize("flaw", BREAKS, ids=lambda flaw: flaw.name)
def test_a_planted_flaw_is_found(flaw: Flaw) -> None:
    with pytest.raises(Counterexample) as found:
        explore(flaw)
    print(f"{flaw}\n{found.value}")
    assert BREAKS[flaw] in found.value.broken
    assert found.value.trace
