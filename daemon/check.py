"""``daemon check``: is everything there that the daemon needs, and do the peers answer?"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Literal

from adapters.errors import AdapterError
from daemon.errors import DaemonError
from daemon.sections import PeerSettings
from daemon.settings import Settings

_OURS = "pacs-anomaly-daemon"


@dataclass(frozen=True, slots=True)
class CheckItem:
    """One thing that was looked at and how it is."""

    level: Literal["ok", "warning", "error"]
    what: str
    result: str


def run_checks(settings: Settings, path: Path | None) -> Iterator[CheckItem]:
    """Look at everything, cheap things first.

    Parameters
    ----------
    settings, path
        Checked settings and their file (None for defaults).

    Yields
    ------
    CheckItem
        In the order of the work: settings, packages, disk, database, model, peers.
    """
    yield CheckItem("ok", "settings", str(path) if path else "defaults (no settings.toml here)")
    yield _packages()
    yield _disk(settings)
    yield from _guarded("database", lambda: _database(settings))
    yield from _guarded_all("journal", lambda: _journal(settings))
    yield from _guarded("model", lambda: _model(settings))
    yield from _guarded_all("bundles", lambda: _bundles(settings))
    yield from _guarded_all("certificates", lambda: _certificates(settings))
    if not settings.destinations:
        yield CheckItem("warning", "destinations", "none: results stay in data_dir; add [[destinations]]")
    for entry in settings.destinations:
        yield from _guarded(f"destination {entry.name}", partial(_destination, entry.name, settings))
    for peer in settings.peers:
        yield from _guarded(f"peer {peer.name}", partial(_peer, peer, settings))


def _certificates(settings: Settings) -> list[CheckItem]:
    from daemon.tls import certificates, expiring

    ending = [
        CheckItem("error" if item.days < 0 else "warning", "certificates", str(item))
        for item in expiring(settings)
    ]
    if ending or not list(certificates(settings)):
        return ending
    return [CheckItem("ok", "certificates", "none ends within a month")]


def _guarded_all(what: str, look: Callable[[], list[CheckItem]]) -> Iterator[CheckItem]:
    try:
        yield from look()
    except (DaemonError, AdapterError) as error:
        yield CheckItem("error", what, str(error))


def _guarded(what: str, look: Callable[[], CheckItem]) -> Iterator[CheckItem]:
    try:
        yield look()
    except (DaemonError, AdapterError) as error:
        yield CheckItem("error", what, str(error))
    except Exception as error:  # a check reports whatever is wrong; the message is the administrator's own
        yield CheckItem("error", what, f"{type(error).__name__}: {error}")


def _packages() -> CheckItem:
    owners = packages_distributions()
    for name in ("daemon", "adapters", "training"):
        others = {owner for owner in owners.get(name, []) if owner != _OURS}
        if others:
            return CheckItem(
                "error",
                "packages",
                f"{name} also comes from {', '.join(others)}: use an own virtual environment",
            )
    return CheckItem("ok", "packages", "daemon, adapters and training are ours")


def _disk(settings: Settings) -> CheckItem:
    folder = settings.service.data_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free, reserve {settings.receiver.reserve_bytes / 1e9:.1f} GB"
    return CheckItem("ok" if free > settings.receiver.reserve_bytes else "error", "disk", text)


def _database(settings: Settings) -> CheckItem:
    from daemon.index import Index

    if not settings.service.database and not (settings.service.data_dir / "daemon.sqlite").is_file():
        return CheckItem("ok", "database", "not there yet: `daemon run` makes it")
    index = Index(settings.database_url)
    try:
        return CheckItem("ok", "database", f"{len(index.list_studies())} studies")
    finally:
        index.close()


def _journal(settings: Settings) -> list[CheckItem]:
    from daemon.reception.replay import JOURNAL, left_behind

    left = len(left_behind(settings.spool_dir / JOURNAL))
    text = f"{left} left by an earlier run: the receiving role takes them in when disk and database allow"
    return [CheckItem("warning", "journal", text)] if left else []


def _model(settings: Settings) -> CheckItem:
    from adapters.backbone import load_backbone
    from daemon.models import Models, backbone_spec

    models = Models(settings)
    versions = models.versions()
    if not versions:
        # The weights are looked at all the same: what is missing is better known before the bundle is there.
        load_backbone(backbone_spec(settings.model), "cpu", "fp32")
        return CheckItem("warning", "model", "no adapter bundle in use: studies will be refused until one is")
    models.warm()
    text = f"{', '.join(f'{n} {v}' for n, v in sorted(versions.items()))} on {settings.model.backbone}"
    if not settings.model.weights:
        return CheckItem("warning", "model", f"{text}: the backbone's weights are random (demo only)")
    return CheckItem("ok", "model", text)


def _bundles(settings: Settings) -> list[CheckItem]:
    """Damaged files, and candidates that a rule names and that are not there: neither stops scoring."""
    from adapters import registry

    folder = settings.bundles_dir
    if not folder.is_dir():
        return []
    items = [
        CheckItem("warning", "bundles", f"{item.reason}; remove it from data_dir/bundles, or import it again")
        for item in registry.damaged(folder)
    ]
    there = {f"{entry.name}@{entry.version}" for entry in registry.entries(folder)}
    return items + [
        CheckItem("warning", "bundles", f"shadow {rule.shadow} of rule {rule.name} is not there")
        for rule in settings.rules
        if rule.shadow and rule.shadow not in there
    ]


def _peer(peer: PeerSettings, settings: Settings) -> CheckItem:
    from daemon.sender import echo
    from daemon.service import peer_node

    if "/" in peer.host:
        return CheckItem("ok", f"peer {peer.name}", "a network: not called")
    answer = echo(peer_node(peer, settings))
    if not answer.ok:
        # Many modalities only call and never answer.
        return CheckItem("warning", f"peer {peer.name}", answer.reason.removeprefix(f"{peer.name}: "))
    return CheckItem("ok", f"peer {peer.name}", "answers")


def _destination(name: str, settings: Settings) -> CheckItem:
    from daemon.sender import echo, probe
    from daemon.service import destination

    entry = next(item for item in settings.destinations if item.name == name)
    target = destination(entry, settings)
    answer = echo(target)
    if not answer.ok:
        return CheckItem("error", f"destination {name}", answer.reason.removeprefix(f"{name}: "))
    wanted = settings.profile_of(entry).sop_classes
    accepted = probe(target, list(wanted))
    refused = [kind for uid, kind in wanted.items() if not accepted[uid]]
    if refused:
        text = f"answers, but does not accept {', '.join(refused)}; its profile may leave them out"
        return CheckItem("error", f"destination {name}", text)
    kinds = list(dict.fromkeys(wanted.values()))
    return CheckItem("ok", f"destination {name}", f"answers and accepts {' and '.join(kinds)}")
