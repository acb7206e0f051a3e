"""Contact sheet: the best and worst cases, each image beside its heat map."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from adapters.errors import AdapterError
from training.evaluate import Evaluation
from training.records import Record

TILE_PX = 208
PER_GROUP = 4
OUTLINE = (0, 200, 120)
FOUND = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Tile:
    """One case on the sheet.

    Parameters
    ----------
    caption
        Without patient data.
    picture
        Image with the outlined truth, beside it the heat map with what is above the threshold; RGB.
    """

    caption: str
    picture: Image.Image

    def jpeg(self) -> bytes:
        """Return the picture as JPEG."""
        buffer = io.BytesIO()
        self.picture.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()


def contact_sheet(evaluation: Evaluation, numbers: Mapping[str, int]) -> dict[str, list[Tile]]:
    """Return tiles by group: misses, false alarms, clear hits, quiet normals; one per patient.

    Parameters
    ----------
    evaluation
        With its records.
    numbers
        Case number by case key.
    """
    abnormal = sorted((r for r in evaluation.records if r.abnormal), key=lambda r: r.score)
    normal = sorted((r for r in evaluation.records if not r.abnormal), key=lambda r: r.score)
    groups = {
        "Worst: abnormal, scored lowest": abnormal,
        "Worst: normal, scored highest": normal[::-1],
        "Best: abnormal, scored highest": abnormal[::-1],
        "Best: normal, scored lowest": normal,
    }
    cut = evaluation.slice_threshold
    return {word: _tiles(records, cut, numbers) for word, records in groups.items()}


def as_picture(groups: Mapping[str, Sequence[Tile]]) -> Image.Image:
    """Return all tiles on one picture, a row per group."""
    width = PER_GROUP * (2 * TILE_PX + 16) + 16
    sheet = Image.new("RGB", (width, len(groups) * (TILE_PX + 64) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (word, tiles) in enumerate(groups.items()):
        top = row * (TILE_PX + 64) + 8
        draw.text((16, top), word, fill=(34, 48, 60), font_size=17)
        for column, tile in enumerate(tiles):
            left = 16 + column * (2 * TILE_PX + 16)
            sheet.paste(tile.picture, (left, top + 26))
            draw.text((left, top + 30 + TILE_PX), tile.caption, fill=(80, 95, 108), font_size=13)
    return sheet


def _tiles(records: Sequence[Record], cut: float, numbers: Mapping[str, int]) -> list[Tile]:
    tiles: list[Tile] = []
    seen: set[str] = set()
    for record in records:
        if len(tiles) == PER_GROUP:
            break
        if record.patient in seen:
            continue
        try:
            pixels = record.shot.load()
        except (AdapterError, OSError, ValueError):
            continue  # it was readable a moment ago; the sheet is no reason to lose the report
        seen.add(record.patient)
        flag = "flagged" if record.score >= cut else "not flagged"
        caption = f"Case {numbers[record.case.key]} · score {record.score:.2f} · {flag}"
        tiles.append(Tile(caption, _pair(pixels, record)))
    return tiles


def _pair(pixels: NDArray[np.float32], record: Record) -> Image.Image:
    """Return (TILE, 2 TILE) RGB: the image with the truth's outline, and the heat map over it."""
    grey = np.repeat(pixels[..., None], 3, axis=2)
    values = record.full_map()
    heat = colormaps["inferno"](values)[..., :3].astype(np.float32)
    share = (0.15 + 0.6 * np.clip(values, 0, 1))[..., None]
    found = values >= record.threshold
    pair = Image.new("RGB", (2 * TILE_PX, TILE_PX), "black")
    for i, (layer, outline, colour) in enumerate(
        ((grey, record.full_mask(), OUTLINE), (grey * (1 - share) + heat * share, found, FOUND))
    ):
        pair.paste(_fit(layer, outline, colour), (i * TILE_PX, 0))
    return pair


def _fit(layer: NDArray[np.float32], outline: NDArray[np.bool_], colour: tuple[int, int, int]) -> Image.Image:
    rows, columns = outline.shape
    scale = (TILE_PX - 4) / max(rows, columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    picture = Image.fromarray((np.clip(layer, 0, 1) * 255).astype(np.uint8)).resize(
        size, Image.Resampling.BILINEAR
    )
    region = np.asarray(Image.fromarray(outline).resize(size, Image.Resampling.NEAREST))
    # The outline is drawn at the tile's size: it stays one or two pixels wide whatever the source.
    inner = region.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(region, step, axis)
    array = np.array(picture)
    array[region & ~inner] = colour
    tile = Image.new("RGB", (TILE_PX, TILE_PX), "black")
    tile.paste(Image.fromarray(array), ((TILE_PX - size[0]) // 2, (TILE_PX - size[1]) // 2))
    return tile
