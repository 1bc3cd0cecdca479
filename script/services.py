"""What ``script/services`` does: servers for the tests and for trying things out, with durable settings.

A server's folder is ``.skald-services/NAME`` in the checkout; as root, when the user that runs the server cannot enter
the checkout, one in the temporary folder that is named after the checkout.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True  # `status` leaves no trace in a checkout that is only looked at

from tests.postgres_server import (  # noqa: E402
    PostgresError,
    PostgresServer,
    account,
    find_binaries,
    reachable,
)


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.action == "up":
        _need_binaries(install=arguments.install or os.environ.get("CI") == "true")
        with _locked(_folder_to_use(arguments.data)) as usable:
            PostgresServer(usable).start()
    folder = _known_folder(arguments.data)
    if folder and arguments.action == "down":
        with _locked(folder):
            PostgresServer(folder).stop()
    return _report(folder, as_json=arguments.json, wanted=arguments.action != "down")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="script/services", description="A durable PostgreSQL on 127.0.0.1.")
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("--json", action="store_true", help="print the state as JSON")
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep data here (default: .skald-services)")
    parser.add_argument("--install", action="store_true", help="install what is missing")
    return parser


def _report(folder: Path | None, *, as_json: bool, wanted: bool) -> int:
    """Exit status 1 when a server that was asked for is not there."""
    server = PostgresServer(folder).attach() if folder else None
    ready = server is not None and server.is_ready()
    state = {"url": server.url, "pid": server.pid, "ready": True} if server and ready else _DOWN
    if as_json:
        print(json.dumps({"postgres": state}))
    elif ready:
        print(f"postgres  ready  {state['url']}  pid {state['pid']}")
    else:
        print("postgres  down")
    return 0 if ready == wanted else 1


_DOWN = {"url": None, "pid": None, "ready": False}


def _need_binaries(*, install: bool) -> None:
    try:
        find_binaries(account())
    except PostgresError:
        python = ROOT / ".venv" / "bin" / "python"
        if not install or Path(sys.executable) == python:
            raise
        subprocess.run([str(ROOT / "script" / "setup"), "test"], check=True, stdin=subprocess.DEVNULL)
        os.execv(python, [str(python), *sys.argv])


def _candidates(chosen: Path | None) -> list[Path]:
    if chosen:
        return [chosen.resolve() / "postgres"]
    mark = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    elsewhere = Path(tempfile.gettempdir()) / f"skald-services-{os.geteuid()}-{mark}"
    return [ROOT / ".skald-services" / "postgres", elsewhere / "postgres"]


def _known_folder(chosen: Path | None) -> Path | None:
    return next((folder for folder in _candidates(chosen) if (folder / "data").exists()), None)


def _folder_to_use(chosen: Path | None) -> Path:
    known = _known_folder(chosen)
    if known:
        return known
    user = account()
    for folder in _candidates(chosen):
        folder.mkdir(parents=True, exist_ok=True)
        # The name in the temporary folder can be foreseen: somebody else may have made it.
        if folder.parent.stat().st_uid != os.geteuid():
            continue
        if not chosen:
            folder.parent.chmod(0o755)
        if user:
            shutil.chown(folder, user)
        if reachable(folder, user):
            return folder
        folder.rmdir()
    raise PostgresError(f"the user {user or os.geteuid()} can write to no folder for the data; choose one by --data")


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Two that start at once start one server."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(handle)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PostgresError as error:
        sys.exit(f"script/services: {error}")
