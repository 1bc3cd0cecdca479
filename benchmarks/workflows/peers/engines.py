"""Peers that run as long as a block: each yields the child that runs orders as it is told."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.child import Channel, Child, Children
from benchmarks.harness.places import BENCH, Place
from benchmarks.workflows.peers.installed import Missing, python, restate_server

START_SECONDS = 60.0


@contextmanager
def dbos(place: Place) -> Iterator[Child]:
    program = python()
    url = place.fresh()
    with Children() as start:
        child = _on(program, start, "on_dbos:run", url=url)
        child.hear()
        yield child
    place.drop(url)


@contextmanager
def restate(place: Place) -> Iterator[Child]:
    """Its server keeps everything itself, on the same disk."""
    program, server = python(), restate_server()
    with Children() as start:
        service = _on(program, start, "on_restate:run").hear()["url"]
        with _serving(server, BENCH / "restate") as addresses:
            _post(f"{addresses['admin']}/deployments", uri=service)
            child = _on(program, start, "on_restate:call", **addresses)
            child.hear()
            yield child


@contextmanager
def _serving(program: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Its defaults are durable ones; only where it listens is said here, and that it shall not report home."""
    folder.mkdir()
    ports = dict(zip(("ingress", "admin", "node"), _free_ports(3), strict=True))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RESTATE_")},
        "RESTATE_BASE_DIR": str(folder),
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_ADVERTISED_HOST": "127.0.0.1",
        "RESTATE_BIND_PORT": str(ports["node"]),
        "RESTATE_INGRESS__BIND_PORT": str(ports["ingress"]),
        "RESTATE_ADMIN__BIND_PORT": str(ports["admin"]),
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "warn",
    }
    # The shell ends the server when its stdin is closed: by us, or because we are gone. Its data go with it.
    ends_with_us = '"$0" & read -r line; kill -9 $!; wait $!'
    log = folder / "log"
    with log.open("wb") as output:
        shell = subprocess.Popen(
            ["/bin/sh", "-c", ends_with_us, str(program)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    try:
        addresses = {name: f"http://127.0.0.1:{ports[name]}" for name in ("ingress", "admin")}
        _await(f"{addresses['admin']}/health", log)
        _await(f"{addresses['ingress']}/restate/health", log)
        yield addresses
    finally:
        assert shell.stdin is not None
        shell.stdin.close()
        shell.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _await(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines() or ["it has said nothing"]
                raise Missing(f"{url} does not answer; the server's last words: {said[-1]}") from error
            time.sleep(0.05)


def _post(url: str, **values: Any) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(values).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=START_SECONDS):
            return
    except OSError as error:
        raise Missing(f"{url}: {error}") from error


def _free_ports(count: int) -> list[int]:
    """All held until the last one is found, so that they differ."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def _on(program: Path, start: Children, peer: str, **options: Any) -> Child:
    whole = f"benchmarks.workflows.peers.{peer}"
    return start("benchmarks.workflows.peers.engines:become", program=str(program), peer=whole, options=options)


def become(channel: Channel, program: str, peer: str, options: dict[str, Any]) -> None:
    """Goes on as the same child on another Python, which its parent has told nothing yet."""
    os.execv(program, [program, "-m", "benchmarks.harness.child", peer, json.dumps(options)])
