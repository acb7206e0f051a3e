"""Debian's Chromium, driven by Playwright; what a page said, asked and weighed is kept beside it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from page_site import PASSWORD, PageSite
from playwright.sync_api import Browser, Page, Response, sync_playwright

ROOT = Path(__file__).parent.parent
# Kept for people to look at; git ignores the folder.
SCREENSHOTS = ROOT / "artefacts" / "page"
AXE = ROOT / "build" / "npm" / "node_modules" / "axe-core" / "axe.min.js"
_WEIGHT = """[...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
  .filter((entry) => !/\\.(jpg|png|svg)$|\\/live\\//.test(entry.name))
  .reduce((sum, entry) => sum + entry.decodedBodySize, 0)"""
DESK, PHONE = (1440, 900), (390, 844)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run Debian's Chromium without a window."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Tab:
    """One page of the browser with what it said and asked for.

    Parameters
    ----------
    page
        Playwright's.
    said
        Errors and warnings of the console, and exceptions.
    asked
        Addresses of all requests.
    """

    site: PageSite
    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda m: self._hear(m.type, m.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def go(self, path: str) -> Response | None:
        """Open a page of the site and wait until it is quiet (but for live events)."""
        answer = self.page.goto(self.site.address + path)
        if self.page.locator("#viewer").count():
            self.page.wait_for_selector("#viewer[data-drawn]")
        return answer

    def press(self, name: str, index: int = 0) -> None:
        """Press a button by its accessible name and wait for the page after it."""
        with self.page.expect_navigation():
            self.page.get_by_role("button", name=name).nth(index).click()

    def picture(self, name: str) -> None:
        """Keep a screenshot."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    def violations(self) -> list[str]:
        """What axe-core calls serious or critical, as rule and place."""
        # Not as a script element: the page's Content-Security-Policy would rightly refuse it.
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            f"{rule['id']}: {node['target']} {node.get('failureSummary', '')}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]

    def weight_bytes(self) -> int:
        """Of the page and everything that it loaded, cached or not, but for pictures and live events."""
        return int(self.page.evaluate(_WEIGHT))

    def overflow_px(self) -> int:
        """How far the page is wider than the screen."""
        return int(
            self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        )

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.said.append(text)


@contextlib.contextmanager
def tab(
    browser: Browser,
    site: PageSite,
    name: str = "",
    size: tuple[int, int] = DESK,
    scheme: str = "light",
    **options: Any,
) -> Iterator[Tab]:
    """Open a tab in a context of its own, signed in through the form if a name is given."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,  # type: ignore[arg-type]
        has_touch=size == PHONE,
        **options,
    )
    try:
        opened = Tab(site, context.new_page())
        if name:
            opened.go("/login")
            opened.page.fill("[name=name]", name)
            opened.page.fill("[name=password]", PASSWORD)
            opened.press("Sign in")
        yield opened
    finally:
        context.close()
