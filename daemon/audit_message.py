"""Audit messages in the form of PS3.15 A.5: what happened, who took part, and whom it was about.

They name patients and studies, as the standard wants them to: they go to the audit trail alone
(``daemon.audit``), never into the log.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple
from xml.etree import ElementTree as ET


class Code(NamedTuple):
    """A coded value of PS3.16 (CID 400 to 405) or of RFC 3881."""

    value: str
    meaning: str
    scheme: str = "DCM"


# Events (CID 400) and their types (CID 401, 403).
APPLICATION_ACTIVITY = Code("110100", "Application Activity")
APPLICATION_START = Code("110120", "Application Start")
APPLICATION_STOP = Code("110121", "Application Stop")
INSTANCES_ACCESSED = Code("110103", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED = Code("110104", "DICOM Instances Transferred")
SECURITY_ALERT = Code("110113", "Security Alert")
NODE_AUTHENTICATION = Code("110126", "Node Authentication")
USER_AUTHENTICATION = Code("110114", "User Authentication")
LOGIN = Code("110122", "Login")
LOGOUT = Code("110123", "Logout")
# Roles of participants (CID 402).
APPLICATION = Code("110150", "Application")
DESTINATION = Code("110152", "Destination Role ID")
SOURCE = Code("110153", "Source Role ID")
# Kinds of identifiers (CID 404, and A.5.1.2.4).
_STUDY_UID = Code("110180", "Study Instance UID")
_NODE_ID = Code("110182", "Node ID")
_PATIENT_NUMBER = Code("2", "Patient Number", "RFC-3881")

SUCCESS, MINOR_FAILURE, SERIOUS_FAILURE = 0, 4, 8


@dataclass(frozen=True, slots=True)
class Event:
    """The event: what it was, of which type, which action (C, R, U, D, E), and how it ended."""

    identifier: Code
    action: str
    type: Code | None = None
    outcome: int = SUCCESS
    description: str = ""


@dataclass(frozen=True, slots=True)
class Participant:
    """Who took part: a person, a process or a node.

    Parameters
    ----------
    user_id
        Name of an account, AE title, or process id.
    requestor
        Whether it began the event.
    role
        What it did in it.
    user_name
        In words.
    ae_title
        If it is a DICOM application.
    address, is_name
        Where in the network; whether that is a name and no address.
    """

    user_id: str
    requestor: bool
    role: Code | None = None
    user_name: str = ""
    ae_title: str = ""
    address: str = ""
    is_name: bool = False


@dataclass(frozen=True, slots=True)
class Patient:
    """Whom an event is about; both are empty where a file does not say it."""

    identifier: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class StudyObject:
    """A study that an event is about, with the number of its instances by SOP class."""

    study_instance_uid: str
    instances: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Origin:
    """The audit source: this node, and the site that it belongs to."""

    identifier: str
    site: str = ""


def message(
    origin: Origin,
    event: Event,
    participants: Sequence[Participant],
    *,
    studies: Sequence[StudyObject] = (),
    patient: Patient | None = None,
    node: tuple[str, str] | None = None,
    at: datetime | None = None,
) -> str:
    """Return one audit message as one line of XML.

    Parameters
    ----------
    origin
        Who reports.
    event, participants
        What happened and who took part, one at least.
    studies, patient
        Whom it was about; of one patient alone (PS3.15 A.5.3.7).
    node
        A node that an alert is about, and the alert in words.
    at
        When; now by default.
    """
    root = ET.Element("AuditMessage")
    _add_event(root, event, at or datetime.now(UTC))
    for participant in participants:
        _add_participant(root, participant)
    source = {"AuditEnterpriseSiteID": origin.site} if origin.site else {}
    source["AuditSourceID"] = origin.identifier
    # Value 4 of PS3.15 A.5.1.2.1: an application server.
    ET.SubElement(
        _element(root, "AuditSourceIdentification", source), "AuditSourceTypeCode", {"csd-code": "4"}
    )
    for study in studies:
        _add_study(root, study)
    if patient is not None:
        attributes = _object(patient.identifier or "unknown", kind="1", role="1")
        _add_object(root, attributes, _PATIENT_NUMBER, patient.name or "unknown")
    if node is not None:
        alert = _add_object(root, _object(node[0], kind="2", role="13"), _NODE_ID, node[0])
        # A.5.1: values of details are base64, whatever they are.
        value = base64.b64encode(_clean(node[1]).encode()).decode()
        ET.SubElement(alert, "ParticipantObjectDetail", {"type": "Alert Description", "value": value})
    return ET.tostring(root, encoding="unicode")


def _add_event(root: ET.Element, event: Event, at: datetime) -> None:
    attributes = {
        "EventActionCode": event.action,
        "EventDateTime": at.isoformat(timespec="milliseconds"),
        "EventOutcomeIndicator": str(event.outcome),
    }
    element = _element(root, "EventIdentification", attributes)
    _add_code(element, "EventID", event.identifier)
    if event.type is not None:
        _add_code(element, "EventTypeCode", event.type)
    if event.description:
        ET.SubElement(element, "EventOutcomeDescription").text = _clean(event.description)


def _add_participant(root: ET.Element, participant: Participant) -> None:
    attributes = {"UserID": participant.user_id or "unknown"}
    if participant.ae_title:
        attributes["AlternativeUserID"] = f"AETITLES={participant.ae_title}"
    if participant.user_name:
        attributes["UserName"] = participant.user_name
    attributes["UserIsRequestor"] = "true" if participant.requestor else "false"
    if participant.address:
        attributes["NetworkAccessPointID"] = participant.address
        attributes["NetworkAccessPointTypeCode"] = "1" if participant.is_name else "2"
    element = _element(root, "ActiveParticipant", attributes)
    if participant.role is not None:
        _add_code(element, "RoleIDCode", participant.role)


def _add_study(root: ET.Element, study: StudyObject) -> None:
    attributes = _object(study.study_instance_uid, kind="2", role="3")
    element = _add_object(root, attributes, _STUDY_UID, study.study_instance_uid)
    description = ET.SubElement(element, "ParticipantObjectDescription")
    for uid, count in sorted(study.instances.items()):
        _element(description, "SOPClass", {"UID": uid, "NumberOfInstances": str(count)})


def _object(identifier: str, *, kind: str, role: str) -> dict[str, str]:
    return {
        "ParticipantObjectID": identifier,
        "ParticipantObjectTypeCode": kind,
        "ParticipantObjectTypeCodeRole": role,
    }


def _add_object(root: ET.Element, attributes: dict[str, str], kind: Code, name: str) -> ET.Element:
    element = _element(root, "ParticipantObjectIdentification", attributes)
    _add_code(element, "ParticipantObjectIDTypeCode", kind)
    ET.SubElement(element, "ParticipantObjectName").text = _clean(name)
    return element


def _add_code(parent: ET.Element, name: str, code: Code) -> None:
    attributes = {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning}
    ET.SubElement(parent, name, attributes)


def _element(parent: ET.Element, name: str, attributes: Mapping[str, str]) -> ET.Element:
    return ET.SubElement(parent, name, {key: _clean(value) for key, value in attributes.items()})


def _clean(text: str) -> str:
    """Peers choose some of these texts, and XML has no form for control characters and surrogates."""
    return "".join(char if char.isprintable() else "?" for char in text)
