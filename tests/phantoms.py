"""Phantom cases of a site: body ellipses, with a bright or dark lesion where abnormal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from daemon.phantom import PhantomCase, make_case
from training.cases import Case, Shot, SiteData

Pair = tuple[np.ndarray, np.ndarray]


def picture(rng: np.random.Generator, lesion: bool, size: int = 64) -> Pair:
    """Return image and mask."""
    y, x = np.mgrid[:size, :size] / size - 0.5 + rng.normal(0, 0.015, (2, 1, 1))
    body = (y / rng.uniform(0.36, 0.42)) ** 2 + (x / rng.uniform(0.28, 0.34)) ** 2 < 1
    image, mask = np.where(body, 0.45, 0.02), np.zeros((size, size), bool)
    if lesion:
        centre, radius = rng.uniform(-0.15, 0.15, 2), rng.uniform(0.08, 0.12)
        mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        image[mask] += rng.choice([-1, 1]) * rng.uniform(0.25, 0.4)
    image += rng.normal(0, 0.02, (size, size))
    return np.clip(image, 0, 1).astype(np.float32), mask


def shot(key: str, pair: Pair, lesion: bool, attributes: Mapping[str, str] | None = None) -> Shot:
    """Return an annotated image."""
    image, mask = pair
    return Shot(
        key, "abnormal" if lesion else "normal", lambda: image, mask if lesion else None, attributes or {}
    )


def site(normal: int, abnormal: int, *, slices: int = 1, seed: int = 0, masks: bool = True) -> SiteData:
    """Return a site with so many normal and abnormal patients, a case each."""
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(normal + abnormal):
        lesion = i >= normal
        shots = [shot(f"{i}/{j}", picture(rng, lesion), lesion) for j in range(slices)]
        if not masks:
            shots = [Shot(s.key, s.label, s.load) for s in shots]
        cases.append(Case(f"case{i}", f"patient{i}", "CT", "ABDOMEN", tuple(shots), sources=("PNG",)))
    return SiteData(tuple(cases), ())


def two_lesions(number: int, slices: int = 12, seed: int = 1) -> PhantomCase:
    """Return a study with a lesion on either side, apart from each other: two findings on any machine."""
    case = make_case(number, abnormal=True, slices=slices, seed=seed)
    mirrored = case.lesion[:, :, ::-1]
    hounsfield = np.where(mirrored, case.hounsfield[case.lesion].mean(), case.hounsfield)
    return replace(
        case, hounsfield=np.round(hounsfield).astype(np.int16), lesion=np.asarray(case.lesion | mirrored)
    )
