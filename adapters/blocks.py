"""Blocks of a frozen vision transformer with their matrices kept in half precision.

Autocast would convert every matrix again for every batch. Here the matrices are converted once; the residual
stream, the layer norms and all biases' sums stay fp32, so that rounding does not add up over the blocks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class HalfBlock:
    """One pre-norm attention block, x + A(LN x) then x + MLP(LN x), batched and without attention weights.

    Parameters
    ----------
    block
        A block of an open_clip vision transformer; its matrices are converted in place, so that they are
        held once.
    dtype
        bfloat16 or float16.
    """

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        self._block: Any = block
        self._dtype = dtype
        for part in (self._block.attn, self._block.mlp):
            part.to(dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, N, W) float32 of (B, N, W) float32."""
        block = self._block
        x = x + block.ls_1(self._attention(self._norm(block.ln_1, x)))  # fp32 + half: fp32
        hidden: torch.Tensor = block.ls_2(block.mlp(self._norm(block.ln_2, x)))  # (B, N, W)
        return x + hidden

    def _norm(self, norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(self._dtype)

    def _attention(self, y: torch.Tensor) -> torch.Tensor:
        attn = self._block.attn
        batch, count, width = y.shape
        qkv = F.linear(y, attn.in_proj_weight, attn.in_proj_bias)  # (B, N, 3 W)
        q, k, v = qkv.view(batch, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, W / h)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # (B, N, heads, W / h)
        return F.linear(mixed.reshape(batch, count, width), attn.out_proj.weight, attn.out_proj.bias)


def half_blocks(blocks: nn.ModuleList, dtype: torch.dtype) -> list[HalfBlock] | None:
    """Convert all blocks, or none and return None if one is of another kind.

    Parameters
    ----------
    blocks
        Of the vision tower.
    dtype
        bfloat16 or float16.
    """
    if not all(_plain(block) for block in blocks):
        return None
    return [HalfBlock(block, dtype) for block in blocks]


def _plain(block: nn.Module) -> bool:
    attn = getattr(block, "attn", None)
    return (
        isinstance(attn, nn.MultiheadAttention)
        and attn.in_proj_weight is not None
        and attn.in_proj_bias is not None
        and not hasattr(block, "ln_1_kv")
    )
