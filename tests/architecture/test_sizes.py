"""Sizes with a ratchet: what is too long today is listed with its size, and that number can only fall.

A file has at most 500 lines, a function at most 70, a class fewer than 25 methods; docstrings count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.source import ROOT, Function, plant, python_files

FOLDERS = ["src", "examples", "benchmarks"]
LIMITS = {"lines of the file": 500, "lines of the function": 70, "methods of the class": 24}

# "src/skald/x.py", "src/skald/x.py::function" or "src/skald/x.py::Class.method": its size today, and why in a comment.
EXCEPTIONS: dict[str, int] = {}


def test_sizes_stay_within_their_limits() -> None:
    found = violations(ROOT, EXCEPTIONS)
    assert not found, "\n".join(found)


def violations(root: Path, exceptions: dict[str, int]) -> list[str]:
    found = []
    too_large = {}
    for place, what, size in sizes(root):
        if size > LIMITS[what]:
            too_large[place] = size
            if place not in exceptions:
                found.append(f"{place}: {size} {what}, the limit is {LIMITS[what]}")
    for place, allowed in exceptions.items():
        size = too_large.get(place)
        if size is None:
            found.append(f"{place}: is no exception any more; remove it from EXCEPTIONS")
        elif size > allowed:
            found.append(f"{place}: has grown from {allowed} to {size}")
        elif size < allowed:
            found.append(f"{place}: has shrunk to {size}; write that into EXCEPTIONS")
    return found


def sizes(root: Path) -> Iterator[tuple[str, str, int]]:
    for path, tree, text in python_files(root, *FOLDERS):
        yield path, "lines of the file", len(text.splitlines())
        yield from _sizes_inside(tree, f"{path}::")


def _sizes_inside(tree: ast.AST, prefix: str) -> Iterator[tuple[str, str, int]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield prefix + node.name, "lines of the function", (node.end_lineno or 0) - node.lineno + 1
        elif isinstance(node, ast.ClassDef):
            # By name, because overloads and a property's setter repeat theirs.
            methods = {member.name for member in node.body if isinstance(member, Function)}
            yield prefix + node.name, "methods of the class", len(methods)
        named = isinstance(node, Function | ast.ClassDef)
        yield from _sizes_inside(node, f"{prefix}{node.name}." if named else prefix)  # type: ignore[attr-defined]


LONG = "def long():\n" + "    pass\n" * 70


def test_a_long_file_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "src/skald/long.py", "\n" * 501)
    assert violations(tmp_path, {}) == ["src/skald/long.py: 501 lines of the file, the limit is 500"]


def test_a_long_function_is_found_wherever_it_is(tmp_path: Path) -> None:
    plant(tmp_path, "examples/a.py", LONG)
    plant(tmp_path, "src/skald/b.py", "class A:\n    async " + LONG.replace("\n", "\n    "))
    assert [line.partition(":")[0] for line in violations(tmp_path, {})] == ["src/skald/b.py", "examples/a.py"]
    assert violations(tmp_path, {})[0].startswith("src/skald/b.py::A.long: 71 lines")


def test_a_class_of_many_methods_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "src/skald/wide.py", "class A:\n" + "".join(f"    def m{n}(self): ...\n" for n in range(25)))
    assert violations(tmp_path, {}) == ["src/skald/wide.py::A: 25 methods of the class, the limit is 24"]


def test_an_exception_holds_at_its_size_alone(tmp_path: Path) -> None:
    plant(tmp_path, "src/a.py", LONG)
    assert violations(tmp_path, {"src/a.py::long": 71}) == []
    assert violations(tmp_path, {"src/a.py::long": 70}) == ["src/a.py::long: has grown from 70 to 71"]
    assert violations(tmp_path, {"src/a.py::long": 90})[0].startswith("src/a.py::long: has shrunk to 71")


def test_an_exception_that_is_not_needed_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "src/a.py", "def short(): ...\n")
    assert len(violations(tmp_path, {"src/a.py::short": 71, "src/gone.py": 600})) == 2
