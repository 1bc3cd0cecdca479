"""Names and calls that have no place here.

- A module is called by what it holds, not utils or helpers.
- Tests wait on signals or move a clock: a sleep makes them slow or flaky, mostly both. ``sleep(0)``, a turn of the
  event loop, is fine. A workflow's durable sleep and a torture's random pause say so on their line: ``# sleep: why``.
- Nothing that is read from outside is ever executed: no pickle, no eval, no exec, no yaml.load.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.source import ROOT, plant, python_files

VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
SLEEPS = {"time.sleep", "asyncio.sleep", "anyio.sleep", "trio.sleep"}
EXECUTING_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
EXECUTING_CALLS = {"eval", "exec", "builtins.eval", "builtins.exec", "yaml.load", "yaml.unsafe_load"}


def test_modules_have_names_that_say_something() -> None:
    found = vague_names(ROOT)
    assert not found, "\n".join(found)


def test_tests_do_not_sleep() -> None:
    found = sleeps(ROOT)
    assert not found, "\n".join(found)


def test_nothing_is_executed_that_was_read() -> None:
    found = executions(ROOT)
    assert not found, "\n".join(found)


def vague_names(root: Path) -> list[str]:
    files = python_files(root, "src", "tests", "examples", "benchmarks", "script")
    return [path for path, _, _ in files if VAGUE & set(path.removesuffix(".py").split("/"))]


def sleeps(root: Path) -> list[str]:
    found = []
    for path, tree, text in python_files(root, "tests"):
        lines = text.splitlines()
        for name, call in _calls(tree):
            none = call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0
            if name in SLEEPS and not none and "# sleep: " not in lines[(call.end_lineno or 0) - 1]:
                found.append(f"{path}:{call.lineno}: {name}")
    return found


def executions(root: Path) -> list[str]:
    found = []
    for path, tree, _ in python_files(root, "src"):
        found += [f"{path}:{call.lineno}: {name}" for name, call in _calls(tree) if name in EXECUTING_CALLS]
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path}:{name}" for name in names if name.partition(".")[0] in EXECUTING_MODULES]
    return found


def _calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the full name of what is called, whatever the import calls it."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom):
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, dot, tail = ast.unparse(node.func).partition(".")
            yield names.get(head, head) + dot + tail, node


@pytest.mark.parametrize("path", ["src/skald/utils.py", "tests/helpers/x.py", "src/skald/store/base.py"])
def test_a_planted_vague_name_is_found(tmp_path: Path, path: str) -> None:
    plant(tmp_path, path)
    assert vague_names(tmp_path) == [path]


@pytest.mark.parametrize(
    "text",
    [
        "import time\ntime.sleep(1)",
        "import asyncio as aio\nasync def f():\n    await aio.sleep(delay=0.1)",
        "from time import sleep as pause\npause(n)",
        "from asyncio import sleep\nasync def f():\n    await sleep(0.01)",
    ],
)
def test_a_planted_sleep_is_found(tmp_path: Path, text: str) -> None:
    plant(tmp_path, "tests/unit/test_x.py", text)
    assert len(sleeps(tmp_path)) == 1


def test_a_turn_of_the_loop_and_a_sleep_with_a_reason_are_fine(tmp_path: Path) -> None:
    text = "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    await asyncio.sleep(9)  # sleep: x\n"
    plant(tmp_path, "tests/unit/test_x.py", text)
    assert sleeps(tmp_path) == []


@pytest.mark.parametrize(
    "text", ["import pickle", "from marshal import loads", "x = eval(text)", "import yaml as y\ny.load(text)"]
)
def test_a_planted_execution_is_found(tmp_path: Path, text: str) -> None:
    plant(tmp_path, "src/skald/x.py", text)
    assert len(executions(tmp_path)) == 1
