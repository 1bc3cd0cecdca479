"""How units are laid out as columns, and what their answer means; without a server."""

from __future__ import annotations

import pytest

from skald.errors import Conflict, Rejection
from skald.message import Record, new_id
from skald.stores.postgres import units_to_json, wire
from skald.stores.postgres.group import ARGUMENTS, Group
from skald.unit import Append, Committed, Tag, Unit

NOTHING = {"bad_unit": None, "positions": None, "versions": None, "lo": 1}


def record(key: str = "k", causation_id: str | None = None) -> Record:
    return Record(0, new_id(), "t", key, 1, "T", 1, 0, "c", causation_id, None, b"{}")


def test_sections_that_nobody_uses_are_left_out() -> None:
    assert set(Group([Unit()]).arguments()) == set()
    assert {name[0] for name in Group([Unit(events=(record(),))]).arguments()} == {"r"}


def test_one_unit_may_append_to_a_stream_twice() -> None:
    group = Group([Unit(appends=(Append("s", (record(), record()), 3), Append("s", (record(),), 5)))])
    assert list(group.arguments()["h_bump"]) == [3]
    assert list(group.arguments()["r_seq"]) == [4, 5, 6]
    assert group.outcomes(NOTHING) == [Committed((1, 2, 3), (5, 6))]


def test_a_unit_that_contradicts_itself_is_a_conflict_and_sends_nothing() -> None:
    group = Group([Unit(appends=(Append("s", (record(),), 3), Append("s", (record(),), 3))), Unit(events=(record(),))])
    [conflict, committed] = group.outcomes(NOTHING)
    assert isinstance(conflict, Conflict)
    assert (conflict.key, conflict.expected, conflict.actual) == ("stream:s", 3, 4)
    assert committed == Committed((1,))
    assert "h_key" not in group.arguments()


def test_versions_of_any_are_what_the_answer_says() -> None:
    group = Group([Unit(appends=(Append("a", (record(),)), Append("b", (record(),), 0), Append("c", (record(),))))])
    assert group.outcomes({**NOTHING, "versions": [7, None]}) == [Committed((1, 2, 3), (8, 1, 1))]


def test_only_keys_that_may_be_new_are_suspects() -> None:
    units = [Unit(appends=(Append("old", (), 3), Append("new", (), 0), Append("any", ()))), Unit(tags=(Tag("t"),))]
    assert Group(units).suspects() == ["stream:any", "stream:new", "tag:t"]


@pytest.mark.parametrize("text", ["", "a\x1fb", "\x1e", "plain", "N", "ä\x00"])
def test_text_with_separators_is_not_packed(text: str) -> None:
    packed, values = wire.values(Group([Unit(events=(record(text),))]).arguments())
    assert packed == (text in ("plain", "N", "ä\x00"))
    assert values[list(ARGUMENTS).index("r_key")] == (text if packed else (text,))


def test_nulls_are_kept_apart_from_text() -> None:
    events = (record(causation_id=None), record(causation_id="NULL"), record(causation_id=""))
    packed, values = wire.values(Group([Unit(events=events)]).arguments())
    assert packed
    assert values[list(ARGUMENTS).index("r_causation")] == "\x1e\x1fNULL\x1f"
    _, values = wire.values(Group([Unit(appends=(Append("s", (record(),)),)), Unit(events=(record(),))]).arguments())
    assert values[list(ARGUMENTS).index("r_head")] == "{1,NULL}"


@pytest.mark.parametrize("key", ["a\0b", "\ud800"])
def test_text_that_no_database_stores_is_refused_before_it_is_sent(key: str) -> None:
    with pytest.raises(Rejection):
        units_to_json([Unit(events=(record(key),))])
    assert units_to_json([Unit(events=(record("\\u0000"),))])
