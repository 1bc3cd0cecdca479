"""For tests of the command line: the ``PROGRAM`` of the test's module as an application, and its commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from skald.cli import main
from tests.unit.command_line import Ended, Run


@pytest.fixture
def program(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The application's name, in the current folder."""
    module = f"shop_{uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(request.module.PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKALD_APP", f"{module}:app")
    monkeypatch.delenv("SKALD_STORE", raising=False)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a changed file of equal size and second is read again
    yield f"{module}:app"
    sys.modules.pop(module, None)


@pytest.fixture
def skald(program: str, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capfd.readouterr()
        return Ended(ended.value.code, out, err)  # type: ignore[arg-type]

    return run
