"""UIDs of the results are valid, repeatable and different where anything that matters differs."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from daemon.uids import derived, result_uid

BASE = {
    "kind": "seg",
    "study_instance_uid": "1.2.3",
    "group_key": "a",
    "sop_instance_uids": ("1.2.3.1", "1.2.3.2"),
    "model": "tiny/demo/abc",
    "parameters": "threshold=0.5",
    "revision": 1,
}


def uid(**changes):
    """Return the result UID of the base case with changes."""
    return result_uid(**{**BASE, **changes})


@given(st.lists(st.text(), max_size=4))
def test_every_uid_is_valid(parts):
    """Any parts give a UID of the 2.25 root that PS3.5 allows."""
    made = UID(derived(*parts))
    assert made.is_valid and made.startswith("2.25.") and len(made) <= 64


def test_uid_is_an_rfc_9562_version_8_uuid():
    """The integer after 2.25 is a UUID of version 8."""
    made = uuid.UUID(int=int(derived("x").removeprefix("2.25.")))
    assert made.version == 8 and made.variant == uuid.RFC_4122


def test_order_of_the_instances_does_not_matter():
    """The same instances in another order of arrival name the same object."""
    assert uid() == uid(sop_instance_uids=("1.2.3.2", "1.2.3.1"))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "sr"},
        {"study_instance_uid": "1.2.4"},
        {"group_key": "b"},
        {"sop_instance_uids": ("1.2.3.1",)},
        {"model": "tiny/demo/abd"},
        {"parameters": "threshold=0.6"},
        {"revision": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_anything_that_changes_the_result_changes_its_uid(change):
    """No two different results share a UID."""
    assert uid() != uid(**change)


def test_parts_cannot_run_into_each_other():
    """The border between two parts is part of the hash."""
    assert derived("ab", "c") != derived("a", "bc")
