"""The report is one file that needs nothing else, names no case, and holds what was promised."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from phantoms import site
from PIL import Image

from adapters.letterbox import Letterbox
from training.cases import SiteData, Skipped
from training.evaluate import Evaluation, compare, evaluate_records
from training.records import Record
from training.report import TITLES, ReportContent, write_report

CANARY = "CANARY^NAME"


def _records(data: SiteData, noise: float, seed: int = 0) -> list[Record]:
    rng = np.random.default_rng(seed)
    records = []
    for i, case in enumerate(data.cases):
        for shot in case.shots:
            covered = np.zeros((8, 8), np.float32)
            if shot.mask is not None:
                covered = shot.mask.reshape(8, 8, 8, 8).mean((1, 3)).astype(np.float32)
            values = np.clip(0.7 * covered + rng.normal(0.1, noise, (8, 8)), 0, 1).astype(np.float32)
            box = Letterbox(64, 64, 64, 8)
            records.append(
                Record(case, shot, float(np.sort(values.ravel())[-3:].mean()), box, values, i % 3, 0.4)
            )
    return records


def _evaluation(data: SiteData, noise: float) -> Evaluation:
    return evaluate_records(_records(data, noise), alpha=0.1, slice_threshold=0.4)


def _named() -> SiteData:
    """A site whose folder names hold a patient's name."""
    data = site(12, 10)
    cases = [replace(c, key=f"{CANARY}/{c.key}", patient_key=f"{CANARY} {c.patient_key}") for c in data.cases]
    skipped = (Skipped(f"{CANARY}/a.txt", "no image"), Skipped(f"{CANARY}/b.txt", "no image"))
    return SiteData(tuple(cases), skipped)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written report."""
    data = _named()
    ours, other = _evaluation(data, 0.05), _evaluation(data, 0.3)
    content = ReportContent(
        name="liver-ct",
        version="0123456789ab",
        site=data,
        evaluation=ours,
        warnings=["Brightness alone separates <b>the classes</b>, AUROC 0.812."],
        provenance={"seed": 0, "recipe": "default", "evaluation": {"left": "out"}},
        baselines={"memory only": other},
        differences={"memory only": compare(ours, other)},
        created="2026-01-02 03:04 UTC",
    )
    path = tmp_path_factory.mktemp("report")
    write_report(path, content)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    """Its HTML."""
    return (folder / "report.html").read_text(encoding="utf-8")


def test_it_needs_no_other_file(page: str) -> None:
    """Every picture is inline, and there is no script, style sheet, font or link to anywhere."""
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(s.startswith(("data:image/svg+xml;base64,", "data:image/jpeg;base64,")) for s in sources)
    assert not re.search(r"<script|<link|url\(|@import|https?:", re.sub(r'src="[^"]*"', "", page))


def test_it_is_well_formed(page: str) -> None:
    """Every element is closed in order, and every picture has a text alternative."""
    void, stack, images = {"meta", "img", "br"}, [], []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "img":
                images.append(dict(attrs).get("alt"))
            if tag not in void:
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

    Checker().feed(page)
    assert stack == []
    assert all(images)


def test_it_names_no_patient(folder: Path, page: str) -> None:
    """Folder names, which may hold names, are in cases.csv alone, under the numbers of the report."""
    assert "CANARY" not in page
    assert (folder / "cases.csv").read_text().splitlines()[1].startswith("1,CANARY^NAME/case0")


def test_it_says_what_it_is_not_for(page: str) -> None:
    """The purpose is on the page, and prints."""
    assert "Research use only, not for diagnosis" in page
    assert "@media print" in page


def test_it_holds_what_was_promised(page: str) -> None:
    """Cases, curves, histogram, calibration, contact sheet, warnings, gains and provenance are there."""
    for title in (*TITLES.values(), "Best and worst cases", "Warnings", "Provenance", "paired by patient"):
        assert title in page
    assert page.count('<tr><td class="number">') == 22 + 1
    assert "2026-01-02 03:04 UTC" in page
    assert "left" not in re.findall(r"<h2>Provenance.*", page, re.S)[0]


def test_warnings_are_text_not_markup(page: str) -> None:
    """What comes from data is escaped."""
    assert "&lt;b&gt;the classes" in page


def test_the_figures_are_also_pictures(folder: Path) -> None:
    """Each figure and the contact sheet is a PNG that opens."""
    for stem in (*TITLES, "contact_sheet"):
        with Image.open(folder / f"{stem}.png") as picture:
            assert min(picture.size) > 300


def test_a_report_repeats(folder: Path, page: str, tmp_path: Path) -> None:
    """Two evaluations of the same records give the same figures, to the byte."""
    data = _named()
    content = ReportContent("a", "", data, _evaluation(data, 0.05), created="x")
    first, second = (write_report(tmp_path / name, content).read_bytes() for name in "ab")
    assert first == second


def test_a_site_without_masks_or_an_interval_is_reported(tmp_path: Path) -> None:
    """Without masks there are no pixel curves; one abnormal patient gives no interval, and it says so."""
    data = site(4, 1, masks=False)
    page = write_report(tmp_path, ReportContent("a", "", data, _evaluation(data, 0.1))).read_text("utf-8")
    assert TITLES["pixel_roc"] not in page
    assert "no interval: too few patients" in page
    assert not (tmp_path / "pixel_roc.png").exists()
