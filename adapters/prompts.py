"""The prompt ensemble as data: states of the organ in photo templates (arXiv 2403.12570)."""

from __future__ import annotations

NORMAL_STATES: tuple[str, ...] = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ABNORMAL_STATES: tuple[str, ...] = (
    "damaged {}",
    "broken {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
)
TEMPLATES: tuple[str, ...] = (
    "a bad photo of a {}.",
    "a low resolution photo of the {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a photo of my {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a photo of one {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "a low resolution photo of a {}.",
    "a photo of a large {}.",
    "a blurry photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a photo of the small {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "a dark photo of a {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)


def prompts(class_name: str) -> tuple[list[str], list[str]]:
    """Return the normal and the abnormal prompts of a class, state-major, in the published order.

    Parameters
    ----------
    class_name
        What the images show, such as ``"Brain"`` or ``"Chest X-ray film"``.

    Returns
    -------
    tuple of list
        245 normal and 175 abnormal prompts.

    Raises
    ------
    ValueError
        The class name is empty.
    """
    if not class_name.strip():
        raise ValueError("the class name is empty: say what the images show, such as 'Brain'")
    return _expand(NORMAL_STATES, class_name), _expand(ABNORMAL_STATES, class_name)


def _expand(states: tuple[str, ...], class_name: str) -> list[str]:
    return [t.format(s.format(class_name)) for s in states for t in TEMPLATES]
