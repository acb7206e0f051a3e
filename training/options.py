"""How to fit: recipe, epochs, seed, sizes, operating points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

# Stage, epoch from 1, epochs, mean loss.
Progress = Callable[[str, int, int, float], None]
Recipe = Literal["reference", "default"]
EPOCHS: Mapping[str, int] = {"reference": 50, "default": 30}


@dataclass(frozen=True, slots=True)
class Options:
    """How to fit.

    Parameters
    ----------
    recipe
        ``default``: batches, proper cross entropy, Dice at patch resolution, laterality-safe views, one
        family; ``reference``: the published loop, losses, views and mixing. Both letterbox.
    epochs
        0 for the recipe's own.
    seed
        Of the adapters, the order and the coreset.
    levels
        Blocks after which adapters sit; () for the quarter depths.
    folds
        Of the cross-validation that scores every case unseen; fewer if there are fewer cases.
    memory_rows
        Rows of the memory coreset per level.
    batch_size, learning_rate
        Of the default recipe.
    pixel_fpr
        Share of the held-out normals' pixels that the map threshold may exceed; 0 for 0.002 in a plain fit
        and 0.01 in a training, where the slice threshold keeps the false alarms of normals rare.
    slice_fpr
        Share of normal patients with a slice at or above the slice threshold; 0 for the larger of 0.05 and
        what n supports.
    """

    recipe: Recipe = "default"
    epochs: int = 0
    seed: int = 0
    levels: tuple[int, ...] = ()
    folds: int = 3
    memory_rows: int = 1000
    batch_size: int = 16
    learning_rate: float = 5e-3
    pixel_fpr: float = 0.0
    slice_fpr: float = 0.0

    def __post_init__(self) -> None:
        if self.recipe not in EPOCHS:
            raise ValueError(f"recipe {self.recipe!r} is unknown: use 'default' or 'reference'")
        if self.epochs < 0 or self.folds < 2 or self.batch_size < 1:
            raise ValueError("epochs must be at least 0, folds at least 2, batch_size at least 1")

    @property
    def total_epochs(self) -> int:
        """Epochs of a full fit."""
        return self.epochs or EPOCHS[self.recipe]
