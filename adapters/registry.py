"""Bundles in a folder: list them, choose by name, promote one, roll back."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

from adapters.bundle import AdapterBundle, load_bundle
from adapters.errors import BundleError

SUFFIX = ".safetensors"
STATE = "promoted.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One bundle file.

    Parameters
    ----------
    path, name, version
        Of the bundle.
    promoted
        Whether it serves its name now.
    """

    path: Path
    name: str
    version: str
    promoted: bool


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file that is named like a bundle and cannot be read as one.

    Parameters
    ----------
    path
        Of the file.
    reason
        What is wrong with it.
    """

    path: Path
    reason: str


def store(folder: Path, bundle: AdapterBundle) -> Path:
    """Write a bundle into the folder under its name and version; it serves only once promoted."""
    folder.mkdir(parents=True, exist_ok=True)
    return bundle.save(folder / f"{bundle.name}-{bundle.version}{SUFFIX}")


def entries(folder: Path) -> list[Entry]:
    """List the readable bundles of a folder by name and version; :func:`damaged` lists the others."""
    return _look(folder)[0]


def damaged(folder: Path) -> list[Damaged]:
    """List what cannot be read: copied in part, changed, or no bundle. It stops no other from serving."""
    return _look(folder)[1]


def select(folder: Path, name: str) -> AdapterBundle:
    """Return the promoted bundle of a name, or its only one.

    Raises
    ------
    BundleError
        There is none, or several and none is promoted.
    """
    _check_promoted(folder, name)
    here = [entry for entry in entries(folder) if entry.name == name]
    promoted = [entry for entry in here if entry.promoted]
    if promoted:
        return load_bundle(promoted[0].path)
    if not here:
        raise BundleError(f"no bundle named {name!r} in the folder of bundles: fit one, or correct the name")
    if len(here) > 1 or _read(folder).get(name):
        raise BundleError(
            f"bundle {name!r} has {len(here)} versions and none that is promoted is here: promote one"
        )
    return load_bundle(here[0].path)


def promote(folder: Path, name: str, version: str) -> None:
    """Make a version serve its name; the one before is kept for :func:`roll_back`.

    Raises
    ------
    BundleError
        The folder has no such version.
    """
    if not any(entry.name == name and entry.version == version for entry in entries(folder)):
        raise BundleError(f"no bundle {name!r} of version {version!r} in the folder of bundles")
    state = _read(folder)
    history = [v for v in state.get(name, []) if v != version]
    _write(folder, state | {name: [*history, version]})


def roll_back(folder: Path, name: str) -> str:
    """Let the version that served before serve again, and return it.

    Raises
    ------
    BundleError
        No version served before.
    """
    state = _read(folder)
    history = state.get(name, [])
    if len(history) < 2:
        raise BundleError(f"bundle {name!r} has no earlier version to roll back to")
    _write(folder, state | {name: history[:-1]})
    return history[-2]


def current(folder: Path) -> dict[str, str]:
    """Return the version that serves each name: the promoted one, or the only one there is.

    Raises
    ------
    BundleError
        A promoted one is damaged: nothing else may serve in its place.
    """
    versions: dict[str, list[Entry]] = {}
    for entry in entries(folder):
        versions.setdefault(entry.name, []).append(entry)
    state = _read(folder)
    for name in state:
        _check_promoted(folder, name)
    chosen = {}
    for name, here in versions.items():
        promoted = [entry.version for entry in here if entry.promoted]
        if promoted or (len(here) == 1 and not state.get(name)):
            chosen[name] = promoted[0] if promoted else here[0].version
    return chosen


def history(folder: Path) -> dict[str, list[str]]:
    """Return the versions that served each name, the present one last."""
    return _read(folder)


def find(folder: Path, version: str) -> Entry:
    """Return the entry of a version, or of the start of one that fits no other.

    Raises
    ------
    BundleError
        None or several fit.
    """
    here = [entry for entry in entries(folder) if version and entry.version.startswith(version)]
    if len(here) != 1:
        raise BundleError(f"{len(here)} bundles have a version that starts with {version!r}")
    return here[0]


def remove(folder: Path, version: str) -> Entry:
    """Delete a version that does not serve its name.

    Raises
    ------
    BundleError
        It serves, or is not there.
    """
    entry = find(folder, version)
    if entry.promoted:
        raise BundleError(f"{entry.name} {entry.version} is in use: promote another version first")
    state = _read(folder)
    if entry.version in state.get(entry.name, []):
        history = [v for v in state[entry.name] if v != entry.version]
        _write(folder, state | {entry.name: history})
    entry.path.unlink()
    return entry


def _look(folder: Path) -> tuple[list[Entry], list[Damaged]]:
    state = _read(folder)
    sound, broken = [], []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            status = path.stat()
            name, version = _identity(path, status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            continue
        except BundleError as error:
            broken.append(Damaged(path, str(error)))
            continue
        sound.append(Entry(path, name, version, state.get(name, [""])[-1] == version))
    return sound, broken


@functools.lru_cache(maxsize=256)
def _identity(path: Path, mtime_ns: int, size_bytes: int) -> tuple[str, str]:
    """Name and version; the version is a hash of the file, which is read once while it stays the same."""
    bundle = load_bundle(path)
    return bundle.name, bundle.version


def _check_promoted(folder: Path, name: str) -> None:
    """Raise if the version that serves a name is damaged."""
    version = _read(folder).get(name, [""])[-1]
    file = f"{name}-{version}{SUFFIX}"
    for item in damaged(folder) if version else ():
        if item.path.name == file:
            raise BundleError(f"{item.reason}; bundle {name} {version} is in use: import it again")


def _read(folder: Path) -> dict[str, list[str]]:
    try:
        state: dict[str, list[str]] = json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BundleError(
            f"{STATE} in the folder of bundles is damaged: delete it and promote again"
        ) from error
    return state


def _write(folder: Path, state: dict[str, list[str]]) -> None:
    part = folder / f"{STATE}.part"
    with part.open("w") as file:
        json.dump(state, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / STATE)
