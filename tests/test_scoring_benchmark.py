"""The benchmark of scoring runs on a CPU what it measures on a GPU, and tells hits from misses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import scoring_device, scoring_path
from benchmarks.scoring_setup import auroc, large_model
from benchmarks.scoring_tables import markdown

MACHINE = {
    "cores": 2,
    "cpu": "c",
    "instructions": ["avx2"],
    "gpu": "none",
    "threads": 2,
    "torch": "2",
    "load_1m": 1,
}


def test_the_device_part_runs_without_a_gpu(tmp_path: Path) -> None:
    """Every figure of the GPU table is made by the same code on a CPU, with the tiny backbone."""
    found = scoring_device.measure(tmp_path, "tiny", 128, "cpu", "bf16", 2, 1)
    assert found["precision"] == "bf16"
    assert {run["slices"] for run in found["files_to_maps"]} == {4}
    assert found["adapters_cost"] > -1
    assert found["share_of_peak"] > 0
    assert all(isinstance(rate, float) for rate in found["model"]["slices_per_s"].values())
    table = markdown({"GPU": {"device": {"all": {**found, "date": "d", "machine": MACHINE}}}})
    assert "not measured" not in table


def test_the_operations_of_the_published_model_are_counted() -> None:
    """ViT-L-14-336 at 240 px takes about 183 GFLOP a slice, its adapters of both families about 7."""

    class Sizes:
        grid, width, embed_dim, patch_px = 17, 1024, 768, 14

    class Net:
        backbone, families, levels = Sizes, ("seg", "det"), (6, 12, 18, 24)

    net: Any = Net
    plain = scoring_device.flops_per_slice(net, adapters=False)
    assert plain == pytest.approx(183e9, rel=0.02)
    assert scoring_device.flops_per_slice(net) - plain == pytest.approx(7.3e9, rel=0.02)


def test_the_path_is_split_into_its_stages(tmp_path: Path) -> None:
    """Every stage takes time of its own, and together they take no more than the whole."""
    found = scoring_path.stages(tmp_path, "tiny", 128, "cpu", "fp32", 3, 2)
    named = {"decode", "normalise", "backbone", "adapters", "memory", "text", "findings", "SR encode"}
    assert named <= set(found["stages_wall_ms"])
    assert all(value > 0 for value in found["stages_wall_ms"].values())
    assert sum(found["stages_wall_ms"].values()) <= found["wall_s"] / 3 * 1e3


def test_memory_is_compared_with_its_estimate() -> None:
    """The estimate of a batch is of the order of what the process takes."""
    found = scoring_device.memory("tiny", 128, "cpu", "fp32", 64)
    assert found["peak_bytes"] > found["loaded_bytes"]
    assert found["per_slice_bytes"] < 3 * found["estimate_per_slice_bytes"]


def test_half_precision_on_the_device_is_compared() -> None:
    """The difference of bf16 from fp32 is there, and small."""
    far = scoring_device.equality("tiny", 128, "cpu", 2)
    assert 0 < far["distance_mean"] <= far["distance_largest"] < 0.05


def test_ties_count_one_half() -> None:
    """The benchmark's AUROC is the probability of a right order."""
    assert auroc(np.array([1.0, 1.0, 2.0, 0.0]), np.array([True, False, True, False])) == pytest.approx(0.875)


def test_a_miss_is_stated() -> None:
    """A ratio below the bar and an AUROC that moved are called missed, not hidden."""
    value = {
        "precision": "bf16", "batch": 8, "bank_rows": 9, "views": 11,
        "coreset_rows": 1, "images": 2, "date": "d",
        "core_s_per_slice": {"published": 3.0, "ours, full bank": 2.0},
        "image_auroc": {"published": 0.9, "ours, full bank": 0.95},
        "largest_score_difference": {}, "mean_map_difference": {}, "machine": MACHINE,
    }  # fmt: skip
    text = markdown({"CPU": {"cpu": {"breast_us": value}}})
    assert "bar of 2 times MISSED (1.50)" in text
    assert "MISSED (moved by 0.0500)" in text
    assert "not measured" in text


def test_seeded_adapters_are_the_same_each_time() -> None:
    """Two runs compare the same model."""
    first, second = (large_model("tiny", 128, "cpu", "fp32")[1] for _ in range(2))
    states = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
