"""Adapter bundle: everything fitted for one site and body part, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from adapters.calibration import Scale
from adapters.errors import BundleError
from adapters.slices import Normalisation

FORMAT = "1"
Family = Literal["seg", "det"]
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AdapterBundle:
    """A fitted model without its backbone; frozen, and its version is the hash of its content.

    Parameters
    ----------
    name
        What the site calls it.
    backbone
        :meth:`~adapters.backbone.BackboneSpec.as_dict` of the backbone it was fitted on.
    backbone_sha256
        Of that backbone's weights.
    image_size_px, patch_px
        The backbone's input side and patch side.
    levels
        Blocks (from 1) after which adapters sit.
    families
        ``seg`` (fitted with masks) and/or ``det``; the first gives the map.
    mix
        ``published`` or ``renormalised``, see :class:`~adapters.model.MVFA`.
    class_name
        What the prompts name, such as ``Brain``.
    text
        (D, 2) unit text features, columns normal and abnormal.
    normalisation
        How pixels became [0, 1].
    weights
        Adapter matrices by their key in the model's state, float32.
    memory
        Per level (M, D) float32 unit rows: coreset of the normal patch tokens of ``families[0]``.
    distance_scale, slice_scale
        Calibration of patch distances and of slice scores on held-out normals.
    normal_scores
        (n,) float32: per held-out normal patient the highest calibrated score of its normal slices, for
        conformal p-values.
    normal_map_quantiles
        (101,) float32: percentiles of the held-out normals' maps.
    threshold
        On the map, in (0, 1): a pixel at or above it belongs to a finding.
    slice_threshold
        On the slice score.
    top_fraction
        Share of the valid patches whose mean is the raw slice score.
    modality, body_part
        DICOM Modality and Body Part Examined that it is meant for; "" for any.
    provenance
        Case counts, seed, recipe, code version, date, limits: JSON values, no patient data.
    """

    name: str
    backbone: Mapping[str, Any]
    backbone_sha256: str
    image_size_px: int
    patch_px: int
    levels: tuple[int, ...]
    families: tuple[Family, ...]
    mix: Literal["published", "renormalised"]
    class_name: str
    text: Array
    normalisation: Normalisation
    weights: Mapping[str, Array]
    memory: tuple[Array, ...]
    distance_scale: Scale
    slice_scale: Scale
    normal_scores: Array
    normal_map_quantiles: Array
    threshold: float
    slice_threshold: float
    top_fraction: float = 0.01
    modality: str = ""
    body_part: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or not set(self.name) <= set(_NAME):
            raise BundleError(f"bundle name {self.name!r}: use letters, digits, '.', '_' and '-'")
        if len(self.memory) != len(self.levels):
            raise BundleError(
                f"bundle {self.name}: {len(self.memory)} memory levels for {len(self.levels)} levels"
            )
        if not 0 < self.threshold < 1 or not 0 < self.top_fraction <= 1:
            raise BundleError(f"bundle {self.name}: the threshold or the top fraction is outside (0, 1)")
        if self.text.ndim != 2 or self.text.shape[1] != 2:
            raise BundleError(f"bundle {self.name}: the text features are {self.text.shape}, not (D, 2)")

    @property
    def sha256(self) -> str:
        """Hash of the content: header and every array."""
        return _digest(_header(self), _tensors(self))

    @property
    def version(self) -> str:
        """First 12 characters of the content hash."""
        return self.sha256[:12]

    def check_backbone(self, sha256: str) -> None:
        """Refuse a backbone with other weights.

        Raises
        ------
        BundleError
            Names both backbones.
        """
        if sha256 != self.backbone_sha256:
            raise BundleError(
                f"bundle {self.name} was fitted on backbone {self.backbone.get('model')!r} with weights "
                f"{self.backbone_sha256[:12]}, not on weights {sha256[:12]}: load that backbone or fit again"
            )

    def save(self, path: Path) -> Path:
        """Write the bundle as one safetensors file, replaced atomically, and return the path."""
        tensors = _tensors(self)
        header = _header(self)
        metadata = {"format": FORMAT, "bundle": header, "sha256": _digest(header, tensors)}
        part = path.with_name(path.name + ".part")
        save_file(tensors, part, metadata)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        return path

    def renamed(self, **changes: Any) -> AdapterBundle:
        """Return a copy with some fields changed, such as ``threshold``; it has another version."""
        return replace(self, **changes)


def load_bundle(path: Path) -> AdapterBundle:
    """Read a bundle and verify its content hash; nothing in the file is executed.

    Raises
    ------
    BundleError
        The file is missing, no bundle, of another format, or its content does not match its hash.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Array] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BundleError(f"bundle {path.name} cannot be read: it is missing or damaged") from error
    if "bundle" not in metadata:
        raise BundleError(f"{path.name} is a safetensors file but no adapter bundle")
    if metadata.get("format") != FORMAT:
        raise BundleError(
            f"bundle {path.name} has format {metadata.get('format')!r}, not {FORMAT!r}: fit it again"
        )
    if _digest(metadata["bundle"], tensors) != metadata.get("sha256"):
        raise BundleError(f"bundle {path.name} is damaged: its content hash does not match; copy it again")
    try:
        return _assemble(json.loads(metadata["bundle"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"bundle {path.name} lacks a field or has one of a wrong type: fit it again"
        ) from error


_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
_ARRAYS = ("text", "weights", "memory", "normal_scores", "normal_map_quantiles")


def _header(bundle: AdapterBundle) -> str:
    plain = {f.name: getattr(bundle, f.name) for f in fields(bundle) if f.name not in _ARRAYS}
    for key in ("normalisation", "distance_scale", "slice_scale"):
        plain[key] = asdict(plain[key])
    return json.dumps(plain, sort_keys=True, default=dict)


def _tensors(bundle: AdapterBundle) -> dict[str, Array]:
    named = {f"weights.{k}": v for k, v in bundle.weights.items()}
    named |= {f"memory.{i}": rows for i, rows in enumerate(bundle.memory)}
    named |= {key: getattr(bundle, key) for key in ("text", "normal_scores", "normal_map_quantiles")}
    return {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in named.items()}


def _digest(header: str, tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _assemble(plain: dict[str, Any], tensors: Mapping[str, Array]) -> AdapterBundle:
    plain["normalisation"] = Normalisation(**plain["normalisation"])
    for key in ("distance_scale", "slice_scale"):
        plain[key] = Scale(**plain[key])
    for key in ("levels", "families"):
        plain[key] = tuple(plain[key])
    prefix = "weights."
    return AdapterBundle(
        text=tensors["text"],
        weights={k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)},
        memory=tuple(tensors[f"memory.{i}"] for i in range(len(cast(tuple[int, ...], plain["levels"])))),
        normal_scores=tensors["normal_scores"],
        normal_map_quantiles=tensors["normal_map_quantiles"],
        **plain,
    )
