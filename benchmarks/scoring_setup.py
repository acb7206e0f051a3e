"""What the scoring benchmarks share: the large model with seeded weights, images, banks, the machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from adapters.backbone import Backbone, BackboneSpec, load_backbone
from adapters.model import MVFA, Mix, default_levels
from adapters.prompts import prompts

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
IMAGES = Path(os.environ.get("SITE_IMAGES", ROOT.parent / "shared" / "images"))
CLASSES = {
    "breast_us": "Breast ultrasound",
    "brain_tumour_mri": "Brain",
    "cxr_pneumonia_child": "Chest X-ray",
}
_PROMPTS = 4


@dataclass(frozen=True, slots=True)
class Spent:
    """Wall time and this process's CPU time, seconds."""

    wall_s: float
    core_s: float


def spend(work: Callable[[], T], device: torch.device | None = None) -> tuple[T, Spent]:
    """Run ``work`` and return its result and what it took, a GPU's queue waited for."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, core = time.perf_counter(), time.process_time()
    result = work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, Spent(time.perf_counter() - wall, time.process_time() - core)


def large_model(
    model: str, size_px: int, device: str, precision: str, mix: Mix = "published"
) -> tuple[Backbone, MVFA]:
    """Return a backbone with seeded random weights and a model of both families on it."""
    backbone = load_backbone(BackboneSpec(model, image_size_px=size_px), device, precision)
    torch.manual_seed(0)
    net = MVFA(backbone, default_levels(backbone.blocks), ("seg", "det"), mix)
    return backbone, net.eval().requires_grad_(False)


def short_text(backbone: Backbone, class_name: str) -> torch.Tensor:
    """Return (D, 2) unit text features of a few prompts a side: random weights need no more."""
    groups = [F.normalize(backbone.encode_text(group[:_PROMPTS]), dim=-1) for group in prompts(class_name)]
    return F.normalize(torch.stack([group.mean(dim=0) for group in groups], dim=1), dim=0)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture as 8-bit grey or RGB."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def pictures(task: str, split: str, label: str, count: int) -> list[Path]:
    """Return up to ``count`` pictures of a task, spread over its sorted list."""
    found = sorted((IMAGES / task / split / label).glob("*.png"))
    if not found:
        raise SystemExit(f"benchmark: no pictures of {task} in SITE_IMAGES")
    return [found[i] for i in np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)]


def auroc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Return the probability that a positive scores above a negative, ties one half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()]
    n = int(positive.sum())
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * (positive.size - n)))


def describe_machine() -> dict[str, Any]:
    """Describe the machine without naming it."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    flags = next((line for line in info if line.startswith("flags")), "").split()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": names[0] if names else platform.machine(),
        "instructions": [
            f for f in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if f in flags
        ],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_1m": round(os.getloadavg()[0], 1),
    }
