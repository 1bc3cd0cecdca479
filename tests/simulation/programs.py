"""Random programs: source -> middle -> sink with handlers, failures and sizes that a seed decides.

Everything that a handler does follows from the seed and its message, so that every process of the program, and the test
that checks it, know the same. Processes are forked from one that has imported everything (``Nursery``): a random
program needs many short lives.

    python -m tests.simulation.programs      the nursery; a JSON line for each child on standard input, its id back
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from skald import NEVER, App, Attempt, Retry, RuntimeSettings, Service, Transaction, failpoints
from skald.cli.running import serve
from skald.messaging.consumer import ConsumerSettings
from tests.simulation.stage import MIGRATIONS, Job, Made, Placed, effect

HANDLERS = ("relay", "table", "picky", "work")
SETTINGS = RuntimeSettings(lease=2.0, consumer=ConsumerSettings(patience=0.02, poll=0.1, checkpoint=0.05, run=20))


class Refused(Exception):
    pass


class Program(msgspec.Struct, frozen=True):
    seed: int
    handlers: list[str]
    lanes: int
    sink_lanes: int
    keys: list[str]
    rounds: int
    immediate: int
    workers: int

    @property
    def jobs(self) -> list[str]:
        return ["j0", "j1", "j2"] if "work" in self.handlers else []

    def failures(self, handler: str, key: str, n: int) -> int:
        """How many attempts at this message fail."""
        return random.Random(f"{self.seed} {handler} {key} {n}").choice([0, 0, 0, 0, 0, 0, 1, 2, 3])

    def refuses(self, key: str, n: int) -> bool:
        """Whether ``picky`` parks it, until it is mended."""
        return random.Random(f"{self.seed} {key} {n}").random() < 0.08

    def stuck(self) -> dict[str, int]:
        """Keys that ``picky`` parks, with the first number."""
        if "picky" not in self.handlers:
            return {}
        refused = {key: [n for n in range(self.rounds) if self.refuses(key, n)] for key in self.keys}
        return {key: numbers[0] for key, numbers in refused.items() if numbers}


def program(seed: int) -> Program:
    rng = random.Random(seed)
    handlers = sorted(rng.sample(HANDLERS, rng.randint(1, len(HANDLERS))))
    return Program(
        seed=seed,
        handlers=handlers,
        lanes=rng.choice([1, 2, 4, 8]),
        sink_lanes=rng.choice([1, 3]),
        keys=[f"k{n}" for n in range(rng.randint(1, 12))],
        rounds=rng.randint(2, 8),
        immediate=rng.randint(1, 3),
        workers=rng.randint(1, 4),
    )


def build(url: str, p: Program, mended: Path) -> App:
    retry = Retry(immediate=p.immediate, delays=(0.02,) * 30)
    source = Service("source", publishes=[Placed, Job] if "work" in p.handlers else [Placed])
    middle = Service("middle", publishes=[Made], migrations=MIGRATIONS, lanes=p.lanes)
    sink = Service("sink", migrations=MIGRATIONS, lanes=p.sink_lanes)

    def fail(handler: str, key: str, n: int, attempt: Attempt) -> None:
        if attempt.number <= p.failures(handler, key, n):
            raise ValueError(f"attempt {attempt.number} fails")

    if "relay" in p.handlers:

        @middle.on(Placed, retry=retry)
        async def relay(event: Placed, attempt: Attempt) -> Made:
            await asyncio.sleep(0)
            fail("relay", event.key, event.n, attempt)
            return Made(event.key, event.n)

    if "table" in p.handlers:

        @middle.on(Placed, retry=retry)
        async def table(event: Placed, tx: Transaction, attempt: Attempt) -> None:
            await effect(tx, "table", f"{event.key}:{event.n}", event.key, event.n)
            fail("table", event.key, event.n, attempt)

    if "picky" in p.handlers:

        @middle.on(Placed, retry={Refused: NEVER, "*": retry})
        async def picky(event: Placed, tx: Transaction) -> None:
            if p.refuses(event.key, event.n) and not mended.exists():
                raise Refused
            await effect(tx, "picky", f"{event.key}:{event.n}", event.key, event.n)

    if "work" in p.handlers:

        @middle.queue(Job, retry=retry, workers=p.workers)
        async def work(job: Job, tx: Transaction, attempt: Attempt) -> None:
            await effect(tx, "work", f"{job.key}:{job.n}", f"{job.key}:{job.n}", 0)
            fail("work", job.key, job.n, attempt)

    @sink.on(Made, retry=retry)
    async def made(event: Made, tx: Transaction, attempt: Attempt) -> None:
        await effect(tx, "made", f"{event.key}:{event.n}", event.key, event.n)
        fail("made", event.key, event.n, attempt)

    return App(source, middle, sink, store=url, settings=SETTINGS)


# --- the nursery ------------------------------------------------------------------------------------------------------


class Nursery:
    """Starts processes of programs; all are ended with the block of ``nursery``."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self.log = process, log
        self.children: dict[int, str] = {}

    def start(self, seed: int, url: str, mended: Path, service: str, failpoint: str | None) -> int:
        told = {"seed": seed, "url": url, "mended": str(mended), "service": service, "failpoint": failpoint}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        self.children[pid] = service
        return pid

    def dead(self) -> list[int]:
        return [pid for pid in self.children if not _is_alive(pid)]

    def ask(self) -> None:
        """Has every child write down in the log what it does."""
        for pid in self.children:
            send(pid, signal.SIGUSR1)

    def end(self) -> None:
        """Of all children; the nursery stays."""
        for pid in list(self.children):
            send(pid, signal.SIGKILL)
            del self.children[pid]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def nursery(log: Path) -> Iterator[Nursery]:
    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", "tests.simulation.programs"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        ) as process,
    ):
        found = Nursery(process, log)
        try:
            yield found
        finally:
            found.end()
            process.kill()


def main() -> None:
    # Nobody waits for the children, so that their ids are free as soon as they are dead.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        told = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _live(told)
        print(pid, flush=True)


def _live(told: dict[str, Any]) -> None:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        if told["failpoint"]:
            failpoints.hit = failpoints._armed(told["failpoint"])
        app = build(told["url"], program(told["seed"]), Path(told["mended"]))
        asyncio.run(_serve(app, told["service"]))
    finally:
        os._exit(0)


async def _serve(app: App, service: str) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _show_tasks)
    await serve(app, [service], migrate=False)


def _show_tasks() -> None:
    """To see what a process waits for whose program does not end."""
    print(f"--- tasks of process {os.getpid()}", flush=True)
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stdout)
    faulthandler.dump_traceback(sys.stdout)


if __name__ == "__main__":
    main()
