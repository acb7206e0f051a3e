"""Synthetic enhanced multi-frame CT and MR (PS3.3 C.7.6.16): shared and per-frame functional groups."""

from __future__ import annotations

import numpy as np
from factories import (
    ENHANCED_CT,
    ENHANCED_MR,
    Lesion,
    base,
    code,
    cosines,
    phantom,
    positions,
    set_pixels,
    uid,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

Spacing = tuple[float, float, float]


def _item(**attributes: object) -> DicomSequence:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return DicomSequence([ds])


def _dimensions(ds: Dataset) -> None:
    organization = uid("dimension", ds.SOPInstanceUID)
    ds.DimensionOrganizationSequence = _item(DimensionOrganizationUID=organization)
    ds.DimensionIndexSequence = _item(
        DimensionOrganizationUID=organization,
        DimensionIndexPointer=0x00209057,
        FunctionalGroupPointer=0x00209111,
    )


def _frames(
    ds: Dataset,
    orientation: str,
    spacing: Spacing,
    order: list[int],
    shared: Dataset,
    slope: list[float] | None,
) -> None:
    where = positions(len(order), orientation, spacing[0])
    shared.PixelMeasuresSequence = _item(PixelSpacing=[spacing[1], spacing[2]], SliceThickness=spacing[0])
    shared.PlaneOrientationSequence = _item(
        ImageOrientationPatient=[f"{v:.6g}" for v in cosines(orientation)]
    )
    frames = []
    for number, place in enumerate(order):
        frame = Dataset()
        frame.FrameContentSequence = _item(
            FrameAcquisitionDateTime="20260102101112", FrameReferenceDateTime="20260102101112",
            FrameAcquisitionDuration=1.0, StackID="1",
            InStackPositionNumber=place + 1, DimensionIndexValues=place + 1,
        )  # fmt: skip
        frame.PlanePositionSequence = _item(ImagePositionPatient=[f"{v:.8g}" for v in where[place]])
        if slope is not None:
            frame.PixelValueTransformationSequence = _item(
                RescaleIntercept=0, RescaleSlope=slope[number], RescaleType="US"
            )
        frames.append(frame)
    ds.SharedFunctionalGroupsSequence = DicomSequence([shared])
    ds.PerFrameFunctionalGroupsSequence = DicomSequence(frames)


def _common(ds: Dataset, volume: NDArray[np.generic], order: list[int], bits: int) -> None:
    ds.ImageType, ds.AcquisitionNumber, ds.AcquisitionDateTime = [
        "DERIVED", "PRIMARY", "VOLUME", "NONE"], 1, "20260102101112"  # fmt: skip
    ds.AcquisitionDuration, ds.ContentQualification = 1.0, "RESEARCH"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid(ds.StudyInstanceUID, "frame"), ""
    ds.PatientPosition, ds.BurnedInAnnotation, ds.LossyImageCompression = "HFS", "NO", "00"
    ds.PresentationLUTShape, ds.AcquisitionContextSequence = "IDENTITY", DicomSequence([])
    ds.PixelPresentation, ds.VolumetricProperties = "MONOCHROME", "VOLUME"
    ds.VolumeBasedCalculationTechnique = "NONE"
    _dimensions(ds)
    set_pixels(ds, volume[order], bits=bits)


def enhanced_mr(
    n: int = 5,
    rows: int = 32,
    cols: int = 32,
    *,
    orientation: str = "oblique",
    spacing: Spacing = (3.0, 1.0, 1.0),
    lesion: Lesion | None = None,
    order: list[int] | None = None,
    slope: list[float] | None = None,
    study: str = "study",
    series: str = "series",
) -> Dataset:
    """Return one enhanced MR of `n` frames; `order` lists the position of each frame, `slope` per frame."""
    ds, order = base(ENHANCED_MR, "MR", study=study, series=series), order or list(range(n))
    volume = np.clip(phantom(n, rows, cols, spacing, lesion) + 1000, 0, 4095).astype(np.uint16)
    _common(ds, volume, order, 12)
    ds.ComplexImageComponent, ds.AcquisitionContrast = "MAGNITUDE", "T1"
    ds.ResonantNucleus, ds.KSpaceFiltering, ds.MagneticFieldStrength = "1H", "NONE", 1.5
    ds.ApplicableSafetyStandardAgency = "IEC"
    shared = Dataset()
    shared.FrameAnatomySequence = _item(
        AnatomicRegionSequence=code("12738006", "SCT", "Brain"), FrameLaterality="U"
    )
    shared.MRImageFrameTypeSequence = _item(
        FrameType=["DERIVED", "PRIMARY", "VOLUME", "NONE"], PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME", VolumeBasedCalculationTechnique="NONE",
        ComplexImageComponent="MAGNITUDE", AcquisitionContrast="T1",
    )  # fmt: skip
    if slope is None:
        shared.PixelValueTransformationSequence = _item(RescaleIntercept=0, RescaleSlope=1, RescaleType="US")
    shared.FrameVOILUTSequence = _item(WindowCenter=1000, WindowWidth=2000)
    _frames(ds, orientation, spacing, order, shared, slope)
    return ds


def enhanced_ct(
    n: int = 5,
    rows: int = 32,
    cols: int = 32,
    *,
    orientation: str = "axial",
    spacing: Spacing = (2.0, 1.0, 1.0),
    lesion: Lesion | None = None,
    order: list[int] | None = None,
    study: str = "study",
    series: str = "series",
) -> Dataset:
    """Return one enhanced CT of `n` frames; `order` lists the position of each frame."""
    ds, order = base(ENHANCED_CT, "CT", study=study, series=series), order or list(range(n))
    volume = np.clip(phantom(n, rows, cols, spacing, lesion) + 1024, 0, 4095).astype(np.uint16)
    _common(ds, volume, order, 12)
    shared = Dataset()
    shared.FrameAnatomySequence = _item(
        AnatomicRegionSequence=code("51185008", "SCT", "Chest"), FrameLaterality="U"
    )
    shared.CTImageFrameTypeSequence = _item(
        FrameType=["DERIVED", "PRIMARY", "VOLUME", "NONE"], PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME", VolumeBasedCalculationTechnique="NONE",
    )  # fmt: skip
    shared.IrradiationEventIdentificationSequence = _item(IrradiationEventUID=uid("irradiation"))
    shared.PixelValueTransformationSequence = _item(RescaleIntercept=-1024, RescaleSlope=1, RescaleType="HU")
    shared.FrameVOILUTSequence = _item(WindowCenter=40, WindowWidth=400)
    _frames(ds, orientation, spacing, order, shared, None)
    return ds
