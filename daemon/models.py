"""The model in this process: one backbone, and a scorer per bundle version that is in work."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from adapters import registry
from adapters.backbone import Backbone, BackboneSpec, load_backbone
from adapters.bundle import AdapterBundle, load_bundle
from adapters.errors import BundleError
from adapters.scorer import Scorer
from daemon.log import event
from daemon.sections import ModelSettings
from daemon.serving import ByRules, OneBundle, Serving
from daemon.settings import Settings


def backbone_spec(settings: ModelSettings) -> BackboneSpec:
    """The backbone that the settings ask for."""
    return BackboneSpec(
        model=settings.backbone,
        weights=settings.weights,
        sha256=settings.weights_sha256,
        seed=settings.seed,
        allow_download=settings.allow_download,
        quick_gelu=settings.backbone.endswith("-quickgelu"),
        image_size_px=settings.image_size_px,
    )


class Models:
    """Loads backbone and bundles when they are first needed and keeps them.

    Parameters
    ----------
    settings
        ``model`` and ``service.data_dir``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._backbone: Backbone | None = None
        self._scorers: dict[str, Scorer] = {}

    def warm(self) -> None:
        """Load backbone and bundles in use now, so that the first study does not wait for them."""
        for version in self.versions().values():
            self.scorer(version)

    def versions(self) -> dict[str, str]:
        """Name → version of the bundles that new jobs use; empty if there is none.

        Raises
        ------
        BundleError
            The named bundle does not exist, or several are in use and no rule chooses among them.
        """
        named, folder, rules = self._settings.model.bundle, self._settings.bundles_dir, self._settings.rules
        if named:
            bundle = load_bundle(Path(named)) if Path(named).is_file() else registry.select(folder, named)
            return {bundle.name: bundle.version}
        current = registry.current(folder)
        if rules:
            return {name: version for name, version in current.items() if name in {r.bundle for r in rules}}
        if len(current) > 1:
            raise BundleError(
                f"several bundles are in use ({', '.join(sorted(current))}) and nothing chooses among them: "
                "add [[rules]], or name one with model.bundle"
            )
        return current

    def serving(self, versions: dict[str, str]) -> Serving:
        """What chooses among these versions, by the settings' rules.

        Raises
        ------
        BundleError
            A version is gone, damaged or made for another backbone.
        """
        # Without one of the rules' bundles it is one that a person wants for a whole study.
        rules = self._settings.rules
        if any(rule.bundle in versions for rule in rules):
            return ByRules(rules, versions, self.scorer)
        return OneBundle(self.scorer(next(iter(versions.values()))))

    def scorer(self, version: str) -> Scorer:
        """The scorer of this bundle version, loaded once.

        Raises
        ------
        BundleError
            The bundle is gone, damaged or made for another backbone.
        """
        if version not in self._scorers:
            bundle = self._find(version)
            options = self._settings.model
            if self._backbone is None:
                limit_threads(options)
                self._backbone = load_backbone(backbone_spec(options), options.device, options.precision)
            self._scorers[version] = Scorer(self._backbone, bundle, batch_size=options.batch_size)
            event("bundle", bundle=bundle.name, version=version, device=str(self._backbone.device))
        return self._scorers[version]

    def _find(self, version: str) -> AdapterBundle:
        named = self._settings.model.bundle
        if named and Path(named).is_file():
            bundle = load_bundle(Path(named))
            if bundle.version == version:
                return bundle
        for entry in registry.entries(self._settings.bundles_dir):
            if entry.version == version:
                return load_bundle(entry.path)
        raise BundleError(
            f"adapter bundle {version} is no longer there; `daemon retry` scores with the current one"
        )


def limit_threads(settings: ModelSettings) -> None:
    """Give the model the threads of the settings; by default all cores but one.

    A model on all of them waits at every step for the one that reception uses.
    """
    torch.set_num_threads(settings.threads or max(1, len(os.sched_getaffinity(0)) - 1))
