"""Source images as the encoders need them: a header template that highdicom accepts, repaired after.

highdicom builds a SEG or SR from source datasets and is strict about them; clinical sources are
not. So the constructors get blank single-frame stand-ins with only geometry, and afterwards
:meth:`Source.restore` puts the real references and the patient's attributes, byte for byte, back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat

from daemon.header import TYPE_2, read_header, restore_attributes
from daemon.study import Frame, FrameGroup

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE_STORAGE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True, slots=True)
class Source:
    """Header of one frame group.

    Parameters
    ----------
    header
        White-listed attributes of the first instance, as stored.
    group
        The frames; references to them come from here, so that one header is read for any number of slices.
    """

    header: Dataset
    group: FrameGroup

    @property
    def study_instance_uid(self) -> str:
        """Of the source."""
        return str(self.header.get("StudyInstanceUID", ""))

    @property
    def timezone_offset(self) -> str:
        """TimezoneOffsetFromUTC of the source, "" where absent."""
        return str(self.header.get("TimezoneOffsetFromUTC", "") or "")

    @property
    def is_multiframe(self) -> bool:
        """True if references need a frame number (PS3.3 10.3)."""
        if any(frame.frame_number > 1 for frame in self.group.frames):
            return True
        try:
            return int(self.header.get("NumberOfFrames", 1) or 1) > 1
        except (TypeError, ValueError):
            return False

    @property
    def is_in_space(self) -> bool:
        """True if all frames have a frame of reference, plane and spacing, and no two the same position."""
        return self.group.is_in_space

    @property
    def slice_thickness_mm(self) -> float:
        """SliceThickness, else the distance between planes, else the larger pixel spacing."""
        for ds in (self.header, *_shared_measures(self.header)):
            try:
                thickness = abs(float(ds.get("SliceThickness", 0) or 0))
            except (TypeError, ValueError):
                continue
            if thickness > 0:
                return thickness
        if self.group.slice_spacing_mm:
            return abs(self.group.slice_spacing_mm)
        return max(map(abs, self.group.pixel_spacing_mm or (1.0,)))

    def frame_numbers(self, frame: Frame) -> list[int] | None:
        """Referenced frame numbers of one frame, None for a single-frame instance."""
        return [frame.frame_number] if self.is_multiframe else None

    def stand_in(self, index: int, *, in_space: bool) -> Dataset:
        """Make the blank single-frame image that stands for one frame in a constructor.

        Parameters
        ----------
        index
            Of the frame in the group.
        in_space
            With geometry (as a CT image), or without (as a secondary capture).

        Returns
        -------
        A dataset without any of the patient's attributes; its SOP Instance UID is a key for `restore`.
        """
        frame, group = self.group.frames[index], self.group
        ds = Dataset()
        ds.SOPClassUID = CT_IMAGE_STORAGE if in_space else SECONDARY_CAPTURE_STORAGE
        ds.SOPInstanceUID = _key(index)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = self.study_instance_uid, group.series_instance_uid
        for keyword in TYPE_2:
            setattr(ds, keyword, None)
        ds.Modality, ds.Rows, ds.Columns = group.modality or "OT", group.rows, group.columns
        if in_space and frame.position is not None:
            ds.FrameOfReferenceUID = group.frame_of_reference_uid
            ds.PositionReferenceIndicator = self.header.get("PositionReferenceIndicator")
            ds.ImagePositionPatient = [_ds(v) for v in frame.position]
            ds.ImageOrientationPatient = [_ds(v) for v in group.orientation or ()]
            ds.PixelSpacing = [_ds(abs(v)) for v in group.pixel_spacing_mm or ()]
            ds.SliceThickness = _ds(self.slice_thickness_mm)
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if self.header.get(keyword) not in (None, ""):
                setattr(ds, keyword, self.header.get(keyword))
        return ds

    def on_planes(self, frame_of_reference_uid: str) -> Source:
        """Lay frames that have no place in space on assumed planes, 1 mm apart.

        Parameters
        ----------
        frame_of_reference_uid
            A new one, so that nothing else is in this space (PS3.3 C.7.4.1).

        Returns
        -------
        This source in space: in the group's orientation, else in the one that OHIF assumes for an image
        without any; in its pixel spacing, else with pixels of 1 mm.
        """
        group = self.group
        places = [replace(frame, position=(0.0, 0.0, float(i))) for i, frame in enumerate(group.frames)]
        place = replace(
            group,
            frame_of_reference_uid=frame_of_reference_uid,
            orientation=group.orientation or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            pixel_spacing_mm=group.pixel_spacing_mm or (1.0, 1.0),
            frames=tuple(places),
        )
        return replace(self, group=place)

    def restore(self, ds: Dataset) -> None:
        """Give a constructed object the patient's attributes and the true references back.

        Parameters
        ----------
        ds
            SEG or SR made from stand-ins; changed in place.
        """
        restore_attributes(self.header, ds)
        restore_references(self, ds)


def open_source(group: FrameGroup) -> Source:
    """Read the header of a group's first frame.

    Parameters
    ----------
    group
        Of at least one frame.

    Returns
    -------
    The source.

    Raises
    ------
    EncodeError
        If the file is gone or is no DICOM file.
    """
    return Source(read_header(group.frames[0].path), group)


def restore_references(source: Source, ds: Dataset) -> None:
    """Replace the stand-ins in every reference of an object by the real instance and frame.

    Parameters
    ----------
    source
        Whose stand-ins were used.
    ds
        SEG or SR; changed in place.
    """
    frames = {_key(i): frame for i, frame in enumerate(source.group.frames)}
    for item in reference_items(ds):
        frame = frames.get(str(item.ReferencedSOPInstanceUID))
        if frame is None:
            continue
        item.ReferencedSOPClassUID = frame.sop_class_uid
        item.ReferencedSOPInstanceUID = frame.sop_instance_uid
        numbers = source.frame_numbers(frame)
        if numbers is not None:
            item.ReferencedFrameNumber = numbers
    for series in ds.get("ReferencedSeriesSequence", ()):
        _merge_instances(series)


def reference_items(ds: Dataset) -> Iterator[Dataset]:
    """Walk an object for references.

    Parameters
    ----------
    ds
        Dataset or item.

    Returns
    -------
    Every item with a ReferencedSOPInstanceUID, found without decoding the other elements.
    """
    for element in ds.elements():
        if element.VR != "SQ" or not element.value:
            continue
        for item in ds[element.tag].value:
            if "ReferencedSOPInstanceUID" in item:
                yield item
            yield from reference_items(item)


def _merge_instances(series: Dataset) -> None:
    """List each instance once (Common Instance Reference, PS3.3 C.12.2), without frame numbers."""
    once: dict[str, Dataset] = {}
    for item in series.ReferencedInstanceSequence:
        if "ReferencedFrameNumber" in item:
            del item.ReferencedFrameNumber
        once.setdefault(str(item.ReferencedSOPInstanceUID), item)
    series.ReferencedInstanceSequence = list(once.values())


def _shared_measures(header: Dataset) -> list[Dataset]:
    groups = header.get("SharedFunctionalGroupsSequence") or []
    return [measure for group in groups for measure in group.get("PixelMeasuresSequence") or []]


def _key(index: int) -> str:
    """SOP Instance UID of the stand-in of a frame."""
    return f"2.25.{index + 1}"


def _ds(value: float) -> DSfloat:
    """Decimal string within 16 characters (PS3.5 6.2)."""
    return DSfloat(float(value), auto_format=True)
