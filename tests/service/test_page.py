"""The page as a person uses it, in a real browser, on the real service."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import CLIPS, local_service, shared_library

from songray.library import Library
from songray.service.options import IngressConfig

OPTIONS = ["--no-sandbox", "--enable-unsafe-swiftshader", "--autoplay-policy=no-user-gesture-required"]


@pytest.fixture(scope="module")
def indexed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return shared_library(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("the page is tested with chromium, which is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, indexed: Library) -> Iterator[Page]:
    """The page on a wide screen; at the end its console has shown no error."""
    problems: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    with local_service(indexed, IngressConfig()) as url:
        page.goto(url)
        expect(page.locator("#list > li")).to_have_count(CLIPS)
        yield page
        context.close()
    assert problems == []


def test_a_track_is_found_played_and_its_neighbours_are_listed(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("bjork 12")
    first = page.locator("#list > li").first
    expect(first.locator(".title")).to_have_text("Björk 12")
    first.locator(".title").click()
    expect(page.locator("#status")).to_have_text("Most similar to “Björk 12” by The Knife 3:")
    expect(page.locator("#list .similarity")).to_have_count(18)  # three of each artist
    page.get_by_role("button", name="Remove Björk 12", exact=True).click()
    expect(page.locator("#list > li")).to_have_count(CLIPS)
    page.get_by_role("button", name="Play Björk 12", exact=True).click()  # a file, with a range
    expect(page.locator("#player-title")).to_have_text("Björk 12 · The Knife 3")
    expect(page.locator("#player-time")).to_contain_text("/ 0:0")
    assert page.locator("#audio").evaluate("audio => audio.duration") > 1
