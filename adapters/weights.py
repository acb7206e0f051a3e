"""Weights of a backbone: reading, converting, hashing, and random ones that are the same everywhere."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from open_clip.transformer import VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from adapters.errors import BackboneError

# OpenAI's archives carry three integers, and scripted models their constant mask, beside the weights.
_NO_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask"}


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of a state dict as fp32, the same for .pt and .safetensors, on any machine."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().float().cpu().contiguous().numpy()
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.astype("<f4", copy=False).data)
    return digest.hexdigest()


def convert_checkpoint(source: Path, target: Path) -> str:
    """Convert a .pt checkpoint, TorchScript archive or state dict, to safetensors; return the file's SHA-256.

    A TorchScript archive (OpenAI's own files) holds code: convert only files that you trust.

    Raises
    ------
    BackboneError
        The source is neither.
    """
    if not source.is_file():
        raise BackboneError(missing(str(source)))
    state = _read_pt(source)
    tensors = {k: v.detach().contiguous().clone() for k, v in state.items()}
    save_file(tensors, target)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def _read_pt(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises several types for an archive that is no plain state dict
        try:
            with warnings.catch_warnings():
                # Deprecated, and the only way to read OpenAI's own archives.
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                loaded = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise BackboneError(f"{path.name} is neither a state dict nor a TorchScript archive") from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise BackboneError(f"{path.name} holds no state dict")
    named = {k.removeprefix("module."): v for k, v in loaded.items()}
    return {k: v for k, v in named.items() if k not in _NO_WEIGHTS}


def missing(path: str) -> str:
    """Say how to get a missing weight file to a machine without network."""
    name = Path(path).name
    return (
        f"weight file {name} is missing. This machine fetches nothing by itself: on a machine with network "
        f"access download the file, copy it here and set model.weights to its path"
    )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seed_weights(clip: CLIP, seed: int) -> None:
    """Fill a model with random weights that are the same, bit for bit, on every machine.

    CLIP's own initialisation, but for three things that let a network that never saw an image tell light
    from dark, and here from there: patch filters have a mean, positions are smooth over the grid and share
    an offset, and queries equal keys, so that a token attends to its like.
    """
    rng = np.random.default_rng(seed)
    modules = dict(clip.named_modules())
    depth = len(clip.visual.transformer.resblocks)
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            owner, _, kind = name.rpartition(".")
            if parameter.ndim == 0:
                continue
            if isinstance(modules.get(owner), nn.LayerNorm):
                parameter.fill_(1.0 if kind == "weight" else 0.0)
                continue
            parameter.copy_(
                torch.from_numpy(_uniform(rng, tuple(parameter.shape), _spread(name, parameter, depth)))
            )
        visual = clip.visual
        mean = _uniform(rng, (len(visual.conv1.weight), 1, 1, 1), 2.0 / visual.conv1.weight[0].numel())
        visual.conv1.weight += torch.from_numpy(mean)
        visual.positional_embedding.copy_(torch.from_numpy(_positions(rng, visual)))
        for block in visual.transformer.resblocks:
            query, key, _ = block.attn.in_proj_weight.chunk(3)
            query *= 1.5
            key.copy_(query)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> NDArray[np.float32]:
    # Uniform numbers need one multiplication: no machine's libm can change a bit.
    return (rng.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(std * 12**0.5)


def _positions(rng: np.random.Generator, visual: VisionTransformer) -> NDArray[np.float32]:
    """Return (1 + g g, W): triangle waves over the grid, one direction and phase a channel."""
    width, grid = visual.conv1.out_channels, visual.grid_size[0]
    centre = (np.arange(grid) + 0.5) / grid
    waves = rng.random((2, width)) * 2 - 1
    along = centre[:, None, None] * waves[0] + centre[None, :, None] * waves[1] + rng.random(width)
    triangle = np.abs((along % 1.0) * 4 - 2) - 1  # in [-1, 1]
    out = np.zeros((1 + grid * grid, width))
    out[1:] = 0.15 * triangle.reshape(grid * grid, width)
    return (out + _uniform(rng, (width,), 0.5)).astype(np.float32)


def _spread(name: str, parameter: torch.Tensor, depth: int) -> float:
    """Standard deviation of a random weight, as CLIP initialises."""
    if name.endswith("bias"):
        return 0.0
    if "token_embedding" in name:
        return 0.02
    if "positional_embedding" in name:
        return 0.01
    if "class_embedding" in name:
        return float(len(parameter) ** -0.5)
    fan_in = parameter[0].numel()
    if name.endswith(("out_proj.weight", "c_proj.weight")):
        return float((fan_in * 2 * depth) ** -0.5)
    return float(fan_in**-0.5)


def read_weights(path: Path, sha256: str = "") -> dict[str, torch.Tensor]:
    """Read a .safetensors or .pt file.

    Parameters
    ----------
    path
        The file.
    sha256
        Of the file; "" does not check.

    Raises
    ------
    BackboneError
        It is missing, damaged, or not the expected one.
    """
    if not path.is_file():
        raise BackboneError(missing(str(path)))
    if sha256 and _file_sha256(path) != sha256.lower():
        raise BackboneError(f"weight file {path.name} does not have the expected SHA-256: copy it again")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _read_pt(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BackboneError(f"weight file {path.name} cannot be read: copy it again") from error
