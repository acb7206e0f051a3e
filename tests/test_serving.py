"""Which bundle serves: rules, promotion while running, shadows, explanations."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import commands
import pytest
from analyses import make_group
from conftest import RunningDaemon
from factories import ct_series
from peers import storescp, storescu

from adapters import registry
from adapters.backbone import BackboneSpec, load_backbone
from adapters.bundle import AdapterBundle
from adapters.errors import BundleError
from adapters.scorer import Scorer
from daemon.phantom import make_case, write_case
from daemon.sections import RuleSettings
from daemon.serving import ByRules, OneBundle
from daemon.study import FrameGroup

Start = Callable[..., RunningDaemon]


@pytest.fixture(scope="module")
def scorer(phantom_bundle: AdapterBundle) -> Scorer:
    """The phantom's bundle on its backbone, said to be for CT of the chest."""
    bundle = replace(phantom_bundle, modality="CT", body_part="CHEST")
    return Scorer(load_backbone(BackboneSpec(), "cpu", "fp32"), bundle)


@pytest.fixture
def group(tmp_path: Path) -> FrameGroup:
    """A CT series of the chest."""
    return replace(make_group(ct_series(2), tmp_path), modality="CT", body_part="CHEST")


def test_a_bundle_serves_its_own_modality_and_body_part(scorer: Scorer, group: FrameGroup) -> None:
    """A series of another modality or body part is refused by name; an unknown body part is not."""
    serving = OneBundle(scorer)
    assert serving.choose(group).scorer is scorer
    assert serving.choose(replace(group, body_part="")).scorer is scorer
    assert serving.choose(replace(group, modality="MR")).reason == "bundle phantom-ct is for CT, not MR"
    assert (
        serving.choose(replace(group, body_part="HEAD")).reason == "bundle phantom-ct is for CHEST, not HEAD"
    )


def test_a_series_that_no_rule_matches_is_refused(scorer: Scorer, group: FrameGroup) -> None:
    """With rules there is no silent default, and a bundle that is not promoted is named."""
    rules = [
        RuleSettings(name="mr", bundle="x", modality="MR"),
        RuleSettings(name="ct", bundle="y", modality="CT"),
    ]
    serving = ByRules(rules, {}, lambda _version: scorer)
    assert "no rule" in serving.choose(replace(group, modality="US")).reason
    assert serving.choose(group).reason == "bundle y of rule ct is not in use: promote it"
    assert ByRules(rules, {"y": "1"}, lambda _version: scorer).choose(group).scorer is scorer


def test_a_shadow_that_cannot_be_used_holds_no_study_up(scorer: Scorer, group: FrameGroup) -> None:
    """A candidate that is gone, or made for another modality, is left out; the bundle in use scores."""
    rule = RuleSettings(name="ct", bundle="y", modality="CT", shadow="x@0123456789ab")
    other = _Other(replace(scorer.bundle, modality="MR"))

    def load(version: str) -> Scorer | _Other:
        if version == "gone":
            raise BundleError("it is gone")
        return scorer if version == "1" else other

    for shadow in ("x@gone", "x@0123456789ab"):
        rules = [rule.model_copy(update={"shadow": shadow})]
        choice = ByRules(rules, {"y": "1"}, load).choose(group)  # type: ignore[arg-type]
        assert (choice.scorer, choice.shadow) == (scorer, None)


@dataclass(frozen=True)
class _Other:
    """As much of a scorer as the choice looks at."""

    bundle: AdapterBundle


def _scored(study: str) -> Callable[[object], bool]:
    return lambda index: any(
        s.study_instance_uid == study and s.state == "scored" for s in index.list_studies()
    )  # type: ignore[attr-defined]


@pytest.mark.peer
@pytest.mark.slow
def test_a_promotion_serves_the_next_study_without_a_restart(
    tmp_path: Path, start_daemon: Start, phantom_bundle: AdapterBundle
) -> None:
    """The study after a promotion is scored by the new version; the shadow is recorded and compared."""
    shadow = replace(phantom_bundle, name="candidate", threshold=0.9)
    rule = (
        '[[rules]]\nname = "chest"\nbundle = "phantom-ct"\nmodality = "CT"\n'
        f'shadow = "candidate@{shadow.version}"\n'
    )
    with storescp(tmp_path) as pacs:
        daemon = start_daemon(pacs.port, pacs_ae="STORESCP", extra=rule)
        folder = daemon.settings.bundles_dir
        registry.store(folder, shadow)
        newer = replace(phantom_bundle, threshold=0.45)
        cases = [make_case(940 + number, abnormal=True, slices=6, seed=1) for number in range(2)]
        for case, bundle in zip(cases, (phantom_bundle, newer), strict=True):
            registry.store(folder, bundle)
            registry.promote(folder, bundle.name, bundle.version)
            storescu(daemon.port, *map(str, write_case(case, tmp_path / str(case.number))))
            daemon.wait_for(_scored(case.study_instance_uid))
        with daemon.index() as index:
            said = [
                [(s.bundle_version, s.shadow) for s in index.scores(case.study_instance_uid)]
                for case in cases
            ]
        assert said == [
            [(phantom_bundle.version, False), (shadow.version, True)],
            [(newer.version, False), (shadow.version, True)],
        ]
        compared = _daemon(daemon, "adapters", "compare")
        assert compared.count(shadow.version) == 2
        explained = _daemon(daemon, "adapters", "explain", cases[0].study_instance_uid)
        assert f"scored by phantom-ct {newer.version} (rule chest)" in explained
        assert "shadow candidate" in explained


def _daemon(daemon: RunningDaemon, *arguments: str) -> str:
    done = commands.run(*arguments, "--settings", daemon.settings_path)
    done.check_returncode()
    return done.stdout
