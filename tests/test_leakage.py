"""What makes figures too good is found and named with its number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from phantoms import picture

from training.cues import Cues, cues_of, text_like
from training.leakage import cue_aurocs, near_duplicates, shared_patients, trivial_cues

LABELS = np.array([0, 1] * 15)
PATIENTS = [f"p{i}" for i in range(30)]


def _images(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [picture(rng, bool(label), 96)[0] for label in LABELS]


def _cues(images: list[np.ndarray], words: list[Mapping[str, str]] | None = None) -> list[Cues]:
    return [cues_of(image, words[i] if words else {}) for i, image in enumerate(images)]


def _stamp(image: np.ndarray) -> np.ndarray:
    """A copy with a few burned-in letters in the corner: strokes of two pixels."""
    out = image.copy()
    for left in range(4, 40, 7):
        out[3:12, left : left + 2] = out[3:5, left : left + 5] = 1.0
    return out


def test_clean_phantoms_give_no_warning() -> None:
    """Different patients with nothing but lesions are not suspected, nor is text seen in them."""
    cues = _cues(_images())
    assert list(near_duplicates(cues, PATIENTS, LABELS)) == []
    assert list(trivial_cues(cues, LABELS, ours=0.95)) == []
    assert list(shared_patients(PATIENTS, LABELS)) == []


def test_a_patient_on_both_sides_is_named() -> None:
    """Patients with normal and abnormal images are counted."""
    (warning,) = shared_patients(["a", "a", *PATIENTS[2:]], LABELS)
    assert warning.startswith("1 of 29 patients")


def test_copies_across_patients_are_found() -> None:
    """An identical copy and one with other brightness and noise are found; within a patient they may be."""
    images = _images()
    rng = np.random.default_rng(1)
    images[5] = images[4]
    images[8] = np.clip(images[6] * 0.8 + 0.1 + rng.normal(0, 0.01, (96, 96)), 0, 1).astype(np.float32)
    (warning,) = near_duplicates(_cues(images), PATIENTS, LABELS)
    assert warning.startswith("2 pairs")
    assert "1 identical, 1 with opposite labels" in warning
    same = [*PATIENTS]
    same[5], same[8] = same[4], same[6]
    assert list(near_duplicates(_cues(images), same, LABELS)) == []


def test_burned_in_text_of_one_class_is_named() -> None:
    """Letters in the corner of the abnormal images alone are found with their AUROC."""
    images = [_stamp(x) if label else x for x, label in zip(_images(), LABELS, strict=True)]
    assert text_like(images[1]) > 5 * max(text_like(images[0]), 1e-4)
    warnings = list(trivial_cues(_cues(images), LABELS, ours=0.99))
    assert any("Burned-in text" in w and "1.000" in w for w in warnings)


@pytest.mark.parametrize("cue", ["mean brightness", "rows", "manufacturer"])
def test_a_cue_as_good_as_the_model_is_named(cue: str) -> None:
    """Brightness, size or manufacturer that tell the classes apart are named beside the model's figure."""
    images, words = _images(), [{"manufacturer": "A"} for _ in LABELS]
    for i in np.flatnonzero(LABELS):
        if cue == "mean brightness":
            images[i] = np.clip(images[i] + 0.2, 0, 1)
        elif cue == "rows":
            images[i] = images[i][:80]
        else:
            words[i] = {"manufacturer": "B"}
    warnings = list(trivial_cues(_cues(images, words), LABELS, ours=0.9))
    assert any(w.startswith(cue.capitalize()) and "as well as the model (0.900)" in w for w in warnings)


def test_a_rare_word_gains_nothing_by_chance() -> None:
    """A cue that is different in every image, such as a serial number, is no better than chance."""
    words = [{"serial": str(i)} for i in range(30)]
    assert cue_aurocs(_cues(_images(), words), LABELS)["serial"] <= 0.5


def test_flat_images_are_no_copies() -> None:
    """Empty images have no pattern to compare."""
    cues = _cues([np.zeros((64, 64), np.float32)] * 30)
    assert list(near_duplicates(cues, PATIENTS, LABELS)) == []
