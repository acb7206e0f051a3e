"""Which rule serves which series."""

from dataclasses import replace
from pathlib import Path

import pytest
from analyses import make_group
from factories import ct_series

from daemon.rules import choose
from daemon.sections import RuleSettings
from daemon.study import FrameGroup


def _rule(name: str, **conditions: str) -> RuleSettings:
    return RuleSettings(name=name, bundle=f"{name}-bundle", **conditions)


@pytest.fixture
def group(tmp_path: Path) -> FrameGroup:
    """A CT group with every attribute that rules look at."""
    made = make_group(ct_series(2), tmp_path)
    return replace(
        made, modality="CT", body_part="LIVER", series_description="Abdomen portal venous", station="CT-2"
    )


def test_the_first_match_wins(group: FrameGroup) -> None:
    """Of two rules that match the earlier one serves the series."""
    assert choose([_rule("a", modality="CT"), _rule("b")], group).rule == _rule("a", modality="CT")


@pytest.mark.parametrize(
    ("conditions", "word"),
    [
        ({"modality": "MR"}, "modality"),
        ({"body_part": "CHEST"}, "body part"),
        ({"series_description": "arterial"}, "description"),
        ({"station": "^CT-1$"}, "station"),
    ],
)
def test_each_condition_can_exclude_a_series(
    group: FrameGroup, conditions: dict[str, str], word: str
) -> None:
    """A rule with one condition that does not hold is passed over, and the trail says which."""
    verdict = choose([_rule("a", **conditions)], group)
    assert verdict.rule is None
    assert word in verdict.trail[0]


def test_every_condition_can_hold(group: FrameGroup) -> None:
    """A rule with all conditions matches a series that meets them all."""
    rule = _rule("a", modality="CT", body_part="LIVER", series_description="(?i)PORTAL", station="CT-[23]")
    assert choose([_rule("b", modality="MR"), rule], group).rule == rule


def test_the_trail_holds_no_description(group: FrameGroup) -> None:
    """Descriptions and station names may identify; the trail does not repeat the series' own."""
    verdict = choose([_rule("a", series_description="x"), _rule("b", station="y")], group)
    assert "portal" not in " ".join(verdict.trail)
    assert "CT-2" not in " ".join(verdict.trail)
