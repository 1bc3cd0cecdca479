"""The life of a saga is one table: what is not in it raises, and every status can be reached and left as it should."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from skald.sagas.machine import TRANSITIONS, Happening, Impossible, Status, diagram, follow

ENDED = {Status.COMPLETED, Status.COMPENSATED, Status.CANCELLED, Status.TERMINATED}


@pytest.mark.parametrize(("status", "happening"), list(product(Status, Happening)))
def test_what_is_not_in_the_table_raises(status: Status, happening: Happening) -> None:
    if (status, happening) in TRANSITIONS:
        assert follow(status, happening) is TRANSITIONS[status, happening]
        return
    with pytest.raises(Impossible, match=f"a saga that is {status} cannot come to"):
        follow(status, happening)


def test_nothing_happens_to_one_that_has_ended() -> None:
    assert not [before for before, _ in TRANSITIONS if before in ENDED]


def test_every_status_is_reached_and_every_end_from_each() -> None:
    def reached(start: Status) -> set[Status]:
        found = {start}
        while more := {after for (before, _), after in TRANSITIONS.items() if before in found} - found:
            found |= more
        return found

    assert reached(Status.IN_PROGRESS) == set(Status)
    for status in set(Status) - ENDED:
        assert reached(status) & ENDED >= {Status.TERMINATED}


def test_the_diagram_in_the_guide_is_drawn_from_the_table() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guide" / "sagas.md"
    assert f"```mermaid\n{diagram()}\n```" in guide.read_text(), "run script/diagrams"
