"""Early scoring: what was scored while the study arrived is used, trusted only when whole, and forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from analyses import make_job
from factories_enhanced import enhanced_ct
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from adapters.backbone import BackboneSpec, load_backbone
from adapters.bundle import AdapterBundle
from adapters.score import SliceScore
from adapters.scorer import Scorer
from adapters.slices import Slice
from daemon.analyst import Analyst
from daemon.early import EarlyScoring
from daemon.index import Index
from daemon.patch_maps import PatchMaps
from daemon.phantom import make_case, write_case
from daemon.pipeline import StudyResult, analyse
from daemon.serving import OneBundle
from daemon.settings import Settings
from daemon.spool import Spool
from daemon.study import Study, assemble


class Counting:
    """The real scorer, and how many slices it was shown."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.bundle, self.shown = scorer, scorer.bundle, 0

    def score(self, slices: Iterator[Slice]) -> Iterator[SliceScore]:
        """Count, and score."""
        for score in self._scorer.score(slices):
            self.shown += 1
            yield score


@dataclass
class OneModel:
    """The models of a process with this one scorer."""

    scorer: Counting

    def versions(self) -> dict[str, str]:
        """The one version."""
        return {self.scorer.bundle.name: self.scorer.bundle.version}

    def serving(self, versions: dict[str, str]) -> OneBundle:
        """The one scorer."""
        return OneBundle(self.scorer)


@pytest.fixture(scope="module")
def scorer(phantom_bundle: AdapterBundle) -> Scorer:
    """Backbone and adapters as the daemon has them."""
    return Scorer(load_backbone(BackboneSpec(), "cpu", "fp32"), phantom_bundle, batch_size=4)


@dataclass
class Site:
    """A spool and an index with one study that still arrives."""

    spool: Spool
    index: Index
    models: OneModel
    settings: Settings
    study: str
    busy: threading.Lock

    def early(self, name: str = "score@one") -> EarlyScoring:
        """Early scoring over it, under this name among the hosts."""
        return EarlyScoring(self.settings, self.index, self.spool, self.models, self.busy, name)

    def assembled(self) -> Study:
        """The study as its revision would see it."""
        paths = [self.spool.path(item.path) for item in self.index.instances_of(self.study)]
        return assemble(self.study, paths, max_frame_pixels=10**8, max_study_frames=10**4)

    def analysed(self, known: PatchMaps | None) -> StudyResult:
        """What is made of it."""
        serving, job = OneBundle(self.models.scorer), make_job(study_instance_uid=self.study)
        return analyse(self.assembled(), serving, job, self.settings, None, known)


def _receive(site: Site, ds: Dataset) -> None:
    encoded = DicomBytesIO()
    encoded.is_little_endian, encoded.is_implicit_VR = True, False
    syntax = str(ds.file_meta.TransferSyntaxUID)
    write_dataset(encoded, ds)
    part = site.spool.begin(ds.SOPClassUID, ds.SOPInstanceUID, syntax, "CT1")
    part.write(encoded.getvalue())
    site.index.add_instance(part.commit(ds.StudyInstanceUID, ds.SeriesInstanceUID))


@pytest.fixture
def site(tmp_path: Path, scorer: Scorer) -> Iterator[Site]:
    """A phantom case with a lesion, all of it received, its quiet time not over."""
    case = make_case(7, abnormal=True)
    index = Index(f"sqlite:///{tmp_path}/index.db")
    settings = Settings.model_validate({"service": {"data_dir": str(tmp_path)}})
    models = OneModel(Counting(scorer))
    site = Site(Spool(tmp_path / "spool"), index, models, settings, case.study_instance_uid, threading.Lock())
    for file in write_case(case, tmp_path / "case"):
        _receive(site, dcmread(file))
    yield site
    index.close()


def _work_off(early: EarlyScoring) -> int:
    turns = 0
    early.look()
    while early.turn():
        turns += 1
    return turns


def test_the_results_are_those_of_a_study_that_was_scored_at_its_end(site: Site) -> None:
    """Early scoring changes when the model runs, and no finding and no byte of SEG and SR."""
    late = site.analysed(None)
    assert late.analyses[0].findings
    _work_off(site.early())
    known = PatchMaps(site.spool, site.study)
    site.models.scorer.shown = 0
    early = site.analysed(known)
    assert site.models.scorer.shown == 0
    assert [item.content for item in early.objects] == [item.content for item in late.objects]


def test_scoring_that_was_interrupted_goes_on_where_it_stopped(site: Site, scorer: Scorer) -> None:
    """What a killed attempt had scored is not scored again."""
    known = PatchMaps(site.spool, site.study)
    study = site.assembled()

    class Killed(Exception):
        pass

    class Dying(Counting):
        def score(self, slices: Iterator[Slice]) -> Iterator[SliceScore]:
            for score in super().score(slices):
                yield score
                if self.shown == 8:
                    raise Killed

    job = make_job(study_instance_uid=site.study)
    with pytest.raises(Killed):
        analyse(study, OneBundle(Dying(scorer)), job, site.settings, None, known)
    site.analysed(known)
    assert site.models.scorer.shown == 12 - 8


def test_a_damaged_map_counts_as_lost(site: Site) -> None:
    """A torn, foreign or emptied file is not taken for a score."""
    _work_off(site.early())
    known, frames = PatchMaps(site.spool, site.study), site.assembled().groups[0].frames
    bundle = site.models.scorer.bundle
    files = {path.name: path for path in (site.spool.root / "early").rglob("*") if path.is_file()}
    assert len(files) == len(frames) == 12
    first, second, third = list(files.values())[:3]
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:-4])
    third.write_bytes(list(files.values())[3].read_bytes())
    lost = [frame for frame in frames if known.get(bundle, frame) is None]
    assert len(lost) == 3


def test_a_revision_that_is_closed_leaves_no_maps(site: Site) -> None:
    """The analyst uses what was scored early, and removes it when the results are recorded."""
    _work_off(site.early())
    analyst = Analyst(site.settings, site.index, site.spool, site.models, b"key")
    site.index.open_revision(site.study)
    site.models.scorer.shown = 0
    job = analyst.open_job(site.study, 1)
    reference = analyst.run_job(job)
    analyst.close_job(job, reference)
    assert (site.models.scorer.shown, reference.state) == (0, "scored")
    assert not [path for path in (site.spool.root / "early").rglob("*") if path.is_file()]


def test_a_study_that_is_due_comes_first(site: Site) -> None:
    """While a revision has the model, early scoring takes no turn."""
    early = site.early()
    early.look()
    with site.busy:
        assert not early.turn()
    assert early.turn()


def test_a_large_object_is_scored_in_short_turns(site: Site) -> None:
    """The frames of one object are spread over turns, so that the model is soon free for what is due."""
    ds = enhanced_ct()
    _receive(site, ds)
    early = site.early()
    early.look()
    early.turn()
    frames = int(ds.NumberOfFrames)
    assert 0 < site.models.scorer.shown < frames
    while early.turn():
        pass
    assert site.models.scorer.shown == 12 + frames


def test_hosts_share_arriving_studies(site: Site) -> None:
    """Of two hosts that share an index one looks at an arriving study, the other does not."""
    names = ("score@one", "score@two")
    for name in names:
        site.index.heartbeat(name)
    assert sorted(bool(_work_off(site.early(name))) for name in names) == [False, True]


def test_a_thread_scores_what_arrives_until_it_is_stopped(site: Site) -> None:
    """The thread takes what is there, waits for more, and ends when told to."""
    stop = threading.Event()
    thread = threading.Thread(target=site.early().run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 60
    while site.models.scorer.shown < 12 and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    thread.join(10)
    assert site.models.scorer.shown == 12
    assert not thread.is_alive()
    patches = PatchMaps(site.spool, site.study).get(
        site.models.scorer.bundle, site.assembled().groups[0].frames[0]
    )
    assert patches is not None and np.isfinite(patches).all()
