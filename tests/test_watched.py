"""What a hospital's monitoring sees of a running daemon: metrics, health, and one line for each thing."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RunningDaemon
from peers import orthanc, storescu
from prometheus_client.parser import text_string_to_metric_families

from daemon.phantom import make_case, write_case
from daemon.try_ca import make_test_ca

pytestmark = [pytest.mark.peer, pytest.mark.slow]


def _get(daemon: RunningDaemon, path: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    address = f"http://127.0.0.1:{daemon.settings.web.port}{path}"
    with opener.open(address, timeout=30.0) as answer:
        return bytes(answer.read())


def _metrics(daemon: RunningDaemon) -> dict[str, dict[tuple[str, ...], float]]:
    """Name → label values → value, as Prometheus' own parser reads the page."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(_get(daemon, "/metrics").decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_a_study_is_seen_in_metrics_health_and_log(
    tmp_path: Path, start_daemon: Callable[..., RunningDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every promised metric is there with its figure; one JSON line per association, study, delivery."""
    monkeypatch.setenv("DAEMON_SERVICE__LOG_FORMAT", "json")
    make_test_ca(tmp_path / "tls", days=20)
    case = make_case(903, abnormal=True, slices=6, seed=1)
    files = list(write_case(case, tmp_path / "ct"))
    with orthanc(tmp_path) as pacs:
        certificate = f'[tls]\ncertificate = "{tmp_path}/tls/server.crt"\nkey = "{tmp_path}/tls/server.key"'
        daemon = start_daemon(pacs.port, quiet_s=0.3, extra=certificate, page=True)
        storescu(daemon.port, *map(str, files))
        daemon.wait_for(
            lambda index: (
                bool(found := index.deliveries(case.study_instance_uid))
                and all(delivery.state == "sent" for delivery in found)
            )
        )
        metrics = _metrics(daemon)
        assert json.loads(_get(daemon, "/readyz"))["ready"] is True
        assert _get(daemon, "/healthz") == b"ok\n"
        sent = len(pacs.instances())
        assert daemon.stop() == 0
    _check_metrics(metrics, files, sent)
    _check_log([json.loads(line) for line in daemon.log.read_text().splitlines()], files, sent)


def _check_metrics(metrics: dict[str, dict[tuple[str, ...], float]], files: list[Path], sent: int) -> None:
    received = sum(metrics["anomalyd_received_instances_total"].values())
    assert received == len(files)
    assert 0 < sum(metrics["anomalyd_received_bytes_total"].values()) < sum(f.stat().st_size for f in files)
    assert metrics["anomalyd_associations_total"][("released",)] >= 1
    assert metrics["anomalyd_studies"][("scored",)] == 1
    assert set(metrics["anomalyd_oldest_study_age_seconds"]) >= {("receiving",), ("stable",), ("scoring",)}
    assert sum(metrics["anomalyd_scoring_seconds_count"].values()) == 1
    assert sum(metrics["anomalyd_scoring_seconds_sum"].values()) > 0
    assert metrics["anomalyd_delivery_attempts_total"][("pacs",)] >= 1
    # The dead letters are a state of their own, shown while there is none.
    assert metrics["anomalyd_deliveries"][("pacs", "dead")] == 0
    assert metrics["anomalyd_deliveries"][("pacs", "sent")] == sent
    assert set(metrics["anomalyd_disk_bytes"]) == {("free",), ("total",), ("reserve",)}
    assert 18 < metrics["anomalyd_certificate_expiry_days"][("tls.certificate",)] <= 20
    assert {role for (role,), up in metrics["anomalyd_role_up"].items() if up} == {
        "receive",
        "score",
        "send",
        "web",
    }
    (scored,) = metrics["anomalyd_series_score_count"].values()
    assert scored == 1


def _check_log(lines: list[dict[str, Any]], files: list[Path], sent: int) -> None:
    of = {name: [line for line in lines if line["event"] == name] for name in ("association", "study")}
    stored = [line for line in of["association"] if line["instances"]]
    (association,) = stored
    assert (association["instances"], association["outcome"]) == (len(files), "released")
    (study,) = of["study"]
    assert study["study"] == association["studies"]
    assert study["state"] == "scored" and study["duration_s"] > 0
    deliveries = [line for line in lines if line["event"] == "delivery"]
    assert sum(line["sent"] for line in deliveries) == sent
    assert {line["study"] for line in deliveries} == {study["study"]}
