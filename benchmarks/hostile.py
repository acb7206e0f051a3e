"""``python -m benchmarks.hostile``: C-STORE latency of a good peer, alone and beside 200 hostile connections.

Rounds alternate: some stores alone, some while an attacker in a process of its own keeps 200 connections
open, of every sort of ``benchmarks.attacks``. A connection that the receiver ends is opened again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import attacks
from benchmarks.hostile_peers import SORTS, attack
from benchmarks.peers import free_port, wait_for_port

_FOLDER = Path(__file__).parent
_BEGIN, _END = "<!-- hostile: begin -->", "<!-- hostile: end -->"
_BAR = 2.0
_PIXELS_BYTES = 524_288


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--stores", type=int, default=20, help="in each half of a round")
    parser.add_argument("--attack", type=int, help="be the attacker of this port")
    parser.add_argument("--no-write", action="store_true", help="print only; keep the recorded results")
    options = parser.parse_args()
    if options.attack:
        attack(options.attack)
        return
    record = measure(options.rounds, options.stores)
    print(_text(record))
    if not options.no_write:
        (_FOLDER / "results" / "hostile.json").write_text(json.dumps(record, indent=2) + "\n")
        readme = _FOLDER / "README.md"
        before, _, rest = readme.read_text().partition(_BEGIN)
        _, _, after = rest.partition(_END)
        readme.write_text(f"{before}{_BEGIN}\n{_text(record)}\n{_END}{after}")


def measure(rounds: int, stores: int) -> dict[str, Any]:
    """Run a receiver and both peers.

    Returns
    -------
    dict
        Latencies in milliseconds, how many hostile connections there were, what the log says.
    """
    alone: list[float] = []
    meanwhile: list[float] = []
    opened: list[int] = []
    held: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder, port = Path(name), free_port()
        with _receiver(folder, port):
            _store_some(port, stores, 0)  # warm-up
            for number in range(1, rounds + 1):
                alone += _store_some(port, stores, 2 * number)
                with _attacker(port) as attacker:
                    meanwhile += _store_some(port, stores, 2 * number + 1)
                held.append(attacker[0])
                opened.append(sum(attacker[0].values()))
                time.sleep(1.0)  # what is left of the attack ends
        log = (folder / "log").read_text()
    return {
        "date": date.today().isoformat(),
        "stores": len(alone),
        "instance_bytes": _PIXELS_BYTES,
        "open_at_the_end_of_each_round": opened,
        "sorts": held[-1],
        "alone_ms": _figures(alone),
        "meanwhile_ms": _figures(meanwhile),
        "ratio_of_medians": round(statistics.median(meanwhile) / statistics.median(alone), 2),
        "limits_in_the_log": dict(Counter(_keys(log))),
    }


@contextlib.contextmanager
def _receiver(folder: Path, port: int) -> Any:
    settings = folder / "settings.toml"
    settings.write_text(f'[service]\ndata_dir = "data"\n[receiver]\nport = {port}\nreserve_bytes = 1000000\n')
    command = [sys.executable, "-m", "daemon", "run", "--role", "receive", "--settings", str(settings)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for_port(port, process)
        yield
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def _attacker(port: int) -> Any:
    """Run the attacker; at the end the list holds how many connections it had open, by sort."""
    command = [sys.executable, "-m", "benchmarks.hostile", "--attack", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    found: list[dict[str, int]] = []
    try:
        process.stdout.readline()  # all of them are open
        yield found
        process.stdin.close()
        found.append(json.loads(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def _store_some(port: int, count: int, number: int) -> list[float]:
    """Store instances over one association; returns the seconds that each took."""
    pixels = attacks.element(0x7FE0, 0x0010, b"OB", bytes(_PIXELS_BYTES))
    study, seconds = f"1.2.826.1.{number}", []
    connection = attacks.associate(port, calling="MODALITY")
    connection.settimeout(60.0)
    for at in range(count):
        uid = f"{study}.{at + 1}"
        message = attacks.store_message(uid, attacks.data_set(uid, study, f"{study}.0") + pixels)
        started = time.perf_counter()
        if status := attacks.ask(connection, message):
            raise SystemExit(f"hostile: the good peer was answered {status:04X}")
        seconds.append(time.perf_counter() - started)
    attacks.release(connection)
    return seconds


def _figures(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median": round(statistics.median(ordered) * 1e3, 2),
        "p95": round(ordered[int(len(ordered) * 0.95)] * 1e3, 2),
        "maximum": round(ordered[-1] * 1e3, 2),
    }


def _keys(log: str) -> list[str]:
    words = [line.split() for line in log.splitlines() if "event=limit" in line]
    return [word.removeprefix("key=") for line in words for word in line if word.startswith("key=")]


def _text(record: dict[str, Any]) -> str:
    sorts = ", ".join(f"{record['sorts'].get(name, 0)} × {name}" for name in SORTS)
    opened = record["open_at_the_end_of_each_round"]
    lines = [
        f"{record['date']}: {record['stores']} C-STORE of {record['instance_bytes'] // 1024} KiB each way, "
        f"{min(opened)} to {max(opened)} hostile connections open at a time ({sorts}).",
        "",
        "| C-STORE of the good peer, ms | median | 95 % | longest |",
        "|---|---:|---:|---:|",
    ]
    for title, key in (("alone", "alone_ms"), ("meanwhile", "meanwhile_ms")):
        row = record[key]
        lines.append(f"| {title} | {row['median']:.1f} | {row['p95']:.1f} | {row['maximum']:.1f} |")
    within = "yes" if record["ratio_of_medians"] <= _BAR else "NO"
    lines.append(f"| ratio of medians, at most {_BAR:.0f}: {within} | {record['ratio_of_medians']:.2f} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
