"""The whole path from DICOM files to probabilities, findings and results: where each millisecond goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from adapters import model, scorer, slices
from adapters.backbone import Backbone
from adapters.bundle import AdapterBundle
from adapters.calibration import Scale
from adapters.letterbox import Letterbox
from adapters.model import MVFA, Adapter
from adapters.slices import Normalisation
from benchmarks import scoring_setup as setup
from benchmarks.phantom_study import write_study
from daemon import pipeline, variants
from daemon.analyst import make_job
from daemon.jobs import JobRecord
from daemon.results import is_own
from daemon.serving import OneBundle
from daemon.settings import load_settings
from daemon.study import assemble

BANK_ROWS = 1276  # a tenth of 4 shots, 11 views, 290 tokens


class Clock:
    """Adds up wall and CPU time of functions that it wraps, without that of those called inside.

    On a GPU it waits for each function, so that nothing overlaps and the sum is longer than a real run.

    Parameters
    ----------
    device
        Whose queue is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.wall_s: dict[str, float] = defaultdict(float)
        self.core_s: dict[str, float] = defaultdict(float)
        self._undo: list[Callable[[], None]] = []
        self._inside: list[setup.Spent] = []

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Replace ``owner.name`` by itself, timed."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(setup.Spent(0.0, 0.0))
            result, spent = setup.spend(lambda: inner(*args, **kwargs), self._device)
            inside = self._inside.pop()
            self.wall_s[stage] += spent.wall_s - inside.wall_s
            self.core_s[stage] += spent.core_s - inside.core_s
            if self._inside:
                outer = self._inside[-1]
                self._inside[-1] = setup.Spent(outer.wall_s + spent.wall_s, outer.core_s + spent.core_s)
            return result

        setattr(owner, name, timed)
        self._undo.append(lambda: setattr(owner, name, inner))

    def unwrap(self) -> None:
        """Put every function back."""
        while self._undo:
            self._undo.pop()()


def unfitted_bundle(backbone: Backbone, net: MVFA, rows: int = BANK_ROWS) -> AdapterBundle:
    """Return a bundle of real size with random memory: time does not depend on its values."""
    generator = torch.Generator().manual_seed(0)
    memory = tuple(
        F.normalize(torch.randn(rows, backbone.embed_dim, generator=generator), dim=-1).numpy()
        for _ in net.levels
    )
    text = F.normalize(torch.randn(backbone.embed_dim, 2, generator=generator), dim=0)
    return AdapterBundle(
        name="benchmark",
        backbone=backbone.spec.as_dict(),
        backbone_sha256=backbone.sha256,
        image_size_px=backbone.image_size_px,
        patch_px=backbone.patch_px,
        levels=net.levels,
        families=net.families,
        mix=net.mix,
        class_name="Chest",
        text=text.numpy(),
        normalisation=Normalisation("window", -1000.0, 1000.0, backbone.image_size_px),
        weights={k: v.detach().cpu().numpy() for k, v in net.state_dict().items()},
        memory=memory,
        distance_scale=Scale(0.9, 0.02),
        slice_scale=Scale(0.5, 0.1),
        normal_scores=np.linspace(0.1, 0.5, 19, dtype=np.float32),
        normal_map_quantiles=np.linspace(0, 1, 101, dtype=np.float32),
        threshold=0.9,
        slice_threshold=0.5,
        modality="CT",
        provenance={"normal_slices": 1, "dice": None},
    )


def stages(
    folder: Path, name: str, size_px: int, device: str, precision: str, count: int, batch: int
) -> dict[str, Any]:
    """Analyse a CT study of ``count`` slices of 512 × 512 and return seconds per slice and stage."""
    study = write_study(folder / "study", slices=count)
    settings_path = folder / "settings.toml"
    # One decoder: the clock's stages are nested in one thread.
    settings_path.write_text(
        f'[service]\ndata_dir = "{folder}"\n[model]\ndevice = "{device}"\ndecoders = 1\n'
    )
    settings = load_settings(settings_path)
    # As a site runs it: one family where there are masks.
    backbone, _ = setup.large_model(name, size_px, device, precision)
    net = MVFA(backbone, model.default_levels(backbone.blocks), ("seg",), "renormalised").eval()
    made = scorer.Scorer(backbone, unfitted_bundle(backbone, net), batch_size=batch)
    paths = sorted((folder / "study").iterdir())
    warm = slices.load_slice(paths[0], normalisation=made.bundle.normalisation, max_frame_pixels=1 << 20)
    list(made.score([warm] * made.batch_size))
    clock = Clock(backbone.device)
    _wrap(clock)
    started, core = time.perf_counter(), time.process_time()
    assembled = assemble(
        study,
        paths,
        max_frame_pixels=settings.study.maximum_frame_pixels,
        max_study_frames=settings.study.maximum_study_frames,
        is_own=is_own,
    )
    job = make_job(JobRecord(study, 1, datetime.now(UTC).isoformat(), {}), settings)
    result = pipeline.analyse(assembled, OneBundle(made), job, settings)
    wall_s, core_s = time.perf_counter() - started, time.process_time() - core
    clock.unwrap()
    if not result.analyses:
        raise SystemExit("benchmark: the study was not scored")
    return {
        "slices": count,
        "batch": made.batch_size,
        "precision": backbone.precision,
        "device": str(backbone.device),
        "wall_s": wall_s,
        "core_s": core_s,
        "slices_per_s": count / wall_s,
        "stages_wall_ms": {k: v / count * 1e3 for k, v in clock.wall_s.items()},
        "stages_core_ms": {k: v / count * 1e3 for k, v in clock.core_s.items()},
        "findings": sum(len(analysis.findings) for analysis in result.analyses),
    }


def _wrap(clock: Clock) -> None:
    clock.wrap(slices, "read_source", "read and header")
    clock.wrap(slices, "decode_frame", "decode")
    clock.wrap(slices, "normalise", "normalise")
    clock.wrap(scorer, "to_square", "host to device, to the model's grid")
    clock.wrap(Backbone, "embed", "backbone")
    clock.wrap(Backbone, "run_blocks", "backbone")
    clock.wrap(Adapter, "forward", "adapters")
    clock.wrap(Adapter, "token", "adapters")
    clock.wrap(scorer, "abnormal_probability", "text")
    clock.wrap(scorer, "distance", "memory")
    clock.wrap(scorer, "fuse", "calibration")
    clock.wrap(Letterbox, "backward", "upsampling to the source's grid")
    clock.wrap(pipeline, "find", "findings")
    clock.wrap(variants, "encode_seg", "SEG encode")
    clock.wrap(variants, "encode_sr", "SR encode")
