"""What waits for a destination, as the page and the metrics say it, with nothing running but the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import test_upkeep
from page_site import PASSWORD, PageSite
from peers import free_port, wait_for_port
from prometheus_client.parser import text_string_to_metric_families

from daemon.accounts import Accounts
from daemon.database import open_database
from daemon.service import destination
from daemon.web.server import serve


class _Settings:
    """In place of a running daemon: its settings."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings


class _Alive:
    """In place of the process that would listen."""

    returncode = None

    def poll(self) -> None:
        """It runs."""


class Site(PageSite):
    """A site whose page alone runs, in a thread."""

    upkeep: test_upkeep.Desk

    def sent(self, study: str, seconds_ago: float) -> None:
        """A study whose result arrived at its destination some time ago."""
        self.upkeep.scored(study, state="pending")
        (delivery,) = self.upkeep.index.deliveries(study)
        self.upkeep.index.update_delivery(delivery, "sent", next_at=time.time() - seconds_ago)

    def page(self, path: str) -> str:
        """What an operator sees there."""
        answer = self.ask(path, "otto")
        assert answer.status == 200
        return answer.content.decode()

    def needs(self) -> str:
        """What the first page says that needs a person."""
        return "\n".join(need["text"] for need in self.ask("/api/now", "otto").json()["needs"])

    def metric(self, name: str) -> dict[tuple[str, ...], float]:
        """One gauge by its labels."""
        families = text_string_to_metric_families(self.ask("/metrics").content.decode())
        (family,) = [found for found in families if found.name == name]
        return {tuple(sample.labels.values()): sample.value for sample in family.samples}


@contextmanager
def run_site(folder: Path) -> Iterator[Site]:
    """Serve the page of a site with one destination that is asked for storage commitment."""
    upkeep = test_upkeep.Desk(folder, commitment=True)
    web = upkeep.settings.web.model_copy(update={"port": free_port()})
    settings = upkeep.settings.model_copy(update={"web": web})
    settings.metrics_dir.mkdir()
    reader, writer = open_database(settings.database_url)
    Accounts(reader, writer).set("otto", PASSWORD, "operator")
    reader.dispose()
    site = Site(_Settings(settings), folder, ("", ""), "", "", "", "")  # type: ignore[arg-type]
    site.upkeep = upkeep
    targets = [destination(entry, settings) for entry in settings.destinations]
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(settings, upkeep.index, upkeep.spool, targets, stop))
    thread.start()
    try:
        wait_for_port(web.port, _Alive())  # type: ignore[arg-type]
        yield site
    finally:
        stop.set()
        thread.join(20.0)
        upkeep.index.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Give such a site."""
    with run_site(tmp_path) as found:
        yield found


def test_a_destination_that_is_gone_is_named_with_what_it_did_not_get(site: Site) -> None:
    """First page, list of dead letters and study say that it is not in the settings, and what gives it up."""
    site.sent("1.5", seconds_ago=1.0)
    site.upkeep.index.plan_deliveries("1.5", 1, ["old-pacs"], time.time())
    (waiting,) = site.upkeep.index.deliveries("1.5", destination="old-pacs")
    site.upkeep.index.update_delivery(waiting, "dead", "no answer")
    for path in ("/", "/studies?delivery=dead", "/studies/1.5"):
        said = site.page(path)
        assert "no longer in the settings" in said and "daemon discard old-pacs" in said
    site.upkeep.index.discard("old-pacs")
    for path in ("/", "/studies?delivery=dead", "/studies/1.5"):
        assert "no longer in the settings" not in site.page(path)


def test_the_longest_waiting_delivery_has_an_age(site: Site) -> None:
    """By destination in the metrics, and on the first page; a dead letter waits for nothing."""
    site.upkeep.scored("1.5", state="failed")
    give_up_s, index = site.upkeep.settings.delivery.give_up_s, site.upkeep.index
    index.plan_deliveries("1.5", 1, ["archive", "third"], time.time() + give_up_s - 7_200.0)
    for name, state in (("pacs", "sent"), ("third", "dead")):
        (delivery,) = index.deliveries("1.5", destination=name)
        index.update_delivery(delivery, state)  # type: ignore[arg-type]
    ages = site.metric("anomalyd_oldest_delivery_age_seconds")
    assert ages == {("pacs",): 0.0, ("archive",): pytest.approx(7_200.0, abs=60.0)}
    assert "longest wait 2 h" in site.page("/")


def test_what_is_not_committed_is_shown_counted_and_asked_for_again(site: Site) -> None:
    """Page, list, first page and metrics say so; the study's button asks anew; committed, all is calm."""
    site.sent("1.5", seconds_ago=86_400.0)
    pledges = site.upkeep.index.pledges
    pledges.ask("2.25.1", "1.5", 1, "pacs", 1.0)
    pledges.accepted("2.25.1")
    page = site.page("/studies/1.5")
    assert ">not committed<" in page and "Ask for commitment again" in page
    assert "/studies/1.5" in site.page("/studies?delivery=not+committed")
    assert "pacs has not committed itself to 1 delivered" in site.needs()
    assert site.metric("anomalyd_uncommitted_instances") == {("pacs",): 1}
    assert site.metric("anomalyd_oldest_uncommitted_age_seconds")[("pacs",)] == pytest.approx(86_400, abs=60)
    assert site.ask("/api/studies/1.5/retry", "otto", method="POST").status == 200
    assert pledges.asked("1.5", 1, "pacs").accepted == 0
    pledges.settle("2.25.1", ["1.5.9"], {}, time.time())
    page = site.page("/studies/1.5")
    assert ">committed<" in page and "Ask for commitment again" not in page
    assert "/studies/1.5" not in site.page("/studies?delivery=not+committed")
    assert "committed" not in site.needs()
    assert site.metric("anomalyd_uncommitted_instances") == {("pacs",): 0}
