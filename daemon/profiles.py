"""Destination profiles: which form of each result a node gets, since no form suits every PACS and viewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

SegType = Literal["binary", "fractional", "labelmap", "none"]
Unaligned = Literal["binary", "fractional", "labelmap"]
EmptyFrames = Literal["keep", "omit"]
Projection = Literal["pixels", "plane"]
ParametricMap = Literal["none", "integer", "float"]
SecondaryCapture = Literal["none", "sheet"]
Coordinates = Literal["keep", "omit"]

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Every SOP class that we write, with our short name for its kind.
RESULT_CLASSES = {
    SEGMENTATION: "SEG",
    LABEL_MAP: "SEG",
    COMPREHENSIVE_3D_SR: "SR",
    PARAMETRIC_MAP: "PM",
    SECONDARY_CAPTURE: "SC",
}


@dataclass(frozen=True, slots=True)
class Profile:
    """What one kind of node gets.

    Parameters
    ----------
    seg
        SEG as ``binary``, as ``fractional`` that holds only 0 and 1, as ``labelmap`` (Label Map
        Segmentation, PS3.3 A.51 since 2024), or ``none``.
    unaligned
        Instead of ``binary`` where Rows × Columns is no multiple of 8: such frames begin within a
        byte, and some viewers misread them (OHIF 3.13).
    empty_frames
        ``keep``: a frame per segment and slice, up to 400 in all, which readers of sparse objects
        need; ``omit``: only frames that hold something.
    projection
        SEG of an image that has no place in space, such as a radiograph's: ``pixels``: it lies on the
        image's pixels and says no more; ``plane``: it also has an assumed plane in a frame of reference
        of its own, without which OHIF 3.13 shows nothing of it.
    parametric_map
        The scores of every pixel as ``integer`` (16 bits, scaled) or ``float`` (32 bits); ``none``.
    secondary_capture
        ``sheet``: one colour picture per series with the slices of the findings, for a PACS that
        shows no SEG; ``none``.
    coordinates
        ``keep``: outlines in the SR (SCOORD), without which OHIF shows nothing of it; ``omit`` for
        readers that stumble over them.
    """

    seg: SegType = "binary"
    unaligned: Unaligned = "binary"
    empty_frames: EmptyFrames = "keep"
    projection: Projection = "pixels"
    parametric_map: ParametricMap = "none"
    secondary_capture: SecondaryCapture = "none"
    coordinates: Coordinates = "keep"

    def seg_type(self, rows: int, columns: int) -> SegType:
        """Type of the SEG of frames of this size."""
        return self.unaligned if self.seg == "binary" and rows * columns % 8 else self.seg

    @property
    def sop_classes(self) -> dict[str, str]:
        """SOP classes that a node with this profile must accept, with the kind of result."""
        segs = {self.seg, self.unaligned} if self.seg == "binary" else {self.seg}
        wanted = {COMPREHENSIVE_3D_SR: True, SEGMENTATION: bool(segs & {"binary", "fractional"})}
        wanted[LABEL_MAP] = "labelmap" in segs
        wanted[PARAMETRIC_MAP] = self.parametric_map != "none"
        wanted[SECONDARY_CAPTURE] = self.secondary_capture != "none"
        return {uid: RESULT_CLASSES[uid] for uid in RESULT_CLASSES if wanted[uid]}

    def changed(self, options: Mapping[str, Any]) -> Profile:
        """Replace by these options; an empty text keeps what the profile says."""
        names = {field.name for field in fields(self)}
        return replace(self, **{name: value for name, value in options.items() if value and name in names})


ProfileName = Literal["standard", "ohif", "weasis", "slicer", "classic"]

PROFILES: dict[ProfileName, Profile] = {
    # What the standard says, for viewers that read it.
    "standard": Profile(),
    # OHIF 3.13 scrambles binary frames that begin within a byte, and reads this fractional form exactly;
    # its SEG loader stops where Pixel Measures and Plane Orientation are missing.
    "ohif": Profile(unaligned="fractional", projection="plane"),
    # Weasis switches a SEG of more than 400 frames off; it reads sparse ones.
    "weasis": Profile(empty_frames="omit"),
    # For work with the scores: 3D Slicer reads sparse SEG and floating-point parametric maps.
    "slicer": Profile(empty_frames="omit", parametric_map="float"),
    # A PACS without SEG: a picture, and an SR that refers to images only.
    "classic": Profile(seg="none", secondary_capture="sheet"),
}
