"""Stem tokens: computed once, kept in memory as far as a share of it goes, and beyond that on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch

from adapters.memory import bank
from training.room import free_memory_bytes

# Of the free memory, and of the disk: the fit itself needs memory, and others write to the disk.
_SHARE, _DISK_SHARE = 0.5, 0.9

Key = tuple[int, int]


class StemStore:
    """(N, W) tokens by image and view: on the device, then in the host's memory, then in a file.

    The file has no name: it holds features of patients and is gone with the process.

    Parameters
    ----------
    device
        Where tokens come from and go to.
    folder
        Where the file goes; made if it is needed.
    limit_bytes
        Most memory that is taken, of the device and of the host each; None for half of what is free now.
    """

    def __init__(self, device: torch.device, folder: Path, limit_bytes: int | None = None) -> None:
        self.device, self.folder = device, folder
        places = dict.fromkeys((device, torch.device("cpu")))
        self._left = {
            place: int(_SHARE * free_memory_bytes(place)) if limit_bytes is None else limit_bytes
            for place in places
        }
        self._kept: dict[Key, torch.Tensor] = {}
        self._filed: dict[Key, int] = {}
        self._file: IO[bytes] | None = None
        self._shape = torch.Size()

    @property
    def memory_bytes(self) -> int:
        """How much more memory it may take."""
        return sum(self._left.values())

    @property
    def disk_bytes(self) -> int:
        """How much disk it may take."""
        there = next(p for p in (self.folder, *self.folder.absolute().parents) if p.is_dir())
        return int(_DISK_SHARE * shutil.disk_usage(there).free)

    @property
    def filed(self) -> int:
        """How many lie in the file."""
        return len(self._filed)

    def __contains__(self, key: Key) -> bool:
        """Whether the tokens are here."""
        return key in self._kept or key in self._filed

    def put(self, key: Key, tokens: torch.Tensor) -> None:
        """Keep (N, W) float32 tokens."""
        for place, left in self._left.items():
            if tokens.nbytes <= left:
                self._left[place] = left - tokens.nbytes
                self._kept[key] = tokens.to(place)
                return
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115 (as long as this)
            weakref.finalize(self, self._file.close)
        self._shape, data = tokens.shape, tokens.cpu().contiguous().numpy().data.cast("B")
        offset = self._file.seek(0, 2)
        while data:
            data = data[self._file.write(data) :]
        self._filed[key] = offset

    def take(self, keys: Iterable[Key]) -> torch.Tensor:
        """Return (B, N, W) tokens on the device."""
        return torch.stack([self._get(key) for key in keys])

    def _get(self, key: Key) -> torch.Tensor:
        if key in self._kept:
            return self._kept[key].to(self.device)
        assert self._file is not None  # by put
        values = np.empty(self._shape, dtype=np.float32)
        data = values.data.cast("B")
        self._file.seek(self._filed[key])
        while data:
            if not (count := self._file.readinto(data)):  # type: ignore[attr-defined]  # a raw file has it
                raise OSError("the file of stem tokens is cut off")
            data = data[count:]
        return torch.from_numpy(values).to(self.device)


class Stems:
    """(B, N, W) tokens that are looked up when they are asked for, as far as a fit looks at a tensor.

    Parameters
    ----------
    store
        Has them.
    keys
        In their order.
    """

    def __init__(self, store: StemStore, keys: Sequence[Key]) -> None:
        self._store, self._keys = store, list(keys)
        self.device = store.device

    def __len__(self) -> int:
        """Return B."""
        return len(self._keys)

    def __getitem__(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Return some of them."""
        if isinstance(rows, slice):
            return self._store.take(self._keys[rows])
        return self._store.take(self._keys[i] for i in rows.tolist())

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """Yield all of them, so many at a time."""
        for start in range(0, len(self._keys), size):
            yield self._store.take(self._keys[start : start + size])


def draw(batches: Iterable[Sequence[torch.Tensor]], total: int, size: int, seed: int) -> list[torch.Tensor]:
    """Return what a random :func:`~adapters.memory.coreset` of a bank keeps, without the bank.

    Parameters
    ----------
    batches
        Per level (m, D) rows; over all batches ``total`` of each level.
    total
        Rows in all.
    size, seed
        As for the coreset.

    Returns
    -------
    list of torch.Tensor
        Per level (min(size, total), D) unit rows, in the coreset's order.
    """
    order = torch.arange(total)
    if total > size:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:size]
    wanted, places = order.sort()
    kept: list[list[torch.Tensor]] = []
    start = 0
    for levels in batches:
        here = wanted[(wanted >= start) & (wanted < start + len(levels[0]))] - start
        kept.append([rows[here.to(rows.device)] for rows in levels])
        start += len(levels[0])
    back = places.argsort()
    return [bank(torch.cat(level))[back.to(level[0].device)] for level in zip(*kept, strict=True)]
