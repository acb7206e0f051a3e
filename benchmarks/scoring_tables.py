"""The tables of ``benchmarks/README.md`` from the stored figures of :mod:`benchmarks.scoring`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

RATIO_BAR = 2.0
AUROC_BAR = 0.002
_PUBLISHED = "published"
_GPU_BARS = (
    ("model alone, slices/s", 1500.0),
    ("files to maps, slices/s", 500.0),
    ("share of the measured peak, %", 40.0),
    ("adapters over the plain backbone, % (at most)", 8.0),
)


def markdown(stored: Mapping[str, Any]) -> str:
    """Return all tables that have figures."""
    cpu, gpu = stored.get("CPU", {}), stored.get("GPU", {})
    lines: list[str] = []
    models = {"cpu": "ViT-L-14-336 at 240 px", "small": "the tiny backbone on every test image"}
    for part, model in models.items():
        for tasks in _measured_together(cpu.get(part, {})):
            lines += [*_contest(model, tasks), ""]
    if "blocks" in cpu:
        lines += [*_blocks(cpu["blocks"]["all"]), ""]
    if "path" in cpu:
        lines += [*_path(cpu["path"]["all"]), ""]
    if "memory" in cpu:
        lines += [*_memory(cpu["memory"]), ""]
    lines += _gpu(gpu)
    return "\n".join(lines)


def _measured_together(tasks: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Tasks that one machine measured on one day."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for task, value in tasks.items():
        found.setdefault((value["date"], value["machine"]["cpu"]), {})[task] = value
    yield from found.values()


def _where(value: Mapping[str, Any]) -> str:
    machine = value["machine"]
    return (
        f"{value['date']}, {machine['cores']} cores of {machine['cpu']} "
        f"({', '.join(machine['instructions'])}), GPU: {machine['gpu']}; {machine['threads']} threads, "
        f"torch {machine['torch']}; load {machine['load_1m']}."
    )


def _contest(model: str, tasks: Mapping[str, Any]) -> Iterator[str]:
    first = next(iter(tasks.values()))
    yield (
        f"**Against the published scoring**: {model}, seeded random weights, ours in "
        f"{first['precision']}, {first['batch']} slices a batch; bank of {first['bank_rows']} rows a level "
        f"({first['views']} of 11 views{', else random' if first['views'] < 11 else ''}), coreset of "
        f"{first['coreset_rows']}. {_where(first)}"
    )
    yield ""
    titles = "task | images | scoring | core-s per slice | ratio | image AUROC | pixel AUROC"
    yield f"| {titles} | largest Δ score | mean Δ map |"
    yield "|---|---:|---|---:|---:|---:|---:|---:|---:|"
    for task, value in tasks.items():
        spent = value["core_s_per_slice"]
        for name, seconds in spent.items():
            pixel = value.get("pixel_auroc", {}).get(name)
            yield (
                f"| {task} | {value['images']} | {name} | {seconds:.3f} | {spent[_PUBLISHED] / seconds:.2f} "
                f"| {value['image_auroc'][name]:.4f} | {'–' if pixel is None else f'{pixel:.4f}'} "
                f"| {_number(value['largest_score_difference'].get(name))} "
                f"| {_number(value['mean_map_difference'].get(name))} |"
            )
    yield ""
    # The bar of speed is for the large model: in the tiny one the memory takes most of the time.
    yield from _verdicts(tasks, speed=model.startswith("ViT"))


def _verdicts(tasks: Mapping[str, Any], *, speed: bool) -> Iterator[str]:
    for task, value in tasks.items():
        spent = value["core_s_per_slice"]
        for name in list(spent)[1:]:
            ratio = spent[_PUBLISHED] / spent[name]
            moved = [
                abs(value[kind][name] - value[kind][_PUBLISHED])
                for kind in ("image_auroc", "pixel_auroc")
                if kind in value
            ]
            fast = f"bar of {RATIO_BAR:.0f} times {_met(ratio >= RATIO_BAR)} ({ratio:.2f}); " if speed else ""
            yield (
                f"- {task}, {name}: {fast}AUROC within ±{AUROC_BAR} {_met(max(moved) <= AUROC_BAR)} "
                f"(moved by {max(moved):.4f})"
            )


def _met(yes: bool) -> str:
    return "met" if yes else "MISSED"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _blocks(value: Mapping[str, Any]) -> Iterator[str]:
    yield f"**One block** of ViT-L (24 make the backbone), core-milliseconds per slice. {_where(value)}"
    yield ""
    yield "| form | core-ms |"
    yield "|---|---:|"
    for name, seconds in value.items():
        if isinstance(seconds, float) and "difference" not in name:
            yield f"| {name} | {seconds * 1e3:.1f} |"
    for name, share in value.items():
        if "difference" in name:
            yield f"| {name} | {share:.4f} |"


def _path(value: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"**The whole path**: {value['slices']} CT slices of 512 × 512, uncompressed DICOM files to encoded "
        f"results, one segmentation family, {value['precision']}, batch {value['batch']}. {_where(value)}"
    )
    yield ""
    yield "| stage | core-ms per slice | wall-ms per slice |"
    yield "|---|---:|---:|"
    core, wall = value["stages_core_ms"], value["stages_wall_ms"]
    for name in core:
        yield f"| {name} | {core[name]:.2f} | {wall[name]:.2f} |"
    total_core, total_wall = value["core_s"] / value["slices"] * 1e3, value["wall_s"] / value["slices"] * 1e3
    rest = (total_core - sum(core.values()), total_wall - sum(wall.values()))
    yield f"| everything else, headers of the study | {rest[0]:.2f} | {rest[1]:.2f} |"
    yield f"| **sum** | **{total_core:.1f}** | **{total_wall:.1f}** |"
    yield ""
    yield (
        f"{value['slices_per_s']:.2f} slices/s of wall time on this machine as it was; "
        f"{value['slices'] / value['core_s']:.2f} slices per core-second."
    )


def _memory(batches: Mapping[str, Any]) -> Iterator[str]:
    first = next(iter(batches.values()))
    yield f"**Memory by batch size** (RSS of the process), {first['precision']}. {_where(first)}"
    yield ""
    yield "| batch | loaded, MB | peak, MB | per slice, MB | estimate per slice, MB |"
    yield "|---:|---:|---:|---:|---:|"
    for value in batches.values():
        yield (
            f"| {value['batch']} | {value['loaded_bytes'] / 1e6:.0f} | {value['peak_bytes'] / 1e6:.0f} "
            f"| {value['per_slice_bytes'] / 1e6:.1f} | {value['estimate_per_slice_bytes'] / 1e6:.1f} |"
        )


def _gpu(gpu: Mapping[str, Any]) -> Iterator[str]:
    if "device" not in gpu:
        yield "**On a GPU**: not measured, there was none. Run `python -m benchmarks.scoring --device cuda`."
        yield ""
        yield "| what | target | measured |"
        yield "|---|---:|---:|"
        for name, target in _GPU_BARS:
            yield f"| {name} | {target:.0f} | not measured |"
        return
    value = gpu["device"]["all"]
    rates = {k: v for k, v in value["model"]["slices_per_s"].items() if isinstance(v, float)}
    found = (
        max(v for k, v in rates.items() if "text and memory" in k),
        max(run["slices_per_s"] for run in value["files_to_maps"]),
        value["share_of_peak"] * 100,
        value["adapters_cost"] * 100,
    )
    batch = value["model"]["batch"]
    yield f"**On a GPU**: {value['device']}, {value['precision']}, batch {batch}. {_where(value)}"
    yield ""
    yield "| what | target | measured |"
    yield "|---|---:|---:|"
    for (name, target), figure in zip(_GPU_BARS, found, strict=True):
        yield f"| {name} | {target:.0f} | {figure:.1f} |"
    for name, rate in value["model"]["slices_per_s"].items():
        yield f"| {name}, slices/s | | {rate if isinstance(rate, str) else f'{rate:.0f}'} |"
    for run in value["files_to_maps"]:
        yield f"| files to maps with {run['decoders']} decoders, slices/s | | {run['slices_per_s']:.0f} |"
    yield f"| cores that decoding needs to keep the card busy | | {value['decoder_cores_needed']:.1f} |"
    yield f"| peak of the tensors, MB | | {value['model']['peak_bytes'] / 1e6:.0f} |"
    if "equality" in gpu:
        far = gpu["equality"]["all"]
        largest = f"{far['text_largest']:.4f} / {far['distance_largest']:.4f}"
        yield f"| bf16 against fp32, largest Δ of probability / distance | | {largest} |"
