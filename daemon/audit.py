"""The audit trail: what PS3.15 A.5.3 wants recorded of this node, to a file and to a syslog repository.

The trail names patients and studies; its files are the owner's alone (0600) and nothing of it
appears in the log.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from daemon import audit_message as am
from daemon.attributes import attributes
from daemon.audit_file import TrailFile
from daemon.errors import SpoolError
from daemon.log import event
from daemon.settings import Settings
from daemon.syslog import Repository, Syslog
from daemon.tls import client_context, credentials

_APPLICATION = "pacs-anomaly-daemon"
# Strangers can cause alerts as fast as they connect: beyond this many a minute they are only counted.
_ALERTS_PER_MINUTE = 100
_PATIENTS_KEPT = 1_000


class Output(Protocol):
    """Where messages go."""

    def write(self, message: str) -> None:
        """Take one message."""

    def close(self) -> None:
        """Take no more."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Instances of one study that came, went or were looked at; ``path`` is a file of the study."""

    study_instance_uid: str
    instances: Mapping[str, int]
    path: Path


class Trail:
    """What one process reports; without outputs it does nothing.

    Parameters
    ----------
    origin
        This node.
    role
        Of this process.
    ae_title, host
        Our own.
    outputs
        Where to.
    clock
        Seconds of any origin, for the limit of alerts.
    """

    def __init__(
        self,
        origin: am.Origin,
        role: str,
        ae_title: str,
        host: str,
        outputs: Sequence[Output],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._origin, self._role, self._ae_title, self._host = origin, role, ae_title, host
        self._outputs, self._clock = tuple(outputs), clock
        self._patients: OrderedDict[str, am.Patient] = OrderedDict()
        self._lock = threading.Lock()
        self._window, self._alerts = float("-inf"), 0

    @property
    def active(self) -> bool:
        """Whether anything is recorded."""
        return bool(self._outputs)

    def started(self) -> None:
        """This process has started (A.5.3.1)."""
        self._application(am.APPLICATION_START)

    def stopped(self) -> None:
        """This process ends; nothing can be written after it."""
        self._application(am.APPLICATION_STOP)
        for output in self._outputs:
            output.close()

    def received(self, calling_ae: str, address: str, transfers: Sequence[Transfer]) -> None:
        """A peer has stored instances here (A.5.3.7)."""
        peer = am.Participant(calling_ae, True, am.SOURCE, ae_title=calling_ae, address=address)
        self._transferred(transfers, peer, self._self(am.DESTINATION), "C")

    def sent(
        self, name: str, ae_title: str, host: str, transfers: Sequence[Transfer], reason: str = ""
    ) -> None:
        """We have stored instances at a destination, or failed to, for a reason (A.5.3.7)."""
        peer = am.Participant(
            name, False, am.DESTINATION, ae_title=ae_title, address=host, is_name=not _is_ip(host)
        )
        self._transferred(transfers, peer, self._self(am.SOURCE, requestor=True), "C", reason)

    def accessed(self, user: str, address: str, transfer: Transfer) -> None:
        """A person has looked at a study or fetched a result (A.5.3.6)."""
        who = am.Participant(user, True, address=address)
        self._report(am.Event(am.INSTANCES_ACCESSED, "R"), [who, self._self(am.SOURCE)], transfer)

    def signed_in(self, user: str, address: str, *, ok: bool) -> None:
        """A person has signed in, or has tried to (A.5.3.11)."""
        outcome = am.SUCCESS if ok else am.MINOR_FAILURE
        self._authentication(am.Event(am.USER_AUTHENTICATION, "E", am.LOGIN, outcome), user, address)

    def signed_out(self, user: str, address: str) -> None:
        """A person has signed out (A.5.3.11)."""
        self._authentication(am.Event(am.USER_AUTHENTICATION, "E", am.LOGOUT), user, address)

    def refused(self, calling_ae: str, address: str, reason: str) -> None:
        """A node was not let in: association rejected, or TLS failed (A.5.3.10)."""
        if not self._outputs:
            return
        with self._lock:
            now, more = self._clock(), 0
            if now - self._window >= 60.0:
                more = max(self._alerts - _ALERTS_PER_MINUTE, 0)
                self._window, self._alerts = now, 0
            self._alerts += 1
            if self._alerts > _ALERTS_PER_MINUTE:
                return
        if more:
            reason += f"; {more} further alerts in the minute before this one"
        kind = am.Event(am.SECURITY_ALERT, "E", am.NODE_AUTHENTICATION, am.SERIOUS_FAILURE)
        peer = am.Participant(calling_ae or address, False, ae_title=calling_ae, address=address)
        subject = (calling_ae or address, reason)
        self._write(am.message(self._origin, kind, [self._self(requestor=True), peer], node=subject))

    def _application(self, kind: am.Code) -> None:
        who = self._self(am.APPLICATION)
        self._report(am.Event(am.APPLICATION_ACTIVITY, "E", kind), [who])

    def _authentication(self, kind: am.Event, user: str, address: str) -> None:
        self._report(kind, [am.Participant(user, True, address=address), self._self()])

    def _transferred(
        self,
        transfers: Sequence[Transfer],
        peer: am.Participant,
        own: am.Participant,
        action: str,
        reason: str = "",
    ) -> None:
        # One message for each study: it may be about one patient only.
        outcome = am.SERIOUS_FAILURE if reason else am.SUCCESS
        for transfer in transfers:
            kind = am.Event(am.INSTANCES_TRANSFERRED, action, None, outcome, reason)
            participants = [own, peer] if own.role == am.SOURCE else [peer, own]
            self._report(kind, participants, transfer)

    def _report(
        self, kind: am.Event, participants: Sequence[am.Participant], transfer: Transfer | None = None
    ) -> None:
        if not self._outputs:
            return
        if transfer is None:
            self._write(am.message(self._origin, kind, participants))
            return
        study = am.StudyObject(transfer.study_instance_uid, transfer.instances)
        patient = self._patient(transfer)
        self._write(am.message(self._origin, kind, participants, studies=[study], patient=patient))

    def _write(self, message: str) -> None:
        for output in self._outputs:
            output.write(message)

    def _self(self, role: am.Code | None = None, *, requestor: bool = False) -> am.Participant:
        name = f"{_APPLICATION} {self._role}"
        return am.Participant(str(os.getpid()), requestor, role, name, self._ae_title, self._host, True)

    def _patient(self, transfer: Transfer) -> am.Patient:
        """Read whom a study is about from one of its files."""
        with self._lock:
            if found := self._patients.get(transfer.study_instance_uid):
                self._patients.move_to_end(transfer.study_instance_uid)
                return found
        patient = _read_patient(transfer.path)
        with self._lock:
            self._patients[transfer.study_instance_uid] = patient
            while len(self._patients) > _PATIENTS_KEPT:
                self._patients.popitem(last=False)
        return patient


def open_trail(settings: Settings, role: str, process: int = 0) -> Trail:
    """Return the trail of a process, as ``[audit]`` wants it.

    Parameters
    ----------
    settings
        Of the installation.
    role
        Of the process.
    process
        Its number among those of the role.

    Raises
    ------
    SettingsError
        A certificate for the repository cannot be used.
    """
    options, host = settings.audit, settings.engine.node or socket.gethostname()
    outputs: list[Output] = []
    if options.folder:
        # A file for each process: those that share one could not rename it.
        file_name = f"{role}-{process}.log" if process else f"{role}.log"
        path = settings.service.data_dir / options.folder / file_name
        outputs.append(TrailFile(path, options.file_bytes, options.keep_files))
    if options.syslog:
        name, _, port = options.syslog.rpartition(":")
        context = client_context(credentials(settings, options.syslog_ca))
        outputs.append(Syslog(Repository(name.strip("[]"), int(port), context), host))
    origin = am.Origin(options.source_id or f"{settings.receiver.ae_title}@{host}", options.site_id)
    return Trail(origin, role, settings.receiver.ae_title, host, outputs)


def no_trail() -> Trail:
    """Return a trail that records nothing."""
    return Trail(am.Origin(""), "", "", "", ())


def _read_patient(path: Path) -> am.Patient:
    try:
        with attributes(path, ("PatientID", "PatientName", "SpecificCharacterSet")) as ds:
            return am.Patient(str(ds.get("PatientID") or ""), str(ds.get("PatientName") or ""))
    except SpoolError as error:
        # A damaged or hostile file: the event is recorded without the patient.
        event("audit", level=logging.WARNING, error=type(error.__cause__).__name__)
        return am.Patient()


def _is_ip(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()
