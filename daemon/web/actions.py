"""What people may do from the page or the API: the same deeds for both."""

from __future__ import annotations

import json
import time
from typing import Any

from daemon.errors import SettingsError, StudyError
from daemon.verdicts import VerdictRecord
from daemon.web.desk import Desk

_MOST_POINTS = 100_000

SAID = {
    "retry": "It is due again; the daemon does it within seconds.",
    "rescore": "A new revision will be scored within seconds.",
    "forward": "The results are on their way.",
}


def retry(desk: Desk, uid: str) -> None:
    """Score a failed or refused study again, or send undelivered results and ask for commitment again."""
    desk.index.retry(uid, expires_at=_expiry(desk))
    desk.index.pledges.ask_anew(desk.settings.committing, uid)


def rescore(desk: Desk, uid: str, version: str = "") -> None:
    """Open a new revision of a study, whatever its state is.

    Parameters
    ----------
    desk, uid
        The study.
    version
        Of the bundle that shall score it this once; "" for those in use.

    Raises
    ------
    StudyError
        There is no such study or bundle.
    SpoolError
        The study's files were pruned.
    """
    line = desk.bundles.line(version) if version else None
    if version and line is None:
        raise StudyError("there is no bundle of this version here")
    desk.index.rescore(uid, f"{line.name} {line.version}" if line else "")


def forward(desk: Desk, uid: str, destination: str) -> None:
    """Send the newest results to a destination of the settings, again if they are there already.

    Raises
    ------
    StudyError
        There is no such destination, or nothing to send.
    SpoolError
        The results' files were pruned.
    """
    if destination not in {target.name for target in desk.targets}:
        raise StudyError("no destination of this name is in the settings")
    desk.index.forward(uid, destination, _expiry(desk), desk.spool)


def hold(desk: Desk, destination: str, *, paused: bool) -> None:
    """Pause the deliveries to a destination, or let them go on.

    Raises
    ------
    StudyError
        There is no such destination.
    """
    if destination not in {target.name for target in desk.targets}:
        raise StudyError("no destination of this name is in the settings")
    if paused:
        desk.index.pause(destination)
    else:
        desk.index.resume(destination)


def judge(
    desk: Desk,
    name: str,
    uid: str,
    revision: int,
    key: str,
    tracking_uid: str,
    verdict: str,
    correction: dict[str, Any] | None = None,
) -> None:
    """Record a verdict on a finding.

    Raises
    ------
    StudyError
        There is no such finding.
    SettingsError
        The correction is empty or lies outside the pictures.
    """
    desk.index.get_study(uid)
    view = desk.views.read(uid, revision, key)
    found = [f for f in (view or {"findings": []})["findings"] if f["tracking_uid"] == tracking_uid]
    if view is None or not found:
        raise StudyError("there is no such finding in this series")
    if correction is not None or verdict == "correct":
        _check_drawing(correction or {}, view)
    desk.verdicts.give(
        VerdictRecord(
            study_instance_uid=uid,
            tracking_uid=tracking_uid,
            given_at=time.time(),
            given_by=name,
            verdict=verdict,
            correction=json.dumps(correction) if correction else "",
            revision=revision,
            group_key=key,
            series_instance_uid=view["series_instance_uid"],
            bundle_version=view["bundle_version"],
            peak=found[0]["peak"],
        )
    )


def _check_drawing(drawing: dict[str, Any], view: dict[str, Any]) -> None:
    """Polygons of at least three points on slices of this series, not too many of them."""
    loops = [(int(frame), loop) for frame, loops in drawing.items() for loop in loops]
    points = [point for _, loop in loops for point in loop]
    inside = all(0 <= x <= view["columns"] and 0 <= y <= view["rows"] for x, y in points)
    on_slices = all(0 <= frame < len(view["frames"]) for frame, _ in loops)
    whole = all(len(loop) >= 3 for _, loop in loops)
    if not loops or not inside or not on_slices or not whole or len(points) > _MOST_POINTS:
        raise SettingsError("a correction needs outlines of three points or more, on slices of this series")


def _expiry(desk: Desk) -> float:
    return time.time() + desk.settings.delivery.give_up_s
