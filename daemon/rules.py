"""Rules: which adapter bundle serves which series; the first that matches wins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.sections import RuleSettings
from daemon.study import FrameGroup


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which rule serves a frame group, and how that came about.

    Parameters
    ----------
    rule
        The first that matches, or None.
    trail
        One line per rule that was looked at, in order: why it matched or not. It repeats values of the
        settings and of Modality and BodyPartExamined, never a description or a station name.
    """

    rule: RuleSettings | None
    trail: tuple[str, ...]


def choose(rules: Sequence[RuleSettings], group: FrameGroup) -> Verdict:
    """Find the first rule that matches a frame group.

    Parameters
    ----------
    rules
        In the order of the settings.
    group
        Modality, body part, series description and station of its series are looked at.

    Returns
    -------
    Verdict
        The rule, or None, and the reasons.
    """
    trail: list[str] = []
    for rule in rules:
        reason = _mismatch(rule, group)
        if reason is None:
            return Verdict(rule, (*trail, f"{rule.name}: matches"))
        trail.append(f"{rule.name}: {reason}")
    return Verdict(None, tuple(trail))


def _mismatch(rule: RuleSettings, group: FrameGroup) -> str | None:
    if rule.modality and rule.modality != group.modality:
        return f"modality is {group.modality or 'absent'}, not {rule.modality}"
    if rule.body_part and rule.body_part != group.body_part:
        return f"body part is {group.body_part or 'absent'}, not {rule.body_part}"
    if rule.series_description and not re.search(rule.series_description, group.series_description):
        return "the series description does not match"
    if rule.station and not re.search(rule.station, group.station):
        return "the station name does not match"
    return None
