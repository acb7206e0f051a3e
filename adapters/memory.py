"""Memory bank of normal patch tokens: nearest neighbour as one matrix product, and its coreset."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Cosines made at a time, on a CPU (4 MB, which stay in its cache) and on a GPU (1 GB).
_CELLS = (2**20, 2**28)


def bank(tokens: torch.Tensor) -> torch.Tensor:
    """Return the bank of one level: every token of every image, L2-normalised.

    Parameters
    ----------
    tokens
        (B, N, D) level tokens of normal images, or (M, D) rows already chosen.

    Returns
    -------
    torch.Tensor
        (B N, D) float32, unit rows.
    """
    return F.normalize(tokens.reshape(-1, tokens.shape[-1]).float(), dim=-1)


def distance(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return 1 - the largest cosine with any row of the bank.

    Parameters
    ----------
    tokens
        (..., D) level tokens, not normalised.
    rows
        (M, D) unit rows of :func:`bank`.

    Returns
    -------
    torch.Tensor
        (...) float32 in [0, 2].
    """
    flat = F.normalize(tokens.float(), dim=-1).flatten(0, -2)  # (T, D)
    count = max(64, _CELLS[flat.device.type == "cuda"] // len(rows))
    nearest = torch.cat([(part @ rows.T).amax(dim=-1) for part in torch.split(flat, count)])  # (T,)
    return 1 - nearest.reshape(tokens.shape[:-1])


def coreset(rows: torch.Tensor, size: int, *, seed: int, method: str = "greedy") -> torch.Tensor:
    """Choose rows of a bank that cover it.

    Parameters
    ----------
    rows
        (M, D) unit rows.
    size
        How many to keep; the whole bank is returned if it has no more.
    seed
        Of the first row (greedy) or of the draw (random).
    method
        ``greedy``: farthest point first (k-centre, as in PatchCore, arXiv 2106.08265); ``random``: uniform.

    Returns
    -------
    torch.Tensor
        (min(size, M), D) rows.

    Raises
    ------
    ValueError
        ``size`` is below 1 or the method is unknown.
    """
    if size < 1:
        raise ValueError(f"a coreset needs at least one row, not {size}")
    if method not in ("greedy", "random"):
        raise ValueError(f"coreset method {method!r} is unknown: use 'greedy' or 'random'")
    if len(rows) <= size:
        return rows
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    if method == "random":
        return rows[order[:size].to(rows.device)]
    return rows[_farthest(rows, size, int(order[0]))]


def _farthest(rows: torch.Tensor, size: int, first: int) -> torch.Tensor:
    chosen = torch.empty(size, dtype=torch.long, device=rows.device)
    nearest = torch.full((len(rows),), -2.0, device=rows.device)  # the largest cosine to a chosen row
    index = torch.tensor(first, device=rows.device)
    for i in range(size):
        chosen[i] = index
        nearest = torch.maximum(nearest, rows @ rows[index])
        index = nearest.argmin()
    return chosen
