"""What the encoders take and give: one Analysis per frame group, one Job per study revision."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from pydicom.dataset import Dataset

from daemon.findings import Finding
from daemon.profiles import RESULT_CLASSES
from daemon.study import FrameGroup
from daemon.uids import OWN_CREATOR_UID, derived, result_uid

# Research-use statement of the SR (TID 1501 comment) and of the preview's legend.
RESEARCH_USE = "Research use only, not for diagnosis"


@dataclass(frozen=True, slots=True)
class Analysis:
    """What one bundle says of one frame group.

    Parameters
    ----------
    group
        The frames that were looked at.
    scored, total
        Frames that were scored, and frames of the group.
    findings
        By falling peak score.
    slice_scores
        One per frame of the group in its order, None where the frame was not scored.
    bundle_name, bundle_version, backbone_name
        The model; the version is the bundle's content hash.
    threshold
        Score from which a voxel belongs to a finding.
    slice_threshold
        Score that a slice must reach for a region in it to be a finding.
    """

    group: FrameGroup
    scored: int
    total: int
    findings: tuple[Finding, ...]
    slice_scores: tuple[float | None, ...]
    bundle_name: str
    bundle_version: str
    backbone_name: str
    threshold: float
    slice_threshold: float = 0.0

    def __post_init__(self) -> None:
        """Refuse counts that contradict each other."""
        if not 0 <= self.scored <= self.total:
            raise ValueError(f"scored {self.scored} of {self.total} frames is impossible")
        if self.findings and not self.scored:
            raise ValueError("findings without a scored frame are impossible")

    @property
    def model(self) -> str:
        """Backbone, bundle and its hash in one line."""
        return f"{self.backbone_name}/{self.bundle_name}/{self.bundle_version}"

    @property
    def key(self) -> str:
        """What tells this group from the others of its series."""
        return self.group.key


@dataclass(frozen=True, slots=True)
class Predecessor:
    """A result of an earlier revision that this one replaces (PS3.3 C.17.2.3)."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    # Names of the destinations that got it, in one text; "" = every one.
    destinations: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One analysis of one study revision: everything in the results that is not of the images.

    Parameters
    ----------
    study_instance_uid, revision
        Of the study; the revision counts from 1.
    created
        When the job was accepted, with a time zone; every date and time of the results.
    device_uid
        Of this installation (PS3.3 C.7.5.1).
    software_version
        Of the daemon.
    manufacturer, algorithm_name
        Manufacturer and model name of the equipment, source and name of the algorithm; ASCII, at most
        64 characters.
    parameters
        Settings that change the result, in one line; part of every UID.
    device_serial_number
        Type 1 in a SEG, hence never empty.
    predecessors
        Results of the last revision; the SR names its SRs.
    """

    study_instance_uid: str
    revision: int
    created: datetime
    device_uid: str
    software_version: str
    manufacturer: str = "pacs-anomaly-daemon"
    algorithm_name: str = "PACS anomaly daemon"
    parameters: str = ""
    device_serial_number: str = "1"
    predecessors: tuple[Predecessor, ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuse a job that would make an invalid or ambiguous object."""
        if self.created.tzinfo is None:
            raise ValueError("a job's creation time needs a time zone")
        if self.revision < 1 or not self.device_serial_number:
            raise ValueError("revisions count from 1 and the device serial number cannot be empty")
        for text in (self.manufacturer, self.algorithm_name, self.device_serial_number):
            if not text.isascii() or len(text) > 64:
                raise ValueError("equipment texts must be ASCII of at most 64 characters (LO, PS3.5 6.2)")

    def uid(self, kind: str, analysis: Analysis) -> str:
        """UID of one object or series of this job that comes from one analysis."""
        return result_uid(
            kind,
            study_instance_uid=self.study_instance_uid,
            group_key=analysis.key,
            sop_instance_uids=(frame.sop_instance_uid for frame in analysis.group.frames),
            model=analysis.model,
            parameters=f"{self.parameters} threshold={analysis.threshold}",
            revision=self.revision,
        )

    def algorithm_version(self, analysis: Analysis) -> str:
        """Software version and bundle hash: the version of the algorithm that ran."""
        return f"{self.software_version}+{analysis.bundle_version}"[:64]

    def algorithm_device_uid(self, bundle_version: str) -> str:
        """Device UID of an algorithm: changes when the adapters are fitted anew (AIR)."""
        return derived("device", self.device_uid, bundle_version)

    def local_time(self, timezone_offset: str) -> datetime:
        """Creation time in a TimezoneOffsetFromUTC ("+0200"), unchanged where it is empty or damaged."""
        try:
            offset = datetime.strptime(timezone_offset.strip(), "%z").utcoffset() or timedelta(0)
        except ValueError:
            return self.created
        return self.created.astimezone(timezone(offset))


@dataclass(frozen=True, slots=True)
class SegmentReference:
    """Where a finding is in a SEG: its segment and the frames that hold it, both from 1."""

    tracking_uid: str
    segment_number: int
    frame_numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ResultObject:
    """One encoded result: the bytes that are kept, sent and sent again.

    Parameters
    ----------
    sop_class_uid, sop_instance_uid, series_instance_uid
        Of the object.
    content
        Part 10 file, Explicit VR Little Endian.
    segments
        What a SEG holds; empty for the others.
    destinations
        Names of those that get it; empty for every one.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    content: bytes = field(repr=False)
    segments: tuple[SegmentReference, ...] = ()
    destinations: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """``SEG``, ``SR``, ``PM`` (parametric map) or ``SC`` (secondary capture)."""
        return RESULT_CLASSES[self.sop_class_uid]


def tracking_uid(job: Job, analysis_model: str, group: FrameGroup, number: int) -> str:
    """Tracking UID of a finding (TID 300 row 1), known before the findings are.

    Parameters
    ----------
    job
        The study revision.
    analysis_model
        ``Analysis.model`` of the bundle that scores the group.
    group
        Where the finding is.
    number
        Of the finding, from 1.

    Returns
    -------
    The UID.
    """
    return result_uid(
        f"finding-{number}",
        study_instance_uid=job.study_instance_uid,
        group_key=group.key,
        sop_instance_uids=(frame.sop_instance_uid for frame in group.frames),
        model=analysis_model,
        parameters=job.parameters,
        revision=job.revision,
    )


def is_own(ds: Dataset) -> bool:
    """Tell whether an object was written by this software, so that it is never scored.

    Parameters
    ----------
    ds
        Header of a received instance.

    Returns
    -------
    True if InstanceCreatorUID (PS3.3 C.12.1) is ours.
    """
    return str(ds.get("InstanceCreatorUID", "")) == OWN_CREATOR_UID
