"""``python -m benchmarks.page``: the page with 10,000 studies in the index, and a series of 300 slices.

A real daemon receives and scores the 300-slice phantom; the index is then filled with studies that
have rows but no files. Debian's Chromium opens the first pages and scrolls through the series.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from rich.console import Console
from sqlalchemy import insert
from sqlalchemy.orm import Session

from benchmarks import peers
from benchmarks.machine import describe, sentence
from benchmarks.phantom_study import write_study
from benchmarks.report import write_section
from benchmarks.stages import prepare_bundle
from daemon.accounts import Accounts
from daemon.database import open_database
from daemon.index import Index
from daemon.settings import Settings, load_settings
from daemon.tables import DeliveryRow, InstanceRow, ScoreRow, StudyRow

FIRST_PAGE_BAR_MS, SLICE_BAR_MS = 300.0, 50.0
_NAME, _PASSWORD = "benchmark", "correct horse battery"
_PAGES = {"first page": "/", "studies": "/studies", "studies, with findings": "/studies?findings=yes",
          "quality": "/quality"}  # fmt: skip
_DAY_S = 86_400.0

# Each step: the key's event, what it draws, and the frame that shows it.
_SCROLL = """async (steps) => {
  const frame = () => new Promise(requestAnimationFrame), root = document.getElementById("viewer");
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Home" }));
  await frame(); await frame();
  const times = [];
  for (let i = 0; i < steps; i++) {
    const begin = performance.now();
    document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
    if (root.dataset.drawn !== String(i + 1)) throw new Error(`slice ${i + 1} was not drawn`);
    await frame();
    times.push(performance.now() - begin);
  }
  return times;
}"""
_LOADED = "performance.getEntriesByType('navigation')[0]"


def main() -> None:
    """Measure, print, and write the figures to ``benchmarks/``."""
    parser = argparse.ArgumentParser(description="Measure the page in Chromium.")
    parser.add_argument("--studies", type=int, default=10_000, help="studies in the index")
    parser.add_argument("--slices", type=int, default=300, help="slices of the series")
    parser.add_argument("--loads", type=int, default=15, help="loads of each page")
    parser.add_argument("--no-write", action="store_true", help="print only; keep the recorded results")
    options = parser.parse_args()
    peers.need("storescu", "chromium")
    machine, console = describe(), Console()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        runs = _measure(Path(name), options, console)
    record = {
        "date": date.today().isoformat(),
        "machine": machine,
        "studies": options.studies,
        "slices": options.slices,
        "bars_ms": {"first page": FIRST_PAGE_BAR_MS, "next slice": SLICE_BAR_MS},
        **runs,
    }
    text = _table(record)
    console.print(text, markup=False)
    if not options.no_write:
        write_section("page", text, record)


def _measure(site: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    console.print(f"benchmark: drawing {options.slices} slices and fitting the phantom's bundle")
    study = write_study(site / "explicit", slices=options.slices)
    prepare_bundle(site)
    settings_path = _settings(site)
    settings = load_settings(settings_path)
    with peers.daemon(settings_path, site / "log") as process:
        peers.wait_for_port(settings.receiver.port, process)
        peers.wait_for_port(settings.web.port, process)
        peers.storescu(settings.receiver.port, site / "explicit")
        group = _wait(settings, study)
        console.print(f"benchmark: {options.studies} studies into the index")
        fill(settings, options.studies)
        with sync_playwright() as playwright:
            program = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            address = f"http://127.0.0.1:{settings.web.port}"
            context = _signed_in(browser, address)
            console.print("benchmark: loading pages")
            pages = {name: _loads(context, address + path, options.loads) for name, path in _PAGES.items()}
            console.print("benchmark: scrolling")
            viewer = f"{address}/studies/{study}/1/{group}/view"
            return {"pages": pages, "scrolling": _scroll(context.new_page(), viewer, options.slices)}


def _settings(site: Path) -> Path:
    path = site / "settings.toml"
    path.write_text(
        f'[service]\ndata_dir = "data"\n[receiver]\nport = {peers.free_port()}\nreserve_bytes = 0\n'
        f"[web]\nport = {peers.free_port()}\n[study]\nquiet_s = 1.0\n[engine]\npoll_s = 0.1\n"
        "[retention]\nmaximum_age_days = 0\nprune_below_bytes = 0\n"
    )
    bundles = load_settings(path).bundles_dir
    if (site / "bundles").is_dir():
        shutil.copytree(site / "bundles", bundles)
    return path


def _wait(settings: Settings, study: str, timeout_s: float = 600.0) -> str:
    """Wait until the study is scored; the key of its frame group."""
    deadline = time.monotonic() + timeout_s
    with closing(Index(settings.database_url)) as index:
        while time.monotonic() < deadline:
            scores = index.scores(study)
            if scores and index.get_study(study).state == "scored":
                return scores[0].group_key
            time.sleep(0.2)
    raise SystemExit("benchmark: the study was not scored in time")


def fill(settings: Settings, studies: int, seed: int = 5) -> None:
    """Put studies of the last half year into the index, as a site would have them, and a user."""
    chance, now = random.Random(seed), time.time()
    rows: dict[type, list[dict[str, Any]]] = {StudyRow: [], InstanceRow: [], ScoreRow: [], DeliveryRow: []}
    for number in range(studies):
        _add(rows, f"2.25.{10**20 + number}", now - chance.random() * 180 * _DAY_S, chance)
    reader, writer = open_database(settings.database_url)
    with Session(writer) as session, session.begin():
        for table, values in rows.items():
            session.execute(insert(table), values)
    Accounts(reader, writer).set(_NAME, _PASSWORD, "administrator")
    reader.dispose()
    writer.dispose()


def _add(rows: dict[type, list[dict[str, Any]]], uid: str, at: float, chance: random.Random) -> None:
    score = chance.betavariate(2, 6)
    key = {"study_instance_uid": uid}
    rows[StudyRow].append(
        {**key, "first_received": at - 60, "last_received": at, "instance_count": 2, "revision": 1,
         "state": "scored", "state_reason": "", "dirty": False, "closed": False}
    )  # fmt: skip
    rows[InstanceRow] += [
        {**key, "sop_instance_uid": f"{uid}.{n}", "version": 1, "series_instance_uid": f"{uid}.9",
         "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "transfer_syntax_uid": "1.2.840.10008.1.2.1",
         "path": f"none/{uid}/{n}", "size_bytes": 500_000, "received_at": at,
         "calling_ae": "CT1", "revision": 1}
        for n in (1, 2)
    ]  # fmt: skip
    rows[ScoreRow].append(
        {**key, "revision": 1, "group_key": "0" * 16, "bundle_version": "0" * 12, "modality": "CT",
         "series_instance_uid": f"{uid}.9", "bundle_name": "filled", "shadow": False, "slices": 2,
         "maximum": score, "mean": score / 2, "findings": int(score > 0.5), "scored_at": at}
    )  # fmt: skip
    rows[DeliveryRow].append(
        {**key, "revision": 1, "destination": "pacs", "sop_instance_uid": f"{uid}.8", "state": "sent"}
    )


def _signed_in(browser: Browser, address: str) -> BrowserContext:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(f"{address}/login")
    page.fill("[name=name]", _NAME)
    page.fill("[name=password]", _PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{address}/")
    page.close()
    return context


def _loads(context: BrowserContext, address: str, loads: int) -> dict[str, dict[str, float]]:
    """Milliseconds from the request to the answer's end, and until everything was loaded."""
    answers, wholes = [], []
    for _ in range(loads):
        page = context.new_page()
        page.goto(address)
        # Not wait_for_function: the page's Content-Security-Policy forbids what it evaluates.
        while not page.evaluate(f"{_LOADED}.loadEventEnd"):
            time.sleep(0.01)
        answers.append(float(page.evaluate(f"{_LOADED}.responseEnd")))
        wholes.append(float(page.evaluate(f"{_LOADED}.loadEventEnd")))
        page.close()
    return {"answered_ms": _figures(answers), "loaded_ms": _figures(wholes)}


def _scroll(page: Page, address: str, slices: int) -> dict[str, Any]:
    started = time.monotonic()
    page.goto(address)
    page.wait_for_selector(f'#viewer[data-loaded="{slices}"]', timeout=300_000)
    loaded_s = time.monotonic() - started
    times = [float(value) for value in page.evaluate(_SCROLL, slices - 1)]
    return {"all_loaded_s": round(loaded_s, 2), "next_slice_ms": _figures(times)}


def _figures(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 1),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 1),
        "maximum": round(ordered[-1], 1),
    }


def _table(record: dict[str, Any]) -> str:
    lines = [
        f"{record['studies']:,} studies in the index, {record['slices']} slices of 512 × 512, "
        + sentence(record),
        "",
        "| ms | median | 95 % | maximum | bar |",
        "|---|---:|---:|---:|---:|",
    ]
    rows: list[tuple[str, Any, str]] = [
        (f"{name}, answered", found["answered_ms"], "") for name, found in record["pages"].items()
    ]
    rows += [
        (f"{name}, loaded", found["loaded_ms"], f"{FIRST_PAGE_BAR_MS:.0f}" if name == "first page" else "")
        for name, found in record["pages"].items()
    ]
    rows.append(("next slice", record["scrolling"]["next_slice_ms"], f"{SLICE_BAR_MS:.0f}"))
    for name, found, bar in rows:
        shown = " | ".join(f"{found[key]:.1f}" for key in ("median", "p95", "maximum"))
        lines.append(f"| {name} | {shown} | {bar} |")
    lines += ["", f"All slices were loaded ahead after {record['scrolling']['all_loaded_s']:.1f} s."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
