"""What the schema of PS3.15 A.5.1.1 asks of an audit message, as tables; written after its text."""

import base64
from datetime import datetime
from xml.etree import ElementTree as ET

# Element → (required attributes, optional attributes, children in order with their fewest and most).
Rule = tuple[frozenset[str], frozenset[str], tuple[tuple[str, int, int], ...]]
MANY = 1_000_000
CODED: Rule = (frozenset({"csd-code", "codeSystemName", "originalText"}), frozenset({"displayName"}), ())
TEXT: Rule = (frozenset(), frozenset(), ())


def _rule(required: str, optional: str = "", *children: tuple[str, int, int]) -> Rule:
    return frozenset(required.split()), frozenset(optional.split()), children


RULES: dict[str, Rule] = {
    "AuditMessage": _rule(
        "",
        "",
        ("EventIdentification", 1, 1),
        ("ActiveParticipant", 1, MANY),
        ("AuditSourceIdentification", 1, 1),
        ("ParticipantObjectIdentification", 0, MANY),
    ),
    "EventIdentification": _rule(
        "EventDateTime EventOutcomeIndicator",
        "EventActionCode",
        ("EventID", 1, 1),
        ("EventTypeCode", 0, MANY),
        ("EventOutcomeDescription", 0, 1),
    ),
    "ActiveParticipant": _rule(
        "UserID UserIsRequestor",
        "AlternativeUserID UserName NetworkAccessPointID NetworkAccessPointTypeCode",
        ("RoleIDCode", 0, MANY),
        ("MediaIdentifier", 0, 1),
    ),
    "AuditSourceIdentification": _rule(
        "AuditSourceID", "AuditEnterpriseSiteID", ("AuditSourceTypeCode", 0, MANY)
    ),
    "AuditSourceTypeCode": _rule("csd-code", "codeSystemName displayName originalText"),
    "ParticipantObjectIdentification": _rule(
        "ParticipantObjectID",
        "ParticipantObjectTypeCode ParticipantObjectTypeCodeRole ParticipantObjectDataLifeCycle "
        "ParticipantObjectSensitivity",
        ("ParticipantObjectIDTypeCode", 1, 1),
        ("ParticipantObjectName", 1, 1),
        ("ParticipantObjectDetail", 0, MANY),
        ("ParticipantObjectDescription", 0, MANY),
    ),
    "ParticipantObjectDetail": _rule("type value"),
    "ParticipantObjectDescription": _rule(
        "",
        "",
        ("MPPS", 0, MANY),
        ("Accession", 0, MANY),
        ("SOPClass", 0, MANY),
        ("ParticipantObjectContainsStudy", 0, 1),
        ("Encrypted", 0, 1),
        ("Anonymized", 0, 1),
    ),
    "SOPClass": _rule("NumberOfInstances", "UID", ("Instance", 0, MANY)),
    "EventID": CODED,
    "EventTypeCode": CODED,
    "RoleIDCode": CODED,
    "ParticipantObjectIDTypeCode": CODED,
    "EventOutcomeDescription": TEXT,
    "ParticipantObjectName": TEXT,
}
VALUES = {
    "EventActionCode": set("CRUDE"),
    "EventOutcomeIndicator": {"0", "4", "8", "12"},
    "UserIsRequestor": {"true", "false"},
    "NetworkAccessPointTypeCode": set("12345"),
    "ParticipantObjectTypeCode": set("1234"),
    "ParticipantObjectTypeCodeRole": {str(number) for number in range(1, 27)},
    "ParticipantObjectDataLifeCycle": {str(number) for number in range(1, 16)},
}


def check(message: str) -> ET.Element:
    """Return the message parsed; fails where it breaks the schema."""
    root = ET.fromstring(message)
    assert root.tag == "AuditMessage"
    _check(root)
    requestors = root.findall("ActiveParticipant[@UserIsRequestor='true']")
    # A.5.2: one requestor at most.
    assert len(requestors) <= 1
    return root


def _check(element: ET.Element) -> None:
    required, optional, children = RULES[element.tag]
    given = set(element.attrib)
    assert required <= given <= required | optional, (element.tag, given)
    for name, value in element.attrib.items():
        assert value, (element.tag, name)
        assert value in VALUES.get(name, {value}), (name, value)
    if element.tag == "EventIdentification":
        assert datetime.fromisoformat(element.attrib["EventDateTime"]).tzinfo is not None
    if element.tag == "ParticipantObjectDetail":
        base64.b64decode(element.attrib["value"], validate=True)
    if element.tag == "SOPClass":
        int(element.attrib["NumberOfInstances"])
    tags = [child.tag for child in element]
    order = [name for name, _, _ in children]
    assert tags == sorted(tags, key=order.index), (element.tag, tags)
    for name, fewest, most in children:
        assert fewest <= tags.count(name) <= most, (element.tag, name)
    for child in element:
        _check(child)
