"""The pictures of radiologist.md, cut from what the viewer's and the page's tests leave in artefacts/.

    pytest tests/test_viewer.py tests/test_page.py && python docs/make_pictures.py

All of them show phantoms that went through a running daemon.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
# Name → source, and the part of it: left, upper, right, lower.
PICTURES = {
    "overlay": ("viewer/ct-seg.png", (0, 0, 1280, 800)),
    "report": ("viewer/ct-sr.png", (286, 50, 1244, 796)),
    "heat-map": ("viewer/ct-map.png", (286, 50, 1244, 796)),
    "correct": ("page/viewer-otto-drawing.png", (100, 60, 1340, 1000)),
}
_WIDTH_PX = 860


def main() -> None:
    """Cut, shrink and write each picture beside the page."""
    for name, (source, part) in PICTURES.items():
        picture = Image.open(ROOT / "artefacts" / source).convert("RGB").crop(part)
        height = round(picture.height * _WIDTH_PX / picture.width)
        small = picture.resize((_WIDTH_PX, height), Image.Resampling.LANCZOS)
        path = ROOT / "docs" / f"radiologist-{name}.webp"
        small.save(path, quality=82, method=6)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
