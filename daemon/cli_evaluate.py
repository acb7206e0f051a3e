"""``daemon evaluate``: a bundle on other data, the published protocol, zero-shot."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli_site import (
    LesionOption,
    check_folders,
    figure_values,
    figures_table,
    load_configured_backbone,
    normalisation,
    or_fail,
    print_differences,
    read_sites,
)
from daemon.console import SettingsOption, err, guarded, load, out, progress_bar
from daemon.errors import SettingsError
from daemon.settings import Settings

if TYPE_CHECKING:  # torch takes seconds to load; `--help` must not wait for it
    from adapters.backbone import Backbone
    from adapters.bundle import AdapterBundle
    from training.evaluate import Evaluation
    from training.metrics import Figure


@guarded
def evaluate(
    data: Annotated[list[Path], typer.Option("--data", "-d", help="Folder of cases; repeat it for several.")],
    bundle: Annotated[str, typer.Option(help="A bundle's version, name or file.")] = "",
    protocol: Annotated[str, typer.Option(help="mvfa: the published protocol on the BMAD layout.")] = "",
    leave_out: Annotated[str, typer.Option(help="Zero-shot: folder to evaluate on; the others fit.")] = "",
    class_name: Annotated[
        list[str] | None, typer.Option(help="What the prompts call it: one, or one per --data.")
    ] = None,
    lesion: LesionOption = None,
    shots: Annotated[int, typer.Option(help="With --protocol mvfa: shots per class; 0 = zero-shot.")] = 4,
    image_size: Annotated[
        int,
        typer.Option(min=0, help="With --protocol: side of the model's input, 0 = its own; published: 240."),
    ] = 0,
    baselines: Annotated[bool, typer.Option(help="Also the backbone without adapters.")] = False,
    fitted_on: Annotated[
        list[Path] | None, typer.Option(help="With --baselines: the bundle's site data, for their memory.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder of the report; default: in data_dir.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    settings: SettingsOption = None,
) -> None:
    """Compute the same figures for a bundle on other data, repeat the published protocol, or go zero-shot.

    Example: daemon evaluate --bundle liver-ct --data other-hospital/
    Example: daemon evaluate --leave-out brain --data brain/ --data liver/ --data retina/
    """
    options, _ = load(settings)
    os.umask(0o077)
    names = class_name or []
    if baselines and not fitted_on:
        raise SettingsError("--baselines needs --fitted-on: the site data that the bundle was fitted on")
    if leave_out and len({folder.resolve().name for folder in data}) < len(data):
        raise SettingsError("two --data folders have the same name: --leave-out tells them apart by it")
    if image_size and not protocol:
        raise SettingsError("--image-size goes with --protocol; a bundle fits one size, that of its backbone")
    for folder in [*data, *(fitted_on or [])]:
        check_folders([folder])
    found = None if protocol or leave_out else _bundle(bundle, options)
    backbone = load_configured_backbone(options, image_size)
    if protocol:
        _published(protocol, data, backbone, names, shots, as_json)
        return
    if found is None:
        evaluation = _leave_out(leave_out, data, names, backbone, options, lesion)
        _print_evaluation(evaluation, f"zero-shot on {leave_out}", as_json)
        return

    from training.baselines import baselines_on
    from training.evaluate import evaluate_bundle
    from training.options import Options
    from training.report import ReportContent, write_report
    from training.train import PIXEL_FPR

    site = read_sites(data, found.normalisation, options, lesions=lesion)
    batch_size = options.model.batch_size or 16
    evaluation = or_fail(lambda: evaluate_bundle(found, backbone, site, batch_size=batch_size))
    others: tuple[dict[str, Evaluation], dict[str, dict[str, Figure]]] = ({}, {})
    if fitted_on and baselines:
        fitted = read_sites(fitted_on, found.normalisation, options, lesions=lesion)
        others = or_fail(
            lambda: baselines_on(
                evaluation,
                fitted,
                site,
                backbone,
                class_name=found.class_name,
                shots_per_class=found.provenance.get("shots_per_class"),
                options=Options(seed=int(found.provenance.get("seed", 0)), pixel_fpr=PIXEL_FPR),
            )
        )
    folder = report or options.service.data_dir / "reports" / f"{found.name}-{found.version}-evaluation"
    path = write_report(
        folder,
        ReportContent(
            found.name,
            found.version,
            site,
            evaluation,
            provenance=found.provenance,
            baselines=others[0],
            differences=others[1],
            held_out="The bundle was evaluated on data that it was not fitted on.",
        ),
    )
    _print_evaluation(evaluation, "on other data", as_json, *others)
    if not as_json:
        print_differences(others[1])
        out.print(f"report {path}", highlight=False)


def _leave_out(
    name: str,
    data: Sequence[Path],
    class_names: Sequence[str],
    backbone: Backbone,
    options: Settings,
    lesions: Sequence[str] | None,
) -> Evaluation:
    from training.zero_shot import leave_out

    if class_names and len(class_names) != len(data):
        raise SettingsError(
            f"{len(class_names)} --class-name for {len(data)} --data: give one for each, or none"
        )
    pixels = normalisation("", backbone)
    tasks = {}
    for number, folder in enumerate(data):
        prompt = class_names[number] if class_names else folder.resolve().name.replace("_", " ")
        tasks[folder.resolve().name] = (read_sites([folder], pixels, options, lesions=lesions), prompt)
    with progress_bar(err) as bar:
        task = bar.add_task("fitting", total=None)
        evaluation: Evaluation = or_fail(
            lambda: leave_out(
                tasks,
                name,
                backbone,
                progress=lambda stage, epoch, total, loss: bar.update(
                    task, description=f"{stage}  loss {loss:.3f}", completed=epoch, total=total
                ),
            )
        )
    return evaluation


def _print_evaluation(
    evaluation: Evaluation,
    title: str,
    as_json: bool,
    baselines: Mapping[str, Evaluation] | None = None,
    differences: Mapping[str, Mapping[str, Figure]] | None = None,
) -> None:
    if as_json:
        found = evaluation.as_dict()
        if baselines:
            found["baselines"] = {name: other.as_dict() for name, other in baselines.items()}
        if differences:
            found["differences"] = {
                name: {key: figure_values(figure) for key, figure in figures.items()}
                for name, figures in differences.items()
            }
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        out.print(figures_table(evaluation, title))


def _published(
    protocol: str, data: Sequence[Path], backbone: Backbone, names: Sequence[str], shots: int, as_json: bool
) -> None:
    from dataclasses import asdict

    from training.protocol_mvfa import evaluate_mvfa

    if protocol != "mvfa":
        raise SettingsError(f"--protocol must be mvfa, not {protocol!r}")
    if len(data) != 1 or len(names) != 1:
        raise SettingsError(
            "--protocol mvfa needs one --data folder (with CLASS_AD folders) and --class-name"
        )
    result = or_fail(lambda: evaluate_mvfa(data[0], backbone, names[0], shots))
    if as_json:
        sys.stdout.write(json.dumps(asdict(result), indent=2) + "\n")
        return
    pixel = "–" if result.pixel_auroc is None else f"{result.pixel_auroc:.4f}"
    out.print(f"{names[0]}, {shots} shots: image AUROC {result.image_auroc:.4f}, pixel AUROC {pixel}")
    out.print("(best epoch chosen on the test set, as published; the last epoch is in --json)")


def _bundle(text: str, options: Settings) -> AdapterBundle:
    from adapters import registry
    from adapters.bundle import load_bundle

    if not text:
        raise SettingsError("--bundle is missing: a version, a name or a file (or use --protocol mvfa)")
    if Path(text).is_file():
        return load_bundle(Path(text))
    if any(entry.version.startswith(text) for entry in registry.entries(options.bundles_dir)):
        return load_bundle(registry.find(options.bundles_dir, text).path)
    return registry.select(options.bundles_dir, text)
