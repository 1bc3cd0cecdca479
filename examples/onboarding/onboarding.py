"""The workflow: an e-mail address is verified with a code, then letters follow every three days until the user acts.

The user is the business key: whoever knows that "ada" was active signals her workflow, without knowing its id.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from enum import StrEnum
from pathlib import Path

import msgspec

from examples.onboarding.mailbox import Mailbox
from skald import Backoff, step, workflow, workflows
from skald.workflows import Query, Signal

mailbox = Mailbox(Path(os.environ.get("ONBOARDING_MAILBOX", ".skald/onboarding-mails.jsonl")))

DAY = 86_400.0
ATTEMPTS = 3
LETTERS = ("Three things to try first", "What others do with it", "May we help you?")


class Signup(msgspec.Struct, frozen=True):
    user: str
    email: str
    day: float = DAY
    """Seconds that a day has: take few of them when you try this out."""


class Stage(StrEnum):
    VERIFYING = "verifying"
    VERIFIED = "verified"
    LOCKED = "locked"
    EXPIRED = "expired"
    ACTIVE = "active"
    DORMANT = "dormant"


class State(msgspec.Struct):
    stage: Stage
    attempts_left: int
    letters: int = 0


code = Signal("code", str)
"""What the user has typed."""
activated = Signal("activated", str)
"""What the user has done."""
state = Query("state", State)


@step
def draw_code() -> str:
    """A step, because a replay must not draw another one; and not ``workflows.random()``, which can be foretold."""
    return f"{secrets.randbelow(1_000_000):06}"


@step(retry=Backoff(first=1, longest=3_600, attempts=30))
async def send(to: str, text: str) -> None:
    """Any attempt may have sent it without our knowing; the key is the same for all of them."""
    await mailbox.send(workflows.attempt().key, to, text)


@workflow
async def onboard(signup: Signup) -> Stage:
    now = State(Stage.VERIFYING, ATTEMPTS)
    state.answered_by(lambda: now)
    now.stage = await verified(signup, now)
    if now.stage == Stage.VERIFIED:
        await send(signup.email, "Welcome!")
        now.stage = await accompanied(signup, now)
    return now.stage


async def verified(signup: Signup, now: State) -> Stage:
    right = await draw_code()
    await send(signup.email, f"Your code is {right}")
    try:
        async with asyncio.timeout(signup.day):
            while now.attempts_left:
                if await code.receive() == right:
                    return Stage.VERIFIED
                now.attempts_left -= 1
    except TimeoutError:
        return Stage.EXPIRED
    await send(signup.email, "Your code was entered wrongly three times: please sign up again")
    return Stage.LOCKED


async def accompanied(signup: Signup, now: State) -> Stage:
    for letter in LETTERS:
        try:
            async with asyncio.timeout(3 * signup.day):
                await activated.receive()
            return Stage.ACTIVE
        except TimeoutError:
            await send(signup.email, letter)
            now.letters += 1
    return Stage.ACTIVE if activated.received() else Stage.DORMANT
