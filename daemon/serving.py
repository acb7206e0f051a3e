"""Serving: which scorer looks at which frame group of one study revision.

The versions are fixed when the revision is opened, so that a promotion in mid-study changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from adapters.bundle import AdapterBundle
from adapters.errors import AdapterError
from adapters.score import SliceScore
from adapters.slices import Slice
from daemon.log import event
from daemon.rules import choose
from daemon.sections import RuleSettings
from daemon.study import FrameGroup


class Scorer(Protocol):
    """What the pipeline needs of the model; ``adapters.scorer.Scorer`` is the real one."""

    @property
    def bundle(self) -> AdapterBundle:
        """The bundle that scores."""

    def score(self, slices: Iterator[Slice]) -> Iterator[SliceScore]:
        """Score slices as they come, in order."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What serves a frame group.

    Parameters
    ----------
    scorer
        None if nothing serves it; then ``reason`` says why.
    shadow
        A candidate that scores alongside and is only recorded, or None.
    reason
        Why this scorer, or why none, in an administrator's words.
    """

    scorer: Scorer | None
    shadow: Scorer | None = None
    reason: str = ""


class Serving(Protocol):
    """Chooses for each group of a study."""

    def choose(self, group: FrameGroup) -> Choice:
        """Say what serves a frame group."""


class Models(Protocol):
    """Where scorers come from; ``daemon.models.Models`` is the real one."""

    def versions(self) -> dict[str, str]:
        """Name → version of the bundles in use; empty if there is none."""

    def serving(self, versions: dict[str, str]) -> Serving:
        """What chooses among these versions."""


@dataclass(frozen=True, slots=True)
class OneBundle:
    """One scorer for every series of its modality."""

    scorer: Scorer

    def choose(self, group: FrameGroup) -> Choice:
        """The scorer, unless its bundle was made for another modality or body part."""
        return _fitting(self.scorer, group, None, "the bundle in use")


@dataclass(frozen=True, slots=True)
class ByRules:
    """The first rule that matches names the bundle.

    Parameters
    ----------
    rules
        In the order of the settings.
    versions
        Bundle name → version, fixed for this study revision.
    load
        Scorer of a version.
    """

    rules: Sequence[RuleSettings]
    versions: Mapping[str, str]
    load: Callable[[str], Scorer]

    def choose(self, group: FrameGroup) -> Choice:
        """The scorer of the first matching rule, and its shadow."""
        rule = choose(self.rules, group).rule
        if rule is None:
            return Choice(None, reason="no rule of the settings serves this series")
        version = self.versions.get(rule.bundle)
        if not version:
            return Choice(None, reason=f"bundle {rule.bundle} of rule {rule.name} is not in use: promote it")
        return _fitting(self.load(version), group, self._shadow(rule, group, version), f"rule {rule.name}")

    def _shadow(self, rule: RuleSettings, group: FrameGroup, version: str) -> Scorer | None:
        """The rule's candidate; one that is gone, damaged or of another kind holds no study up."""
        candidate = rule.shadow.partition("@")[2]
        # A person may have asked for the candidate itself: it need not stand beside itself.
        if not candidate or candidate == version:
            return None
        try:
            choice = _fitting(self.load(candidate), group, None, "")
            reason = choice.reason
        except AdapterError as error:
            choice, reason = Choice(None), str(error)
        if choice.scorer is None:
            event("shadow left out", level=logging.WARNING, rule=rule.name, shadow=rule.shadow, reason=reason)
        return choice.scorer


def _fitting(scorer: Scorer, group: FrameGroup, shadow: Scorer | None, why: str) -> Choice:
    """Refuse a series that the bundle was not made for: no score is better than a wrong one."""
    bundle = scorer.bundle
    if bundle.modality and bundle.modality != group.modality:
        kind = group.modality or "objects without a modality"
        return Choice(None, reason=f"bundle {bundle.name} is for {bundle.modality}, not {kind}")
    if bundle.body_part and group.body_part and bundle.body_part != group.body_part:
        return Choice(None, reason=f"bundle {bundle.name} is for {bundle.body_part}, not {group.body_part}")
    return Choice(scorer, shadow, why)
