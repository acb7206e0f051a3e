"""The state of everything at this moment, and what needs a person."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from daemon.catalogue import Query, StudyLine
from daemon.supervisor import ROLES
from daemon.web.certificates import Certificate, certificates
from daemon.web.watch import Answer, Machine, role_runs

if TYPE_CHECKING:
    from daemon.web.desk import Desk

_EXPIRY_WARNING_DAYS = 30
_LATEST = 8


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a person must look at, with the page that helps."""

    level: Literal["bad", "warn"]
    text: str
    link: str = ""


@dataclass(frozen=True, slots=True)
class DestinationState:
    """How a destination does."""

    name: str
    ae_title: str
    where: str
    answer: Answer | None
    counts: dict[str, int]
    paused: bool

    @property
    def level(self) -> str:
        """``ok``, ``bad``, or ``unknown`` before the first answer."""
        if self.answer is None:
            return "unknown"
        return "ok" if self.answer.ok else "bad"


@dataclass(frozen=True, slots=True)
class Disk:
    """Free space of the spool's disk, and what is kept in reserve."""

    free_bytes: int
    total_bytes: int
    reserve_bytes: int

    @property
    def below_reserve(self) -> bool:
        """Whether instances are refused."""
        return self.free_bytes < self.reserve_bytes

    @property
    def used(self) -> float:
        """Share in [0, 1]."""
        return 1 - self.free_bytes / self.total_bytes if self.total_bytes else 0.0


@dataclass(frozen=True, slots=True)
class Now:
    """Everything on the first page."""

    at: float
    states: dict[str, int]
    waiting_s: dict[str, float]
    undelivered: int
    undelivered_s: float | None
    machine: Machine
    disk: Disk
    roles: dict[str, bool]
    destinations: list[DestinationState]
    certificates: list[Certificate]
    bundles: list[str]
    needs: list[Need]
    latest: list[StudyLine]


def disk_of(desk: Desk) -> Disk:
    """The spool's disk."""
    usage = shutil.disk_usage(desk.settings.spool_dir)
    return Disk(usage.free, usage.total, desk.settings.receiver.reserve_bytes)


def delivery_ages(desk: Desk, at: float) -> dict[str, float]:
    """Destination → seconds since its longest waiting result was made, or last retried by a person."""
    # Its time to give up began then.
    began = desk.settings.delivery.give_up_s
    return {name: max(at - (ends - began), 0.0) for name, ends in desk.index.first_expiry().items()}


def now_of(desk: Desk) -> Now:
    """Look at everything."""
    at = time.time()
    states = desk.catalogue.states()
    counts = desk.catalogue.deliveries()
    paused = desk.index.paused()
    destinations = [
        DestinationState(
            target.name,
            target.ae_title,
            f"{target.host}:{target.port}",
            desk.watch.answer(target.name),
            counts.get(target.name, {}),
            target.name in paused,
        )
        for target in desk.targets
    ]
    roles = {role: role_runs(desk.settings.service.data_dir, role) for role in ROLES}
    disk, certs = disk_of(desk), certificates(desk.settings)
    in_use = [f"{line.name} {line.version}" for line in desk.bundles.in_use()]
    dead = sum(found.get("dead", 0) for found in counts.values())
    return Now(
        at=at,
        states=states,
        waiting_s={state: at - since for state, since in desk.catalogue.oldest().items()},
        undelivered=sum(found.get("pending", 0) + found.get("failed", 0) for found in counts.values()),
        undelivered_s=max(delivery_ages(desk, at).values(), default=None),
        machine=desk.watch.machine,
        disk=disk,
        roles=roles,
        destinations=destinations,
        certificates=certs,
        bundles=in_use,
        needs=[
            *_machine_needs(disk, roles, certs, in_use, desk.settings.model.bundle),
            *_destination_needs(destinations, dead),
            *_gone_needs(gone(desk, counts)),
            *_commitment_needs(desk, at),
            *_study_needs(states),
            *(Need("warn", text, "/quality") for text in desk.drift.found),
        ],
        latest=desk.catalogue.studies(Query(), size=_LATEST)[0],
    )


def _machine_needs(
    disk: Disk, roles: dict[str, bool], certs: list[Certificate], in_use: list[str], named: str
) -> list[Need]:
    needs = [
        Need("bad", f"the role “{role}” does not run on this host: look at the log")
        for role, runs in roles.items()
        if not runs
    ]
    if disk.below_reserve:
        needs.append(Need("bad", "the disk is below its reserve: new instances are refused (0xA700)"))
    if not in_use and not named:
        needs.append(
            Need("bad", "no adapter bundle is in use: studies are refused until one is", "/adapters")
        )
    needs += [
        Need("bad" if cert.days < 7 else "warn", f"certificate “{cert.name}” {cert.words}")
        for cert in certs
        if cert.days < _EXPIRY_WARNING_DAYS
    ]
    return needs


def _destination_needs(destinations: list[DestinationState], dead: int) -> list[Need]:
    needs = [
        Need("bad", f"destination {d.name} does not answer: {d.answer.reason}")
        for d in destinations
        if d.answer is not None and not d.answer.ok
    ]
    if dead:
        objects = "result object is" if dead == 1 else "result objects are"
        needs.append(Need("bad", f"{dead} {objects} undeliverable (dead letters)", "/studies?delivery=dead"))
    return needs


def gone(desk: Desk, counts: dict[str, dict[str, int]]) -> dict[str, int]:
    """Destination that is not in the settings (any more) → number of results that it did not get."""
    known = {target.name for target in desk.targets}
    return {
        name: count
        for name, states in counts.items()
        if name not in known and (count := sum(states.values()) - states.get("sent", 0))
    }


def _gone_needs(waiting: dict[str, int]) -> list[Need]:
    return [
        Need(
            "bad",
            f"undelivered results for {name}, which is no longer in the settings: {count}; "
            f"`daemon discard {name}` gives them up",
            "/studies?delivery=dead",
        )
        for name, count in waiting.items()
    ]


def _commitment_needs(desk: Desk, at: float) -> list[Need]:
    """Who has not committed itself for longer than an answer is asked for."""
    patience_s = desk.settings.commitment.timeout_s * desk.settings.commitment.maximum_requests
    return [
        Need(
            "warn",
            f"{name} has not committed itself to {count} delivered result objects: they cannot be pruned",
            "/studies?delivery=not+committed",
        )
        for name, (count, since) in desk.catalogue.uncommitted(desk.settings.committing).items()
        if at - since > patience_s
    ]


def _study_needs(states: dict[str, int]) -> list[Need]:
    def said(state: str, text: str) -> str:
        return f"{states[state]} {'study' if states[state] == 1 else 'studies'} {text}"

    needs = []
    if states["failed"]:
        needs.append(Need("bad", said("failed", "failed: something broke"), "/studies?state=failed"))
    if states["refused"]:
        needs.append(Need("warn", said("refused", "refused: nothing to score"), "/studies?state=refused"))
    return needs
