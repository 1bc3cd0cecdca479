"""The customer's page in a real browser, on a phone and on a desk: what a person sees from the click to the outcome."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.acceptance.test_shop_demo import serving

pytestmark = pytest.mark.browser

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
OUTCOME = 30_000
"""Milliseconds that an order may take on a loaded machine."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("shop"), "--orders", "0") as (_, printed):
        yield re.findall(r"http://127\.0\.0\.1:\d+", "\n".join(printed))[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "script/test --browser installs chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(params=[(390, 844), (1280, 800)], ids=["phone", "desk"])
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.fill("#customer", f"{request.node.name}@example.com")
    expect(page.locator("#articles input").first).to_be_visible()
    yield page
    context.close()
    assert errors == []


def order(page: Page, card: str) -> None:
    page.select_option("#card", card)
    page.click("#send")


def test_an_order_is_confirmed_before_ones_eyes(page: Page, tmp_path: Path) -> None:
    order(page, "card-ok")
    expect(page.locator("#status")).to_have_text("Confirmed", timeout=OUTCOME)
    for step in ("Payment", "Inventory", "Shipping"):
        expect(page.locator("#steps li", has_text=step)).to_contain_text("done")
    expect(page.locator("#orders li").first).to_contain_text("Confirmed")
    # Nothing may stick out of a phone's screen.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert len(page.screenshot(path=tmp_path / "confirmed.png")) > 10_000


def test_a_declined_card_says_why(page: Page) -> None:
    order(page, "card-declined")
    expect(page.locator("#status")).to_have_text("Cancelled", timeout=OUTCOME)
    expect(page.locator("#reason")).to_contain_text("declined")
    expect(page.locator("#steps li", has_text="Payment")).to_contain_text("failed")


def test_what_is_sold_out_is_paid_back(page: Page) -> None:
    page.locator("#articles input").first.fill("0")
    page.locator(".article", has_text="sold out").locator("input").first.fill("1")
    order(page, "card-ok")
    expect(page.locator("#status")).to_have_text("Cancelled", timeout=OUTCOME)
    expect(page.locator("#steps li", has_text="Inventory")).to_contain_text("failed")
    expect(page.locator("#steps li", has_text="Payment")).to_contain_text("undone")


def test_a_confirmed_order_can_be_cancelled(page: Page) -> None:
    order(page, "card-ok")
    expect(page.locator("#cancel")).to_be_visible(timeout=OUTCOME)
    page.click("#cancel")
    expect(page.locator("#status")).to_have_text("Cancelled", timeout=OUTCOME)
    expect(page.locator("#steps li", has_text="Payment")).to_contain_text("undone")


def test_an_empty_order_is_refused_with_a_sentence(page: Page) -> None:
    page.locator("#articles input").first.fill("0")
    order(page, "card-ok")
    expect(page.locator("#refused")).to_have_text("Choose at least one article.")


def test_two_clicks_are_one_order(page: Page) -> None:
    page.evaluate("document.getElementById('form').requestSubmit(); document.getElementById('form').requestSubmit()")
    expect(page.locator("#status")).to_have_text("Confirmed", timeout=OUTCOME)
    expect(page.locator("#orders li")).to_have_count(1)
