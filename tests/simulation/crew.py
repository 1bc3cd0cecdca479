"""Two workers of a random program, or what is left of them: killed, ended, stopped for longer than their lease."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from skald.testing.failpoints import kill_at
from tests.simulation.workers import ROOT

LEASE = 1.0
"""Of the workers, in seconds."""
RUNNING = "running"
"""What a worker prints when it runs."""
USUAL = 1.0
"""Seconds that this takes it, mostly."""


class Crew:
    """``module`` is run as a program, with the URL and the ledger; ``places`` are where some are killed."""

    def __init__(self, module: str, places: Sequence[str], url: str, folder: Path, seed: int) -> None:
        self._module, self._places = module, places
        self._url, self._folder, self.rng = url, folder, random.Random(f"fate {seed}")
        self._workers: list[subprocess.Popen[bytes]] = []
        self._stopped: set[int] = set()
        self._logs: dict[int, Path] = {}
        self._started, self._pace = 0, 1.0
        self.deaths = 0
        self._blow = asyncio.Event()

    def start(self, *, armed: bool = True) -> None:
        self._started += 1
        path = self._folder / f"worker-{self._started}.log"
        with path.open("wb") as log:
            command = [sys.executable, "-m", self._module, self._url, str(self._folder / "ledger")]
            failpoint = {}
            if armed and self.rng.random() < 0.5:
                self.deaths += 1
                failpoint = kill_at(self.rng.choice(self._places), self.rng.randint(1, 30))
            process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log, env={**os.environ, **failpoint})
            self._workers.append(process)
            self._logs[process.pid] = path

    def refill(self, *, armed: bool = True) -> None:
        """Starts others for those that have ended; one that was not killed may have lost its lease while stopped."""
        for worker in [worker for worker in self._workers if worker.poll() is not None]:
            self._workers.remove(worker)
            self._stopped.discard(worker.pid)
        while len(self._workers) < 2:
            self.start(armed=armed)

    def _running(self) -> list[subprocess.Popen[bytes]]:
        """Those that are killed or stopped: whoever still starts would get nowhere on a slow machine."""
        return [one for one in self._workers if RUNNING in self._logs[one.pid].read_text(errors="replace")]

    async def _one_runs(self) -> None:
        began = time.monotonic()
        while not self._running():
            self.refill()
            await asyncio.sleep(0.05)  # sleep: between two looks
            self._pace = max(1.0, (time.monotonic() - began) / USUAL)

    async def trouble(self) -> None:
        """For ever."""
        while True:
            await self._one_runs()
            await asyncio.sleep(self.rng.uniform(0.2, 1.5) * self._pace)  # sleep: between two blows
            self.refill()
            self._blow, blow = asyncio.Event(), self._blow
            blow.set()
            if not (running := self._running()):
                continue
            worker = self.rng.choice(running)
            match self.rng.choice(["kill", "kill", "kill", "end", "stop"]):
                case "kill":
                    self.deaths += 1
                    worker.kill()
                case "end":
                    worker.terminate()
                case "stop" if worker.pid not in self._stopped:
                    self._stopped.add(worker.pid)
                    worker.send_signal(signal.SIGSTOP)
                    try:
                        await asyncio.sleep(LEASE * self.rng.uniform(0.5, 2.0))  # sleep: it is a zombie now, or nearly
                    finally:
                        worker.send_signal(signal.SIGCONT)
                        self._stopped.discard(worker.pid)
            self.refill()

    def kill_one(self) -> None:
        self.deaths += 1
        self.rng.choice(self._workers).kill()

    def stop_one(self) -> subprocess.Popen[bytes]:
        """Stopped, and not ended: for its successors a silent process."""
        worker = self.rng.choice(self._workers)
        worker.send_signal(signal.SIGSTOP)
        return worker

    async def after(self, blows: int) -> None:
        """Returns when so many more blows have come."""
        for _ in range(blows):
            await self._blow.wait()

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()

    def logs(self) -> str:
        found = [path.read_text(errors="replace")[-1500:] for path in sorted(self._folder.glob("worker-*.log"))]
        return "\n".join(text for text in found if "Traceback" in text or "ERROR" in text)
