"""What training and evaluation share on the command line: the backbone, the site data, the tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from daemon.console import err, fail, out
from daemon.errors import SettingsError
from daemon.settings import Settings

if TYPE_CHECKING:  # torch takes seconds to load; `--help` must not wait for it
    from adapters.backbone import Backbone
    from adapters.slices import Normalisation
    from training.cases import SiteData
    from training.evaluate import Evaluation
    from training.metrics import Figure

LesionOption = Annotated[
    list[str] | None,
    typer.Option("--lesion", help='Segments or ROIs that are lesions, by name ("GTV*"); repeat it.'),
]


def load_configured_backbone(options: Settings, image_size_px: int = 0) -> Backbone:
    """The backbone of the settings, with a plain word where its weights are random; 0: the settings' size."""
    from adapters.backbone import load_backbone
    from daemon.models import backbone_spec, limit_threads

    limit_threads(options.model)
    if not options.model.weights:
        err.print(
            "[yellow]the backbone has seeded random weights, not pretrained ones: "
            "the figures say nothing of what pretrained weights would reach[/yellow]"
        )
    spec = backbone_spec(options.model)
    spec = replace(spec, image_size_px=image_size_px or spec.image_size_px)
    return load_backbone(spec, options.model.device, options.model.precision)


def normalisation(window: str, backbone: Backbone | None) -> Normalisation:
    """How pixels become [0, 1]: the object's own window, or the one asked for; None without a model."""
    from adapters.slices import Normalisation

    size_px = Normalisation("object").size_px if backbone is None else backbone.image_size_px
    if not window:
        return Normalisation(kind="object", size_px=size_px)
    try:
        low, high = (float(part) for part in window.split(","))
        return Normalisation(kind="window", low=low, high=high, size_px=size_px)
    except ValueError as error:
        raise SettingsError(
            f'--window {window!r}: give two numbers, LOW,HIGH ("-160,240"): {error}'
        ) from None


def check_folders(folders: Sequence[Path]) -> None:
    """End at once, before a model is loaded, where a folder is missing, empty or named twice."""
    from training.site_roots import Roots

    or_fail(lambda: Roots(folders))


def read_sites(
    folders: Sequence[Path],
    normalisation: Normalisation,
    options: Settings,
    *,
    check: bool = True,
    lesions: Sequence[str] | None = None,
) -> SiteData:
    """Read one or several site folders as one."""
    from daemon.service import pseudonym_key
    from training.site import read_site

    read = partial(
        read_site,
        folders,
        normalisation,
        max_frame_pixels=options.study.maximum_frame_pixels,
        hash_key=pseudonym_key(options),
        check=check,
        lesions=lesions or (),
    )
    site: SiteData = or_fail(read)
    return site


def figures_table(evaluation: Evaluation, title: str) -> Table:
    """Figures with their intervals."""
    table = Table("figure", title, box=None)
    for name, figure in evaluation.figures.items():
        table.add_row(name, str(figure))
    flagged, normals = evaluation.flagged_normal_patients, evaluation.normal_patients
    low, high = evaluation.false_positive_interval
    table.add_row("flagged normal patients", f"{flagged} of {normals} ({low:.3f} to {high:.3f})")
    return table


def figure_values(figure: Figure) -> list[float | None]:
    """Value and interval as JSON values: None where the data cannot say."""
    values = (figure.value, figure.low, figure.high)
    return [round(value, 4) if math.isfinite(value) else None for value in values]


def print_differences(differences: Mapping[str, Mapping[str, Figure]]) -> None:
    """Ours minus each method without adapters."""
    for method, figures in differences.items():
        for figure, value in figures.items():
            out.print(f"adapters minus {method}, {figure}: {value}", highlight=False)


def or_fail(work: Callable[[], Any]) -> Any:
    """Run it; what is wrong with the data is one message, not a traceback."""
    from training.errors import DataError

    try:
        return work()
    except DataError as error:
        fail(str(error))
