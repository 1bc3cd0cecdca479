"""Where the peers are installed, by the ordinary clients of their registries; kept from one run to the next."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.child import ROOT

PYTHON = ("dbos>=3.4,<4", "restate-sdk>=1.3,<2", "hypercorn>=0.18,<0.19", "aiohttp>=3.14,<4", "uvloop>=0.21,<0.24")
NODE = ("@restatedev/restate-server@>=1.7.12 <2",)
"""It carries the server, a program that needs no Node."""
FOLDER = ROOT / ".skald" / "peers"
SECONDS = 300.0


class Missing(Exception):
    """A peer cannot be installed or started; the message says why, in one line."""


def python() -> Path:
    """The Python that has the libraries of all peers, and none of ours."""
    folder = FOLDER / "python"
    program = folder / "bin" / "python"
    if not _is_installed(folder, PYTHON):
        _tell(PYTHON)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        quietly = ["-qq", "--disable-pip-version-check", "--no-input", "--root-user-action=ignore"]
        _run([str(program), "-m", "pip", "install", *quietly, *PYTHON])
        _stamp(folder, PYTHON)
    return program


def restate_server() -> Path:
    folder = FOLDER / "restate"
    if not _is_installed(folder, NODE):
        _tell(NODE)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # Without the packages' scripts: one of them tells its authors who has installed it.
        quietly = ["--ignore-scripts", "--no-save", "--no-audit", "--no-fund", "--loglevel=error"]
        _run(["npm", "install", "--prefix", str(folder), *quietly, *NODE])
        _stamp(folder, NODE)
    # One package per platform, of which npm takes ours.
    found = next(folder.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"), None)
    if found is None:
        raise Missing(f"npm has installed {NODE[0]}, which has no server for this machine")
    return found


def _is_installed(folder: Path, wanted: Sequence[str]) -> bool:
    stamp = folder / "stamp"
    return stamp.exists() and stamp.read_text() == _mark(folder, wanted)


def _stamp(folder: Path, wanted: Sequence[str]) -> None:
    (folder / "stamp").write_text(_mark(folder, wanted))


def _mark(folder: Path, wanted: Sequence[str]) -> str:
    """The place belongs to it: a virtual environment that was moved does not work."""
    return "\n".join([str(folder), *wanted])


def _tell(wanted: Sequence[str]) -> None:
    print(f"installing {', '.join(wanted)} into {FOLDER}", file=sys.stderr, flush=True)


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=SECONDS, cwd=ROOT
        )
    except subprocess.CalledProcessError as error:
        said = " ".join((error.stderr or error.stdout).split()) or f"status {error.returncode}"
        raise Missing(said[:300]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(str(error)) from error
