"""The page in a real browser, on what a running daemon made: every page, every role, every deed."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from browser import AXE, DESK, PHONE, SCREENSHOTS, Tab, chromium, tab
from page_site import ROLES, PageSite
from PIL import Image, ImageChops
from playwright.sync_api import Browser

pytestmark = [pytest.mark.peer, pytest.mark.slow]

MOST_BYTES = 300_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for the module."""
    with chromium() as running:
        yield running


@dataclass
class Walk:
    """What a walk over every page brought together."""

    said: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)
    wide: dict[str, int] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)


def _paths(site: PageSite) -> dict[str, str]:
    viewer = _viewer(site, site.scored[0])
    return {
        "now": "/",
        "studies": "/studies",
        "study": f"/studies/{site.scored[0]}",
        "refused": f"/studies/{site.refused}",
        "viewer": viewer,
        "adapters": "/adapters",
        "quality": "/quality",
        "feedback": "/feedback",
    }


def _viewer(site: PageSite, uid: str) -> str:
    study = site.ask(f"/api/studies/{uid}", "vera").json()
    score = next(score for series in study["series"] for score in series["scores"])
    return f"/studies/{uid}/{score['revision']}/{score['group_key']}/view"


@pytest.fixture(scope="module")
def walk(browser: Browser, page_site: PageSite) -> Walk:
    """Every page as every role; as administrator also on a phone and in the dark, with axe-core."""
    found = Walk()
    views = [(name, DESK, "light") for name in ROLES]
    views += [("ada", PHONE, "light"), ("ada", DESK, "dark"), ("ada", PHONE, "dark")]
    for name, size, scheme in views:
        with tab(browser, page_site, name, size, scheme) as opened:
            for page, path in _paths(page_site).items():
                _look(found, opened, f"{page}-{name}-{size[0]}-{scheme}", path, axe=name == "ada")
            found.said += opened.said
            found.outside += [url for url in opened.asked if not url.startswith(_own(page_site))]
    with tab(browser, page_site) as opened:
        _look(found, opened, "login", "/login", axe=True)
    return found


def _own(site: PageSite) -> tuple[str, ...]:
    return (site.address + "/", "blob:", "data:")


def _look(found: Walk, opened: Tab, name: str, path: str, *, axe: bool) -> None:
    answer = opened.go(path)
    found.statuses[name] = answer.status if answer else 0
    if axe and AXE.is_file():
        found.violations[name] = opened.violations()
    opened.picture(name)
    found.weights[name] = opened.weight_bytes()
    found.wide[name] = opened.overflow_px()


def test_every_page_opens_for_every_role(walk: Walk) -> None:
    """Viewer, operator and administrator see all pages, at a desk and on a phone, light and dark."""
    assert len(walk.statuses) == 6 * 8 + 1
    assert set(walk.statuses.values()) == {200}
    assert len(list(SCREENSHOTS.glob("*.png"))) >= len(walk.statuses)


def test_no_page_says_anything_in_the_console(walk: Walk) -> None:
    """No error, no warning and no refused resource; the Content-Security-Policy would show here."""
    assert walk.said == []


def test_no_page_asks_elsewhere(walk: Walk) -> None:
    """Every request goes to the daemon."""
    assert walk.outside == []


def test_every_page_is_light(walk: Walk) -> None:
    """Each page with style, scripts and data weighs less than 300 kB, pictures left out."""
    assert {name: weight for name, weight in walk.weights.items() if not 1_000 < weight < MOST_BYTES} == {}


def test_no_page_is_wider_than_its_screen(walk: Walk) -> None:
    """Nothing sticks out at 1440 px or at 390 px."""
    assert {name: wide for name, wide in walk.wide.items() if wide} == {}


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed (make peers)")
def test_axe_finds_nothing_serious(walk: Walk) -> None:
    """axe-core reports no serious or critical violation on any page, in either scheme."""
    assert len(walk.violations) == 4 * 8 + 1
    assert {name: found for name, found in walk.violations.items() if found} == {}


# The viewer


@pytest.fixture
def viewer(browser: Browser, page_site: PageSite) -> Iterator[Tab]:
    """The slices of the first study, seen by somebody who may judge."""
    with tab(browser, page_site, "otto") as opened:
        opened.go(_viewer(page_site, page_site.scored[0]))
        yield opened


def _slice(opened: Tab) -> int:
    return int(opened.page.locator("#viewer").get_attribute("data-drawn") or -1)


def _until(check: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def _picture(opened: Tab) -> Image.Image:
    return Image.open(io.BytesIO(opened.page.locator("#picture").screenshot())).convert("RGB")


def _differ(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is not None


def test_wheel_and_keys_change_the_slice(viewer: Tab) -> None:
    """A notch of the wheel is a slice or more; arrows, Page, Home and End go where they say."""
    page = viewer.page
    page.keyboard.press("Home")
    _until(lambda: _slice(viewer) == 0)
    page.locator("#stage").hover()
    page.mouse.wheel(0, 120)
    _until(lambda: _slice(viewer) > 0)
    page.keyboard.press("End")
    _until(lambda: _slice(viewer) == 11)
    page.keyboard.press("ArrowUp")
    _until(lambda: _slice(viewer) == 10)
    page.keyboard.press("PageUp")
    _until(lambda: _slice(viewer) == 0)
    assert "slice 1 of 12" in page.locator("#readout").inner_text()


def test_a_swipe_changes_the_slice(browser: Browser, page_site: PageSite) -> None:
    """A finger that moves down the picture scrolls through the series, and the page stays where it is."""
    with tab(browser, page_site, "vera", PHONE) as opened:
        opened.go(_viewer(page_site, page_site.scored[0]))
        opened.page.keyboard.press("Home")
        _until(lambda: _slice(opened) == 0)
        box = opened.page.locator("#stage").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + 20
        devtools = opened.page.context.new_cdp_session(opened.page)
        for kind, dy in (("touchStart", 0), ("touchMove", 60), ("touchMove", 140), ("touchEnd", 0)):
            points = [] if kind == "touchEnd" else [{"x": x, "y": y + dy}]
            devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        _until(lambda: _slice(opened) >= 5)
        assert opened.page.evaluate("scrollY") == 0


def test_the_sliders_change_the_heat_map(viewer: Tab, page_site: PageSite) -> None:
    """Opacity 0 shows the bare slice, a threshold above the map too; the outline is a thing of its own."""
    viewer.go(_viewer(page_site, page_site.scored[1]))  # whose map does not reach 1
    page = viewer.page
    shown = _picture(viewer)
    page.locator("#opacity").fill("0")
    without = _picture(viewer)
    assert _differ(shown, without)
    page.locator("#opacity").fill("80")
    page.locator("#threshold").fill("100")
    _until(lambda: not _differ(_picture(viewer), without))
    page.locator("#outlines").uncheck()
    assert _differ(_picture(viewer), without)


def test_findings_are_jumped_to(viewer: Tab, page_site: PageSite) -> None:
    """The list and the key N go to the slice where a finding is largest."""
    study = page_site.ask(f"/api/studies/{page_site.scored[0]}", "vera").json()
    places = {f["number"]: f["largest"] for f in study["findings"]}
    viewer.page.get_by_role("button", name="Finding 2", exact=True).click()
    _until(lambda: _slice(viewer) == places[2])
    viewer.page.keyboard.press("Home")
    viewer.page.keyboard.press("n")
    _until(lambda: _slice(viewer) == min(places.values()))


# Deeds


def test_a_viewer_is_offered_no_deeds(browser: Browser, page_site: PageSite) -> None:
    """Who may only look sees no button but the one to leave, and the ways to find and to show."""
    with tab(browser, page_site, "vera") as opened:
        for name, path in _paths(page_site).items():
            opened.go(path)
            forms = opened.page.locator("form[method=post]")
            assert [forms.nth(i).get_attribute("action") for i in range(forms.count())] == ["/logout"], name


def test_a_finding_is_judged_on_the_page(browser: Browser, page_site: PageSite) -> None:
    """Accept on the study, reject in the viewer: the newest verdict shows on study and feedback page."""
    with tab(browser, page_site, "otto") as opened:
        opened.go(f"/studies/{page_site.scored[1]}")
        opened.press("Accept finding 1")
        assert "accepted" in opened.page.locator("#findings ~ *").inner_text()
        opened.go(_viewer(page_site, page_site.scored[1]))
        opened.press("Reject finding 1")
        assert opened.page.get_by_text("rejected").count() == 1
        opened.go("/feedback")
        row = opened.page.locator("tbody tr").filter(has_text=page_site.scored[1][-14:])
        row = row.filter(has_text="otto")  # the SEG that a workstation sent back has a row, too
        assert "rejected" in row.inner_text()


def test_a_finding_is_drawn_anew(browser: Browser, page_site: PageSite) -> None:
    """Correct, a stroke around the lesion, save: the verdict and the outline are kept and shown."""
    uid = page_site.scored[0]
    with tab(browser, page_site, "otto") as opened:
        page = opened.page
        opened.go(_viewer(page_site, uid))
        page.get_by_role("button", name="Correct finding 2").click()
        stage = page.locator("#picture").bounding_box()
        assert stage is not None
        # Around the lesion of the phantom, left of the middle.
        x, y = stage["x"] + stage["width"] * 0.365, stage["y"] + stage["height"] * 0.465
        page.mouse.move(x - 40, y - 40)
        page.mouse.down()
        for dx, dy in ((40, -40), (40, 40), (-40, 40)):
            page.mouse.move(x + dx, y + dy, steps=4)
        page.mouse.up()
        opened.picture("viewer-otto-drawing")
        with page.expect_navigation():
            page.get_by_role("button", name="Save correction").click()
        page.wait_for_selector("#viewer[data-drawn]")
        assert page.get_by_text("corrected", exact=True).count() == 1
        assert opened.said == []
    drawn = next(v for v in page_site.ask("/api/verdicts", "vera").json() if v["verdict"] == "correct")
    assert drawn["given_by"] == "otto" and len(drawn["correction"]) > 100


def test_a_training_is_started_and_watched(browser: Browser, page_site: PageSite) -> None:
    """From a folder of the settings: it runs, its steps show without a reload, and it ends or is stopped."""
    with tab(browser, page_site, "ada") as opened:
        page = opened.page
        opened.go("/adapters")
        page.get_by_label("Cases").select_option("pictures")
        page.get_by_label("Name of the bundle").fill("from-page")
        opened.press("Start training")
        assert page.locator("#training ~ * .state").inner_text() == "running"
        progress = page.get_by_text("step").or_(page.get_by_text("done", exact=True))
        progress.first.wait_for(timeout=120_000)
        opened.picture("adapters-ada-training")
        stop = page.get_by_role("button", name="Stop the training")
        if stop.count():
            opened.press("Stop the training")
        ended = page.get_by_text("stopped", exact=True).or_(page.get_by_text("done", exact=True))
        ended.first.wait_for(timeout=120_000)
        assert opened.said == []
    run = page_site.ask("/api/training", "vera").json()["run"]
    assert (run["folder"], run["name"], run["state"] in ("stopped", "done")) == (
        "pictures",
        "from-page",
        True,
    )


def test_results_are_forwarded_and_sent_again(browser: Browser, page_site: PageSite) -> None:
    """Forward to a destination sends again what was delivered; send undelivered tries the dead ones."""
    uid = page_site.scored[0]
    folder = page_site.folder / "received"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with tab(browser, page_site, "otto") as opened:
        opened.go(f"/studies/{uid}")
        opened.page.get_by_label("Forward to").select_option("pacs")
        opened.press("Send", 1)
        assert "on their way" in opened.page.get_by_role("status").inner_text()
        _until(lambda: sum(p.stat().st_mtime_ns > before.get(p, 0) for p in folder.iterdir()) >= 2)
        opened.press("Send undelivered again")
        assert "due again" in opened.page.get_by_role("status").inner_text()
    page_site.rest()


def test_a_study_is_scored_again(browser: Browser, page_site: PageSite) -> None:
    """Score again opens a new revision, which ends scored."""
    uid = page_site.normal
    with tab(browser, page_site, "otto") as opened:
        opened.go(f"/studies/{uid}")
        opened.press("Score again")
    page_site.daemon.wait_for(lambda index: index.get_study(uid).revision == 2)
    page_site.rest()


def test_bundles_are_promoted_and_rolled_back(browser: Browser, page_site: PageSite) -> None:
    """Promote puts the other version to use, roll back the first again; both say so."""
    with tab(browser, page_site, "ada") as opened:
        opened.go("/adapters")
        opened.press(f"Promote phantom-ct {page_site.other}")
        assert f"{page_site.other} is in use" in opened.page.get_by_role("status").inner_text()
        opened.press("Roll back phantom-ct")
        assert f"{page_site.bundle} is in use" in opened.page.get_by_role("status").inner_text()


def test_the_first_page_changes_by_itself(browser: Browser, page_site: PageSite) -> None:
    """A destination that somebody else pauses shows as paused without a reload."""
    with tab(browser, page_site, "vera") as opened:
        opened.go("/")
        assert opened.page.get_by_text("paused").count() == 0
        page_site.ask("/api/destinations/archive/pause", "otto", method="POST")
        try:
            opened.page.get_by_text("paused").wait_for(timeout=15_000)
        finally:
            page_site.ask("/api/destinations/archive/resume", "otto", method="POST")
        opened.page.get_by_text("paused").wait_for(state="hidden", timeout=15_000)


def test_the_first_page_says_what_needs_a_person(browser: Browser, page_site: PageSite) -> None:
    """The dead letters, the refused study and the silent destination are named with their reason."""
    page_site.rest()
    with tab(browser, page_site, "vera") as opened:
        opened.go("/")
        needs = opened.page.locator(".needs").inner_text()
        assert "archive does not answer" in needs
        assert "dead letters" in needs and "refused" in needs
        opened.page.get_by_role("link", name="dead letters").click()
        opened.page.wait_for_url("**/studies?delivery=dead")
        assert opened.page.locator("tbody tr").count() == 3


def test_studies_are_searched_and_filtered(browser: Browser, page_site: PageSite) -> None:
    """A part of the UID, a state and the findings each narrow the list."""
    with tab(browser, page_site, "vera") as opened:
        opened.go("/studies")
        opened.page.get_by_label("Search").fill(page_site.normal[-10:])
        opened.press("Show")
        assert opened.page.locator("tbody tr").count() == 1
        opened.go("/studies")
        opened.page.get_by_label("Findings").select_option("with")
        opened.press("Show")
        assert opened.page.locator("tbody tr").count() == 2
        opened.go("/studies?state=refused")
        assert page_site.refused[-14:] in opened.page.locator("tbody").inner_text()


def test_results_are_downloaded(browser: Browser, page_site: PageSite) -> None:
    """The SEG comes down as the DICOM file that was sent."""
    from pydicom import dcmread

    with tab(browser, page_site, "vera") as opened:
        opened.go(f"/studies/{page_site.scored[0]}")
        with opened.page.expect_download() as coming:
            opened.page.get_by_role("link", name="Download").last.click()
        ds = dcmread(coming.value.path(), stop_before_pixels=True)
    assert ds.Modality in ("SEG", "SR") and ds.StudyInstanceUID == page_site.scored[0]


def test_signing_out_ends_it(browser: Browser, page_site: PageSite) -> None:
    """After sign out, a page asks to sign in again and leads back."""
    with tab(browser, page_site, "vera") as opened:
        opened.press("Sign out")
        opened.go("/quality")
        assert "/login?next=" in opened.page.url
