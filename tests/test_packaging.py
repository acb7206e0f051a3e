"""The distribution: its names, its version, its files."""

import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import daemon

ROOT = Path(__file__).parent.parent


def test_the_three_packages_are_ours() -> None:
    """No other distribution has overwritten daemon, adapters or training."""
    owners = packages_distributions()
    for name in ("daemon", "adapters", "training"):
        assert set(owners[name]) == {"pacs-anomaly-daemon"}


def test_version_is_stated_once() -> None:
    """The package's version is that of pyproject.toml."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert daemon.__version__ == version("pacs-anomaly-daemon") == stated


def test_every_package_folder_is_packaged() -> None:
    """The explicit list of packages in pyproject.toml has every folder with modules."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("daemon", "adapters", "training")
        for path in (ROOT / name).rglob("*.py")
    }
    assert set(listed) == there


def test_no_gpl_decoder_comes_along() -> None:
    """pylibjpeg-libjpeg is GPL: neither our list nor the pinned versions may name it."""
    wanted = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    assert "pylibjpeg-libjpeg" not in wanted


def test_importing_adapters_does_not_import_torch() -> None:
    """Reception must not pay for the model's library."""
    code = "import sys, adapters, daemon.service; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
