"""What a device does at best and what we get of it: model alone, adapters' cost, files to maps, decoders.

The same code runs on a CPU, where it is tested; its figures mean something on a GPU.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapters.device import slice_bytes
from adapters.model import MVFA
from adapters.scorer import Scorer, map_terms, replicate
from adapters.slices import Normalisation, load_slice
from benchmarks import scoring_setup as setup
from benchmarks.phantom_study import write_study
from benchmarks.scoring_path import unfitted_bundle
from benchmarks.scoring_setup import spend
from daemon.patch_maps import PatchMaps
from daemon.pipeline import score_group
from daemon.settings import Settings
from daemon.spool import Spool
from daemon.study import FrameGroup, assemble

TARGETS = {"model alone": 1500.0, "files to maps": 500.0, "share of peak": 0.4, "adapters": 0.08}


def peak_flops(device: torch.device, dtype: torch.dtype, side: int, repeats: int) -> float:
    """Return the multiply-adds x 2 per second of a square product: the bound that this card measures."""
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    a @ b
    _, spent = spend(lambda: [a @ b for _ in range(repeats)], device)
    return 2.0 * side**3 * repeats / spent.wall_s


def flops_per_slice(net: MVFA, *, adapters: bool = True) -> float:
    """Return the multiply-adds x 2 of one slice: blocks' products, attention, patches, and adapters."""
    backbone = net.backbone
    n, w, d = backbone.grid**2 + 1, backbone.width, backbone.embed_dim
    block = 2 * n * 12 * w * w + 2 * 2 * n * n * w
    patches = 2 * (n - 1) * 3 * backbone.patch_px**2 * w
    each = 2 * 2 * n * w * d * len(net.families)
    total = net.levels[-1] * block + patches
    return float(total + (each * len(net.levels) if adapters else 0))


class Steps:
    """One model in the forms that are compared.

    Parameters
    ----------
    scorer
        Gives model, memory and text.
    batch
        Images of one step.
    """

    def __init__(self, scorer: Scorer, batch: int) -> None:
        self.net, self.scorer = scorer._model, scorer
        self.device = scorer.backbone.device
        size = scorer.backbone.image_size_px
        self.images = torch.rand(batch, size, size, device=self.device)

    @torch.no_grad()
    def backbone(self, images: torch.Tensor) -> torch.Tensor:
        """The plain backbone up to the last level."""
        x = self.net.backbone.embed(replicate(images))
        return self.net.backbone.run_blocks(x, 0, self.net.levels[-1])

    @torch.no_grad()
    def model(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Backbone and adapters."""
        return self.net(replicate(images)).of(self.net.families[0])  # type: ignore[no-any-return]

    @torch.no_grad()
    def terms(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Backbone, adapters, text and memory: the maps' two terms."""
        return map_terms(self.net, self.model(images), self.scorer._text, self.scorer._memory)

    def graphed(self, work: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
        """Record ``work`` as a CUDA graph: one launch a batch (GPU only)."""
        held = self.images.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                work(held)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = work(held)

        def replay(images: torch.Tensor) -> Any:
            held.copy_(images)
            graph.replay()
            return result

        return replay


def model_alone(scorer: Scorer, batch: int, repeats: int, *, compiled: bool) -> dict[str, Any]:
    """Slices per second of each form of the model, images on the device already."""
    steps = Steps(scorer, batch)
    forms: dict[str, Callable[[], Callable[[torch.Tensor], Any]]] = {
        "plain backbone": lambda: steps.backbone,
        "backbone and adapters": lambda: steps.model,
        "with text and memory": lambda: steps.terms,
    }
    if steps.device.type == "cuda":
        forms["with text and memory, CUDA graph"] = lambda: steps.graphed(steps.terms)
    if compiled:
        forms["with text and memory, compiled"] = lambda: torch.compile(steps.terms)
        forms["plain backbone, compiled"] = lambda: torch.compile(steps.backbone)
        forms["backbone and adapters, compiled"] = lambda: torch.compile(steps.model)
    rates: dict[str, float | str] = {}
    for name, make in forms.items():
        try:
            work = make()
            work(steps.images)
        # A compiler that is missing or fails is a finding, and the others still count.
        except Exception as error:
            rates[name] = f"failed: {type(error).__name__}"
            continue
        _, spent = spend(lambda work=work: [work(steps.images) for _ in range(repeats)], steps.device)  # type: ignore[misc]
        rates[name] = batch * repeats / spent.wall_s
    return {"batch": batch, "slices_per_s": rates, "peak_bytes": peak_bytes(steps.device)}


def peak_bytes(device: torch.device) -> int:
    """Return the most that tensors took on a GPU; on a CPU the process's largest RSS."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def files_to_maps(scorer: Scorer, folder: Path, study: str, count: int, decoders: int) -> dict[str, Any]:
    """Slices per second from uncompressed DICOM files to maps on the source grid, by the daemon's own path.

    As for one study: what :func:`daemon.pipeline.score_group` does, patch maps kept on disk, and then each
    slice's map drawn once, as the findings do.

    Parameters
    ----------
    scorer
        Gives model and device.
    folder
        A spool with files of one group in ``study``.
    study
        Their Study Instance UID.
    count
        Slices; the study's files are read again and again.
    decoders
        Slices read at once (``model.decoders``).
    """
    settings = Settings.model_validate(
        {"model": {"device": str(scorer.backbone.device), "decoders": decoders}}
    )
    group = _repeated(folder / "study", study, count, settings)
    known = PatchMaps(Spool(folder), study)

    def work() -> int:
        scores, _ = score_group(group, scorer, settings, known)
        return sum(score.map.shape == (group.rows, group.columns) for score in scores.values())

    scored, spent = spend(work, scorer.backbone.device)
    known.forget()
    return {"decoders": decoders, "slices": scored, "slices_per_s": scored / spent.wall_s}


def _repeated(folder: Path, study: str, count: int, settings: Settings) -> FrameGroup:
    """The study's group with its frames repeated, each under a UID of its own."""
    limits = settings.study
    (group,) = assemble(
        study,
        sorted(folder.iterdir()),
        max_frame_pixels=limits.maximum_frame_pixels,
        max_study_frames=limits.maximum_study_frames,
    ).groups
    files = group.frames
    frames = tuple(replace(files[i % len(files)], sop_instance_uid=f"1.2.{i}") for i in range(count))
    return replace(group, frames=frames)


def decoder_rate(folder: Path, count: int) -> float:
    """Slices per second and core of reading, decoding and normalising alone."""
    paths = sorted(folder.iterdir())
    window = Normalisation("window", -1000.0, 1000.0, 240)
    _, spent = spend(
        lambda: [
            load_slice(paths[i % len(paths)], normalisation=window, max_frame_pixels=1 << 24)
            for i in range(count)
        ]
    )
    return count / spent.core_s


def measure(
    folder: Path, name: str, size_px: int, device: str, precision: str, batch: int, scale: int
) -> dict[str, Any]:
    """Measure everything on one device.

    Parameters
    ----------
    folder
        For the study's files.
    name, size_px, device, precision
        Of the backbone.
    batch
        0 chooses what fits.
    scale
        How much is measured: 1 in a test on a CPU, 20 on a GPU.
    """
    # More files than decoders: no two of them wait for one file.
    study = write_study(folder / "study", slices=32)
    backbone, net = setup.large_model(name, size_px, device, precision, "renormalised")
    scorer = Scorer(backbone, unfitted_bundle(backbone, net), batch_size=batch)
    place, gpu = backbone.device, backbone.device.type == "cuda"
    dtype = torch.float32 if backbone.precision == "fp32" else torch.bfloat16
    peak = peak_flops(place, dtype, 8192 if gpu else 256, 10 * scale)
    alone = model_alone(scorer, scorer.batch_size, scale, compiled=gpu)
    rates = alone["slices_per_s"]
    best = max(v for k, v in rates.items() if isinstance(v, float) and "text and memory" in k)
    pools = (1, 2, 4, 8, 16) if gpu else (1, 2)
    reads = decoder_rate(folder / "study", 8 * scale)
    return {
        "device": torch.cuda.get_device_name(place) if gpu else "CPU",
        "precision": backbone.precision,
        "peak_flops": peak,
        "flops_per_slice": flops_per_slice(net),
        "model": alone,
        "share_of_peak": best * flops_per_slice(net) / peak,
        "adapters_cost": rates["plain backbone"] / rates["backbone and adapters"] - 1,
        "files_to_maps": [
            files_to_maps(scorer, folder, study, scorer.batch_size * 2 * scale, pool) for pool in pools
        ],
        "decoder_slices_per_core_s": reads,
        "decoder_cores_needed": best / reads,
    }


def equality(name: str, size_px: int, device: str, batch: int) -> dict[str, float]:
    """Largest and mean difference of the maps' terms, half precision on the device against fp32 there."""
    terms = []
    for precision in ("fp32", "bf16"):
        backbone, net = setup.large_model(name, size_px, device, precision, "renormalised")
        scorer = Scorer(backbone, unfitted_bundle(backbone, net), batch_size=batch)
        images = torch.from_numpy(
            np.random.default_rng(0).random((batch, size_px, size_px), dtype=np.float32)
        ).to(backbone.device)
        terms.append([term.cpu() for term in scorer._terms(images)])
    text, far = ((a - b).abs() for a, b in zip(*terms, strict=True))
    return {
        "text_mean": float(text.mean()),
        "text_largest": float(text.max()),
        "distance_mean": float(far.mean()),
        "distance_largest": float(far.max()),
    }


def memory(name: str, size_px: int, device: str, precision: str, batch: int) -> dict[str, Any]:
    """Return the memory with the model loaded and at the peak of one batch, and the estimate."""
    backbone, net = setup.large_model(name, size_px, device, precision, "renormalised")
    scorer = Scorer(backbone, unfitted_bundle(backbone, net), batch_size=batch)
    gc.collect()
    place = backbone.device
    before = torch.cuda.memory_allocated(place) if place.type == "cuda" else _rss_bytes()
    if place.type == "cpu":
        # Loading takes more than scoring does: the kernel forgets that peak here (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5")
    scorer._terms(torch.rand(batch, size_px, size_px, device=place))
    peak = int(torch.cuda.max_memory_allocated(place)) if place.type == "cuda" else _rss_bytes("VmHWM")
    tokens = len(net.levels) * len(net.families)
    estimate = slice_bytes(backbone, backbone.precision, tokens, len(scorer._memory[0]))
    return {
        "batch": batch,
        "precision": backbone.precision,
        "loaded_bytes": before,
        "peak_bytes": peak,
        "per_slice_bytes": (peak - before) / batch,
        "estimate_per_slice_bytes": estimate,
    }


def _rss_bytes(field: str = "VmRSS") -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024
