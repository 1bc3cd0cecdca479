"""The import rings: who may import whom. The folder listing is the architecture only as long as this holds.

0 words      message errors clock retry codec telemetry sql failpoints    the standard library and msgspec
1 pure       the modules in PURE                               0; no async I/O, logging, clock or randomness
2 contracts  store broker                                      0 1
3 services   messaging workflows sagas events runtime          0 1 2
4 adapters   stores/<x> brokers/<x>                            0 1 2 and its driver; never 3, never another adapter
5 faces      app operations sync cli http console testing lint anything but an adapter; nothing imports testing

Only ``app`` names adapters, and only inside functions, so that nobody needs a driver of a store that he does not use.
Imports under ``TYPE_CHECKING`` and inside functions count like all others.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.architecture.source import ROOT, plant, python_files

WORDS, CONTRACTS, SERVICES, ADAPTERS, FACES = 0, 2, 3, 4, 5
PURE_RING = 1

RINGS = {
    **dict.fromkeys(["message", "errors", "clock", "retry", "codec", "telemetry", "sql", "failpoints"], WORDS),
    **dict.fromkeys(["store", "broker"], CONTRACTS),
    **dict.fromkeys(["messaging", "workflows", "sagas", "events", "runtime"], SERVICES),
    **dict.fromkeys(["stores", "brokers"], ADAPTERS),
    **dict.fromkeys(["app", "operations", "sync", "cli", "http", "console", "testing", "lint", "__main__"], FACES),
}

# Each with the impure modules that it may import all the same.
PURE: dict[str, set[str]] = {
    "unit": set(),
    "messaging.calls": set(),
    "messaging.compensation": set(),
    "messaging.definition": set(),
    "messaging.outcome": set(),
    "messaging.processes": set(),
    "messaging.router": set(),
    "workflows.asking": {"asyncio"},
    "workflows.calling": set(),
    "workflows.channels": set(),
    "workflows.definition": {"asyncio"},  # what runs on a workflow's loop, which does no I/O
    "workflows.failure": set(),
    "workflows.forgetting": set(),
    "workflows.granting": set(),
    "workflows.inbox": {"asyncio"},
    "workflows.letters": set(),
    "workflows.locking": {"asyncio"},
    "workflows.loop": {"asyncio"},
    "workflows.mapping": {"asyncio"},
    "workflows.replay": {"asyncio"},
    "workflows.signature": set(),
    "workflows.starting": set(),
    "sagas.compensation": set(),
    "sagas.course": {"asyncio"},
    "sagas.definition": set(),
    "sagas.desk": {"asyncio"},
    "sagas.graph": {"asyncio"},
    "sagas.machine": set(),
    "sagas.question": set(),
    "sagas.recovery": set(),
    "sagas.saga": set(),
    "events.aggregate": set(),
    "events.decider": set(),
    "events.stream": set(),
}
IMPURE = {"asyncio", "logging", "time", "random", "secrets"}

ALLOWED = {
    WORDS: {WORDS},
    PURE_RING: {WORDS, PURE_RING},
    CONTRACTS: {WORDS, PURE_RING, CONTRACTS},
    SERVICES: {WORDS, PURE_RING, CONTRACTS, SERVICES},
    ADAPTERS: {WORDS, PURE_RING, CONTRACTS},  # and its own folder
    FACES: {WORDS, PURE_RING, CONTRACTS, SERVICES, FACES},
}

# sqlite3 has no place at all: two copies of SQLite in one process lose committed data.
DRIVERS = {
    "sqlite3": None,
    "apsw": "stores.sqlite",
    "asyncpg": "stores.postgres",
    "confluent_kafka": "brokers.kafka",
    "aio_pika": "brokers.rabbitmq",
    "nats": "brokers.nats",
    "redis": "brokers.redis",
}


@dataclass(frozen=True)
class Import:
    importer: str  # "skald.messaging.router"
    target: str  # "skald.store" or "asyncio"
    lazy: bool  # inside a function
    place: str  # "src/skald/messaging/router.py:12"


def test_every_import_stays_within_its_ring() -> None:
    found = violations(ROOT)
    assert not found, "\n".join(found)


def violations(root: Path) -> list[str]:
    lines = [f"{found.place}: {reason}" for found in imports(root) if (reason := verdict(found))]
    return list(dict.fromkeys(lines))  # `from x import a, b` is two imports and one line


def imports(root: Path) -> Iterator[Import]:
    modules = {}
    for path, tree, _ in python_files(root, "src/skald", "examples"):
        if not Path(path).name.startswith(("test_", "conftest")):
            name = path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__")
            modules[name.replace("/", ".")] = path, tree
    for module, (path, tree) in modules.items():
        package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
        for node, lazy in _import_nodes(tree, lazy=False):
            for target in _targets(node, package, modules.keys()):
                yield Import(module, target, lazy, f"{path}:{node.lineno}")


def verdict(found: Import) -> str | None:
    """Why this import is wrong; None if it is right."""
    here, there = _name(found.importer), _name(found.target)
    ring = ring_of(found.importer)
    if ring is None:
        return f"{found.importer} belongs to no ring: place it in RINGS or PURE"
    if not _is_ours(found.target):
        return _verdict_on_foreign(here, ring, found.target.partition(".")[0])
    target_ring = ring_of(found.target)
    if target_ring is None:
        return f"{found.target} belongs to no ring: place it in RINGS or PURE"
    if _is_in("testing", there) and not _is_in("testing", here):
        return "nothing imports skald.testing"
    if target_ring == ADAPTERS:
        if ring == ADAPTERS and _is_in(_adapter(here), there):
            return None
        if here == "app":
            return None if found.lazy else "app imports an adapter inside a function, when a URL asks for it"
        return f"only app names adapters; {found.importer} imports {found.target}"
    if target_ring not in ALLOWED[ring]:
        return f"{found.importer} (ring {ring}) imports {found.target} (ring {target_ring})"
    return None


def _verdict_on_foreign(here: str, ring: int, package: str) -> str | None:
    if package in DRIVERS:
        home = DRIVERS[package]
        if home is None or not _is_in(home, here):
            return f"the driver {package} belongs into {home or 'no module'} alone"
        return None
    if here in PURE and package in IMPURE - PURE[here]:
        return f"{here} is pure and imports {package}"
    if ring != FACES and package != "msgspec" and package not in sys.stdlib_module_names:
        return f"ring {ring} imports only the standard library and msgspec, not {package}"
    return None


def ring_of(module: str) -> int | None:
    name = _name(module)
    if not name or not module.startswith("skald"):
        return FACES  # skald/__init__ and the examples
    if name in PURE:
        return PURE_RING
    return RINGS.get(name.partition(".")[0])


def _name(module: str) -> str:
    return module.partition(".")[2] if _is_in("skald", module) else module if _is_ours(module) else ""


def _is_ours(module: str) -> bool:
    return _is_in("skald", module) or _is_in("examples", module)


def _is_in(package: str, module: str) -> bool:
    return module == package or module.startswith(package + ".")


def _adapter(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _import_nodes(tree: ast.AST, *, lazy: bool) -> Iterator[tuple[ast.stmt | ast.Call, bool]]:
    for node in ast.iter_child_nodes(tree):
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__"))
        ):
            yield node, inside
        yield from _import_nodes(node, lazy=inside)


def _targets(node: ast.stmt | ast.Call, package: str, modules: object) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            # `from . import x` counts from the package, `from .. import x` from its parent.
            above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            base = ".".join([*above, *([module] if module else [])])
            for alias in names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in modules else base  # type: ignore[operator]
        case ast.Call(args=[ast.Constant(value=str(name)), *_]):
            yield name


PLANTED = [
    ("errors.py", "from skald.store import Store", "ring 0"),
    ("errors.py", "import attrs", "not attrs"),
    ("codec.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .unit import Unit", "ring 0"),
    ("unit.py", "import time", "is pure and imports time"),
    ("messaging/router.py", "def f():\n    from asyncio import sleep", "is pure and imports asyncio"),
    ("messaging/router.py", "from skald.store import Store", "ring 1"),
    ("store.py", "from skald.messaging import service", "ring 2"),
    ("messaging/consumer.py", "from .. import app", "ring 3"),
    ("messaging/consumer.py", "from skald.app import App", "ring 3"),
    ("messaging/consumer.py", "import skald", "ring 3"),
    ("runtime/reader.py", "import skald.stores.sqlite", "only app names adapters"),
    ("runtime/reader.py", "import sqlite3", "no module alone"),
    ("stores/sqlite/log.py", "from skald.runtime import reader", "ring 4"),
    ("stores/sqlite/log.py", "import skald.stores.postgres", "only app names adapters"),
    ("stores/sqlite/log.py", "import asyncpg", "stores.postgres alone"),
    ("app.py", "from skald.stores import sqlite", "inside a function"),
    ("operations.py", "def f():\n    import apsw", "stores.sqlite alone"),
    ("cli/main.py", "def f():\n    importlib.import_module('skald.stores.sqlite')", "only app names adapters"),
    ("cli/main.py", "from skald.testing import kit", "nothing imports skald.testing"),
    ("extra.py", "import os", "belongs to no ring"),
    ("../../examples/shop/main.py", "import asyncpg", "stores.postgres alone"),
]

RIGHT = [
    ("errors.py", "import os, msgspec\nfrom skald import clock"),
    ("workflows/loop.py", "import asyncio"),
    ("messaging/consumer.py", "import asyncio\nfrom . import router\nfrom skald.store import Store"),
    ("stores/sqlite/log.py", "import apsw\nfrom skald.unit import Unit\nfrom .store import SqliteStore"),
    ("stores/postgres/log.py", "from asyncpg.exceptions import PostgresError"),
    ("app.py", "def open_store():\n    from skald.stores.sqlite import SqliteStore"),
    ("cli/main.py", "import rich\nfrom skald.operations import inspect"),
    ("testing/kit.py", "import pytest\nfrom skald.testing import clocks\nfrom skald.app import App"),
    ("../../examples/shop/main.py", "import httpx\nfrom skald import App\nfrom examples.shop import other"),
]


@pytest.mark.parametrize(("path", "text", "reason"), PLANTED)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, text: str, reason: str) -> None:
    _plant_package(tmp_path, path, text)

    found = violations(tmp_path)

    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize(("path", "text"), RIGHT)
def test_what_is_allowed_is_not_reported(tmp_path: Path, path: str, text: str) -> None:
    _plant_package(tmp_path, path, text)

    assert violations(tmp_path) == []


def _plant_package(root: Path, path: str, text: str) -> None:
    """Empty modules to import from, and one with the text."""
    for name in ["__init__", "app", "clock", "store", "unit", "messaging/router", "messaging/service"]:
        plant(root, f"src/skald/{name}.py")
    for name in ["runtime/reader", "stores/sqlite/__init__", "stores/postgres/__init__", "testing/clocks"]:
        plant(root, f"src/skald/{name}.py")
    plant(root, f"src/skald/{path}", text)
