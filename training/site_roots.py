"""The folders of a site: one, or several that are read as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.errors import SiteDataError


class Roots:
    """Site folders, and the files below them by path.

    A path is that below the folder; with several folders it begins with the folder's number and name, so that
    files of the same name in two of them stay apart. The number keeps a folder called "normal" or "mask" from
    saying anything of its files, as it does where it is alone.

    Parameters
    ----------
    folders
        None inside another.

    Raises
    ------
    SiteDataError
        One does not exist, is empty, or lies inside another.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.several = len(folders) > 1
        self._folders = {
            f"{number}-{folder.resolve().name}/" if self.several else "": folder
            for number, folder in enumerate(folders, start=1)
        }
        self.paths: list[str] = []
        for prefix, folder in self._folders.items():
            name = f"{folder.name}: " if self.several else ""
            if not folder.is_dir():
                raise SiteDataError(f"{name}the site data folder does not exist or is no folder")
            found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            found = [p for p in found if not any(part.startswith((".", "__MACOSX")) for part in p.split("/"))]
            if not found:
                raise SiteDataError(
                    f"{name}the site data folder is empty: put images, and masks or labels, into it"
                )
            self.paths += [prefix + path for path in found]
        places = [folder.resolve() for folder in folders]
        for i, place in enumerate(places):
            if any(place.is_relative_to(other) for j, other in enumerate(places) if j != i):
                raise SiteDataError(
                    f"{folders[i].name}: the site data folder is given twice, or lies in another one: name "
                    "each once"
                )

    def prefix(self, path: str) -> str:
        """Return what a path's folder puts before it; "" where there is one folder."""
        return path[: path.index("/") + 1] if self.several else ""

    def __truediv__(self, path: str) -> Path:
        """Return the file of a path, as ``folder / path`` does."""
        prefix = self.prefix(path)
        return self._folders[prefix] / path[len(prefix) :]
