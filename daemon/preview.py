"""Contact sheet: the highest-scoring slices with heat map and outline as a PNG without patient data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from daemon.outline import outlines
from daemon.results import RESEARCH_USE

MAXIMUM_SLICES = 12
_PANEL_PX = 240
_GAP_PX = 16
_CAPTION_PX = 30
_TITLE_PX = 52
_LEGEND_PX = 76
_TILES_PER_ROW = 3

_BACKGROUND = (18, 20, 24)
_TEXT = (226, 229, 234)
_MUTED = (148, 154, 164)
_OUTLINE = (64, 224, 255)
_FRAME = (52, 57, 66)
# Dark to bright, even for the colour-blind; red channel, green channel, blue channel in [0, 1].
_RAMP = np.array(
    [
        [0.05, 0.03, 0.20],
        [0.35, 0.07, 0.43],
        [0.68, 0.18, 0.38],
        [0.93, 0.41, 0.15],
        [0.99, 0.75, 0.20],
        [1.00, 1.00, 0.75],
    ]
)


@dataclass(frozen=True, slots=True)
class PreviewSlice:
    """One slice for the sheet.

    Parameters
    ----------
    pixels
        (rows, columns) float32 in [0, 1].
    map
        (rows, columns) float32 score in [0, 1] on the same grid.
    mask
        (rows, columns) bool, the findings; all False where there are none.
    caption
        Short text without patient data, such as "slice 12 of 40".
    score
        Slice score, by which slices are chosen.
    spacing_mm
        (between rows, between columns), so that the picture has the right shape; None for square pixels.
    """

    pixels: NDArray[np.float32]
    map: NDArray[np.float32]
    mask: NDArray[np.bool_]
    caption: str
    score: float
    spacing_mm: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that are not on one grid."""
        if not self.pixels.shape == self.map.shape == self.mask.shape or self.pixels.ndim != 2:
            raise ValueError("a preview slice needs pixels, map and mask of one (rows, columns) shape")


def contact_sheet(
    slices: Sequence[PreviewSlice],
    path: Path,
    *,
    title: str = "Anomaly findings",
    threshold: float | None = None,
) -> None:
    """Write the slices that score highest, in their given order, as a PNG; see :func:`draw_sheet`.

    Parameters
    ----------
    slices, title, threshold
        What is drawn.
    path
        Of the PNG; it is replaced.
    """
    sheet = Image.fromarray(draw_sheet(slices, title=title, threshold=threshold))
    sheet.save(path, format="PNG", optimize=True)


def draw_sheet(
    slices: Sequence[PreviewSlice], *, title: str = "Anomaly findings", threshold: float | None = None
) -> NDArray[np.uint8]:
    """Draw the slices that score highest, in their given order.

    Parameters
    ----------
    slices
        Any number, in order of position; at most 12 are drawn.
    title
        Heading without patient data.
    threshold
        Marked in the colour scale.

    Returns
    -------
    (rows, columns, 3) uint8.

    Raises
    ------
    ValueError
        If there is no slice.
    """
    if not slices:
        raise ValueError("a contact sheet needs at least one slice")
    ranked = sorted(range(len(slices)), key=lambda i: (-slices[i].score, i))[:MAXIMUM_SLICES]
    chosen = [slices[i] for i in sorted(ranked)]
    per_row = min(_TILES_PER_ROW, len(chosen))
    rows = -(-len(chosen) // per_row)
    tile_width, tile_height = 2 * _PANEL_PX + 2 + _GAP_PX, _PANEL_PX + _CAPTION_PX + _GAP_PX
    width = max(per_row * tile_width + _GAP_PX, 760)
    sheet = Image.new("RGB", (width, _TITLE_PX + rows * tile_height + _LEGEND_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    shown = f"{len(chosen)} of {len(slices)} slices, by score" if len(chosen) < len(slices) else ""
    draw.text((_GAP_PX, 14), title, fill=_TEXT, font=_font(20))
    draw.text((width - _GAP_PX, 20), shown, fill=_MUTED, font=_font(14), anchor="ra")
    for i, one in enumerate(chosen):
        x = _GAP_PX + i % per_row * tile_width
        y = _TITLE_PX + i // per_row * tile_height
        _draw_tile(sheet, draw, one, x, y)
    _draw_legend(sheet, draw, threshold)
    return np.asarray(sheet)


def heat_colours(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours of scores.

    Parameters
    ----------
    values
        Any shape, in [0, 1]; clipped.

    Returns
    -------
    The same shape × 3, float32 RGB in [0, 1].
    """
    places = np.linspace(0, 1, len(_RAMP))
    channels = [np.interp(values, places, _RAMP[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, one: PreviewSlice, x: int, y: int) -> None:
    """The slice on the left, the same with heat map and outline on the right, the caption below."""
    grey = np.repeat(np.clip(np.nan_to_num(one.pixels), 0, 1)[..., None], 3, axis=2)
    score = np.clip(np.nan_to_num(one.map), 0, 1)
    # Low scores stay clear, so that the anatomy is seen; a full score still shows 35 % of it.
    opacity = (0.65 * np.clip((score - 0.1) / 0.6, 0, 1))[..., None]
    blended = grey * (1 - opacity) + heat_colours(score) * opacity
    scale = _scale(one)
    size = (max(1, round(one.pixels.shape[1] * scale[1])), max(1, round(one.pixels.shape[0] * scale[0])))
    left = x + (_PANEL_PX - size[0]) // 2
    top = y + (_PANEL_PX - size[1]) // 2
    for offset, image in ((0, grey), (_PANEL_PX + 2, blended)):
        box = (x + offset, y, x + offset + _PANEL_PX - 1, y + _PANEL_PX - 1)
        draw.rectangle(box, fill=(0, 0, 0))
        panel = Image.fromarray(np.round(image * 255).astype(np.uint8)).resize(
            size, Image.Resampling.BILINEAR
        )
        sheet.paste(panel, (left + offset, top))
        draw.rectangle(box, outline=_FRAME)
    if one.mask.any():
        for loop in outlines(one.mask):
            points = [(left + _PANEL_PX + 2 + c * scale[1], top + r * scale[0]) for c, r in loop]
            draw.line(points, fill=_OUTLINE, width=2, joint="curve")
    draw.text((x + 2, y + _PANEL_PX + 6), one.caption, fill=_TEXT, font=_font(14))
    right = x + 2 * _PANEL_PX
    draw.text((right, y + _PANEL_PX + 6), f"score {one.score:.2f}", fill=_MUTED, font=_font(14), anchor="ra")


def _scale(one: PreviewSlice) -> tuple[float, float]:
    """Display pixels per source row and per source column that fit the panel in true proportions."""
    dy, dx = one.spacing_mm or (1.0, 1.0)
    rows, columns = one.pixels.shape
    scale = _PANEL_PX / max(rows * dy, columns * dx)
    return scale * dy, scale * dx


def _draw_legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, threshold: float | None) -> None:
    top = sheet.height - _LEGEND_PX + 12
    length, height = 256, 14
    ramp = heat_colours(np.linspace(0, 1, length, dtype=np.float32))
    bar = np.round(np.repeat(ramp[None], height, axis=0) * 255).astype(np.uint8)
    sheet.paste(Image.fromarray(bar), (_GAP_PX, top))
    for value in (0.0, 0.5, 1.0):
        place = _GAP_PX + value * (length - 1)
        anchor = {0.0: "la", 0.5: "ma", 1.0: "ra"}[value]
        draw.text((place, top + height + 6), f"{value:g}", fill=_MUTED, font=_font(13), anchor=anchor)
    draw.text((_GAP_PX + length + 14, top - 1), "anomaly score", fill=_TEXT, font=_font(14))
    if threshold is not None:
        place = round(_GAP_PX + min(max(threshold, 0.0), 1.0) * (length - 1))
        draw.line((place, top - 4, place, top + height + 3), fill=_OUTLINE, width=2)
    x = _GAP_PX + length + 14
    draw.line((x, top + 29, x + 22, top + 29), fill=_OUTLINE, width=2)
    label = "finding" if threshold is None else f"finding (score from {threshold:.2f})"
    draw.text((x + 30, top + 20), label, fill=_TEXT, font=_font(14))
    draw.text((sheet.width - _GAP_PX, top + 10), RESEARCH_USE, fill=_TEXT, font=_font(15), anchor="ra")


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that the picture needs no font of the machine."""
    return ImageFont.load_default(size_px)
