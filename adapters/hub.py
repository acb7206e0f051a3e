"""open_clip's pretrained tags: the files that are in its caches already, and those that may be fetched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from open_clip import download_pretrained, get_pretrained_cfg

from adapters.errors import BackboneError

# open_clip prefers the first where a repository has both.
_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Where open_clip keeps what has an address of its own.
_CLIP_CACHE = Path("~/.cache/clip")


def cached(model: str, tag: str) -> Path | None:
    """Return the file of a tag that an earlier download left on this machine, None if there is none.

    Parameters
    ----------
    model, tag
        As ``open_clip.list_pretrained()`` names them.
    """
    source: dict[str, Any] = get_pretrained_cfg(model, tag)
    repository, name = os.path.split(str(source.get("hf_hub") or ""))
    stem = name.rpartition(".")[0]
    for file in (f"{stem}.safetensors", name) if name else _FILES:
        found = try_to_load_from_cache(repository, file) if repository else None
        if isinstance(found, str):
            return Path(found)
    path = _CLIP_CACHE.expanduser() / Path(str(source.get("url") or "-")).name
    return path if path.is_file() else None


def download(model: str, tag: str) -> Path:
    """Fetch the file of a tag; to be called only where the settings allow it.

    Parameters
    ----------
    model, tag
        As of :func:`cached`.

    Raises
    ------
    BackboneError
        It cannot be had.
    """
    try:
        return Path(download_pretrained(get_pretrained_cfg(model, tag)))
    # Each of the libraries beneath has its own errors for a network that is not there.
    except Exception as error:
        raise BackboneError(
            f"weights {tag!r} of model {model!r} cannot be downloaded ({type(error).__name__}): look at the "
            "network, or copy the file here and set model.weights to its path"
        ) from error
