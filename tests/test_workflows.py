"""The dispatcher: what it asks for, and what has to wait."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_index import instance

from daemon import service
from daemon.index import Index
from daemon.settings import load_settings
from daemon.workflows import Dispatcher


@dataclass
class Site:
    """An index with its dispatcher, a day after everything came."""

    index: Index
    dispatcher: Dispatcher


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """No role runs: nothing that is asked for is done."""
    path = tmp_path / "settings.toml"
    path.write_text('[service]\ndata_dir = "data"\n')
    settings = load_settings(path)
    service.prepare(settings)
    with closing(Index(settings.database_url)) as index:
        dispatcher = Dispatcher(settings, index, clock=lambda: 86_400.0)
        yield Site(index, dispatcher)
        dispatcher.close()


def test_late_instances_wait_until_the_revision_before_is_done(site: Site) -> None:
    """While a revision waits for its turn or is scored no other is opened; then one holds all that came."""
    site.index.add_instance(instance("1.5"))
    site.dispatcher.tick()
    assert site.index.get_study("1.2").revision == 1
    for number, state in enumerate(("stable", "scoring")):
        site.index.set_state("1.2", state)  # type: ignore[arg-type]
        site.index.add_instance(instance(f"1.6.{number}"))
        site.dispatcher.tick()
        assert site.index.get_study("1.2").revision == 1
    site.index.set_state("1.2", "scored")
    site.dispatcher.tick()
    assert site.index.get_study("1.2").revision == 2
    assert len(site.index.instances_of("1.2", 2)) == 3
