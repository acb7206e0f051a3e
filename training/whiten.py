"""Whitened down-projections: the fit sees decorrelated tokens, the bundle gets ordinary matrices."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from adapters.model import MVFA
from training.stems import Stems


class _Whitened(nn.Module):
    """weight = A S with S fixed; A is what the optimiser moves."""

    def __init__(self, whiten: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("whiten", whiten)

    def forward(self, free: torch.Tensor) -> torch.Tensor:
        """Return the (D, W) weight."""
        return free @ cast(torch.Tensor, self.whiten)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Take the weight's random start as that of A: on whitened tokens it has the right scale."""
        return weight


def whiten(model: MVFA, stem: torch.Tensor | Stems, batch_size: int = 32) -> None:
    """Let every down-projection work on whitened tokens while it is trained.

    A few directions hold most of a transformer's energy (a constant offset above all), and the published
    adapters have neither bias nor normalisation: without this, gradient descent sees little else.

    Parameters
    ----------
    model
        Changed in place until :func:`fold`.
    stem
        (B, N, W) tokens before the first adapter.
    """
    moments = [
        torch.zeros(model.backbone.width, model.backbone.width, device=stem.device) for _ in model.levels
    ]
    count = 0
    with torch.no_grad():
        for part in stem.split(batch_size):
            x = part.float()
            for i, level in enumerate(model.levels):
                x = model.backbone.run_blocks(x, model.levels[i - 1], level) if i else x
                rows = x.flatten(0, 1)
                moments[i] += rows.T @ rows
            count += part.shape[0] * part.shape[1]
    for i, moment in enumerate(moments):
        values, vectors = torch.linalg.eigh((moment / count).double().cpu())
        # A floor keeps directions of mere rounding noise from being blown up.
        scale = (values.clamp_min(0) + 1e-3 * values.mean()).rsqrt()
        matrix = (vectors * scale @ vectors.T).float().to(stem.device)
        for family in model.families:
            down = model.adapters(family)[i].get_submodule("fc1.0")
            parametrize.register_parametrization(down, "weight", _Whitened(matrix))


def fold(model: MVFA) -> None:
    """Turn the down-projections back into ordinary matrices with the same effect."""
    for family in model.families:
        for adapter in model.adapters(family):
            parametrize.remove_parametrizations(
                adapter.get_submodule("fc1.0"), "weight", leave_parametrized=True
            )
