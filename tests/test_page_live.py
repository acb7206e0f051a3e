"""The page in a browser when something is missing: a slice, the sign-in, the server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
from browser import Tab, chromium, tab
from light_page import LightPage, light_page
from playwright.sync_api import Browser, Route

pytestmark = [
    pytest.mark.peer,
    # SQLAlchemy 2.1 deprecates what 2.0 needs; the page runs in this process, so that warnings end a request.
    pytest.mark.filterwarnings("ignore:The Result.tuples"),
]

Answer = Callable[[Route], None]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for the module."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightPage]:
    """The page with one study."""
    with light_page(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture
def vera(browser: Browser, page: LightPage) -> Iterator[Tab]:
    """A tab of somebody who may look."""
    with tab(browser, page, "vera") as opened:
        yield opened


def _until(check: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def _json(status: int, detail: str) -> Answer:
    return lambda route: route.fulfill(status=status, json={"detail": detail})


def _black(opened: Tab) -> bool:
    """Whether nothing but black is on the canvas."""
    bright = (
        "(() => { const c = document.getElementById('picture'), p = c.getContext('2d');"
        " return p.getImageData(0, 0, c.width, c.height).data.some((v, i) => v && i % 4 < 3); })()"
    )
    return not opened.page.evaluate(bright)


def _asked(opened: Tab, name: str) -> int:
    return sum(url.endswith(name) for url in opened.asked)


def test_a_slice_that_is_gone_says_so(vera: Tab, page: LightPage) -> None:
    """A pruned slice shows the server's reason, no outline, and is asked for once; the others are there."""
    gone = page.frame(0)
    content = gone.read_bytes()
    gone.unlink()
    try:
        vera.go(f"{page.base}/view?frame=0")
        vera.page.get_by_text("This slice is not shown").wait_for()
        assert "pruned or damaged" in vera.page.locator("#failed").inner_text()
        assert "pruned or damaged" in vera.page.locator("#readout").inner_text()
        assert _black(vera)
        _until(lambda: vera.page.locator("#viewer").get_attribute("data-loaded") == "4")
        vera.page.keyboard.press("ArrowDown")
        _until(lambda: not _black(vera))
        assert not vera.page.locator("#failed").is_visible()
        vera.page.keyboard.press("ArrowUp")
        vera.page.get_by_text("This slice is not shown").wait_for()
        assert _black(vera) and _asked(vera, "/0.jpg") == 1
    finally:
        gone.write_bytes(content)


@pytest.mark.parametrize("answer", [_json(503, "busy"), lambda route: route.abort()])
def test_a_slice_that_does_not_come_is_asked_for_again(vera: Tab, page: LightPage, answer: Answer) -> None:
    """A 503 or a broken line is shown, does not stop the others, and is over when the server answers."""
    vera.page.route("**/0.jpg", answer)
    vera.go(f"{page.base}/view?frame=0")
    vera.page.get_by_text("This slice is not shown").wait_for()
    _until(lambda: vera.page.locator("#viewer").get_attribute("data-loaded") == "4")
    vera.page.unroute("**/0.jpg")
    vera.page.get_by_text("This slice is not shown").wait_for(state="hidden")
    assert not _black(vera)


def test_a_heat_map_that_is_gone_leaves_the_slice(vera: Tab, page: LightPage) -> None:
    """The slice shows, with the reason why its heat map does not."""
    vera.page.route("**/0.png", _json(404, "this slice was not scored"))
    vera.go(f"{page.base}/view?frame=0")
    vera.page.get_by_text("The heat map is not shown: this slice was not scored").wait_for()
    assert not _black(vera)


def test_an_ended_session_leads_the_viewer_to_the_sign_in(vera: Tab, page: LightPage) -> None:
    """After the session ended a slice that comes too late is not kept as black, and a link signs in."""
    vera.page.route("**/*.jpg", _json(401, "sign in"))
    vera.go(f"{page.base}/view?frame=0")
    vera.page.get_by_role("link", name="Sign in again").wait_for()
    assert "you are signed out" in vera.page.locator("#failed").inner_text()
    vera.page.unroute("**/*.jpg")
    vera.page.keyboard.press("ArrowDown")
    _until(lambda: not _black(vera))
    assert not vera.page.locator("#sign-in").is_visible()


def test_a_series_that_cannot_be_read_says_why(vera: Tab, page: LightPage) -> None:
    """When the scores and outlines do not come, the stage has the server's reason."""
    vera.page.route("**/view.json", _json(404, "there is no such slice"))
    vera.page.goto(f"{page.address}{page.base}/view")
    vera.page.get_by_text("The series is not shown: there is no such slice").wait_for()
    assert not vera.page.locator("#loading").is_visible()


def test_the_next_slice_is_drawn_at_once(vera: Tab, page: LightPage) -> None:
    """No picture is asked for again when one goes back and forth over what was loaded."""
    vera.go(f"{page.base}/view?frame=0")
    _until(lambda: vera.page.locator("#viewer").get_attribute("data-loaded") == "5")
    before = len(vera.asked)
    for key in ("End", "Home", "End"):
        drawn = vera.page.evaluate(
            "(key) => { document.dispatchEvent(new KeyboardEvent('keydown', { key }));"
            " return document.getElementById('viewer').dataset.drawn; }",
            key,
        )
        assert drawn == ("4" if key == "End" else "0")
    assert len(vera.asked) == before


# Live parts


def test_a_page_that_is_no_longer_live_says_so(vera: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the session ended the first page no longer claims to be live, and leads to the sign-in."""
    monkeypatch.setattr("daemon.web.live._STREAM_S", 1.0)
    vera.go("/")
    vera.page.wait_for_timeout(4000)
    assert not vera.page.locator(".note.bad").is_visible()
    vera.page.context.clear_cookies()
    link = vera.page.get_by_role("link", name="Sign in again")
    link.wait_for()
    assert "Not live since" in vera.page.locator(".note.bad").inner_text()
    assert vera.page.locator("[data-live].stale").count() == 1
    link.click()
    vera.page.wait_for_url("**/login?next=*")


def test_a_page_is_live_again_after_a_failure(vera: Tab) -> None:
    """While the server answers 503 the page says since when; it goes on by itself afterwards."""
    vera.page.route("**/live/now", _json(503, "busy"))
    vera.go("/")
    vera.page.get_by_text("Not live since").wait_for()
    vera.page.unroute("**/live/now")
    vera.page.get_by_text("Not live since").wait_for(state="hidden")
    assert vera.page.locator(".stale").count() == 0


def test_the_keyboard_stays_where_it_was(browser: Browser, page: LightPage) -> None:
    """A button that is drawn anew by a live part keeps the focus, by its name or its id."""
    with tab(browser, page, "ada") as opened:
        buttons = '<button aria-label="Pause archive">Pause</button><button id="stop">Stop</button>'
        said = f"event: content\ndata: {json.dumps(buttons)}\n\n"
        opened.page.route(
            "**/live/now",
            lambda route: route.fulfill(content_type="text/event-stream", body=f"retry: 300\n\n{said}"),
        )
        opened.go("/")
        for name in ("Pause archive", "Stop"):
            opened.page.get_by_role("button", name=name).wait_for()
            opened.page.evaluate("window.held = document.querySelector('[data-live] button')")
            opened.page.get_by_role("button", name=name).focus()
            opened.page.wait_for_function("() => !window.held.isConnected")
            spoken = "document.activeElement.ariaLabel ?? document.activeElement.textContent"
            assert opened.page.evaluate(spoken) == name
