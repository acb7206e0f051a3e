"""The SR's image library (TID 1600): which images were looked at."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.sr import (
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    NumContentItem,
    UIDRefContentItem,
)

from daemon import codes
from daemon.source import Source


def image_library(sources: Sequence[Source]) -> ContainerContentItem:
    """Image library (TID 1600) with the descriptors once per group (TID 1602) and bare entries.

    Parameters
    ----------
    sources
        One per frame group.

    Returns
    -------
    The container.
    """
    library = ContainerContentItem(codes.IMAGE_LIBRARY, relationship_type="CONTAINS")
    library.ContentSequence = ContentSequence()
    for source in sources:
        group = ContainerContentItem(codes.IMAGE_LIBRARY_GROUP, relationship_type="CONTAINS")
        group.ContentSequence = ContentSequence()
        group.ContentSequence.extend(_descriptors(source))
        once = {frame.sop_instance_uid: frame for frame in source.group.frames}
        for frame in once.values():
            group.ContentSequence.append(
                ImageContentItem(
                    codes.SOURCE, frame.sop_class_uid, frame.sop_instance_uid, relationship_type="CONTAINS"
                )
            )
        library.ContentSequence.append(group)
    return library


def _descriptors(source: Source) -> list[ContentItem]:
    """Descriptors that hold for every image of a group (TID 1602)."""
    group, relation = source.group, "HAS ACQ CONTEXT"
    items: list[ContentItem] = []
    modality = codes.modality_code(group.modality)
    if modality is not None:
        items.append(CodeContentItem(codes.MODALITY, modality, relation))
    if group.frame_of_reference_uid:
        items.append(UIDRefContentItem(codes.FRAME_OF_REFERENCE, group.frame_of_reference_uid, relation))
    items.append(NumContentItem(codes.PIXEL_DATA_ROWS, group.rows, codes.PIXELS, relationship_type=relation))
    items.append(
        NumContentItem(codes.PIXEL_DATA_COLUMNS, group.columns, codes.PIXELS, relationship_type=relation)
    )
    return items
