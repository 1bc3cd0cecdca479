"""The distribution of lanes: every process computes it alone, and all agree."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skald.runtime.lanes import assigned

members = st.lists(st.uuids().map(str), min_size=1, max_size=20, unique=True)
lanes = st.lists(
    st.tuples(st.sampled_from(["orders", "payments", "stock"]), st.integers(0, 15)), max_size=40, unique=True
)


@given(members, lanes)
def test_every_lane_has_exactly_one_owner_and_all_are_spread_evenly(
    everyone: list[str], all_lanes: list[tuple[str, int]]
) -> None:
    shares = {member: assigned(everyone, member, all_lanes) for member in everyone}
    assert sorted(lane for share in shares.values() for lane in share) == sorted(all_lanes)
    for origin in {origin for origin, _ in all_lanes}:
        count = sum(other == origin for other, _ in all_lanes)
        sizes = [sum(other == origin for other, _ in share) for share in shares.values()]
        assert max(sizes) <= -(-count // len(everyone))


@given(members, lanes, st.randoms())
def test_the_order_of_the_list_does_not_matter(everyone: list[str], all_lanes: list[tuple[str, int]], chance) -> None:  # type: ignore[no-untyped-def]
    shuffled = chance.sample(everyone, len(everyone))
    for member in everyone:
        assert assigned(everyone, member, all_lanes) == assigned(shuffled + shuffled, member, all_lanes)


@given(members, lanes)
def test_who_is_no_member_has_nothing(everyone: list[str], all_lanes: list[tuple[str, int]]) -> None:
    assert assigned(everyone, "stranger", all_lanes) == set()
