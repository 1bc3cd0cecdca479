"""The lease of this process: a heartbeat on a thread of its own, and the watch over the others of its group.

The thread beats every third of the lease, and looks whether the event loop still turns: after one lease without a
turn it stops beating and names the frame that blocks, so that a process which cannot work does not keep its work.
Whoever sees that a member is gone (dead on this machine, or its lease has run out by the database's clock) takes over.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable

from skald.errors import SkaldError
from skald.runtime.process import is_gone
from skald.store import Member, Membership
from skald.telemetry import LoopStalled, Recovering, emit

WATCH = 0.25
"""Seconds between looks at the processes of this machine that are known to be members; costs no statement."""


class Lease:
    """``lease`` is in seconds. On the event loop, ``lost`` is called when another has taken over from this process, and
    ``seen`` with the living members, with the dead ones and how that is known, and with the loop's time before it
    looked."""

    def __init__(
        self,
        member: Member,
        membership: Callable[[], Membership],
        *,
        lease: float,
        lost: Callable[[], None],
        seen: Callable[[list[Member], list[tuple[Member, str]], float], None],
    ) -> None:
        self.member = member
        self._open, self._lease, self._lost, self._seen = membership, lease, lost, seen
        self._stop = threading.Event()
        self._joined = threading.Event()
        self._failed: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._turned = 0.0
        self._stalled = False
        self._done: deque[str] = deque()

    async def start(self) -> None:
        """Joins the group; returns once the lease is held."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._turned = self._loop.time()
        self._thread = threading.Thread(target=self._run, name="skald:lease", daemon=True)
        self._thread.start()
        await asyncio.to_thread(self._joined.wait)
        if self._failed is not None:
            raise self._failed

    async def stop(self) -> None:
        """Leaves the group. Legal before ``start`` and twice."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _run(self) -> None:
        try:
            membership = self._open()
            membership.join(self.member, self._lease)
        except BaseException as error:
            self._failed = error
            return
        finally:
            self._joined.set()
        try:
            self._watch(membership)
            membership.remove(self.member.id)
        except SkaldError:
            # Leaving is a courtesy: a lease that nobody prolongs runs out by itself.
            return
        finally:
            membership.close()

    def _watch(self, membership: Membership) -> None:
        assert self._loop is not None
        next_beat = next_look = self._loop.time()
        known: list[Member] = []
        while not self._stop.wait(WATCH):
            try:
                now = self._loop.time()
                if now >= next_beat:
                    next_beat = now + self._lease / 3
                    if not self._beat(membership):
                        return
                if now >= next_look or self._done or any(map(is_gone, known)):
                    known, soonest = self._look(membership)
                    # As soon as somebody's lease may have run out, and often enough to see who has joined.
                    next_look = now + min(soonest + WATCH, self._lease / 2)
            except (SkaldError, OSError) as error:
                emit(Recovering(self.member.group, "the heartbeat", str(error), WATCH))

    def _beat(self, membership: Membership) -> bool:
        assert self._loop is not None
        now = self._loop.time()
        self._loop.call_soon_threadsafe(self._turn)
        silent = now - self._turned
        if silent > self._lease:
            if not self._stalled:
                self._stalled = True
                frame = sys._current_frames().get(self._loop_thread)
                stack = "".join(traceback.format_stack(frame)) if frame else ""
                emit(LoopStalled(self.member.group, silent, stack))
            return True
        self._stalled = False
        if not membership.beat(self.member.id, self._lease):
            self._loop.call_soon_threadsafe(self._lost)
            return False
        return True

    def _turn(self) -> None:
        assert self._loop is not None
        self._turned = self._loop.time()

    def _look(self, membership: Membership) -> tuple[list[Member], float]:
        """Tells the event loop who is there and who is gone; returns the others that may still be alive, and after how
        many seconds the first of their leases may run out."""
        assert self._loop is not None
        while self._done:
            membership.remove(self._done.popleft())
        at = self._loop.time()
        now, members = membership.members(self.member.group)
        alive: list[Member] = []
        dead: list[tuple[Member, str]] = []
        for member in members:
            if member.id == self.member.id:
                alive.append(member)
            elif is_gone(member):
                dead.append((member, "its process is gone"))
            elif member.expires_at < now:
                dead.append((member, "its lease has run out"))
            else:
                alive.append(member)
        self._loop.call_soon_threadsafe(self._seen, alive, dead, at)
        others = [member for member in alive if member.id != self.member.id]
        return others, min([(member.expires_at - now) / 1e6 for member in others], default=self._lease)

    def forget(self, id: str) -> None:
        """Removes a member whose work has been taken over, at the next look."""
        self._done.append(id)
