"""Counters of every role, kept in files, so that the page's process can show them all.

A role counts what its canonical log lines say: one place decides what happened, and a line and a
counter cannot disagree. The files are Prometheus' own multi-process ones, one per role instead of
one per process id, so that counters go on after a restart and no files pile up. Labels are names of
the settings and fixed words, never a UID or anything that a peer chose.

Gauges (queues, disk, certificates, scores) are not kept: the page reads them where they are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PREFIX = "anomalyd_"


def open_counters(folder: Path, role: str) -> None:
    """Let this process count into the folder under its role's name; to be called before it works.

    Parameters
    ----------
    folder
        Of the counters; made if it does not exist.
    role
        ``receive``, ``score``, ``send`` or ``web``.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Read by prometheus_client when it is imported.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    from prometheus_client import values

    values.ValueClass = values.MultiProcessValue(lambda: role)  # type: ignore[no-untyped-call]
    _follow(_Counters())


class _Counters:
    """Every counter, and which canonical line it follows."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        # A registry of this process' own: the page collects from the files.
        own = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=own)

        self.associations = counter("associations_total", "Associations by outcome.", "outcome")
        self.instances = counter("received_instances_total", "Instances answered Success.")
        self.refused = counter("refused_instances_total", "Instances answered with another status.")
        self.bytes = counter("received_bytes_total", "Bytes of instances received.")
        self.studies = counter("studies_total", "Study revisions by how they ended.", "state")
        self.seconds = Histogram(
            _PREFIX + "scoring_seconds",
            "Seconds from a revision's start in the model's process to its written results.",
            buckets=(0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800),
            registry=own,
        )
        self.deliveries = counter(
            "delivery_instances_total", "Result objects by outcome of a delivery.", "destination", "outcome"
        )
        self.attempts = counter("delivery_attempts_total", "Deliveries that were tried.", "destination")
        self.follow: dict[str, Callable[[dict[str, Any]], None]] = {
            "association": self._association,
            "study": self._study,
            "delivery": self._delivery,
        }

    def _association(self, fields: dict[str, Any]) -> None:
        outcome = str(fields.get("outcome", "")).partition(":")[0]
        known = outcome if outcome in ("released", "aborted", "rejected") else "other"
        self.associations.labels(known).inc()
        self.instances.inc(int(fields.get("instances", 0)))
        self.refused.inc(int(fields.get("failed", 0)))
        self.bytes.inc(int(fields.get("bytes", 0)))

    def _study(self, fields: dict[str, Any]) -> None:
        self.studies.labels(str(fields.get("state", ""))).inc()
        self.seconds.observe(float(fields.get("duration_s", 0.0)))

    def _delivery(self, fields: dict[str, Any]) -> None:
        name = str(fields.get("destination", ""))
        self.attempts.labels(name).inc()
        self.deliveries.labels(name, "sent").inc(int(fields.get("sent", 0)))
        self.deliveries.labels(name, "failed").inc(int(fields.get("failed", 0)))


class _Follower(logging.Handler):
    """Counts what passes; writes nothing."""

    def __init__(self, counters: _Counters) -> None:
        super().__init__(logging.INFO)
        self._counters = counters

    def emit(self, record: logging.LogRecord) -> None:
        """Count one event."""
        count = self._counters.follow.get(record.getMessage())
        if count is not None:
            count(getattr(record, "fields", {}))


def _follow(counters: _Counters) -> None:
    """Hear every event, whatever level is written: that level moves from the logger to its output."""
    root, ours = logging.getLogger(), logging.getLogger("daemon")
    for handler in root.handlers:
        handler.setLevel(max(handler.level, root.level))
    ours.setLevel(min(logging.INFO, root.level or logging.INFO))
    ours.addHandler(_Follower(counters))
