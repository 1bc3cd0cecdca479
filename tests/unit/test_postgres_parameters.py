"""``:name`` becomes ``$n`` where it is a parameter, and stays where it is not."""

from __future__ import annotations

import pytest

from skald.errors import StoreError
from skald.stores.postgres.parameters import bound, positional


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        pytest.param("SELECT :a, :b, :a", "SELECT $1, $2, $1", id="each name has one number"),
        pytest.param("SELECT x::text, :a::int", "SELECT x::text, $1::int", id="casts"),
        pytest.param("SELECT ':a', 'it''s :a', :a", "SELECT ':a', 'it''s :a', $1", id="strings"),
        pytest.param(r"SELECT E'\':a', :a", r"SELECT E'\':a', $1", id="strings with backslashes"),
        pytest.param(r"SELECT '\', :a", r"SELECT '\', $1", id="a backslash means nothing in a plain string"),
        pytest.param('SELECT ":a""b:c" FROM t WHERE x = :a', 'SELECT ":a""b:c" FROM t WHERE x = $1', id="names"),
        pytest.param("SELECT 1 -- :a\n, :b", "SELECT 1 -- :a\n, $1", id="line comments"),
        pytest.param("SELECT /* :a /* :b */ :c */ :d", "SELECT /* :a /* :b */ :c */ $1", id="nested comments"),
        pytest.param("DO $$ x := :a $$", "DO $$ x := :a $$", id="dollar quotes"),
        pytest.param("SELECT $q$ :a $$ :b $q$, :c", "SELECT $q$ :a $$ :b $q$, $1", id="named dollar quotes"),
        pytest.param("SELECT a[1:2], a[:n]", "SELECT a[1:2], a[$1]", id="slices"),
        pytest.param("SELECT :größe", "SELECT $1", id="names of any language"),
    ],
)
def test_only_parameters_are_replaced(sql: str, expected: str) -> None:
    assert positional(sql)[0] == expected


def test_values_come_in_the_order_of_their_numbers() -> None:
    assert bound("SELECT :b, :a, :b", {"a": 1, "b": 2}) == ("SELECT $1, $2, $1", [2, 1])


def test_dict_and_list_become_json() -> None:
    assert bound("SELECT :a", {"a": {"x": [1, None]}})[1] == ['{"x": [1, null]}']


def test_a_missing_and_an_unused_value_are_named() -> None:
    with pytest.raises(StoreError, match=":b"):
        bound("SELECT :a, :b", {"a": 1})
    with pytest.raises(StoreError, match="b, c"):
        bound("SELECT :a", {"a": 1, "b": 2, "c": 3})
