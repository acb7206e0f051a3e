"""What the page asks of the database is what the rows say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_index import instance

from daemon.catalogue import Catalogue
from daemon.database import open_database
from daemon.index import Index
from daemon.records import ScoreRecord

BOUNDS = (0.25, 0.5, 1.0)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A database with one study."""
    url = f"sqlite:///{tmp_path}/index.sqlite"
    index = Index(url)
    index.add_instance(instance())
    yield url
    index.close()


def test_the_counts_of_scores_are_those_of_the_rows(url: str) -> None:
    """Buckets, number and sum for each bundle equal what its recent rows give; shadows are left out."""
    rng = np.random.default_rng(3)
    scores = [
        ScoreRecord(
            study_instance_uid=instance().study_instance_uid,
            revision=1,
            group_key=str(number),
            bundle_version="ab"[number % 2],
            series_instance_uid="1.2",
            modality="CT",
            bundle_name="liver-ct",
            shadow=number % 5 == 0,
            slices=1,
            maximum=float(rng.choice([0.1, 0.25, 0.3, 0.9, 1.0])),
            mean=0.0,
            findings=0,
            scored_at=float(number),
        )
        for number in range(60)
    ]
    index = Index(url)
    index.add_scores(scores)
    counts = {c.bundle_version: c for c in Catalogue(open_database(url)[0]).score_counts(20.0, BOUNDS)}
    assert set(counts) == {"a", "b"}
    for version, found in counts.items():
        recent = [
            s.maximum for s in scores if s.bundle_version == version and s.scored_at >= 20.0 and not s.shadow
        ]
        assert (found.bundle_name, found.count) == ("liver-ct", len(recent))
        assert found.total == pytest.approx(sum(recent))
        assert found.at_most == tuple(sum(value <= bound for value in recent) for bound in BOUNDS)
    index.close()
