"""How units are laid out as columns, and what their answer means; without a server."""

from __future__ import annotations

from typing import Any

import pytest

from skald.errors import Conflict, MarkMoved, Rejection, WorkflowExists, WorkflowKeyTaken
from skald.message import Record, new_id
from skald.stores.postgres import units_to_json, wire
from skald.stores.postgres.columns import ARGUMENTS, MARKS, WORKFLOWS
from skald.stores.postgres.group import Group
from skald.unit import (
    AddressKind,
    Append,
    Committed,
    Letter,
    LetterKind,
    Mark,
    MarkKind,
    Reply,
    Tag,
    Unit,
    WorkflowRest,
    WorkflowStart,
    WorkflowState,
    WorkflowWrites,
)

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


def sent(*units: Unit) -> tuple[bool, dict[str, Any]]:
    """Whether the columns are packed, and what is sent of each."""
    arguments = Group(units).arguments()
    packed, values = wire.values(arguments)
    return packed, dict(zip(arguments, values, strict=True))


@pytest.mark.parametrize("text", ["", "a\x1fb", "\x1e", "plain", "N", "ä\x00"])
def test_text_with_separators_is_not_packed(text: str) -> None:
    packed, found = sent(Unit(events=(record(text),)))
    assert packed == (text in ("plain", "N", "ä\x00"))
    assert found["r_key"] == (text if packed else (text,))


def test_nulls_are_kept_apart_from_text() -> None:
    events = (record(causation_id=None), record(causation_id="NULL"), record(causation_id=""))
    packed, found = sent(Unit(events=events))
    assert packed
    assert found["r_causation"] == "\x1e\x1fNULL\x1f"
    _, found = sent(Unit(appends=(Append("s", (record(),)),)), Unit(events=(record(),)))
    assert found["r_head"] == "{1,NULL}"
    packed, _ = sent(Unit(events=(record(causation_id=None), record(causation_id="\x1e"))))
    assert not packed


def test_the_parts_of_workflows_are_sections_of_their_own() -> None:
    child = WorkflowStart("r", "a", "w", None, 5, "parent", "k", b"1", 2, True)
    top = WorkflowStart("s", "b", "w", "p", None, None, None, b"2", 3)
    letters = [Letter(f"l{by}", LetterKind.CHILD, by, f"to {by}", "n", b"", 1) for by in AddressKind]
    rest = WorkflowRest("r", WorkflowState.PAUSED, None)
    packed, found = sent(
        Unit(events=(record(),)),
        Unit(workflows=WorkflowWrites(starts=(child, top), rests=(rest,), letters=tuple(letters))),
        Unit(workflows=WorkflowWrites(taken=("l0",), replies=(Reply("l0", b"x"),))),
    )
    assert packed
    assert {name[0] for name in found} == set("rwsltp")
    assert found["w_unit"] == "{1,1}"
    assert found["w_wake_at"] == "{5,NULL}"
    assert found["w_parent"] == "parent\x1f\x1e"
    assert found["w_again"] == "{True,False}"
    assert found["s_note"] == (None,)
    assert [found[f"l_to_{to}"] for to in ("id", "key", "run")] == [
        "to 0\x1f\x1e\x1f\x1e",
        "\x1e\x1fto 1\x1f\x1e",
        "\x1e\x1f\x1e\x1fto 2",
    ]
    assert found["t_unit"] == found["p_unit"] == "{2}"


SQL = {"commit": "f({arguments}, {marks}, {workflows})", "marks": "ROW({columns})::m", "workflows": "ROW({columns})::w"}


@pytest.mark.parametrize("packed", [True, False])
def test_every_column_is_an_argument_and_only_those_in_use_are_parameters(packed: bool) -> None:
    names = list(wire.EVERYTHING)
    everything = wire.call(SQL, packed, tuple(names))
    assert "NULL" not in everything
    assert [f"${number}::" in everything for number in range(1, 4 + len(names))] == [True] * (3 + len(names)), (
        "in order"
    )
    for some in (names[2:5], names[::7], names[-1:], list(MARKS), []):
        text = wire.call(SQL, packed, tuple(reversed(some)))
        assert text.count("$") == 3 + len(some)
        marks, workflows = (not set(some).isdisjoint(columns) for columns in (MARKS, WORKFLOWS))
        assert text.count("ROW(") == marks + workflows
        used = len(ARGUMENTS) + (len(MARKS) if marks else 1) + (len(WORKFLOWS) if workflows else 1)
        assert text.count("NULL") == used - len(some)


def test_marks_are_a_section_of_their_own() -> None:
    one, two = (Mark(MarkKind.EFFECT, "h", key, 0, "done", 5, b"{}", None, "c") for key in "ab")
    packed, found = sent(Unit(), Unit(marks=(one, two)))
    assert packed
    assert (found["m_unit"], found["m_key"], found["m_payload"]) == ("{1,1}", "a\x1fb", (b"{}", b"{}"))
    bad = {**NOTHING, "bad_unit": [1], "bad_code": [8], "bad_key": ["mark:effect:h:b"], "bad_actual": [3]}
    [_, moved] = Group([Unit(), Unit(marks=(one, two))]).outcomes(bad)
    assert isinstance(moved, MarkMoved)
    assert (moved.kind, moved.name, moved.key) == ("effect", "h", "b")


def test_two_marks_of_a_place_are_refused_before_they_are_sent() -> None:
    mark = Mark(MarkKind.ONCE, "h", "k", 0, "handled", 5)
    group = Group([Unit(events=(record(),), marks=(mark, mark)), Unit(events=(record(),))])
    assert isinstance(group.rejected[0], MarkMoved)
    assert group.arguments()["r_unit"] == (1,)


def test_an_id_or_a_key_in_use_rejects_its_unit() -> None:
    outcomes = Group([Unit(), Unit()]).outcomes(
        {
            **NOTHING,
            "bad_unit": [1, 0, 1],
            "bad_code": [7, 6, 6],
            "bad_key": ['["k\\u001f\\"", "holder"]', "a", "b"],
            "bad_actual": [None] * 3,
        }
    )
    assert isinstance(outcomes[0], WorkflowExists)
    assert outcomes[0].id == "a"
    assert isinstance(outcomes[1], WorkflowKeyTaken)
    assert (outcomes[1].key, outcomes[1].id) == ('k\x1f"', "holder")


@pytest.mark.parametrize("key", ["a\0b", "\ud800"])
def test_text_that_no_database_stores_is_refused_before_it_is_sent(key: str) -> None:
    with pytest.raises(Rejection):
        units_to_json([Unit(events=(record(key),))])
    assert units_to_json([Unit(events=(record("\\u0000"),))])
