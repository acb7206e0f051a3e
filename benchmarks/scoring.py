"""``python -m benchmarks.scoring``: what scoring costs, against the published scoring, stage by stage.

    python -m benchmarks.scoring                     every part, on the CPU
    python -m benchmarks.scoring --parts path        one part; the others' figures stay
    python -m benchmarks.scoring --device cuda       what a GPU gives, in one go
    python -m benchmarks.scoring --table             only write README.md from the stored figures

CPU figures are core-seconds of this process: a busy neighbour stretches wall time, hardly these. Each part
runs in a process of its own. Set OMP_WAIT_POLICY=PASSIVE on a busy machine: waiting threads then do not spin.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.scoring_setup import CLASSES, describe_machine
from benchmarks.scoring_tables import markdown

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "scoring.json"
BEGIN, END = "<!-- scoring: begin -->", "<!-- scoring: end -->"
PARTS = ("blocks", "cpu", "small", "path", "memory")
MEMORY_BATCHES = (1, 8, 16)


def main() -> None:
    """Run the parts, store their figures, write the tables."""
    options = _options()
    if options.part:
        torch.set_num_threads(options.threads)
        sys.stdout.write("\n" + json.dumps(_part(options)))
        return
    if not options.table:
        for part, arguments in _plan(options):
            sys.stderr.write(f"benchmark: {part} {' '.join(arguments)}\n")
            record(part, _apart(part, arguments, options), arguments)
    write(json.loads(RESULTS.read_text()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="ViT-L-14-336")
    parser.add_argument("--size-px", type=int, default=240)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="auto", help="of ours: auto, fp32 or bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=0, help="slices per forward pass; 0 chooses")
    parser.add_argument("--images", type=int, default=24, help="test images per class in part cpu")
    parser.add_argument("--views", type=int, default=11, help="of each normal shot in the bank of part cpu")
    parser.add_argument("--slices", type=int, default=16, help="slices of the study in part path")
    parser.add_argument("--tasks", nargs="*", default=list(CLASSES), choices=list(CLASSES))
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--table", action="store_true", help="only write README.md")
    parser.add_argument("--part", help="run one part here and print JSON")
    parser.add_argument("--task", default="", help="of --part cpu")
    return parser.parse_args()


def _plan(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    if options.device != "cpu":
        return [("device", []), ("equality", []), ("path", [])]
    plan: list[tuple[str, list[str]]] = []
    for part in options.parts:
        if part in ("cpu", "small"):
            plan += [(part, ["--task", task]) for task in options.tasks]
        elif part == "memory":
            plan += [(part, ["--batch", str(batch)]) for batch in MEMORY_BATCHES]
        else:
            plan.append((part, []))
    return plan


def _apart(part: str, arguments: list[str], options: argparse.Namespace) -> dict[str, Any]:
    given = ["--part", part]
    for name in ("model", "size_px", "device", "precision", "threads", "batch", "images", "views", "slices"):
        given += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scoring", *given, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


def _part(options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in this process."""
    name, size_px, device, precision = options.model, options.size_px, options.device, options.precision
    with tempfile.TemporaryDirectory(prefix="scoring-") as made:
        folder = Path(made)
        if options.part == "blocks":
            from benchmarks.scoring_blocks import blocks

            return blocks()
        if options.part == "cpu":
            from benchmarks.scoring_cpu import Contest

            contest = Contest(name, size_px, precision)
            return contest.run(options.task, options.images, options.batch or 8, options.views)
        if options.part == "small":
            from benchmarks.scoring_cpu import Contest

            # Every test image: many more than the large model could score in an hour.
            return Contest("tiny", 128, "bf16").run(options.task, 10_000, 16)
        if options.part == "path":
            from benchmarks.scoring_path import stages

            return stages(folder, name, size_px, device, precision, options.slices, options.batch)
        from benchmarks import scoring_device

        if options.part == "memory":
            return scoring_device.memory(name, size_px, device, precision, options.batch)
        if options.part == "equality":
            return scoring_device.equality(name, size_px, device, 16)
        return scoring_device.measure(folder, name, size_px, device, precision, options.batch, 20)


def record(part: str, value: dict[str, Any], arguments: list[str]) -> None:
    """Put one part's figures, with date and machine, into the stored ones."""
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    value = {**value, "date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": describe_machine()}
    key = arguments[-1] if arguments else "all"
    device = (
        "GPU" if part in ("device", "equality") or value.get("device", "cpu") not in ("cpu", "CPU") else "CPU"
    )
    stored.setdefault(device, {}).setdefault(part, {})[key] = value
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


def write(stored: dict[str, Any]) -> None:
    """Write the tables between the markers of README.md."""
    text = markdown(stored)
    sys.stdout.write(text + "\n")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
