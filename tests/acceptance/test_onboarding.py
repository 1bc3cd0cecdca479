"""The onboarding example: codes, expiry, letters that stop when the user acts, and no letter twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

import pytest

from examples.onboarding import onboarding
from examples.onboarding.app import onboarding as service
from examples.onboarding.mailbox import Mailbox
from examples.onboarding.onboarding import LETTERS, Signup, Stage, State, activated, code, onboard, state
from skald.testing.workflows import Lab, crash_everywhere

pytest_plugins = ["skald.testing.plugin"]
NewLab = Callable[..., AbstractAsyncContextManager[Lab]]

ADA = Signup("ada", "ada@example.com")
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Mailbox:
    mailbox = Mailbox()
    monkeypatch.setattr(onboarding, "mailbox", mailbox)
    return mailbox


def texts(mailbox: Mailbox) -> list[str]:
    return [mail.text for mail in mailbox.sent.values() if mail.to == ADA.email]


def mailed_code(mailbox: Mailbox) -> str:
    return texts(mailbox)[0].removeprefix("Your code is ")


async def sign_up(lab: Lab, mailbox: Mailbox, *typed: str) -> None:
    """Up to where the given codes were typed; "right" stands for the one in the mail."""
    await onboard.start(ADA, id="onboard ada", key="ada")
    await lab.settle()
    for one in typed:
        await service.signal(code, mailed_code(mailbox) if one == "right" else one, key="ada")
        await lab.settle()


@pytest.mark.parametrize("idle", [0.0, 3_600.0])
async def test_letters_come_every_three_days(workflow_lab: NewLab, mailbox: Mailbox, idle: float) -> None:
    async with workflow_lab(service, idle=idle) as lab:
        await sign_up(lab, mailbox, "wrong", "right")
        handle = onboard.handle("onboard ada")
        assert texts(mailbox)[1:] == ["Welcome!"]
        for n in range(3):
            await lab.advance(3 * DAY - 2 * SECOND)
            assert texts(mailbox)[2:] == list(LETTERS[:n])
            await lab.advance(3 * SECOND)
            assert texts(mailbox)[2:] == list(LETTERS[: n + 1])
        assert await handle.result() == Stage.DORMANT
        assert await handle.query(state) == State(Stage.DORMANT, 2, 3)


@pytest.mark.parametrize("days", range(9))
async def test_they_stop_as_soon_as_the_user_acts(workflow_lab: NewLab, mailbox: Mailbox, days: int) -> None:
    async with workflow_lab(service) as lab:
        await sign_up(lab, mailbox, "right")
        await lab.advance(days * DAY + SECOND)
        await service.signal(activated, "made a project", key="ada")
        assert await lab.result(onboard.handle("onboard ada")) == Stage.ACTIVE
        await lab.advance(30 * DAY)
        assert texts(mailbox)[2:] == list(LETTERS[: days // 3])


async def test_who_acts_before_the_code_is_verified_gets_no_letter(workflow_lab: NewLab, mailbox: Mailbox) -> None:
    async with workflow_lab(service) as lab:
        await service.signal(activated, "clicked around", key="ada")
        await sign_up(lab, mailbox, "right")
        assert await onboard.handle("onboard ada").result() == Stage.ACTIVE
        assert texts(mailbox)[1:] == ["Welcome!"]


@pytest.mark.parametrize("wrong", [0, 1, 2, 3])
async def test_three_attempts(workflow_lab: NewLab, mailbox: Mailbox, wrong: int) -> None:
    async with workflow_lab(service) as lab:
        await sign_up(lab, mailbox, *["no"] * wrong)
        found = await onboard.handle("onboard ada").query(state)
        assert found == State(Stage.LOCKED if wrong == 3 else Stage.VERIFYING, 3 - wrong)
        if wrong == 3:
            assert await onboard.handle("onboard ada").result() == Stage.LOCKED
            assert "three times" in texts(mailbox)[1]


async def test_a_code_expires(workflow_lab: NewLab, mailbox: Mailbox) -> None:
    async with workflow_lab(service) as lab:
        await sign_up(lab, mailbox, "wrong")
        await lab.advance(DAY - SECOND)
        handle = onboard.handle("onboard ada")
        assert (await handle.query(state)).stage == Stage.VERIFYING
        await lab.advance(2 * SECOND)
        assert await handle.result() == Stage.EXPIRED
        assert len(texts(mailbox)) == 1
        # The business key is free again, and another sign-up has another code.
        await onboard.start(ADA, id="onboard ada 2", key="ada")
        await lab.settle()
        assert len(texts(mailbox)) == 2


async def test_a_mail_service_that_sends_and_does_not_answer(
    workflow_lab: NewLab, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    async def send(key: str, to: str, text: str) -> None:
        await Mailbox.send(mailbox, key, to, text)
        calls.append(text)
        if calls.count(text) < 4:
            raise ConnectionError("no answer")

    monkeypatch.setattr(mailbox, "send", send)
    async with workflow_lab(service) as lab:
        handle = await onboard.start(ADA, id="onboard ada", key="ada")
        await lab.advance(3600)
        await handle.signal(code, mailed_code(mailbox))
        assert await lab.result(handle) == Stage.DORMANT
        assert texts(mailbox)[1:] == ["Welcome!", *LETTERS]
        assert len(calls) == 4 * 5


async def test_no_letter_twice_whatever_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    mailboxes: dict[Lab, Mailbox] = {}

    async def scenario(lab: Lab) -> tuple[Stage, list[str]]:
        mailbox = mailboxes.setdefault(lab, Mailbox())
        monkeypatch.setattr(onboarding, "mailbox", mailbox)
        handle = await onboard.start(ADA, id="onboard ada", key="ada")
        await lab.settle()
        await handle.signal(code, mailed_code(mailbox))
        await lab.advance(7 * DAY)
        await service.signal(activated, "came back", key="ada")
        return await lab.result(handle), texts(mailbox)[1:]

    results = await crash_everywhere(scenario, service)
    assert len(results) > 2 * 9
    assert [result for result in results if result != (Stage.ACTIVE, ["Welcome!", *LETTERS[:2]])] == []
