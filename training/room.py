"""How much memory is free, for whom it is not this process alone that decides."""

from __future__ import annotations

from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")


def free_memory_bytes(device: torch.device) -> int:
    """Return what a device has left; of the host, what the kernel and every control group above us allow."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([_available(), *_left_in_cgroups(_CGROUPS, Path("/proc/self/cgroup"))])


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not say how much memory is available")


def _left_in_cgroups(root: Path, membership: Path) -> list[int]:
    """What each control group (version 2) with a limit has left; file pages that can be dropped are free."""
    try:
        own = next(line[4:] for line in membership.read_text().splitlines() if line.startswith("0::/"))
    except (OSError, StopIteration):
        return []
    found = []
    for folder in (root / own, *(root / own).parents):
        try:
            limit = (folder / "memory.max").read_text().strip()
            used = int((folder / "memory.current").read_text())
            pages = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue  # above the root, or a group without a limit of its own
        if limit != "max":
            found.append(max(0, int(limit) - used + int(pages.get("inactive_file", 0))))
    return found
