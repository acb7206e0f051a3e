"""Mutated DICOM files through parser and study assembly for as long as you like; reports how many.

python -m benchmarks.fuzz --minutes 30
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
import warnings
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, sentence
from benchmarks.report import write_section
from daemon.errors import SpoolError
from daemon.part10 import read_file_header
from daemon.study import assemble

_ROOT = Path(__file__).parents[1]
# Values at which lengths and counts tend to break.
_EDGES = (
    b"\x00\x00",
    b"\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xfe\xff\xff\xff",
    b"SQ",
    b"OB",
)


def mutated(content: bytes, seed: int, count: int) -> bytes:
    """Return a file with some bytes changed, cut, doubled or set to an edge; the same for the same seed."""
    chance = random.Random(seed)
    changed = bytearray(content)
    # Headers are short and pixels long: most changes go where the parser looks.
    for _ in range(count):
        reach = len(changed) if chance.random() < 0.2 else min(len(changed), 4_096)
        if reach < 2:
            break
        at = chance.randrange(reach)
        kind = chance.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            edge = chance.choice(_EDGES)
            changed[at : at + len(edge)] = edge
        elif kind == 2:
            del changed[at : at + chance.randrange(1, 64)]
        elif kind == 3:
            changed[at:at] = changed[at : at + chance.randrange(1, 512)]
        else:
            changed[at] = chance.randrange(256)
    return bytes(changed)


def main() -> None:
    """Run until the time is over, a failure ends the run with the seed that makes it again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    zoo = Path(os.environ.get("DICOM_ZOO", _ROOT.parent / "shared" / "zoo"))
    files = sorted(path for path in zoo.glob("**/*.dcm") if path.stat().st_size < 2_000_000)
    if not files:
        raise SystemExit("fuzz: no DICOM files; set DICOM_ZOO")
    warnings.simplefilter("ignore")
    machine = describe()
    found = run([path.read_bytes() for path in files], options.minutes * 60.0, options.seed)
    record = {"date": date.today().isoformat(), "machine": machine, **found}
    text = _markdown(record)
    print(text)
    if not options.no_write:
        write_section("fuzz", text, record)


def run(corpus: list[bytes], seconds: float, seed: int) -> dict[str, object]:
    """Feed mutated files for some seconds.

    Returns
    -------
    dict
        How many files, what became of them, the slowest in seconds and its seed.
    """
    outcomes: Counter[str] = Counter()
    slowest, slowest_seed = 0.0, seed
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.dcm"
        while time.monotonic() - started < seconds:
            content = mutated(corpus[seed % len(corpus)], seed, 1 + seed % 30)
            path.write_bytes(content)
            before = time.monotonic()
            try:
                outcomes[_feed(path)] += 1
            except BaseException:
                print(f"seed {seed} breaks it")
                raise
            slowest, slowest_seed = max((slowest, slowest_seed), (time.monotonic() - before, seed))
            seed += 1
    return {
        "files": outcomes.total(),
        "outcomes": dict(outcomes),
        "corpus_files": len(corpus),
        "seconds": round(time.monotonic() - started, 1),
        "slowest_s": round(slowest, 3),
        "slowest_seed": slowest_seed,
    }


def _feed(path: Path) -> str:
    try:
        header, _ = read_file_header(path)
    except SpoolError:
        study, outcome = "1.2", "not stored"
    else:
        study, outcome = header.study_instance_uid, "stored"
    found = assemble(study, [path], max_frame_pixels=1 << 24, max_study_frames=1_000)
    return f"{outcome}, {'scorable' if found.groups else 'refused'}"


def _markdown(record: dict[str, Any]) -> str:
    outcomes = record["outcomes"]
    lines = [
        f"{record['files']:,} mutations of {record['corpus_files']} files in {record['seconds']:.0f} s; "
        f"nothing broke. {sentence(record)}",
        "",
        "| stored as an instance? scorable? | files |",
        "|---|---:|",
        *(f"| {name} | {outcomes[name]:,} |" for name in sorted(outcomes)),
        f"| slowest file, s (seed {record['slowest_seed']}) | {record['slowest_s']} |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
