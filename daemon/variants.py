"""Which results each destination gets: everything that some profile wants, made once, with its audience.

Two profiles that ask for the same object share it: its UIDs follow from its form, not from who gets
it. An SR refers to the SEG of its own destination, so it comes in as many forms as that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daemon.companions import encode_capture, encode_map
from daemon.profiles import ParametricMap, Profile
from daemon.results import Analysis, Job, ResultObject
from daemon.seg import encode_seg, seg_variant
from daemon.sr import encode_sr
from daemon.study import Refusal

# Profile → names of the destinations that have it; no names: every destination.
Audience = Mapping[Profile, tuple[str, ...]]


def encode_companions(
    analysis: Analysis,
    maps: Sequence[NDArray[np.float32]],
    picture: Callable[[], NDArray[np.uint8]],
    job: Job,
    audience: Audience,
) -> list[ResultObject]:
    """Encode what some destination wants beside SEG and SR, while the score maps are there.

    Parameters
    ----------
    analysis, maps
        Of one frame group; one map per frame.
    picture
        Makes the contact sheet, (rows, columns, 3) uint8; called only if somebody wants it.
    job
        Gives every date and UID.
    audience
        Who wants what.

    Returns
    -------
    list of ResultObject
        Parametric maps and secondary capture, each with its destinations.
    """
    made: list[ResultObject] = []
    forms: tuple[ParametricMap, ...] = ("integer", "float")
    for form in forms:
        wanted = [profile for profile in audience if profile.parametric_map == form]
        if wanted and form != "none":
            item = encode_map(analysis, maps, job, form=form)
            made += [] if item is None else [_for(item, wanted, audience)]
    wanted = [profile for profile in audience if profile.secondary_capture == "sheet"]
    if wanted:
        made.append(_for(encode_capture(analysis, picture(), job), wanted, audience))
    return made


def encode_results(
    analyses: Sequence[Analysis],
    job: Job,
    audience: Audience,
    *,
    refusals: tuple[Refusal, ...] = (),
    template: Path | None = None,
) -> tuple[list[ResultObject], list[ResultObject]]:
    """Encode SEG and SR in every form that some destination wants.

    Parameters
    ----------
    analyses
        Of one study revision.
    job
        Gives every date and UID.
    audience
        Who wants what.
    refusals, template
        As for :func:`daemon.sr.encode_sr`.

    Returns
    -------
    tuple of two lists
        SEGs, and SRs; each object with its destinations.
    """
    segs: list[ResultObject] = []
    made: dict[tuple[int, str], tuple[ResultObject, ...]] = {}
    for i, analysis in enumerate(analyses):
        for variant, profiles in _grouped(audience, partial(seg_variant, analysis)).items():
            made[i, variant] = encode_seg(analysis, job, profile=profiles[0])
            segs += [_for(item, profiles, audience) for item in made[i, variant]]
    reports = []
    for variant, profiles in _grouped(audience, lambda profile: _sr_variant(analyses, profile)).items():
        own = [seg for i, a in enumerate(analyses) for seg in made[i, seg_variant(a, profiles[0])]]
        item = encode_sr(
            analyses,
            own,
            _known_to(_names(profiles, audience), job),
            refusals=refusals,
            template=template,
            coordinates=profiles[0].coordinates == "keep",
            variant=variant,
        )
        reports.append(_for(item, profiles, audience))
    return segs, reports


def _sr_variant(analyses: Sequence[Analysis], profile: Profile) -> str:
    """What tells this profile's SR from another's: the SEGs that it refers to, and its coordinates."""
    forms = [seg_variant(analysis, profile) for analysis in analyses if analysis.findings]
    text = "," + ",".join(forms) if any(forms) else ""
    return text if profile.coordinates == "keep" else f"{text}-plain"


def _grouped(audience: Audience, variant: Callable[[Profile], str]) -> dict[str, list[Profile]]:
    groups: dict[str, list[Profile]] = {}
    for profile in audience:
        groups.setdefault(variant(profile), []).append(profile)
    return groups


def _for(item: ResultObject, profiles: Sequence[Profile], audience: Audience) -> ResultObject:
    return replace(item, destinations=_names(profiles, audience))


def _names(profiles: Sequence[Profile], audience: Audience) -> tuple[str, ...]:
    return tuple(sorted(name for profile in profiles for name in audience[profile]))


def _known_to(names: tuple[str, ...], job: Job) -> Job:
    """A job whose predecessors are those that these destinations have."""
    known = tuple(
        item
        for item in job.predecessors
        if not names or not item.destinations or set(names) & set(item.destinations.split())
    )
    return replace(job, predecessors=known)
