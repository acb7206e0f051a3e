"""``daemon adapters``: the commands for the adapter bundles of this installation."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from daemon.cli_studies import open_index
from daemon.console import SettingsOption, fail, guarded, load, out
from daemon.errors import SettingsError
from daemon.settings import Settings

if TYPE_CHECKING:
    from daemon.study import FrameGroup

app = typer.Typer(no_args_is_help=True, help="The adapter bundles of this installation.")

VersionArgument = Annotated[str, typer.Argument(help="Version of the bundle, or the start of it.")]


@app.command("list")
@guarded
def list_bundles(settings: SettingsOption = None) -> None:
    """List the bundles; → marks those in use.

    Example: daemon adapters list
    """
    from adapters import registry
    from adapters.bundle import load_bundle

    options, _ = load(settings)
    found = registry.entries(options.bundles_dir)
    for item in registry.damaged(options.bundles_dir):
        out.print(f"{item.reason}: remove the file, or import it again", style="yellow", highlight=False)
    if not found:
        out.print("no bundles yet: `daemon train`, or `daemon adapters import FILE`")
        return
    current = registry.current(options.bundles_dir)
    table = Table("", "name", "version", "modality", "body part", "backbone", "fitted on", box=None)
    for entry in found:
        bundle = load_bundle(entry.path)
        used = current.get(entry.name) == entry.version
        counts = (
            f"{bundle.provenance.get('normal_slices', '?')} + {bundle.provenance.get('abnormal_slices', '?')}"
        )
        table.add_row(
            "→" if used else "",
            entry.name,
            entry.version,
            bundle.modality or "any",
            bundle.body_part or "any",
            str(bundle.backbone["model"]),
            f"{counts} slices",
        )
    out.print(table)


@app.command("show")
@guarded
def show(version: VersionArgument, settings: SettingsOption = None) -> None:
    """Show what a bundle is, how it was fitted and how good it was on held-out cases.

    Example: daemon adapters show 3f2a9c
    """
    from adapters import registry
    from adapters.bundle import load_bundle

    options, _ = load(settings)
    bundle = load_bundle(registry.find(options.bundles_dir, version).path)
    facts = {
        "name": bundle.name,
        "version": bundle.version,
        "sha256": bundle.sha256,
        "backbone": f"{bundle.backbone['model']} ({bundle.backbone_sha256[:12]}), {bundle.image_size_px} px",
        "levels": ", ".join(map(str, bundle.levels)),
        "prompts for": bundle.class_name,
        "modality": bundle.modality or "any",
        "body part": bundle.body_part or "any",
        "map threshold": f"{bundle.threshold:.3f}",
        "slice threshold": f"{bundle.slice_threshold:.3f}",
        "memory rows": ", ".join(str(len(rows)) for rows in bundle.memory),
    }
    for key, value in {**facts, **bundle.provenance}.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        out.print(f"{key:22} {text}", markup=False, highlight=False)


@app.command("promote")
@guarded
def promote(version: VersionArgument, settings: SettingsOption = None) -> None:
    """Put a version to use; the running daemon takes it for the next study.

    Example: daemon adapters promote 3f2a9c
    """
    from adapters import registry

    options, _ = load(settings)
    entry = registry.find(options.bundles_dir, version)
    registry.promote(options.bundles_dir, entry.name, entry.version)
    out.print(f"{entry.name} {entry.version} is in use for studies that become stable from now on")


@app.command("rollback")
@guarded
def roll_back(
    name: Annotated[str, typer.Argument(help="Name of the bundle.")],
    settings: SettingsOption = None,
) -> None:
    """Put the version of a bundle that was in use before back.

    Example: daemon adapters rollback liver-ct
    """
    from adapters import registry

    options, _ = load(settings)
    out.print(f"{name} {registry.roll_back(options.bundles_dir, name)} is in use again")


@app.command("remove")
@guarded
def remove(version: VersionArgument, settings: SettingsOption = None) -> None:
    """Delete a version that is not in use.

    Example: daemon adapters remove 3f2a9c
    """
    from adapters import registry

    options, _ = load(settings)
    entry = registry.find(options.bundles_dir, version)
    for rule in options.rules:
        if rule.shadow == f"{entry.name}@{entry.version}":
            raise SettingsError(f"rule {rule.name} of settings.toml has it as its shadow: change that first")
    registry.remove(options.bundles_dir, entry.version)
    out.print(f"{entry.name} {entry.version} is deleted")


@app.command("export")
@guarded
def export(
    version: VersionArgument,
    file: Annotated[Path, typer.Argument(help="Where to; .safetensors.")],
    settings: SettingsOption = None,
) -> None:
    """Copy a bundle to a file, for another installation. It holds features of patients' images.

    Example: daemon adapters export 3f2a9c liver-ct.safetensors
    """
    from adapters import registry

    options, _ = load(settings)
    entry = registry.find(options.bundles_dir, version)
    os.umask(0o077)
    shutil.copyfile(entry.path, file)
    out.print(f"{entry.name} {entry.version} is in {file}", highlight=False)


@app.command("import")
@guarded
def import_bundle(
    file: Annotated[Path, typer.Argument(help="A bundle (.safetensors).")],
    use: Annotated[bool, typer.Option(help="Put it to use at once.")] = True,
    settings: SettingsOption = None,
) -> None:
    """Check a bundle, copy it into the data folder and put it to use.

    Example: daemon adapters import liver-ct.safetensors
    """
    from adapters import registry
    from adapters.bundle import load_bundle

    options, _ = load(settings)
    if not file.is_file():
        raise SettingsError(f"{file} does not exist, or is a folder: name a bundle file (.safetensors)")
    bundle = load_bundle(file)
    os.umask(0o077)  # bundles hold features of patients
    registry.store(options.bundles_dir, bundle)
    if not use:
        out.print(
            f"{bundle.name} {bundle.version} is stored; daemon adapters promote {bundle.version} uses it"
        )
        return
    registry.promote(options.bundles_dir, bundle.name, bundle.version)
    out.print(f"{bundle.name} {bundle.version} is in use for studies that become stable from now on")


@app.command("convert-weights")
@guarded
def convert_weights(
    source: Annotated[Path, typer.Argument(help="A .pt checkpoint or TorchScript archive that you trust.")],
    target: Annotated[Path, typer.Argument(help="Where to; .safetensors.")],
) -> None:
    """Convert a backbone's .pt file to safetensors, which loads without running code.

    Example: daemon adapters convert-weights ViT-L-14-336px.pt ViT-L-14-336px.safetensors
    """
    from adapters.weights import convert_checkpoint

    sha256 = convert_checkpoint(source, target)
    out.print(f'model.weights = "{target}"', highlight=False)
    out.print(f'model.weights_sha256 = "{sha256}"', highlight=False)


@app.command("explain")
@guarded
def explain(
    what: Annotated[str, typer.Argument(help="A received study (UID or its end), or a file or folder.")],
    settings: SettingsOption = None,
) -> None:
    """Say which rule and bundle serve each series of a study or file, and why.

    Example: daemon adapters explain 1.2.840.1
    """
    from daemon.models import Models
    from daemon.rules import choose

    options, _ = load(settings)
    models = Models(options)
    versions = models.versions()
    if not versions:
        fail("no adapter bundle is in use: `daemon adapters import FILE`")
    serving = models.serving(versions)
    for group in _groups(what, options):
        out.print(
            f"series …{group.series_instance_uid[-12:]}  {group.modality}  {len(group.frames)} frames",
            highlight=False,
        )
        for line in choose(options.rules, group).trail:
            out.print(f"  rule {line}", markup=False, highlight=False)
        choice = serving.choose(group)
        if choice.scorer is None:
            out.print(f"  not scored: {choice.reason}", markup=False, highlight=False)
            continue
        bundle = choice.scorer.bundle
        out.print(f"  scored by {bundle.name} {bundle.version} ({choice.reason})", highlight=False)
        if choice.shadow is not None:
            shadow = choice.shadow.bundle
            out.print(f"  shadow {shadow.name} {shadow.version}: recorded, not sent", highlight=False)


@app.command("compare")
@guarded
def compare(settings: SettingsOption = None) -> None:
    """Show what shadows said beside the bundles in use, on the same series.

    Example: daemon adapters compare
    """
    from daemon.show import shadows_table

    options, _ = load(settings)
    with open_index(options) as index:
        scores = index.scores()
    table = shadows_table(scores)
    out.print(table if table.row_count else "no shadow has scored yet: set shadow in a rule of settings.toml")


def _groups(what: str, options: Settings) -> Iterator[FrameGroup]:
    from daemon.given import find_studies
    from daemon.results import is_own
    from daemon.show import resolve_study
    from daemon.spool import Spool
    from daemon.study import assemble

    if Path(what).exists():
        studies, _ = find_studies([Path(what)])
    else:
        with open_index(options) as index:
            uid = resolve_study(index, what)
            spool = Spool(options.spool_dir)
            studies = {uid: [spool.path(instance.path) for instance in index.instances_of(uid)]}
    for uid, files in studies.items():
        yield from assemble(
            uid,
            files,
            max_frame_pixels=options.study.maximum_frame_pixels,
            max_study_frames=options.study.maximum_study_frames,
            is_own=is_own,
        ).groups
