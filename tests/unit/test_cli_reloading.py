"""What counts as a change of the program."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from skald.cli import reloading
from skald.cli.reloading import Watch, all_files, imported_files, times_of


def test_imported_modules_below_the_folder_are_watched_and_installed_packages_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, file in {
        "ours": tmp_path / "pkg" / "ours.py",
        "installed": tmp_path / ".venv" / "lib" / "site-packages" / "installed.py",
        "elsewhere": tmp_path.parent / "elsewhere.py",
    }.items():
        module = ModuleType(name)
        module.__file__ = str(file)
        monkeypatch.setitem(sys.modules, name, module)
    assert imported_files(tmp_path) == [str(tmp_path / "pkg" / "ours.py")]


def test_every_file_below_the_folder_is_watched_after_a_failed_import(tmp_path: Path) -> None:
    for name in ("a.py", "pkg/b.py", ".hidden/c.py", "env/pyvenv.cfg", "env/lib/d.py", "node_modules/e.py", "f.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert sorted(all_files(tmp_path)) == [str(tmp_path / "a.py"), str(tmp_path / "pkg" / "b.py")]


def test_a_change_a_deletion_and_a_new_migration_are_changes(tmp_path: Path) -> None:
    code, other, folder = tmp_path / "a.py", tmp_path / "b.py", tmp_path / "sql"
    code.touch()
    other.touch()
    folder.mkdir()
    watch = Watch([str(code), str(other)], [folder])
    assert watch.changed() == []
    os.utime(code, ns=(1, 1))
    assert watch.changed() == [str(code)]
    assert watch.changed() == []
    other.unlink()
    (folder / "0001_a.sql").touch()
    assert watch.changed() == [str(other), str(folder / "0001_a.sql")]


def test_a_change_while_the_program_was_imported_counts(tmp_path: Path) -> None:
    code, other = tmp_path / "a.py", tmp_path / "not_imported.py"
    code.touch()
    other.touch()
    before = times_of(all_files(tmp_path))
    os.utime(code, ns=(1, 1))
    os.utime(other, ns=(1, 1))
    assert Watch([str(code)], before=before).changed() == [str(code)]


async def test_it_waits_until_an_editor_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloading, "PERIOD", 0.0)
    code = tmp_path / "a.py"
    code.touch()
    watch = Watch([str(code)])
    looks = iter([[], [str(code)], [str(code), "b.py"], []])
    monkeypatch.setattr(watch, "changed", lambda: next(looks))
    assert await asyncio.wait_for(watch.wait(), 10) == [str(code), "b.py"]
    assert list(looks) == []
