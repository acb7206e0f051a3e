"""What a fit costs on a large backbone: 4 + 4 shots on ViT-L-14-336 at 240 px, seeded random weights.

Time does not depend on the values of the weights. Each variant runs in a process of its own, so that
its peak memory is its own. ``python -m benchmarks.fit_large`` prints the table and rewrites it in
``README.md`` between the markers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.backbone import Backbone, BackboneSpec, load_backbone
from adapters.model import MVFA, Family, default_levels, text_features
from daemon.phantom import make_case
from training.augment import PUBLISHED_VIEWS, SAFE_VIEWS, augment
from training.loop import TrainingSet, published_epoch, train_epochs
from training.prepared import Prepared

HERE = Path(__file__).parent
SHOTS = 4
CACHED, UNCACHED, DEFAULT = "published, frozen part cached", "published, nothing cached", "default recipe"
BEGIN, END = "<!-- fit_large: begin -->", "<!-- fit_large: end -->"
T = TypeVar("T")


def measure(variant: str, model: str, size_px: int, steps: int) -> dict[str, Any]:
    """Run one variant in this process.

    Parameters
    ----------
    variant
        ``CACHED``, ``UNCACHED`` or ``DEFAULT``.
    model, size_px
        open_clip name and side of the input.
    steps
        How many steps of the published recipe (batch 1) are timed; the default recipe runs a whole epoch.

    Returns
    -------
    dict
        Seconds and bytes.
    """
    backbone = load_backbone(BackboneSpec(model=model, image_size_px=size_px), "auto", "auto")
    place = backbone.device
    shots = Prepared(backbone, _shots())
    labels = torch.tensor([0.0] * SHOTS + [1.0] * SHOTS)
    text = text_features(backbone, "Liver")
    families: tuple[Family, ...] = ("seg",) if variant == DEFAULT else ("seg", "det")
    mix = "renormalised" if variant == DEFAULT else "published"
    net = MVFA(backbone, default_levels(backbone.blocks), families, mix)  # type: ignore[arg-type]
    views = SAFE_VIEWS if variant == DEFAULT else PUBLISHED_VIEWS
    images = augment(shots.images[:, None].expand(-1, 3, -1, -1), views).to(place)  # (V B, 3, H, W)
    masks = augment(shots.squares[:, None], views)[:, 0].to(place)
    every = labels.repeat(len(views)).to(place)
    if variant == DEFAULT:
        stem, stem_s = _timed(place, lambda: _stem(net, images))
        data = TrainingSet(stem, _patches(masks, backbone), every, _valid(shots, len(views)).to(place))
        epoch = train_epochs(net, data, text, epochs=1, seed=0, batch_size=16, learning_rate=1e-3)
        _, seconds = _timed(place, lambda: list(epoch))
        timed = len(images)
    else:
        order = [int(i) for i in np.random.default_rng(0).permutation(len(images))[:steps]]
        chosen = images[order]
        stem, stem_s = (chosen, 0.0) if variant == UNCACHED else _timed(place, lambda: _stem(net, chosen))
        targets = (masks[order] > 0.5).float()
        _, seconds = _timed(
            place, lambda: published_epoch(net, stem, targets, every[order], text, range(len(order)))
        )
        timed = len(order)
    return {
        "variant": variant,
        "images": len(images),
        "timed": timed,
        "step_s": seconds / timed,
        "epoch_s": seconds / timed * len(images),
        "stem_s": stem_s / timed * len(images),
        "peak_bytes": _peak_bytes(place),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU",
        "precision": backbone.precision,
        "threads": torch.get_num_threads(),
    }


def _shots() -> list[tuple[NDArray[np.float32], NDArray[np.bool_] | None]]:
    pairs: list[tuple[NDArray[np.float32], NDArray[np.bool_] | None]] = []
    for number in range(2 * SHOTS):
        case = make_case(number, abnormal=number >= SHOTS)
        middle = int(case.lesion.sum((1, 2)).argmax()) if case.abnormal else len(case.lesion) // 2
        pixels = np.clip((case.hounsfield[middle] + 760) / 1600, 0, 1).astype(np.float32)
        pairs.append((pixels, case.lesion[middle] if case.abnormal else None))
    return pairs


def _stem(net: MVFA, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([net.stem(images[i : i + 8]) for i in range(0, len(images), 8)])


def _patches(masks: torch.Tensor, backbone: Backbone) -> torch.Tensor:
    """(B, P) covered fraction of each patch."""
    return torch.nn.functional.avg_pool2d(masks[:, None], backbone.patch_px).flatten(1)


def _valid(shots: Prepared, views: int) -> torch.Tensor:
    return shots.valid.flatten(1).repeat(views, 1)


def _timed(place: torch.device, work: Callable[[], T]) -> tuple[T, float]:
    if place.type == "cuda":
        torch.cuda.synchronize(place)
        started = time.perf_counter()
        result = work()
        torch.cuda.synchronize(place)
        return result, time.perf_counter() - started
    # Core-seconds: other programs on the machine stretch wall time.
    started = time.process_time()
    return work(), time.process_time() - started


def _peak_bytes(place: torch.device) -> int:
    if place.type == "cuda":
        return int(torch.cuda.max_memory_allocated(place))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _machine() -> dict[str, str]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "?",
    )
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": f"{cores} cores of {model}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _markdown(record: dict[str, Any]) -> str:
    machine = record["machine"]
    lines = [
        f"{record['model']} at {record['size_px']} px, {SHOTS} + {SHOTS} shots, {record['date']}. "
        f"{machine['cpu']}; Python {machine['python']}, torch {machine['torch']}; "
        f"{record['rows'][0]['device']}, {record['rows'][0]['precision']}. On a CPU s are core-seconds.",
        "",
        "| | images an epoch | timed | s per image | s per epoch | s once for the cache | peak memory, GB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['variant']} | {row['images']} | {row['timed']} | {row['step_s']:.2f} | {row['epoch_s']:.0f} "
        f"| {row['stem_s']:.0f} | {row['peak_bytes'] / 1e9:.1f} |"
        for row in record["rows"]
    ]
    times = {row["variant"]: row["epoch_s"] for row in record["rows"]}
    if CACHED in times and UNCACHED in times:
        lines += [
            "",
            f"Caching the frozen part: {times[UNCACHED] / times[CACHED]:.2f} times as fast an epoch.",
        ]
    return "\n".join(lines)


def main() -> None:
    """Run every variant, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-L-14-336")
    parser.add_argument("--size-px", type=int, default=240)
    parser.add_argument("--steps", type=int, default=16, help="timed steps of the published recipe")
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--variant", help="run one variant and print JSON")
    options = parser.parse_args()
    if options.variant:
        sys.stdout.write(json.dumps(measure(options.variant, options.model, options.size_px, options.steps)))
        return
    rows = []
    for variant in (CACHED, UNCACHED, DEFAULT):
        command = [
            sys.executable,
            "-m",
            "benchmarks.fit_large",
            "--variant",
            variant,
            "--model",
            options.model,
        ]
        command += ["--size-px", str(options.size_px), "--steps", str(options.steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    record = {
        "model": options.model,
        "size_px": options.size_px,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "rows": rows,
    }
    sys.stdout.write(_markdown(record) + "\n")
    if options.no_write:
        return
    (HERE / "results" / "fit_large.json").write_text(json.dumps(record, indent=2) + "\n")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{_markdown(record)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
