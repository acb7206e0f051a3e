"""Images, masks and labels → cases: which image is normal, which abnormal, and which is not used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.errors import DecodeError
from training.annotate_csv import Labels, Level
from training.annotations import Outlines, SiteImage, positions
from training.cases import Case, Label, Shot, SiteData
from training.errors import AnnotationError, SiteDataError
from training.site_dicom import Pseudonyms


@dataclass(frozen=True, slots=True)
class _Declared:
    """What labels say of one image, and at which level; a folder counts as one."""

    level: Level | None
    label: Label | None
    contradicts: bool
    patient: str


def make_cases(
    images: Sequence[SiteImage],
    outlines: Outlines,
    labels: Labels,
    pseudonyms: Pseudonyms,
    margin_slices: int,
) -> list[Case]:
    """Group the images by study and decide what each is.

    Parameters
    ----------
    images
        Every image.
    outlines
        Their masks; what is not used is recorded there.
    labels
        From CSV files.
    pseudonyms
        Hashes of the site.
    margin_slices
        As in :func:`~training.site.read_site`.

    Returns
    -------
    Cases that have an image to use, by key.
    """
    studies: dict[str, list[SiteImage]] = {}
    for image in images:
        studies.setdefault(image.study, []).append(image)
    cases = []
    for members in studies.values():
        case = _case(members, outlines, labels, pseudonyms, margin_slices)
        if case.shots:
            cases.append(case)
        elif not any(image.key in outlines.unusable for image in members):
            outlines.skip(members[0].path, _says_nothing(members))
    return sorted(cases, key=lambda case: case.key)


def _says_nothing(members: Sequence[SiteImage]) -> str:
    if len(members) == 1:
        return "no label or mask says whether this image is normal: not used"
    return f"no label or mask says which of this study's {len(members)} images are normal: not used"


def _case(
    members: Sequence[SiteImage],
    outlines: Outlines,
    labels: Labels,
    pseudonyms: Pseudonyms,
    margin_slices: int,
) -> Case:
    first = members[0]
    is_dicom = first.key[0] != first.path
    key = pseudonyms("study", first.study) if is_dicom else first.study
    series: dict[str, list[SiteImage]] = {}
    for image in members:
        series.setdefault(image.series, []).append(image)
    patients: list[str] = []
    sources: set[str] = set()
    shots: list[Shot] = []
    for group in series.values():
        ordered = _in_order(group)
        declared = {image.key: _declared(image, labels) for image in ordered}
        patients += [d.patient for d in declared.values() if d.patient]
        safe = _far_from_masks(ordered, outlines, margin_slices)
        for image in ordered:
            says = declared[image.key]
            label = _label(image, says, len(group), len(members), outlines)
            if (
                label is None
                and image.key in safe
                and image.key not in outlines.unusable
                and not says.contradicts
            ):
                label = "normal"
            shot = None if label is None else _shot(image, label, outlines, pseudonyms)
            if shot is None:
                continue
            shots.append(shot)
            sources |= outlines.sources.get(image.key, set())
            if says.label and image.key not in safe:
                sources.add("CSV" if says.level else "folder")
    if len(set(patients)) > 1:
        outlines.skip(first.path, "one study of several patients: the first is taken for all its images")
    return Case(
        key=key,
        patient_key=patients[0] if patients else key,
        modality=first.modality,
        body_part=first.body_part,
        shots=tuple(shots),
        unused=len(members) - len(shots),
        sources=tuple(sorted(sources)),
    )


def _in_order(group: Sequence[SiteImage]) -> list[SiteImage]:
    places = positions(group)
    if places is None:
        return sorted(group, key=lambda image: (image.number, image.key))
    order = sorted(range(len(group)), key=lambda i: (places[i], group[i].number, group[i].key))
    return [group[i] for i in order]


def _declared(image: SiteImage, labels: Labels) -> _Declared:
    level, found, patient = labels.of(image)
    patient = patient or image.patient
    if found:
        return _Declared(level, next(iter(found)) if len(found) == 1 else None, len(found) > 1, patient)
    return _Declared(None, image.folder_label, False, patient)


def _label(
    image: SiteImage, says: _Declared, in_series: int, in_study: int, outlines: Outlines
) -> Label | None:
    """What an image is by its mask and declared label; None if it is not used."""
    if image.key in outlines.unusable:
        return None
    if says.contradicts:
        outlines.skip(image.path, "labelled normal and abnormal: not used")
        return None
    masked = image.key in outlines.masks
    if masked and says.label == "normal":
        outlines.skip(image.path, "declared normal but outlined as abnormal: not used")
        return None
    if masked:
        return "abnormal"
    if says.label == "normal":
        return "normal"
    if says.label == "abnormal" and _is_about_image(image, says.level, in_series, in_study):
        return "abnormal"
    return None


def _is_about_image(image: SiteImage, level: Level | None, in_series: int, in_study: int) -> bool:
    """True if "abnormal" holds for this image itself, not only for something in its stack."""
    if level in ("instance", "file"):
        return image.single
    if level == "study":
        return in_study == 1
    if level == "series":
        return in_series == 1
    # A folder names files: each radiograph in it is abnormal, but not each slice of a stack.
    return image.single and (in_series == 1 or image.plane is None)


def _far_from_masks(
    ordered: Sequence[SiteImage], outlines: Outlines, margin_slices: int
) -> set[tuple[str, int]]:
    """Images of a stack that lie more than the margin beyond its outermost masks."""
    places = positions(ordered)
    if places is None or ordered[0].series in outlines.unsafe_series:
        return set()
    masked = [place for image, place in zip(ordered, places, strict=True) if image.key in outlines.masks]
    if not masked:
        return set()
    low, high = min(masked) - margin_slices, max(masked) + margin_slices
    return {image.key for image, place in zip(ordered, places, strict=True) if place < low or place > high}


def _shot(image: SiteImage, label: Label, outlines: Outlines, pseudonyms: Pseudonyms) -> Shot | None:
    """The shot, if its pixels can be read: a training run must not stop at an image in the middle."""
    try:
        pixels = image.load()
    except (DecodeError, AnnotationError) as error:
        outlines.skip(image.path, f"the image cannot be read: {error}", [image])
        return None
    if pixels.shape != (image.rows, image.columns):
        outlines.skip(image.path, "the image's pixels are not of the size in its header", [image])
        return None
    is_dicom = image.key[0] != image.path
    name = pseudonyms("image", *map(str, image.key)) if is_dicom else image.path
    return Shot(
        key=name if image.single or is_dicom else f"{image.path}#{image.key[1]}",
        label=label,
        load=image.load,
        mask=outlines.masks.get(image.key) if label == "abnormal" else None,
        attributes=image.attributes,
    )


def check_site(site: SiteData) -> None:
    """Refuse what cannot be fitted on.

    Raises
    ------
    SiteDataError
        There is nothing labelled, one class alone or one patient alone.
    """
    shots = [shot for case in site.cases for shot in case.shots]
    if not shots:
        message = "no image is labelled: add masks, a CSV of labels, or folders called normal and abnormal"
        if site.skipped:
            message += f"; {len(site.skipped)} things were skipped, the first: {site.skipped[0].reason}"
        raise SiteDataError(message, site)
    found = {shot.label for shot in shots}
    if len(found) == 1:
        missing = "normal" if found == {"abnormal"} else "abnormal"
        raise SiteDataError(
            f"all {len(shots)} usable images are {found.pop()}; at least some {missing} ones are needed", site
        )
    if len({case.patient_key for case in site.cases}) == 1:
        raise SiteDataError(
            "every case is of one patient, so nothing can be tested on another; add patients, or, if "
            "anonymisation gave all the same Patient ID, a CSV with the columns study and patient",
            site,
        )
