"""The files of a site folder: what each is, and which of them are images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adapters.errors import DecodeError
from adapters.slices import Normalisation
from adapters.source import PixelSource, read_source
from training import annotate_nifti as nifti
from training import annotate_pictures as pictures
from training.annotate_csv import Labels
from training.annotate_rtstruct import RT_STRUCTURE_SET
from training.annotate_seg import LABEL_MAP_SEGMENTATION, SEGMENTATION
from training.annotations import Outlines, SiteImage
from training.cases import Label
from training.errors import AnnotationError
from training.site_dicom import Pseudonyms, dicom_images
from training.site_roots import Roots

_REPORTS = "1.2.840.10008.5.1.4.1.1.88."
_OTHER = {".txt", ".json", ".md", ".html", ".pdf", ".xml", ".xlsx", ".yaml", ".toml", ".zip", ".py", ".npy"}


@dataclass(slots=True)
class Folder:
    """The files of a site by what they are; paths below the site folder."""

    root: Roots
    limit: int
    normalisation: Normalisation
    pseudonyms: Pseudonyms
    # Patterns of the segments' and ROIs' names that are lesions.
    lesions: Sequence[str] = ()
    images: list[SiteImage] = field(default_factory=list)
    segs: dict[str, str] = field(default_factory=dict)
    structure_sets: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    picture_masks: list[str] = field(default_factory=list)
    volume_masks: list[str] = field(default_factory=list)
    instances: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    # What a copy's folder says of an instance whose own says nothing.
    copies: dict[str, Label] = field(default_factory=dict)
    # Annotations that can't be used, but may outline something.
    broken: list[str] = field(default_factory=list)
    ambiguous: set[str] = field(default_factory=set)
    outlines: Outlines = field(default_factory=Outlines)
    labels: Labels = field(init=False)

    def __post_init__(self) -> None:
        self.labels = Labels(self.root)


def key_of(root: Roots) -> bytes:
    """A key that only who holds the data can know: from names and sizes, and the first files' content."""
    digest = hashlib.sha256()
    for path in root.paths:
        digest.update(f"{path}\0{(root / path).stat().st_size}\0".encode("utf-8", "surrogateescape"))
    for path in root.paths[:8]:
        digest.update(_digest(root / path))
    return digest.digest()


def _digest(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError:
        return b""


def scan(folder: Folder, paths: Sequence[str]) -> None:
    """Sort the files by what they are, and read the images."""
    for path in paths:
        try:
            if nifti.suffix_of(path) or Path(path).suffix.lower() in pictures.SUFFIXES:
                _scan_named(folder, path)
            elif path.lower().endswith(".csv"):
                folder.labels.read(folder.root / path, path, folder.pseudonyms)
            elif Path(path).suffix.lower() in _OTHER:
                raise AnnotationError("not a kind of file that holds images or annotations")
            else:
                _scan_dicom(folder, path)
        except AnnotationError as error:
            folder.outlines.skip(path, str(error))
    folder.images = [
        replace(image, folder_label=folder.copies.get(image.key[0], image.folder_label))
        for image in folder.images
        if image.key[0] not in folder.ambiguous
    ]


def _scan_named(folder: Folder, path: str) -> None:
    """A picture or volume, image or mask by its name."""
    volume = nifti.suffix_of(path)
    is_mask = pictures.mask_stem(path, volume or Path(path).suffix) is not None
    if is_mask:
        (folder.volume_masks if volume else folder.picture_masks).append(path)
    elif volume:
        folder.images += nifti.volume_images(
            folder.root, path, normalisation=folder.normalisation, max_frame_pixels=folder.limit
        )
    else:
        folder.images.append(
            pictures.picture_image(
                folder.root, path, normalisation=folder.normalisation, max_frame_pixels=folder.limit
            )
        )


def _scan_dicom(folder: Folder, path: str) -> None:
    source = source_of(folder, path)
    ds = source.header
    uid, sop_class = (str(ds.get(k, "") or "") for k in ("SOPInstanceUID", "SOPClassUID"))
    digest = _digest(folder.root / path)
    first = folder.instances.setdefault(uid, (path, digest)) if uid else (path, digest)
    if first[0] != path:
        raise AnnotationError(_duplicate(folder, uid, first, (path, digest)))
    if sop_class in (SEGMENTATION, LABEL_MAP_SEGMENTATION):
        folder.segs[uid] = path
    elif sop_class == RT_STRUCTURE_SET:
        folder.structure_sets.append(path)
    elif sop_class.startswith(_REPORTS) and sop_class != _REPORTS + "59":
        folder.reports.append(path)
    else:
        folder.images += _images(folder, source, path)


def _images(folder: Folder, source: PixelSource, path: str) -> list[SiteImage]:
    return dicom_images(
        source,
        folder.root,
        path,
        normalisation=folder.normalisation,
        max_frame_pixels=folder.limit,
        pseudonyms=folder.pseudonyms,
        folder_label=pictures.folder_label(path),
    )


def _duplicate(folder: Folder, uid: str, first: tuple[str, bytes], second: tuple[str, bytes]) -> str:
    """Take both out unless they say the same, and say so."""
    same = first[1] == second[1] or _same_pixels(folder, first[0], second[0])
    known = folder.copies.get(uid, pictures.folder_label(first[0]))
    label = pictures.folder_label(second[0])
    if same and (known == label or not known or not label):
        if label:
            folder.copies[uid] = label
        return f"a copy of {first[0]} with the same SOP Instance UID: used once"
    folder.ambiguous.add(uid)
    for paths in (folder.structure_sets, folder.reports):
        if first[0] in paths:
            paths.remove(first[0])
    folder.segs.pop(uid, None)
    if first[0] not in {image.path for image in folder.images}:
        folder.broken += [first[0], second[0]]
    if not same:
        return f"its SOP Instance UID is also that of {first[0]}, which has other content: neither is used"
    return f"the same image as {first[0]}, in folders that declare it normal and abnormal: neither is used"


def _same_pixels(folder: Folder, first: str, second: str) -> bool:
    """True for one image as two systems export it: other bytes, the same pixels in the same place."""
    try:
        one, other = (_images(folder, source_of(folder, path), path) for path in (first, second))
        return all(
            (a.study, a.series, a.patient, a.frame_of_reference)
            == (b.study, b.series, b.patient, b.frame_of_reference)
            and (a.plane is b.plane if a.plane is None else a.plane.is_same(b.plane))
            and np.array_equal(a.load(), b.load())
            for a, b in zip(one, other, strict=True)
        )
    except (AnnotationError, DecodeError, ValueError):
        return False


def source_of(folder: Folder, path: str) -> PixelSource:
    """Read the header of a DICOM file; a failure is that of an annotation or image."""
    try:
        return read_source(folder.root / path)
    except DecodeError as error:
        raise AnnotationError(str(error)) from error
