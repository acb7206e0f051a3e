"""The machine of a measurement, described without naming it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Cores, memory, versions, and how busy the machine was before the run."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return {
        "load_1m_before": round(os.getloadavg()[0], 2),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": models[0] if models else platform.machine(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "pydicom", "highdicom", "pynetdicom", "dbos")},
    }


def sentence(record: dict[str, Any]) -> str:
    """Date and machine of a record in one sentence for a table's head."""
    machine = record["machine"]
    return (
        f"{record['date']}. {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB, no GPU; Python {machine['python']}, "
        f"torch {machine['torch']}; load before the run {machine['load_1m_before']}."
    )
