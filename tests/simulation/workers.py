"""Processes of the pipeline's services, each as ``skald run`` makes them; all are ended with the block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from skald import App, Service
from skald.cli.running import EXIT_LOST
from tests.simulation.pipeline import Options
from tests.simulation.stage import caught_up, check_effects, cursors, deliveries, effects, eventually

ROOT = Path(__file__).parents[2]
KILLED = -signal.SIGKILL


class Worker:
    """``log`` is where its standard error goes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, service: str) -> None:
        self.process, self.log, self.service = process, log, service

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def logged(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    async def is_running(self) -> None:
        """Returns when it runs; a process that ended before is a failure, with its last lines."""

        async def check() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            return self.logged("running: ")

        await eventually(check)

    async def exit_code(self) -> int:
        async def has_ended() -> bool:
            return self.process.poll() is not None

        await eventually(has_ended)
        return self.process.returncode


class Workers:
    def __init__(self, folder: Path, url: str, options: Options, app: str) -> None:
        self._folder, self._url, self._options, self._app = folder, url, options, app
        self.all: list[Worker] = []

    def start(self, *services: str, environment: Mapping[str, str] | None = None) -> Worker:
        self._folder.mkdir(exist_ok=True)
        log = self._folder / f"{len(self.all)}-{'-'.join(services)}.log"
        command = [sys.executable, "-m", "skald", "run", self._app]
        for service in services:
            command += ["--service", service]
        variables = {
            **os.environ,
            "SKALD_STORE": self._url,
            "PIPELINE": msgspec.json.encode(self._options).decode(),
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environment or {}),
        }
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=file, stderr=file)
        self.all.append(Worker(process, log, services[0]))
        return self.all[-1]

    def restart_the_dead(self, environment: Mapping[str, str] | None = None) -> int:
        """As a supervisor would: one for each that was killed or lost its work. Returns how many."""
        dead = [worker for worker in self.all if worker.process.poll() in (KILLED, EXIT_LOST)]
        for worker in dead:
            self.all.remove(worker)
            self.start(worker.service, environment=environment)
        return len(dead)

    def end(self) -> None:
        for worker in self.all:
            if worker.process.poll() is None:
                worker.send(signal.SIGKILL)
            worker.process.wait()


@contextmanager
def workers(folder: Path, url: str, options: Options, app: str = "tests.simulation.pipeline:app") -> Iterator[Workers]:
    started = Workers(folder / "logs", url, options, app)
    try:
        yield started
    finally:
        started.end()


# --- checks -----------------------------------------------------------------------------------------------------------


async def owners_of(service: Service, count: int) -> set[str]:
    """The owners of all lanes, once there are so many and no lane is without."""
    found = {row["owner"] for row in await cursors(service)}
    return found if None not in found and len(found) == count else set()


async def is_done(app: App) -> bool:
    """Everything is handled, and nothing is on its way."""
    source, middle, sink = (app.service(name) for name in ("source", "middle", "sink"))
    for service in (middle, sink):
        left = await deliveries(service)
        assert not left, f"{service.name}: {left[:3]} and more, {len(left)} deliveries"
    assert await caught_up(middle, source), (await cursors(middle), await source.store.log.end())
    assert await caught_up(sink, middle), await cursors(sink)
    return True


async def check_pipeline(
    app: App, expected: Mapping[str, int], jobs: Mapping[str, int] | None = None, *, crew: Workers | None = None
) -> None:
    """With ``crew``, whoever has died or lost its work is started again meanwhile."""

    async def done() -> bool:
        if crew is not None:
            crew.restart_the_dead()
        return await is_done(app)

    await eventually(done)
    middle, sink = app.service("middle"), app.service("sink")
    check_effects(await effects(middle, "table"), dict(expected))
    check_effects(await effects(sink, "made"), dict(expected))
    each = {f"{key}:{n}": 1 for key, count in (jobs or {}).items() for n in range(count)}
    check_effects(await effects(middle, "work"), each)
