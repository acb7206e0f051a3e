"""/healthz, /readyz and /metrics: for machines, without patient data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from daemon.reception.replay import JOURNAL, left_behind
from daemon.supervisor import ROLES
from daemon.web.certificates import certificates
from daemon.web.desk import Desk, SignInNeeded, TheDesk
from daemon.web.now import delivery_ages, disk_of
from daemon.web.watch import role_runs

router = APIRouter(include_in_schema=False)

_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SCORES_SPAN_S = 7 * 86_400.0


@router.get("/healthz")
async def healthz() -> PlainTextResponse:
    """This process answers, also while every thread of it waits."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
def readyz(desk: TheDesk) -> JSONResponse:
    """Whether this host can receive, score and send: 200, or 503 and what is not ready."""
    checks: dict[str, bool] = {}
    try:
        desk.catalogue.states()
        checks["database"] = True
    except Exception:  # whatever the database's driver raises: not ready
        checks["database"] = False
    data_dir = desk.settings.service.data_dir
    checks |= {f"role_{role}": role_runs(data_dir, role) for role in ROLES if role != "web"}
    checks["disk"] = not disk_of(desk).below_reserve
    # What an earlier run has answered with Success is all in the index.
    checks["journal"] = not left_behind(desk.settings.spool_dir / JOURNAL)
    ready = all(checks.values())
    return JSONResponse({"ready": ready, "checks": checks}, 200 if ready else 503)


@router.get("/metrics")
def metrics(request: Request, desk: TheDesk) -> Response:
    """Prometheus metrics of every role on this host."""
    if not desk.settings.web.public_metrics and desk.guard.visitor(request) is None:
        raise SignInNeeded
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(desk.settings.metrics_dir))  # type: ignore[no-untyped-call]
    registry.register(_Gauges(desk))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Gauges(Collector):
    """What is not counted but looked up: queues, deliveries, disk, certificates, roles, scores."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry need not collect to know the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Look everything up."""
        yield from self._queues()
        yield from self._machine()
        yield from self._scores()

    def _queues(self) -> Iterator[Metric]:
        catalogue, now = self._desk.catalogue, time.time()
        yield _gauge("studies", "Studies by state.", "state", catalogue.states())
        ages = {state: now - at for state, at in catalogue.oldest().items()}
        waiting = dict.fromkeys(("receiving", "stable", "scoring"), 0.0) | ages
        yield _gauge("oldest_study_age_seconds", "Age of the longest waiting study.", "state", waiting)
        family = GaugeMetricFamily(
            "anomalyd_deliveries", "Result objects by delivery state.", labels=("destination", "state")
        )
        counts = catalogue.deliveries()
        for name in {target.name for target in self._desk.targets} | set(counts):
            for state in ("pending", "failed", "dead", "sent"):
                family.add_metric((name, state), counts.get(name, {}).get(state, 0))
        yield family
        ages = dict.fromkeys((target.name for target in self._desk.targets), 0.0)
        ages |= delivery_ages(self._desk, now)
        yield _gauge(
            "oldest_delivery_age_seconds", "Age of the longest waiting delivery.", "destination", ages
        )
        yield from self._commitment(now)

    def _commitment(self, now: float) -> Iterator[Metric]:
        catalogue = self._desk.catalogue
        committing = self._desk.settings.committing
        open_ = dict.fromkeys(committing, (0, now)) | catalogue.uncommitted(committing)
        counted = {name: count for name, (count, _) in open_.items()}
        yield _gauge(
            "uncommitted_instances", "Delivered, but not committed to storage.", "destination", counted
        )
        oldest = {name: max(now - since, 0.0) for name, (_, since) in open_.items()}
        yield _gauge(
            "oldest_uncommitted_age_seconds", "Longest wait for a commitment.", "destination", oldest
        )

    def _machine(self) -> Iterator[Metric]:
        desk, disk = self._desk, disk_of(self._desk)
        sizes = {"free": disk.free_bytes, "total": disk.total_bytes, "reserve": disk.reserve_bytes}
        yield _gauge("disk_bytes", "The spool's disk.", "kind", sizes)
        days = {cert.name: cert.days for cert in certificates(desk.settings)}
        yield _gauge("certificate_expiry_days", "Days until a certificate expires.", "certificate", days)
        data_dir = desk.settings.service.data_dir
        roles = {role: float(role_runs(data_dir, role)) for role in ROLES}
        yield _gauge("role_up", "1 if the role runs on this host.", "role", roles)
        answers = {t.name: a for t in desk.targets if (a := desk.watch.answer(t.name)) is not None}
        reached = {name: float(answer.ok) for name, answer in answers.items()}
        yield _gauge(
            "destination_up", "1 if the destination answered its last C-ECHO.", "destination", reached
        )

    def _scores(self) -> Iterator[Metric]:
        """A gauge histogram in form of a histogram: the window moves, so counts can fall."""
        family = HistogramMetricFamily(
            "anomalyd_series_score",
            "Highest slice score per series, last 7 days, by bundle.",
            labels=("bundle", "version"),
        )
        for found in self._desk.catalogue.score_counts(time.time() - _SCORES_SPAN_S, _BUCKETS):
            buckets: list[Any] = [(str(b), float(n)) for b, n in zip(_BUCKETS, found.at_most, strict=True)]
            buckets.append(("+Inf", float(found.count)))
            family.add_metric((found.bundle_name, found.bundle_version), buckets, found.total)
        yield family


def _gauge(name: str, text: str, label: str, values: dict[str, Any]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"anomalyd_{name}", text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family
