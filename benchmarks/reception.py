"""Reception: objects per second, CPU, memory and latency, beside DCMTK's storescp and Orthanc.

    python -m benchmarks.reception                # all of it, about ten minutes on an idle machine
    python -m benchmarks.reception --repeats 1 --no-write

Every receiver gets the same objects from the same senders, with TCP_NODELAY. They take turns: a round
runs each once, so that what else the machine does meets all of them alike; the table has the medians.
Before a kind of object is measured each gets one pass of it that does not count: a receiver runs for
months, and its first seconds (space that the journal sets aside, caches) say nothing about them.
"""

from __future__ import annotations

import datetime
import json
import mmap
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import machine, peers
from benchmarks.reception_page import WRITE, markdown
from benchmarks.reception_send import KINDS, Kind, objects, send_dcmtk, send_raw
from benchmarks.reception_servers import SERVERS, Running, running
from benchmarks.report import write_section
from daemon.reception.journal import Segment
from daemon.reception.record import BLOCK, SMALL_BYTES, blocks

SENDERS = ("raw", "storescu")
ASSOCIATIONS = (1, 4)


def measure(node: Running, kind: Kind, sender: str, associations: int, scratch: Path) -> dict[str, Any]:
    """Send one pass and return its figures."""
    items = objects(kind)
    dealt = [part for n in range(associations) if (part := items[n::associations])]
    size_bytes = sum(len(item.content) for item in items)
    os.sync()
    node.reset_peak()
    cpu_s = node.cpu_s()
    times: list[float] = []
    if sender == "raw":
        wall_s, times = send_raw(node.port, node.server.called, dealt)
    else:
        wall_s = send_dcmtk(node.port, node.server.called, dealt, scratch / "send")
    # What is done after the last answer counts too.
    time.sleep(0.3)
    row = {
        "server": node.server.name,
        "kind": kind.name,
        "sender": sender,
        "associations": associations,
        "objects_per_s": len(items) / wall_s,
        "cpu_s_per_gb": (node.cpu_s() - cpu_s) / (size_bytes / 1e9),
        "peak_mb": node.peak_bytes() / 1e6,
        "load_1m": os.getloadavg()[0],
    }
    if times:
        ordered = sorted(times)
        row["median_ms"] = statistics.median(ordered) * 1e3
        row["p99_ms"] = ordered[int(len(ordered) * 0.99)] * 1e3
    node.empty()
    return row


def durable_write_ms(kind: Kind, folder: Path, count: int = 100) -> float:
    """Return how long the journal's write of one such object takes, one after another, and nothing else."""
    data = memoryview(mmap.mmap(-1, blocks(kind.size_bytes)))
    data[: kind.size_bytes] = os.urandom(kind.size_bytes)
    segment = Segment(folder)
    try:
        times = []
        for number in range(count):
            at = BLOCK + number % 32 * len(data)
            started = time.perf_counter()
            segment.write(data, at)
            times.append(time.perf_counter() - started)
    finally:
        segment.remove()
    return statistics.median(times) * 1e3


def rounds(repeats: int, folder: Path, scratch: Path) -> list[dict[str, Any]]:
    """Measure every receiver in turn, a few times."""
    rows = []
    for repeat in range(repeats):
        for kind in KINDS:
            if kind.size_bytes <= SMALL_BYTES:
                written = {"server": WRITE, "kind": kind.name, "sender": "", "associations": 0}
                rows.append({**written, "median_ms": durable_write_ms(kind, folder)})
        for number, server in enumerate(SERVERS):
            with running(server, folder / f"{number}-{repeat}") as node:
                for kind in KINDS:
                    measure(node, kind, "raw", min(max(ASSOCIATIONS), kind.count), scratch)
                    for sender in SENDERS:
                        for associations in ASSOCIATIONS:
                            if kind.count >= associations:
                                rows.append(measure(node, kind, sender, associations, scratch))
                                typer.echo(json.dumps(rows[-1]), err=True)
    return rows


def main(
    repeats: Annotated[int, typer.Option(help="Rounds; the table has the medians.")] = 5,
    write: Annotated[bool, typer.Option(help="Write README.md and results/reception.json.")] = True,
) -> None:
    """Measure, print the table, and write it."""
    peers.need("storescu", "storescp", "Orthanc")
    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine.describe(),
        "repeats": repeats,
    }
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        record["rows"] = rounds(repeats, Path(folder), Path(scratch))
    text = markdown(record)
    typer.echo(text)
    if write:
        write_section("reception", text, record)


if __name__ == "__main__":
    typer.run(main)
