"""Where the model runs: device, precision, and how many slices it takes and are read for it at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.errors import BackboneError

# Below this width a CPU gains nothing from bf16: its time goes into small steps, not into products.
_WIDE = 512
# A card is full long before this many slices.
LARGEST_BATCH = 256
# Beyond this a CPU gains nothing: its caches hold a few slices' activations at best.
_CPU_BATCH = 8
# Threads of one Python process: what of reading is Python itself is done by one of them at a time.
_MOST_DECODERS = 8
# Of the free memory: the allocator rounds up and keeps what it freed, libraries take workspaces.
_SHARE = 0.7


class Sized(Protocol):
    """What a batch's memory depends on; :class:`~adapters.backbone.Backbone` is one."""

    @property
    def width(self) -> int:
        """Transformer width W."""

    @property
    def embed_dim(self) -> int:
        """Size D of a level token."""

    @property
    def grid(self) -> int:
        """Patches per side."""

    @property
    def image_size_px(self) -> int:
        """Side of the square input."""


def resolve_device(device: str) -> torch.device:
    """Turn ``auto`` into the GPU if there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise BackboneError(f"device {device!r} is unknown: use auto, cpu or cuda") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise BackboneError("device 'cuda' was asked for but this machine has none: use device = \"auto\"")
    return place


def resolve_precision(precision: str, device: torch.device, width: int = 0) -> str:
    """Turn ``auto`` into bf16 where the device gains from it, else fp32.

    A GPU that has bf16 does; so does a CPU that multiplies it in hardware, if the transformer is wide.
    """
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
        return "bf16" if device.type == "cpu" and width >= _WIDE and multiplies_bf16() else "fp32"
    if precision not in ("fp32", "bf16", "fp16"):
        raise BackboneError(f"precision {precision!r} is unknown: use auto, fp32, bf16 or fp16")
    return precision


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions that multiply bfloat16 (AVX512-BF16, AMX), twice as fast as fp32."""
    cpu = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in cpu and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def slice_bytes(sized: Sized, precision: str, tokens: int, bank_rows: int) -> int:
    """Estimate the largest memory that one slice of a batch takes, without weights.

    Parameters
    ----------
    sized
        The backbone.
    precision
        Of its blocks; half precision halves what goes through their matrices.
    tokens
        Level tokens that are kept per position: levels x families.
    bank_rows
        Of the largest level's memory.

    Returns
    -------
    int
        Bytes: the image, the residual stream eight times (with norms, sums and what the allocator keeps),
        a block's hidden layer three times or the cosines with one level's memory, and the level tokens.
        Measured on ViT-L-14-336 at 240 px in bf16: 21 to 26 MB a slice; this says 26.2.
    """
    positions = sized.grid**2 + 1
    item = 4 if precision == "fp32" else 2
    image = 3 * sized.image_size_px**2 * 4
    stream = 8 * positions * sized.width * 4
    hidden = 3 * positions * 4 * sized.width * item
    levels = (tokens + 2) * positions * sized.embed_dim * 4
    cosines = positions * bank_rows * 4
    return image + stream + max(hidden, cosines) + levels


def automatic_batch_size(per_slice_bytes: int, device: torch.device, free_bytes: int = 0) -> int:
    """Choose how many slices a forward pass takes: a power of two that fits what is free.

    Parameters
    ----------
    per_slice_bytes
        Of :func:`slice_bytes`.
    device
        Where the weights lie already.
    free_bytes
        Free memory of the device; 0 asks it.

    Returns
    -------
    int
        1 to 256 on a GPU, 1 to 8 on a CPU.
    """
    if not free_bytes:
        free_bytes = _free_bytes(device)
    limit = _CPU_BATCH if device.type == "cpu" else LARGEST_BATCH
    fitting = max(1, min(limit, int(free_bytes * _SHARE) // per_slice_bytes))
    return 1 << (fitting.bit_length() - 1)


def automatic_decoders(device: torch.device) -> int:
    """Choose how many slices are read at once: one where the model has the cores, several beside a GPU."""
    if device.type == "cpu":
        return 1
    return max(2, min(_MOST_DECODERS, len(os.sched_getaffinity(0)) - 1))


class ToHost:
    """Tensors on their way to the host: on a GPU the copy is queued behind what made them.

    A plain copy would be queued when it is asked for, behind the batch that was launched meanwhile, and the
    card would then wait for the host.

    Parameters
    ----------
    tensors
        On one device.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = list(tensors)
        if tensors[0].device.type == "cuda":
            self._host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for host, made in zip(self._host, tensors, strict=True):
                host.copy_(made, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> list[NDArray[np.float32]]:
        """Return them as arrays once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return [host.numpy() for host in self._host]


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
