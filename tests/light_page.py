"""The page alone, over a socket, with one study that no model scored: for what needs no running daemon."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import factories
import numpy as np
from analyses import Box, make_analysis, make_group, make_job, painted
from conftest import RunningDaemon
from page_site import PASSWORD, ROLES, PageSite
from peers import free_port, wait_for_port

from adapters.slices import Normalisation
from daemon.accounts import Accounts
from daemon.database import open_database
from daemon.index import Index
from daemon.part import study_prefix, uid_name
from daemon.records import ResultRecord, ScoreRecord
from daemon.seg import encode_seg
from daemon.settings import Settings, load_settings
from daemon.spool import Spool, StoredInstance
from daemon.views import Views
from daemon.web.server import serve

STUDY = factories.uid("study")
BOXES: list[Box] = [(slice(0, 3), slice(4, 9), slice(5, 12)), (slice(3, 4), slice(20, 24), slice(18, 30))]


class _Alive:
    """In place of the process that would listen."""

    def poll(self) -> None:
        """It runs."""


class LightPage(PageSite):
    """The page of one study: ``key`` is its series' group, ``result`` its SEG."""

    key = ""
    result = ""

    @property
    def base(self) -> str:
        """Where the pictures of the series are."""
        return f"/studies/{STUDY}/1/{self.key}"

    @property
    def view(self) -> Path:
        """The archive of the series' view."""
        return Views(self.daemon.settings.views_dir).folder(STUDY, 1) / f"{self.key}.zip"

    def frame(self, number: int) -> Path:
        """The received file of a slice."""
        settings = self.daemon.settings
        view = Views(settings.views_dir).read(STUDY, 1, self.key)
        assert view is not None
        return settings.spool_dir / view["frames"][number][0]


@contextlib.contextmanager
def light_page(folder: Path, web: str = "") -> Iterator[LightPage]:
    """Serve the page in a thread.

    Parameters
    ----------
    folder
        For its settings and data.
    web
        More lines of ``[web]``.
    """
    path = folder / "settings.toml"
    path.write_text(f'[service]\ndata_dir = "data"\n[web]\nport = {free_port()}\n{web}')
    settings = load_settings(path)
    page = LightPage(
        RunningDaemon(path, settings, None, folder / "log"),  # type: ignore[arg-type]
        folder, ("", ""), "", "", "", "",
    )  # fmt: skip
    spool, index, stop = Spool(settings.spool_dir), Index(settings.database_url), threading.Event()
    _fill(page, settings, spool, index)
    thread = threading.Thread(target=serve, args=(settings, index, spool, (), stop), name="page")
    thread.start()
    try:
        wait_for_port(settings.web.port, _Alive())
        yield page
    finally:
        stop.set()
        thread.join(20)
        index.close()


def _fill(page: LightPage, settings: Settings, spool: Spool, index: Index) -> None:
    accounts = Accounts(*open_database(settings.database_url))
    for name, role in ROLES.items():
        accounts.set(name, PASSWORD, role)  # type: ignore[arg-type]
    place = spool.root / study_prefix(STUDY) / uid_name(STUDY) / "series"
    group = make_group(factories.ct_series(), place)
    for frame in group.frames:
        index.add_instance(
            StoredInstance(
                STUDY,
                group.series_instance_uid,
                frame.sop_instance_uid,
                factories.CT,
                "1.2.840.10008.1.2.1",
                str(frame.path.relative_to(spool.root)),
                frame.path.stat().st_size,
                100.0,
                "CT1",
                1,
            )
        )
    index.open_revision(STUDY)
    analysis = make_analysis(group, BOXES)
    maps = [np.where(painted(group, BOXES)[n], 0.9, 0.1).astype(np.float32) for n in range(len(group.frames))]
    page.key = analysis.key
    whole = Normalisation(kind="full", size_px=32)
    Views(settings.views_dir).write(STUDY, 1, analysis, maps, whole, spool.root)
    index.add_scores(
        [
            ScoreRecord(
                STUDY,
                1,
                analysis.key,
                analysis.bundle_version,
                group.series_instance_uid,
                "CT",
                analysis.bundle_name,
                False,
                len(maps),
                0.9,
                0.3,
                len(BOXES),
                200.0,
            )
        ]
    )
    seg = encode_seg(analysis, make_job())[0]
    stored = spool.write_result(STUDY, 1, f"{seg.sop_instance_uid}.dcm", seg.content)
    page.result = seg.sop_instance_uid
    index.add_results(
        [
            ResultRecord(
                STUDY, 1, "SEG", "1.2.840.10008.5.1.4.1.1.66.4", seg.sop_instance_uid, "1.9", stored, "0" * 64
            )
        ]
    )
    index.set_state(STUDY, "scored")
