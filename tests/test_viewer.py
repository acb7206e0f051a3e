"""Seen in a real viewer: studies go through the running daemon to a PACS, and OHIF shows what the files say.

Adapters are fitted on the factories' phantoms for each modality; the model, the daemon's processes, the
association from the modality and the deliveries are the real ones.

The pictures stay in ``artefacts/viewer`` for people to look at. The judge of a SEG (OHIF's own labelmap
against the file, slice by slice, its colours and labels) is an acceptance tool of the shared data.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import factories
import factories_enhanced
import highdicom as hd
import numpy as np
import pytest
from conftest import RunningDaemon, daemons
from numpy.typing import NDArray
from peers import need, orthanc, storescu
from pydicom import dcmread
from pydicom.dataset import Dataset
from viewer_bundles import MODALITIES, SIZE, SPACING, cine, fitted, lesion_mask, radiograph, square

from daemon.sender import send

ROOT = Path(__file__).parent.parent
TOOLS = Path(os.environ.get("VIEWER_TOOLS", ROOT / "../shared/tools/viewer")).resolve()
OHIF = ROOT / "build" / "ohif"
PICTURES = ROOT / "artefacts" / "viewer"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")

pytestmark = [pytest.mark.peer, pytest.mark.shared, pytest.mark.slow]

# Off centre along each axis; position in slices, rows, columns, radius in mm.
LESION = (4.0, 40.0, 66.0, 11.0)
SQUARES = {"dx": (50, 70, 27), "cine": (20, 30, 20)}
_SHAPES: dict[str, Any] = {"spacing": SPACING, "lesion": LESION}

STUDIES: dict[str, Callable[[], list[Dataset]]] = {
    "ct": lambda: factories.ct_series(**SIZE, **_SHAPES, study="ct"),
    "oblique-mr": lambda: factories.mr_series(**SIZE, **_SHAPES, study="oblique-mr"),
    "enhanced-mr": lambda: [factories_enhanced.enhanced_mr(**SIZE, **_SHAPES, study="enhanced")],
    "dx": lambda: [_of(radiograph(SQUARES["dx"], 99), "dx")],
    "cine": lambda: [_of(cine(SQUARES["cine"], 99), "cine")],
    "unaligned-ct": lambda: factories.ct_series(10, 97, 113, **_SHAPES, study="unaligned"),
}


def _of(ds: Dataset, study: str) -> Dataset:
    """The image in a study of its own."""
    ds.StudyInstanceUID, ds.SeriesInstanceUID = factories.uid(study), factories.uid(study, "series")
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = factories.uid(study, "image")
    return ds


def _lesion(name: str, datasets: list[Dataset]) -> NDArray[np.bool_]:
    """The truth, (slices, rows, columns)."""
    rows, columns = datasets[0].Rows, datasets[0].Columns
    if name not in SQUARES:
        return lesion_mask((10, rows, columns), LESION)
    truth = np.zeros((int(datasets[0].get("NumberOfFrames", 1)), rows, columns), dtype=bool)
    truth[2 if name == "cine" else 0] = square((rows, columns), SQUARES[name])
    return truth


class _OneContext:
    """A browser whose pages share one cache: OHIF's programs are read and compiled once."""

    def __init__(self, browser: Any) -> None:
        self._browser, self._context = browser, browser.new_context()

    def new_page(self, viewport: dict[str, int]) -> Any:
        """Open a page of this size."""
        page = self._context.new_page()
        page.set_viewport_size(viewport)
        return page

    def close(self) -> None:
        """End the browser."""
        self._browser.close()


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Orthanc with DICOMweb, OHIF in front of it, and Chromium."""
    need("Orthanc", "chromium")
    for path, what in (
        (TOOLS, "the viewer tools (VIEWER_TOOLS)"),
        (OHIF, "OHIF: run .ci/peers"),
        (PLUGIN, ""),
    ):
        if not path.exists():
            pytest.skip(f"{path} is missing: {what or 'install the Debian package orthanc-dicomweb'}")
    sys.path.insert(0, str(TOOLS))
    try:
        serve, shot, check = (importlib.import_module(name) for name in ("serve", "shot", "check_one"))
        from playwright.sync_api import sync_playwright

        PICTURES.mkdir(parents=True, exist_ok=True)
        web = {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "WadoRoot": "/wado"}
        options = {
            "Plugins": [str(PLUGIN)],
            "DicomWeb": web | {"StudiesMetadata": "Full", "SeriesMetadata": "Full"},
        }
        with orthanc(tmp_path_factory.mktemp("pacs"), **options) as pacs, sync_playwright() as playwright:
            server = serve.start(OHIF, 0, pacs.http_port)
            try:
                browser = shot.Viewer(playwright, base=f"http://127.0.0.1:{server.server_port}")
                browser.b = _OneContext(browser.b)
                yield SimpleNamespace(pacs=pacs, browser=browser, truth=check.truth, tools=shot)
                browser.close()
            finally:
                server.shutdown()
                server.server_close()
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def daemon(viewer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A running daemon with a bundle fitted for each kind of image, which delivers to the viewer's PACS."""
    folder = tmp_path_factory.mktemp("daemon")
    bundles = [fitted(modality, folder) for modality in MODALITIES]
    extra = ['profile = "ohif"', 'parametric_map = "float"']
    for bundle in bundles:
        extra.append(f'[[rules]]\nname = "{bundle.name}"\nbundle = "{bundle.name}"')
        extra.append(f'modality = "{bundle.modality}"')
    with daemons(folder, *bundles) as start:
        yield start(viewer.pacs.port, viewer.pacs.ae_title, 0.5, "\n".join(extra))


def _through(datasets: list[Dataset], viewer: Any, daemon: RunningDaemon, folder: Path) -> dict[str, Dataset]:
    """Modality → PACS and daemon; wait for what the daemon delivers, and take it from the PACS, by kind."""
    paths = factories.write_all(datasets, folder / "source")
    uid = datasets[0].StudyInstanceUID
    assert all(outcome.ok for outcome in send(paths, viewer.pacs.destination()))
    storescu(daemon.port, *map(str, paths), calling="MODALITY")
    daemon.wait_for(
        lambda index: (
            any(s.study_instance_uid == uid for s in index.list_studies(["scored"]))
            and not index.deliveries(uid, states=["pending", "failed"])
        )
    )
    with daemon.index() as index:
        results, deliveries = index.results_of(uid), index.deliveries(uid)
    assert {delivery.state for delivery in deliveries} == {"sent"}
    stored = viewer.pacs.instances()
    return {
        result.kind: dcmread(
            BytesIO(viewer.pacs.download(f"/instances/{stored[result.sop_instance_uid]}/file"))
        )
        for result in results
    }


@pytest.fixture(scope="module", params=STUDIES)
def shown(
    request: pytest.FixtureRequest, viewer: Any, daemon: RunningDaemon, tmp_path_factory: Any
) -> SimpleNamespace:
    """One study in the PACS, with its objects by kind."""
    name = request.param
    datasets = STUDIES[name]()
    objects = _through(datasets, viewer, daemon, tmp_path_factory.mktemp(name))
    return SimpleNamespace(name=name, datasets=datasets, study=datasets[0].StudyInstanceUID, **objects)


@pytest.fixture(scope="module")
def browser(shown: Any, viewer: Any) -> Any:
    """The study as a radiologist opens it, with everything that came to it."""
    series = [shown.datasets[0].SeriesInstanceUID]
    series += [getattr(shown, kind).SeriesInstanceUID for kind in ("SEG", "SR", "PM") if hasattr(shown, kind)]
    viewer.browser.open(shown.study, series)
    return viewer.browser


def test_the_segment_is_the_lesion(shown: Any) -> None:
    """What the model marked, read from the PACS by highdicom, is the lesion that was drawn (Dice ≥ 0.7)."""
    seg = hd.seg.Segmentation.from_dataset(shown.SEG)
    uids = [ds.SOPInstanceUID for ds in shown.datasets]
    options: dict[str, Any] = {
        "segment_numbers": seg.segment_numbers,
        "assert_missing_frames_are_empty": True,
    }
    if "NumberOfFrames" in shown.datasets[0]:
        frames = list(range(1, int(shown.datasets[0].NumberOfFrames) + 1))
        found = seg.get_pixels_by_source_frame(uids[0], frames, **options)
    else:
        found = seg.get_pixels_by_source_instance(uids, ignore_spatial_locations=True, **options)
    marked, truth = (np.asarray(found) > 0).any(axis=-1), _lesion(shown.name, shown.datasets)
    assert 2 * (marked & truth).sum() / (marked.sum() + truth.sum()) >= 0.7


def test_the_seg_lies_on_the_lesion(shown: Any, viewer: Any, browser: Any) -> None:
    """OHIF's labelmap equals the file on each slice, has its colours and labels, and lies on the lesion."""
    seg = shown.SEG
    want, meta = viewer.truth(seg, shown.datasets)
    best = max(want, key=lambda key: sum(value[0] for value in want[key].values()))
    browser.goto(*best)
    before = browser.viewport()
    loaded = browser.hydrate(str(seg.SeriesDescription))
    browser.goto(*best)
    after = browser.viewport()
    browser.shot(PICTURES / f"{shown.name}-seg.png")
    assert loaded["ok"], (loaded, browser.console[:3])
    assert _labelmap(browser, multiframe=best[1] is not None) == want
    colours = {str(s["i"]): s["color"][:3] for rep in loaded["reps"] for s in rep["segments"]}
    for number, segment in meta.items():
        assert max(abs(a - b) for a, b in zip(segment["rgb"], colours[number], strict=True)) <= 6
    listed = [label for item in loaded["labels"] for label in item["segments"]]
    assert {segment["label"] for segment in meta.values()} <= set(listed)
    changed = np.abs(after - before).max(-1) > 10
    assert changed.sum() > 100
    # The lesion is the brightest thing on the slice: what changed lies on it.
    grey = before.max(-1)
    assert np.median(grey[changed]) >= np.quantile(grey, 0.9)


def _labelmap(browser: Any, *, multiframe: bool) -> dict[Any, Any]:
    """Voxels and sum of pixel indices by source slice and segment, as the viewer holds them."""
    found: dict[Any, Any] = {}
    for slice_ in browser.stats():
        match = re.search(r"instances/([0-9.]+)(?:/frames/([0-9]+))?", slice_["ref"])
        assert match is not None
        key = (match[1], int(match[2]) if multiframe else None)
        found.setdefault(key, {}).update(slice_["n"])
    return found


# What OHIF read from the SR, and whether it laid it on an image.
MEASUREMENTS = """() => window.services.displaySetService.getActiveDisplaySets()
  .filter(d => d.Modality === 'SR').flatMap(d => d.measurements || [])
  .map(m => ({ loaded: !!m.loaded, sop: m.ReferencedSOPInstanceUID || null }))"""


def test_the_sr_opens_with_its_outline(shown: Any, browser: Any) -> None:
    """OHIF shows the SR on its image, not black, with a measurement for the finding."""
    if shown.name in ("unaligned-ct", "cine"):
        pytest.skip("the SR does not depend on the frame size, nor on who has a place in space")
    report, page = shown.SR, browser.page
    item = page.locator(
        "[data-cy=study-browser-thumbnail-no-image], [data-cy=study-browser-thumbnail]"
    ).filter(has=page.get_by_text(str(report.SeriesDescription), exact=True))
    item.first.dblclick()
    page.wait_for_function(f"() => ({MEASUREMENTS})().some(m => m.loaded)", timeout=60_000)
    page.wait_for_timeout(1000)
    picture = browser.viewport()
    browser.shot(PICTURES / f"{shown.name}-sr.png")
    measured = [item for item in page.evaluate(MEASUREMENTS) if item["loaded"]]
    assert measured, (page.evaluate(MEASUREMENTS), browser.console[:3])
    assert picture.max() > 100 and np.ptp(picture) > 80


def test_the_parametric_map_is_a_heat_map(shown: Any, browser: Any) -> None:
    """OHIF lays the map of a study in space on the slices of the lesion alone; a radiograph has none."""
    if shown.name in ("dx", "cine"):
        assert not hasattr(shown, "PM")
        return
    if shown.name not in ("ct", "enhanced-mr"):
        pytest.skip("one single-frame and one multi-frame source stand for all")
    pmap, page = shown.PM, browser.page
    item = page.locator(
        "[data-cy=study-browser-thumbnail-no-image], [data-cy=study-browser-thumbnail]"
    ).filter(has=page.get_by_text(str(pmap.SeriesDescription), exact=True))
    item.first.dblclick()
    page.wait_for_function(MAP_LOADED, timeout=60_000)
    page.wait_for_timeout(1000)
    # The lesion, 11 mm about slice 4 of 3 mm, is on the slices 1 to 7. OHIF often draws a loaded map only
    # when its viewport is drawn next, as a person's scrolling does.
    for number in (0, 1, 4, 7, 8):
        _go(browser, shown, number)
        picture = browser.viewport()
        coloured = picture.max(-1) - picture.min(-1) > 60
        assert (coloured.mean() > 0.01) == (1 <= number <= 7), (number, browser.console[:3])
        if number == 4:
            browser.shot(PICTURES / f"{shown.name}-map.png")


# A map is a volume of its own in the viewer's cache.
MAP_LOADED = """() => window.services.displaySetService.getActiveDisplaySets()
  .some(d => d.Modality === 'PMAP' && d.isLoaded)"""


def _go(browser: Any, shown: Any, number: int) -> None:
    """Scroll to a slice, counted from 0."""
    if len(shown.datasets) > 1:
        browser.goto(shown.datasets[number].SOPInstanceUID)
    else:
        browser.goto(shown.datasets[0].SOPInstanceUID, number + 1)
