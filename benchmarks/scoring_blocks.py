"""One transformer block in each form that was considered: what a ViT-L block costs per slice."""

from __future__ import annotations

import contextlib
import copy
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock

from adapters.blocks import half_blocks
from benchmarks.scoring_setup import spend

_TURNS = 6


def blocks(size_px: int = 240, batch: int = 8, width: int = 1024) -> dict[str, float]:
    """Core-seconds per slice of one ViT-L block in each form; 24 of them make the backbone."""
    torch.manual_seed(0)
    block = ResidualAttentionBlock(width, width // 64).eval().requires_grad_(False)
    x = torch.randn(batch, (size_px // 14) ** 2 + 1, width)
    one = x[:1]
    converted = half_blocks(torch.nn.ModuleList([copy.deepcopy(block)]), torch.bfloat16)
    assert converted is not None  # a plain block
    half = converted[0]

    def published() -> torch.Tensor:
        y = block.ln_1(one)
        z = one + block.attn(y, y, y, need_weights=True)[0]
        return z + block.mlp(block.ln_2(z))  # type: ignore[no-any-return]

    forms: dict[str, Any] = {
        "published: one image, attention weights, fp32": (published, 1),
        "fused attention, fp32": (lambda: block(x), batch),
        "fused attention, bf16": (lambda: half(x), batch),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        hidden = torch.nn.Sequential(copy.deepcopy(block.mlp.c_fc), copy.deepcopy(block.mlp.c_proj)).eval()
        eight = quantize_dynamic(hidden, {torch.nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
        sixteen = copy.deepcopy(hidden).bfloat16()
        small = x.bfloat16()
        forms["hidden layer's products alone, fp32"] = (lambda: hidden(x), batch)
        forms["hidden layer's products alone, bf16"] = (lambda: sixteen(small), batch)
        forms["hidden layer's products alone, int8"] = (lambda: eight(x), batch)
    forms |= {name: (form, batch) for name, form in _compiled(block, half, x).items()}
    out = dict.fromkeys(forms, float("inf"))
    with torch.no_grad():
        for form, _ in forms.values():
            form()
        # In turn: whatever else the machine does meets all forms alike.
        for _ in range(_TURNS):
            for name, (form, count) in forms.items():
                out[name] = min(out[name], spend(form)[1].core_s / count)
    expected = block(x)
    out["largest relative difference, bf16"] = float((half(x) - expected).abs().max() / expected.abs().max())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = hidden(x)
        out["largest relative difference, int8"] = float((eight(x) - plain).abs().max() / plain.abs().max())
    return out


def _compiled(block: torch.nn.Module, half: Callable[..., Any], x: torch.Tensor) -> dict[str, Any]:
    """The block through torch.compile, and through OpenVINO where that is installed."""
    compiled = torch.compile(half)
    forms: dict[str, Any] = {"fused attention, bf16, torch.compile": lambda: compiled(x)}
    with contextlib.suppress(ImportError):
        openvino = importlib.import_module("openvino")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = openvino.convert_model(block, example_input=x)
        options = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        ready, values = openvino.Core().compile_model(model, "CPU", options), x.numpy()
        forms["OpenVINO, bf16"] = lambda: ready(values)
    return forms
