"""The garbage collector rests while a process loads what stays."""

import gc

import pytest

from daemon.resting import resting_collector


def test_what_was_loaded_is_not_looked_through_again() -> None:
    """Nothing is collected meanwhile; afterwards the collector is back, without what was there."""
    frozen = gc.get_freeze_count()
    with resting_collector():
        assert not gc.isenabled()
        loaded = [[] for _ in range(1000)]  # type: ignore[var-annotated]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(loaded)


def test_an_error_while_loading_brings_the_collector_back() -> None:
    """A model that cannot be loaded leaves the process as it was."""
    with pytest.raises(OSError, match="gone"), resting_collector():
        raise OSError("gone")
    assert gc.isenabled()
