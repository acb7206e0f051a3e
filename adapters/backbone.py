"""Backbones: any open_clip vision transformer, its weights, its position grid and its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.transformer import VisionTransformer

from adapters.blocks import HalfBlock, half_blocks
from adapters.device import resolve_device, resolve_precision
from adapters.errors import BackboneError
from adapters.hub import cached, download
from adapters.weights import read_weights, seed_weights, state_sha256

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Small enough for a phantom on two CPU cores; fine patches, so that small lesions keep their outline.
TINY: Mapping[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 128, "layers": 2, "width": 96, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """Which backbone, with which weights.

    Parameters
    ----------
    model
        ``tiny`` (built in), an open_clip model name, or any label where ``config`` is given.
    weights
        Path of a .safetensors or .pt file, an open_clip pretrained tag, or "" for seeded random weights.
    sha256
        Expected SHA-256 of the weight file; "" does not check.
    quick_gelu
        Activation of both towers. The published adapters need False even with OpenAI's weights.
    image_size_px
        Side of the square input; 0 for the model's own.
    seed
        Of random weights.
    allow_download
        Whether open_clip may fetch the weights of a tag.
    config
        Explicit open_clip configuration with embed_dim, vision_cfg and text_cfg.
    """

    model: str = "tiny"
    weights: str = ""
    sha256: str = ""
    quick_gelu: bool = False
    image_size_px: int = 0
    seed: int = 0
    allow_download: bool = False
    config: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what identifies the model on any machine: neither the path nor the download switch."""
        fields = asdict(self)
        for local in ("weights", "sha256", "allow_download"):
            del fields[local]
        return fields | {"weights": Path(self.weights).name}


class Backbone:
    """A frozen open_clip model in eval mode, forwarded block by block.

    Parameters
    ----------
    clip
        The model; its vision tower must be a plain vision transformer.
    spec
        What it was made from.
    sha256
        Of its weights.
    device
        Where it runs.
    precision
        Of the blocks' matrices; positions, residual stream, adapters' inputs and cosines stay fp32.
    """

    def __init__(
        self, clip: CLIP, spec: BackboneSpec, sha256: str, device: torch.device, precision: str = "fp32"
    ) -> None:
        if not isinstance(getattr(clip, "visual", None), VisionTransformer):
            raise BackboneError(f"model {spec.model!r} has no plain vision transformer: choose a ViT-* model")
        self.clip = clip.to(device).eval().requires_grad_(False)
        self.visual: VisionTransformer = clip.visual
        self.spec = spec
        self.sha256 = sha256
        self.device = device
        self.precision = "fp32"
        self.prefix = 1
        self._halves: list[HalfBlock] | None = None
        self.use_precision(precision)

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        return len(self.visual.transformer.resblocks)

    @property
    def width(self) -> int:
        """Transformer width W."""
        return int(self.visual.conv1.out_channels)

    @property
    def embed_dim(self) -> int:
        """Size D of the space shared with text."""
        return int(self.visual.output_dim)

    @property
    def image_size_px(self) -> int:
        """Side of the square input."""
        return int(self.visual.image_size[0])

    @property
    def patch_px(self) -> int:
        """Side of one patch."""
        return int(self.visual.patch_size[0])

    @property
    def grid(self) -> int:
        """Patches per side."""
        return int(self.visual.grid_size[0])

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.clip.to(device)
        self.device = device

    def use_precision(self, precision: str) -> None:
        """Convert the blocks' matrices, once.

        Raises
        ------
        BackboneError
            They are already in another half precision than asked for, or no longer fp32.
        """
        if precision == self.precision:
            return
        if self.precision != "fp32":
            raise BackboneError(
                f"the backbone's weights are {self.precision} now: load it again for {precision}"
            )
        self.precision = precision
        self._halves = half_blocks(self.visual.transformer.resblocks, _DTYPES[precision])
        if self.device.type == "cuda":
            # What stays fp32 (cosines with the memory) may round its factors to TF32.
            torch.set_float32_matmul_precision("high")

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, 1 + P, W) tokens before the first block, of (B, 3, H, W) images in [0, 1]."""
        tokens: torch.Tensor = self.visual._embeds(images.to(self.device, non_blocking=True))
        return tokens

    def run_blocks(self, x: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Return x after blocks first + 1 .. last (counted from 1); first == last changes nothing."""
        if self._halves is not None:
            for half in self._halves[first:last]:
                x = half(x)
            return x
        with self.cast():
            for block in self.visual.transformer.resblocks[first:last]:
                x = block(x)
        return x.float()

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (B, D) image embedding of the last block's tokens."""
        pooled: torch.Tensor = self.visual._pool(x)[0]
        projected: torch.Tensor = pooled @ self.visual.proj
        return projected

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the (len(texts), context) token ids."""
        name = self.spec.model
        known = self.spec.config is None and name in open_clip.list_models()
        tokenizer = open_clip.get_tokenizer(name) if known else open_clip.SimpleTokenizer()
        ids: torch.Tensor = tokenizer(list(texts), context_length=self.clip.context_length)
        return ids

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """Return the (len(texts), D) text embeddings, not normalised, float32."""
        ids = self.tokenize(texts).to(self.device)
        return torch.cat([self.clip.encode_text(part).float() for part in torch.split(ids, batch_size)])

    def cast(self) -> torch.autocast:
        """Return the context in which products are made in the backbone's precision."""
        dtype = _DTYPES.get(self.precision, torch.bfloat16)
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")


def load_backbone(spec: BackboneSpec, device: str = "auto", precision: str = "auto") -> Backbone:
    """Build a backbone and load its weights.

    Parameters
    ----------
    spec
        Which one.
    device
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1`` ...
    precision
        ``auto`` (see :func:`~adapters.device.resolve_precision`), ``fp32``, ``bf16`` or ``fp16``.

    Raises
    ------
    BackboneError
        The model is unknown or no ViT, or its weights are missing, damaged or of another model.
    """
    place = resolve_device(device)
    state = _state(spec)
    clip = _build(spec)
    if state is None:
        seed_weights(clip, spec.seed)
        state = clip.state_dict()
    digest = state_sha256(state)
    state["visual.positional_embedding"] = resize_positions(
        state["visual.positional_embedding"], clip.visual.grid_size[0]
    )
    _load(clip, state, spec)
    width = int(clip.visual.conv1.out_channels)
    return Backbone(clip, spec, digest, place, resolve_precision(precision, place, width))


def resize_positions(embedding: torch.Tensor, grid: int) -> torch.Tensor:
    """Resample a (1 + g g, W) position embedding to (1 + grid grid, W): bicubic, antialias, half-pixel.

    The class row is copied. fp32 first: half precision cannot be interpolated on a CPU.
    """
    source = round((len(embedding) - 1) ** 0.5)
    if source * source + 1 != len(embedding):
        raise BackboneError(f"the position embedding has {len(embedding)} rows, not 1 + a square")
    embedding = embedding.float()
    if source == grid:
        return embedding
    image = embedding[1:].reshape(1, source, source, -1).permute(0, 3, 1, 2)  # (1, W, g, g)
    image = F.interpolate(image, (grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([embedding[:1], image.permute(0, 2, 3, 1).reshape(grid * grid, -1)])


def _state(spec: BackboneSpec) -> dict[str, torch.Tensor] | None:
    """Read the weights named by the spec; None for random ones."""
    if not spec.weights:
        return None
    path = Path(spec.weights)
    if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        return _fetch(spec)
    return read_weights(path, spec.sha256)


def _fetch(spec: BackboneSpec) -> dict[str, torch.Tensor]:
    if spec.weights not in open_clip.list_pretrained_tags_by_model(spec.model):
        raise BackboneError(
            f"model.weights {spec.weights!r} is neither a file nor a tag of model {spec.model!r}"
        )
    path = cached(spec.model, spec.weights)
    if path is None and not spec.allow_download:
        raise BackboneError(
            f"weights {spec.weights!r} of model {spec.model!r} are not in open_clip's cache. Allow their "
            f"download (model.allow_download), or download them on another machine, copy the file here "
            f"and set model.weights to its path"
        )
    return read_weights(path or download(spec.model, spec.weights), spec.sha256)


def _build(spec: BackboneSpec) -> CLIP:
    config = spec.config if spec.config is not None else TINY if spec.model == "tiny" else None
    if config is None:
        config = open_clip.get_model_config(spec.model.removesuffix("-quickgelu"))
    if config is None:
        raise BackboneError(f"model {spec.model!r} is unknown: use 'tiny' or one of open_clip.list_models()")
    vision = dict(config["vision_cfg"])
    if not isinstance(vision.get("layers"), int) or "timm_model_name" in vision:
        raise BackboneError(f"model {spec.model!r} has no plain vision transformer: choose a ViT-* model")
    vision["image_size"] = spec.image_size_px or vision.get("image_size", 224)
    text = {"context_length": 77, "vocab_size": 49408} | dict(config["text_cfg"])
    if "hf_model_name" in text:
        raise BackboneError(f"model {spec.model!r} has a text tower that needs a download: choose another")
    return CLIP(config["embed_dim"], vision, text, quick_gelu=spec.quick_gelu)


def _load(clip: CLIP, state: Mapping[str, torch.Tensor], spec: BackboneSpec) -> None:
    try:
        clip.load_state_dict({k: v.float() for k, v in state.items()})
    except RuntimeError as error:
        raise BackboneError(
            f"the weights are not those of model {spec.model!r}: correct model.backbone"
        ) from error
