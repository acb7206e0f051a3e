"""Folds that are done, on disk: a stopped training goes on from them. Safetensors and JSON, no pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adapters.model import MVFA
from training.options import Options
from training.pool import Pool
from training.shots import Expert, Shots

Rows = NDArray[np.intp]
Maps = NDArray[np.float32]


class FoldStore:
    """Saved folds below one folder; nothing is saved without one.

    Parameters
    ----------
    folder
        Made if missing; it holds features of patients and belongs to the site. None keeps nothing.
    fingerprint
        Of everything that the folds depend on: others' files are ignored and overwritten.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint

    def save(self, name: str, expert: Expert, rows: Rows, terms: tuple[Maps, Maps]) -> None:
        """Write one fold: adapters, memory, and the raw terms of the held-out rows."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"weights.{k}": v.detach().cpu().contiguous() for k, v in expert.model.state_dict().items()
        }
        tensors |= {f"memory.{i}": m.cpu().contiguous() for i, m in enumerate(expert.memory)}
        tensors |= {"rows": torch.from_numpy(rows)}
        tensors |= {k: torch.from_numpy(v) for k, v in zip(("text", "far"), terms, strict=True)}
        metadata = {"fingerprint": self.fingerprint, "epochs": str(expert.epochs)}
        metadata["chosen"] = str(int(expert.chosen))
        part = self.folder / f"{name}.part"
        save_file(tensors, part, metadata)
        part.replace(self.folder / f"{name}.safetensors")

    def load(self, name: str, shots: Shots, rows: Rows) -> tuple[Expert, tuple[Maps, Maps]] | None:
        """Return a saved fold, or None where there is none of this fingerprint."""
        if self.folder is None or not (path := self.folder / f"{name}.safetensors").exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        if metadata.get("fingerprint") != self.fingerprint or tensors["rows"].tolist() != rows.tolist():
            return None
        mix = "published" if shots.reference else "renormalised"
        with torch.random.fork_rng(devices=[]):
            model = MVFA(shots.backbone, shots.levels, shots.families, mix)  # type: ignore[arg-type]
        prefix = "weights."
        model.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        model.eval().requires_grad_(False)
        memory = [tensors[f"memory.{i}"].to(shots.backbone.device) for i in range(len(shots.levels))]
        expert = Expert(model, memory, int(metadata["epochs"]), chosen=metadata["chosen"] == "1")
        return expert, (tensors["text"].numpy(), tensors["far"].numpy())


def fingerprint(pool: Pool, sha256: str, options: Options, **more: Any) -> str:
    """Return the SHA-256 of the images, labels, masks, backbone and options of a training."""
    facts = {
        "options": asdict(options),
        "backbone": sha256,
        "images": [
            [shot.key, shot.label, cues.digest] for shot, cues in zip(pool.shots, pool.cues, strict=True)
        ],
        "patients": pool.patients,
        **more,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for mask in pool.data.masks:
        digest.update(b"-" if mask is None else np.packbits(mask).tobytes())
    return digest.hexdigest()
