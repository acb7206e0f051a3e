"""Site data: a folder of images and annotations in any structure, understood as cases.

Annotations are matched to DICOM images by UIDs and frames of reference, never by file names; only
pictures and volumes, which have no UIDs, are matched by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom import Dataset

from adapters.slices import Normalisation
from adapters.source import PixelSource
from training import annotate_nifti as nifti
from training import annotate_pictures as pictures
from training.annotate_rtstruct import outline_rtstruct
from training.annotate_seg import outline_seg
from training.annotate_sr import outline_sr
from training.annotations import Images, Outlines, SiteImage
from training.cases import SiteData, Skipped
from training.errors import AnnotationError, SiteDataError
from training.site_cases import check_site, make_cases
from training.site_dicom import Pseudonyms
from training.site_roots import Roots
from training.site_scan import Folder, key_of, scan, source_of


def read_site(
    root: Path | Sequence[Path],
    normalisation: Normalisation,
    *,
    margin_slices: int = 2,
    max_frame_pixels: int,
    hash_key: bytes | None = None,
    check: bool = True,
    lesions: Sequence[str] = (),
) -> SiteData:
    """Read a site folder, or several as one.

    Parameters
    ----------
    root
        The folder or folders. An object that is in two of them counts once; what they say of it must agree.
    normalisation
        How shots load their pixels.
    margin_slices
        An image of an annotated stack counts as normal only if it lies more than so many slices beyond the
        outermost mask.
    max_frame_pixels
        Limit for rows × columns × samples of an image.
    hash_key
        Secret of the site for the hashes of patients and studies. Without it they follow from the folder's
        content: the same folder gives the same hashes, two folders never share one.
    check
        Refuse data that cannot be fitted on: one class or one patient alone.
    lesions
        Patterns of the names of segments and ROIs that are lesions whatever their type says; in an annotation
        where some match, they alone are.

    Returns
    -------
    SiteData
        Cases by key, and what was not used.

    Raises
    ------
    SiteDataError
        Nothing can be used, or `check` fails; its `site` says what was understood.
    """
    if margin_slices < 0:
        raise SiteDataError(f"margin_slices {margin_slices} is negative")
    roots = Roots([root] if isinstance(root, Path) else root)
    folder = Folder(roots, max_frame_pixels, normalisation, Pseudonyms(hash_key or key_of(roots)), lesions)
    scan(folder, roots.paths)
    if not folder.images:
        raise SiteDataError(
            _none_usable(folder.outlines.skipped), SiteData((), tuple(folder.outlines.skipped))
        )
    _outline(folder)
    folder.labels.know(folder.images)
    cases = make_cases(folder.images, folder.outlines, folder.labels, folder.pseudonyms, margin_slices)
    for path, reason in (*folder.labels.skipped, *folder.labels.unused()):
        folder.outlines.skip(path, reason)
    skipped = sorted(set(folder.outlines.skipped), key=lambda s: (s.path, s.reason))
    site = SiteData(tuple(cases), tuple(skipped))
    if check:
        check_site(site)
    return site


def _none_usable(skipped: Sequence[Skipped]) -> str:
    message = f"none of the {len({s.path for s in skipped})} files is an image that can be used"
    if skipped:
        message += f"; the first: {skipped[0].reason}"
    return message


def _outline(folder: Folder) -> None:
    """Read every annotation."""
    known, outlines, limit = Images(folder.images), folder.outlines, folder.limit

    def find_seg(uid: str) -> PixelSource | None:
        return source_of(folder, folder.segs[uid]) if uid in folder.segs else None

    def seg(path: str) -> None:
        source = source_of(folder, path)
        outline_seg(source, path, known, outlines, max_frame_pixels=limit, lesions=folder.lesions)

    def rtstruct(path: str) -> None:
        outline_rtstruct(source_of(folder, path).header, path, known, outlines, folder.lesions)

    def report(path: str) -> None:
        header = source_of(folder, path).header
        outline_sr(header, path, known, outlines, find_seg=find_seg, max_frame_pixels=limit)

    series: dict[str, list[SiteImage]] = {}
    for image in folder.images:
        series.setdefault(image.series, []).append(image)
    volumes = [s for s in series.values() if nifti.suffix_of(s[0].path)]
    dicom = [s for s in series.values() if s[0].key[0] != s[0].path]

    def volume_mask(path: str) -> None:
        nifti.outline_nifti(folder.root, path, volumes, dicom, outlines, limit)

    jobs: list[tuple[Callable[[str], None], Sequence[str]]] = [
        (seg, list(folder.segs.values())),
        (rtstruct, folder.structure_sets),
        (report, folder.reports),
        (volume_mask, folder.volume_masks),
    ]
    for read, paths in jobs:
        for path in paths:
            if not _is_read(read, path, outlines):
                folder.broken.append(path)
    for path in folder.broken:
        if not nifti.suffix_of(path):
            outlines.unsafe_series |= _series_of(source_of(folder, path).header, known)
    files = [i for i in folder.images if i.key[0] == i.path and not nifti.suffix_of(i.path)]
    pictures.outline_pictures(folder.root, folder.picture_masks, files, outlines, limit)


def _is_read(read: Callable[[str], None], path: str, outlines: Outlines) -> bool:
    try:
        read(path)
        return True
    except AnnotationError as error:
        outlines.skip(path, str(error))
    # A value that its VR does not allow fails only when it is looked at, and nearly anywhere.
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        outlines.skip(path, f"the annotation is damaged ({type(error).__name__})")
    return False


def _series_of(ds: Dataset, known: Images) -> set[str]:
    """The series that an annotation is about, as far as its header can be read."""
    found = {
        image.series for image in known.of_frame_of_reference(str(ds.get("FrameOfReferenceUID", "") or ""))
    }
    try:
        uids = {str(e.value) for e in ds.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    # The annotation is known to be damaged.
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        uids = set()
    return found | {image.series for uid in uids for image in known.referenced(uid)}


def summary_rows(site: SiteData) -> list[tuple[str, str]]:
    """Return the table of what was understood, as name and text; no patient data.

    Parameters
    ----------
    site
        From :func:`read_site`.
    """
    shots = [shot for case in site.cases for shot in case.shots]
    known = {case.patient_key for case in site.cases if case.patient_key != case.key}
    alone = sum(case.patient_key == case.key for case in site.cases)
    sources: dict[str, int] = {}
    for case in site.cases:
        for name in case.sources:
            sources[name] = sources.get(name, 0) + 1
    abnormal = sum(case.abnormal for case in site.cases)
    rows = [
        ("cases", f"{len(site.cases)}: {abnormal} abnormal, {len(site.cases) - abnormal} normal"),
        ("patients", f"{len(known) + alone}"),
        ("normal images", str(sum(shot.label == "normal" for shot in shots))),
        ("abnormal images", str(sum(shot.label == "abnormal" for shot in shots))),
        ("masks", str(sum(shot.mask is not None for shot in shots))),
        ("unused images", f"{sum(case.unused for case in site.cases)}: neither declared normal, nor "
                          "outlined, nor far enough from a mask"),
        ("labels from", ", ".join(f"{name} ({n} cases)" for name, n in sorted(sources.items())) or "nothing"),
    ]  # fmt: skip
    if alone:
        rows.insert(2, ("patient unknown", f"{alone} cases, each counted as a patient of its own"))
    reasons: dict[str, list[str]] = {}
    for item in site.skipped:
        reasons.setdefault(item.reason, []).append(item.path)
    for reason, paths in reasons.items():
        where = paths[0] if len(paths) == 1 else f"{len(paths)} files, the first {paths[0]}"
        rows.append(("skipped", f"{where}: {reason}"))
    return rows
