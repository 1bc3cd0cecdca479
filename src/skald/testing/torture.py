"""Torture of a log's order: appenders that stall, abort, are killed and overlap, and a reader that must miss nothing.

    report = await torture(rig, seed=7)
    assert not report.violations

Several processes append for a second or so: groups of units, transactions that stall and then commit or abort, ones
that wrote elsewhere first and append to a stream after a later one did, ones whose savepoint takes an append back,
ones that die with ``kill -9`` between append and commit, and whatever else the ``Rig`` of the store knows (prepared
transactions, lost connections). Meanwhile a reader follows the log, now and then from a new connection. Afterwards:

    nothing late     what a scan of the whole log finds is what the reader has seen, position by position
    streams          versions come as 1, 2, 3 … in the order of the positions
    kept             whatever was acknowledged is there, exactly once
    undone           whatever was rejected or rolled back is not
    live             once the writers are gone, the reader reaches the end
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import msgspec

from skald.errors import Rejection, SkaldError, StoreUnavailable
from skald.message import Record, child_traceparent, new_id, slot_of
from skald.store import Log, Store, Transaction
from skald.unit import Append, Tag, Unit

STREAMS = 5
STALL = 0.12
"""Seconds: the longest stall of a transaction."""


PATIENCE = 10
"""Seconds that the reader has to reach the end when nobody writes any more."""


class Rig(Protocol):
    """Where to torture. It is sent to other processes, so it must be importable and hold plain values."""

    notes: str
    """A statement with ``:n`` that writes into a table of the user's own."""

    def store(self) -> Store: ...

    def log(self) -> Log: ...

    async def build(self) -> None:
        """Makes the tables."""
        ...

    async def demolish(self) -> None: ...

    async def harm(self, store: Store, rng: random.Random) -> None:
        """Something bad from outside, once: a connection that is cut, for example."""
        ...

    async def special(self, tx: Transaction, record: Record, rng: random.Random) -> Callable[[], bool] | None:
        """The end of a transaction in a way that only this store has; returns how to settle it, or ``None``."""
        ...

    async def settle(self) -> None:
        """Ends what killed processes may have left open."""
        ...


class Report(msgspec.Struct):
    seed: int
    violations: list[str]
    records: int
    acknowledged: int
    killed: int
    reads: int
    seconds: float


def record(rng: random.Random) -> Record:
    id = new_id()
    key = f"k{rng.randrange(20)}"
    return Record(
        0, id, "torture", key, slot_of(key), "Tortured", 1, time.time_ns() // 1000, id, None,
        child_traceparent(None, id, id), b"{}",
    )  # fmt: skip


async def torture(rig: Rig, seed: int, *, writers: int = 3, seconds: float = 0.8, log: Log | None = None) -> Report:
    """One run. ``log`` replaces the reader under test."""
    began = time.monotonic()
    await rig.build()
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = await _Run(rig, seed, writers, seconds, Path(folder), log).run()
    finally:
        await rig.demolish()
    report.seconds = time.monotonic() - began
    return report


class _Run:
    def __init__(self, rig: Rig, seed: int, writers: int, seconds: float, folder: Path, log: Log | None) -> None:
        self._rig, self._seed, self._count, self._folder = rig, seed, writers, folder
        self._rng = random.Random(seed)
        self._log = log
        self._reader = Follower(rig, random.Random(seed + 1), log)
        self._seconds, self._killed, self._started = seconds, 0, 0

    async def run(self) -> Report:
        # The first process of all waits for the imports: the time of the run begins after them.
        first = self._process(_nothing)
        first.start()
        await asyncio.to_thread(first.join)
        end = time.monotonic() + self._seconds
        running = [self._start(end) for _ in range(self._count)]
        store = self._rig.store()
        await store.open()
        reading = asyncio.create_task(self._reader.run())
        harmed_at = time.monotonic() + self._rng.uniform(0.2, 0.8) * self._seconds
        try:
            while any(process.is_alive() for process in running):
                await asyncio.sleep(0.02)
                if time.monotonic() > harmed_at:
                    harmed_at = float("inf")
                    await self._rig.harm(store, self._rng)
                for place, process in enumerate(running):
                    if process.exitcode == -signal.SIGKILL and time.monotonic() < end:
                        self._killed += 1
                        running[place] = self._start(end)
            await self._rig.settle()
            violations = await self._finish(reading)
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            await store.close()
            await self._reader.close()
        failed = [p.exitcode for p in running if p.exitcode not in (0, -signal.SIGKILL)]
        violations += [f"a writer ended with {code}: {self._folder_text()}" for code in failed]
        return Report(
            self._seed, violations, len(self._reader.positions), len(self._told("+")), self._killed,
            self._reader.reads, 0,
        )  # fmt: skip

    def _start(self, end: float) -> BaseProcess:
        self._started += 1
        name = self._folder / f"{self._started}"
        process = self._process(_write, self._rig, self._seed * 1_000 + self._started, end, str(name))
        process.start()
        return process

    def _process(self, target: Callable[..., None], *arguments: Any) -> BaseProcess:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, type(self._rig).__module__])
        return context.Process(target=target, args=arguments, daemon=True)

    async def _finish(self, reading: asyncio.Task[None]) -> list[str]:
        log = self._rig.log()
        await log.open()
        try:
            end, _ = await log.end()
            reached = asyncio.create_task(self._reader.reach(end))
            await asyncio.wait([reached, reading], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            reached.cancel()
            if reading.done():
                reading.result()
            violations = list(self._reader.violations)
            if self._reader.position < end:
                violations.append(f"live: the reader stands at {self._reader.position}, the end is {end}")
            everything: list[Record] = []
            while batch := await log.read(everything[-1].position + 1 if everything else 0, 10_000):
                everything += batch
        finally:
            await log.close()
        return violations + self._compare(everything)

    def _compare(self, everything: list[Record]) -> list[str]:
        violations = []
        seen = set(self._reader.positions)
        late = [r.position for r in everything if r.position not in seen and r.position <= self._reader.position]
        if late:
            violations.append(f"nothing late: {len(late)} positions appeared below the reader: {late[:5]}")
        if gone := seen - {r.position for r in everything}:
            violations.append(f"nothing late: {len(gone)} positions that were read are gone: {sorted(gone)[:5]}")
        ids = [r.id for r in everything]
        if len(set(ids)) < len(ids):
            violations.append(f"kept: {len(ids) - len(set(ids))} records are there twice")
        if lost := self._told("+") - set(ids):
            violations.append(f"kept: {len(lost)} acknowledged records are lost: {sorted(lost)[:3]}")
        if risen := self._told("-") & set(ids):
            violations.append(f"undone: {len(risen)} records that were rolled back are there: {sorted(risen)[:3]}")
        return violations

    def _told(self, sign: str) -> set[str]:
        lines = [line for file in self._folder.iterdir() for line in file.read_text().splitlines()]
        return {line[1:] for line in lines if line.startswith(sign) and len(line) == 37}

    def _folder_text(self) -> str:
        return " | ".join(
            line for file in self._folder.iterdir() for line in file.read_text().splitlines() if line[:1] == "!"
        )


class Follower:
    """A reader that remembers every position, and checks streams as it goes."""

    def __init__(self, rig: Rig, rng: random.Random, log: Log | None = None) -> None:
        self._rig, self._rng, self._given = rig, rng, log
        self._log: Log | None = None
        self.position = 0
        self.positions: list[int] = []
        self.violations: list[str] = []
        self.reads = 0
        self._moved = asyncio.Event()
        self._versions: dict[str, int] = {}

    async def run(self) -> None:
        while True:
            if self._log is None:
                self._log = self._given or self._rig.log()
                await self._log.open()
            try:
                batch = await self._log.read(self.position + 1, self._rng.choice((1, 7, 100, 1_000)))
            except SkaldError:
                batch = []  # its connection was cut
            self.reads += 1
            for found in batch:
                self._take(found)
            if self._rng.random() < 0.02:
                await self.close()  # a reader that restarts where it stood
            await asyncio.sleep(0 if batch else 0.001)

    async def close(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            await log.close()

    async def reach(self, position: int) -> None:
        while self.position < position:
            self._moved.clear()
            await self._moved.wait()

    def _take(self, found: Record) -> None:
        if found.position <= self.position:
            self.violations.append(f"nothing late: {found.position} came after {self.position}")
        self.position = found.position
        self._moved.set()
        self.positions.append(found.position)
        if found.stream is not None:
            before = self._versions.get(found.stream, 0)
            if found.stream_version != before + 1:
                self.violations.append(
                    f"streams: {found.stream} has version {found.stream_version} after {before}, at {found.position}"
                )
            self._versions[found.stream] = found.stream_version or 0


# --- a writing process ------------------------------------------------------------------------------------------------


class _Undo(Exception):
    """Rolls a transaction back on purpose."""


class Writer:
    def __init__(self, rig: Rig, seed: int, end: float, path: str) -> None:
        self._rig, self._rng, self._end = rig, random.Random(seed), end
        self._told = open(path, "a", buffering=1)  # noqa: SIM115 - as long as the process
        self._settling: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        store = self._rig.store()
        while True:
            try:
                await store.open()
                break
            except StoreUnavailable:  # cut while it connected
                if time.monotonic() > self._end:
                    return
        try:
            await asyncio.gather(*(self._loop(store) for _ in range(3)))
        finally:
            await store.close()
            self._told.close()

    async def _loop(self, store: Store) -> None:
        acts = (
            self._groups,
            self._groups,
            self._stalled,
            self._early,
            self._taken_back,
            self._special,
            self._cancelled,
        )
        while time.monotonic() < self._end:
            try:
                await self._rng.choice(acts)(store)
            except SkaldError:
                await asyncio.sleep(0.01)  # lost a connection, or somebody else was first: outcome not told

    def _tell(self, sign: str, *records: Record) -> None:
        self._told.write("".join(f"{sign}{r.id}\n" for r in records))

    def _stream(self) -> str:
        return f"s{self._rng.randrange(STREAMS)}"

    async def _groups(self, store: Store) -> None:
        """Commits a group of units of all kinds."""
        rng = self._rng
        units = [Unit(events=tuple(record(rng) for _ in range(rng.randint(1, 3)))) for _ in range(rng.randint(0, 8))]
        stream, tag = self._stream(), f"t{rng.randrange(3)}"
        version = (await store.log.versions([f"stream:{stream}"]))[f"stream:{stream}"]
        expected = rng.choice((None, version))
        units.append(Unit(appends=(Append(stream, (record(rng),), expected),), messages=(record(rng),)))
        units.append(
            Unit(
                appends=(Append(f"new-{new_id()}", (record(rng), record(rng)), 0),),
                tags=(Tag(tag, bump=True),),
            )
        )
        rng.shuffle(units)
        outcomes = await store.commit(units, patient=rng.random() < 0.2)
        for unit, outcome in zip(units, outcomes, strict=True):
            self._tell("-" if isinstance(outcome, Rejection) else "+", *_records(unit))

    async def _stalled(self, store: Store) -> None:
        """A transaction that stalls after its append, and then commits, aborts or dies."""
        rng = self._rng
        mine = [record(rng), record(rng)]
        fate = rng.random()
        try:
            async with store.transaction() as tx:
                await self._append(tx, mine[0], rng.choice((self._stream(), f"new-{new_id()}", None)))
                await asyncio.sleep(rng.uniform(0, STALL))
                await self._append(tx, mine[1], None)
                if fate < 0.02:
                    os.kill(os.getpid(), signal.SIGKILL)
                if fate < 0.4:
                    raise _Undo
        except (_Undo, Rejection):
            self._tell("-", *mine)
        else:
            self._tell("+", *mine)

    async def _early(self, store: Store) -> None:
        """Writes elsewhere first, and appends to a stream after somebody else has: low in time, high in the stream."""
        rng, stream = self._rng, self._stream()
        first, last = record(rng), record(rng)
        try:
            async with store.transaction() as tx:
                await tx.execute(self._rig.notes, n=rng.randrange(1_000_000))
                (outcome,) = await store.commit([Unit(appends=(Append(stream, (first,)),))])
                self._tell("-" if isinstance(outcome, Rejection) else "+", first)
                await asyncio.sleep(rng.uniform(0, STALL / 2))
                await self._append(tx, last, stream)
        except Rejection:
            self._tell("-", last)
        else:
            self._tell("+", last)

    async def _taken_back(self, store: Store) -> None:
        """A savepoint takes an append back; the transaction then appends again."""
        rng = self._rng
        undone, kept = record(rng), record(rng)
        try:
            async with store.transaction() as tx:
                with contextlib.suppress(_Undo):
                    async with tx.savepoint():
                        await self._append(tx, undone, None)
                        raise _Undo
                await asyncio.sleep(rng.uniform(0, STALL / 2))
                await self._append(tx, kept, None)
        except Rejection:
            self._tell("-", kept)
        else:
            self._tell("+", kept)
        self._tell("-", undone)

    async def _special(self, store: Store) -> None:
        rng, mine = self._rng, record(self._rng)
        async with store.transaction() as tx:
            settle = await self._rig.special(tx, mine, rng)
        if settle is not None and settle():
            self._tell("+", mine)

    async def _cancelled(self, store: Store) -> None:
        """Nobody waits for the answer; it is there whole or not at all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rng.uniform(0, 0.003)):
                await store.commit([Unit(events=(record(self._rng), record(self._rng)))])

    async def _append(self, tx: Transaction, one: Record, stream: str | None) -> None:
        await tx.apply(Unit(events=(one,)) if stream is None else Unit(appends=(Append(stream, (one,)),)))


def _records(unit: Unit) -> list[Record]:
    return [*unit.events, *(r for append in unit.appends for r in append.records), *unit.messages]


def _nothing() -> None:
    pass


def _write(rig: Rig, seed: int, end: float, path: str) -> None:
    writer = Writer(rig, seed, end, path)
    try:
        asyncio.run(writer.run())
    except BaseException as error:
        with open(path, "a") as told:
            told.write(f"!{type(error).__name__}: {error}\n")
        raise
